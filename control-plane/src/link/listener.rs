//! Owns the way from a TCP connection to one that gRPC may be spoken on: TLS with the settings of the moment, and the
//! limits of who comes. Never knows a call.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::StreamExt;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpIncoming};

use super::{
    admission::{Admission, Guest},
    limits::LogLimit,
};
use crate::pki::Peer;

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection without a client certificate lives: enough to join, not to stay.
const STRANGER_LIFE: Duration = Duration::from_secs(60);
/// After the system had no descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// All that a connection without a certificate may send: a Register is some 2 KiB. Messages of nodes may be a thousand times
/// as large, and each is held in memory before anybody has looked at it.
const STRANGER_BYTES_MAX: usize = 128 << 10;

/// One connection, with TLS and within the limits.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    _guest: Guest,
    /// A stranger's end.
    end: Option<Pin<Box<Sleep>>>,
    /// What a stranger has sent.
    stranger_bytes: usize,
}

/// Accepts connections until told to stop. Nothing that a peer does ends it.
pub(super) async fn accept(
    mut incoming: TcpIncoming,
    tls: watch::Receiver<Arc<ServerConfig>>,
    connections: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let admission = Arc::new(Admission::default());
    let refused = LogLimit::new(1);
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(done) = handshakes.join_next() => {
                if let Ok(Some(connection)) = done && connections.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
            accepted = incoming.next() => match accepted {
                Some(Ok(stream)) => {
                    let Ok(address) = stream.peer_addr() else { continue };
                    match admission.stranger(address.ip()) {
                        Some(guest) => {
                            let (config, admission) = (tls.borrow().clone(), admission.clone());
                            handshakes.spawn(shake_hands(stream, address, config, admission, guest));
                        }
                        None if refused.allows("strangers") => {
                            tracing::warn!(%address, "a connection is closed: too many come without a certificate");
                        }
                        None => {}
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
                None => return,
            },
        }
    }
}

async fn shake_hands(
    stream: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    admission: Arc<Admission>,
    guest: Guest,
) -> Option<Connection> {
    let stream = match timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "no TLS with this peer");
            return None;
        }
        Err(_) => {
            tracing::debug!(%address, "no TLS with this peer in time");
            return None;
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let (guest, end) = match certificate.map(|der| Peer::from_der(der)) {
        None => (guest, Some(Box::pin(sleep(STRANGER_LIFE)))),
        Some(Ok(peer)) => match admission.node(&peer.node_id) {
            Some(guest) => (guest, None),
            None => {
                tracing::debug!(%address, node = %peer.node_id, "a connection is closed: the node has too many");
                return None;
            }
        },
        // Our authority signed it, but it names no node; each call is refused with the reason.
        Some(Err(_)) => (guest, Some(Box::pin(sleep(STRANGER_LIFE)))),
    };
    Some(Connection {
        stream,
        _guest: guest,
        end,
        stranger_bytes: 0,
    })
}

impl Connected for Connection {
    type ConnectInfo = <TlsStream<TcpStream> as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.end.is_some() {
            self.stranger_bytes += buffer.filled().len() - before;
            if self.stranger_bytes > STRANGER_BYTES_MAX {
                return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
            }
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
