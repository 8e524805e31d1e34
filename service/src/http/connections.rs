//! Owns connections: how many, how long, and their end. Never knows what is asked.

use std::{io, pin::pin, sync::Arc, time::Duration};

use axum::Router;
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

/// Connections at a time, of each listener; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 32;
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

/// A bound listener and what it serves.
pub(super) struct Listener {
    socket: Socket,
    router: Router,
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
        }
    }

    pub(super) fn tcp(listener: std::net::TcpListener, router: Router) -> Self {
        Self {
            socket: Socket::Tcp(listener),
            router,
        }
    }

    /// Serves until `stop`. To be called within a runtime.
    pub(super) fn serve(self, stop: CancellationToken) -> io::Result<impl Future<Output = ()>> {
        let router = self.router;
        let accept = match self.socket {
            Socket::Unix(listener) => Accept::Unix(tokio::net::UnixListener::from_std(listener)?),
            Socket::Tcp(listener) => Accept::Tcp(tokio::net::TcpListener::from_std(listener)?),
        };
        Ok(accept_all(accept, router, stop))
    }
}

enum Accept {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Accept {
    async fn next(&self) -> io::Result<(Box<dyn Stream>, Option<Duration>)> {
        Ok(match self {
            Self::Unix(listener) => (Box::new(listener.accept().await?.0), None),
            Self::Tcp(listener) => (Box::new(listener.accept().await?.0), Some(TCP_LIMIT)),
        })
    }
}

async fn accept_all(accept: Accept, router: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
            Ok((stream, limit)) => {
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    let served = serve(stream, router, stop);
                    match limit {
                        Some(limit) => drop(timeout(limit, served).await),
                        None => served.await,
                    }
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
        tracing::debug!(%error, "a connection for health and metrics broke");
    }
}
