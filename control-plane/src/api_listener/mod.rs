//! Owns the way from a TCP connection to a request of the API: TLS where it is configured, and the limits of who comes:
//! connections in all and of one address, time for a handshake, for a header, between requests. Never reads a request.

mod tls;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, pin::pin, time::Duration};

use axum::{Router, extract::ConnectInfo};
use berth_service::places::{Places, Taken};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::link::source;

pub use self::tls::{ApiTls, ApiTlsError};

/// After the system had no descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What a caller may take of the listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones are closed.
    pub connections: Places,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// From a connection's begin, or its last answer, to the end of the next header.
    pub header: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: Places {
                all: 1_024,
                of_one: 512,
            },
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(30),
        }
    }
}

/// Serves `router` until told to stop, then finishes the requests under way. Dropping the future ends them.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<ApiTls>,
    limits: Limits,
    stop: CancellationToken,
) {
    let taken = Taken::new(limits.connections);
    let service = TowerToHyperService::new(router);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let Some(place) = taken.take(source(address.ip())) else {
                        tracing::debug!(%address, "a connection is closed: there are too many");
                        continue;
                    };
                    // Answers are small; a connection that cannot be told so still works.
                    stream.set_nodelay(true).ok();
                    let acceptor = tls.as_ref().map(ApiTls::acceptor);
                    let connection = connection(stream, address, acceptor, service.clone(), limits, stop.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    service: TowerToHyperService<Router>,
    limits: Limits,
    stop: CancellationToken,
) {
    let Some(acceptor) = acceptor else {
        return requests(stream, address, service, limits, stop).await;
    };
    match timeout(limits.handshake, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, address, service, limits, stop).await,
        Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS with this caller"),
        Err(_) => tracing::debug!(%address, "no TLS with this caller in time"),
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: SocketAddr,
    service: TowerToHyperService<Router>,
    limits: Limits,
    stop: CancellationToken,
) {
    let with_address = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address));
        service.call(request)
    });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header)
            .serve_connection(TokioIo::new(stream), with_address)
    );
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%address, %error, "a connection broke");
    }
}
