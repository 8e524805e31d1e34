//! Owns the way from a TCP connection to a request of the API: TLS where it is configured, and the limits of who comes:
//! connections in all and of one address, time for a handshake, for a header, between requests. Never reads a request.

mod tls;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
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
    pub connections_max: usize,
    /// Of one address, so that one host cannot take them all.
    pub connections_per_address_max: usize,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// From a connection's begin, or its last answer, to the end of the next header.
    pub header: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            connections_per_address_max: 512,
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
    let places = Arc::new(Places::default());
    let service = TowerToHyperService::new(router);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let Some(place) = places.take(source(address.ip()), limits) else {
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

/// Who holds how many connections.
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<IpAddr, usize>>);

impl Places {
    fn take(self: &Arc<Self>, address: IpAddr, limits: Limits) -> Option<Place> {
        let mut held = self.0.lock().ok()?;
        let all: usize = held.values().sum();
        let own = held.entry(address).or_default();
        if all >= limits.connections_max || *own >= limits.connections_per_address_max {
            if *own == 0 {
                held.remove(&address);
            }
            return None;
        }
        *own += 1;
        Some(Place {
            places: self.clone(),
            address,
        })
    }
}

/// One connection's place, until it is dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Ok(mut held) = self.places.0.lock() else {
            return;
        };
        if let Some(own) = held.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.address);
            }
        }
    }
}
