//! Owns connections: how many, how long, and their end. Never knows what is asked.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::places::{Places, Taken};

/// Connections at a time, of each listener; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 32;
const EQUAL: Places = Places {
    all: CONNECTIONS_MAX,
    of_one: CONNECTIONS_MAX,
};
/// Longest sending of a request's header.
pub(super) const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of a request that are held in memory.
const BUFFER_BYTES_MAX: usize = 16 << 10;
/// Longest connection over TCP, where anybody may connect.
const TCP_LIMIT: Duration = Duration::from_secs(30);
/// How long answers under way may take when the server stops.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// Pause after a failed accept: no descriptors are left, for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who asks, over TCP: an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// A bound listener and what it serves.
pub(super) struct Listener {
    socket: Socket,
    router: Router,
    places: Places,
}

enum Socket {
    Unix(std::os::unix::net::UnixListener),
    Tcp(std::net::TcpListener),
}

impl Listener {
    pub(super) fn unix(listener: std::os::unix::net::UnixListener, router: Router) -> Self {
        Self {
            socket: Socket::Unix(listener),
            router,
            places: EQUAL,
        }
    }

    pub(super) fn tcp(listener: std::net::TcpListener, router: Router) -> Self {
        Self {
            socket: Socket::Tcp(listener),
            router,
            places: EQUAL,
        }
    }

    /// More than `all` wait in the kernel's queue; more of one address are closed at once.
    pub(super) fn places(self, places: Places) -> Self {
        Self { places, ..self }
    }

    /// Serves until `stop`. To be called within a runtime.
    pub(super) fn serve(self, stop: CancellationToken) -> io::Result<impl Future<Output = ()>> {
        let (router, places) = (self.router, self.places);
        let accept = match self.socket {
            Socket::Unix(listener) => Accept::Unix(tokio::net::UnixListener::from_std(listener)?),
            Socket::Tcp(listener) => Accept::Tcp(tokio::net::TcpListener::from_std(listener)?),
        };
        Ok(accept_all(accept, router, places, stop))
    }
}

enum Accept {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Accept {
    async fn next(&self) -> io::Result<(Box<dyn Stream>, Option<Peer>)> {
        Ok(match self {
            Self::Unix(listener) => (Box::new(listener.accept().await?.0), None),
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                (Box::new(stream), Some(Peer(peer)))
            }
        })
    }
}

async fn accept_all(accept: Accept, router: Router, limits: Places, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits.all));
    let taken = Taken::new(limits);
    let connections = TaskTracker::new();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, accept.next().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, None)) => {
                let served = serve(stream, router.clone(), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    served.await;
                });
            }
            Ok((stream, Some(peer))) => {
                let Some(own) = taken.take(peer.0.ip()) else {
                    continue;
                };
                let router = router.clone().layer(Extension(peer));
                let served = timeout(TCP_LIMIT, serve(stream, router, stop.clone()));
                connections.spawn(async move {
                    let _both = (place, own);
                    drop(served.await);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    // What does not end by then ends with the runtime.
    let _ = timeout(GRACE, connections.wait()).await;
}

/// One request: whoever asks again connects again, so that nobody holds a place without a question.
async fn serve(stream: Box<dyn Stream>, router: Router, stop: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(BUFFER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
