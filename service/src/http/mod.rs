//! Owns the small HTTP/1 listener of a daemon: `/livez`, `/readyz`, `/metrics`, and on the unix socket what the daemon
//! adds. Never shares a thread with the daemon's work: it answers while everything else hangs.
//!
//! On TCP there is only health and metrics: what a daemon adds may tell of its tasks, and the socket's mode is the
//! only guard it has.

mod connections;
mod listen;
mod routes;
#[cfg(test)]
mod tests;

use std::{fmt, io, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc, thread::JoinHandle, time::Duration};

use axum::Router;
use tokio_util::sync::CancellationToken;

use self::{connections::Listener, listen::SocketFile};
pub use self::{
    connections::Peer,
    listen::{ListenError, advice},
};
use crate::{liveness::Pulse, places::Places, readiness::Readiness};

/// Where to listen.
#[derive(Clone, Debug)]
pub struct Listen {
    /// A unix socket. Its directory is made, mode 0755, if only that is missing.
    pub socket: PathBuf,
    /// Who may connect to it: 0600 for its owner only.
    pub socket_mode: u32,
    /// Health and metrics on TCP as well.
    pub metrics: Option<SocketAddr>,
}

/// A text being made.
pub type Text = Pin<Box<dyn Future<Output = String> + Send>>;

/// What is served.
#[derive(Clone)]
pub struct Served {
    pub readiness: Readiness,
    pub pulse: Pulse,
    /// Makes the text of `/metrics`; given up after [`SCRAPE_LIMIT`].
    pub metrics: Arc<dyn Fn() -> Text + Send + Sync>,
    /// Further routes, on the unix socket only. Their handlers run on the listener's own thread: they must not block
    /// it, and wait for nothing without a deadline.
    pub more: Router,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").finish_non_exhaustive()
    }
}

/// Longest making of the text of `/metrics`.
pub const SCRAPE_LIMIT: Duration = Duration::from_secs(5);

/// Serving, until [`Server::stop`] or dropped.
#[derive(Debug)]
pub struct Server {
    metrics_address: Option<SocketAddr>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    _socket: SocketFile,
}

impl Server {
    /// Listens when this returns, on a thread of its own.
    ///
    /// # Errors
    /// Somebody listens there, or the host does not let us.
    pub fn start(listen: &Listen, served: Served) -> Result<Self, ListenError> {
        let (unix, socket) = listen::unix(&listen.socket, listen.socket_mode)?;
        let tcp = listen.metrics.map(listen::tcp).transpose()?;
        let metrics_address = tcp.as_ref().map(|(_, address)| *address);
        let stop = CancellationToken::new();
        let common = routes::common(&served);
        let mut listeners = vec![Listener::unix(unix, common.clone().merge(served.more))];
        listeners.extend(tcp.map(|(listener, _)| Listener::tcp(listener, common)));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("health".into())
            .spawn(move || run(listeners, &stopped))
            .map_err(ListenError::Thread)?;
        Ok(Self {
            metrics_address,
            stop,
            thread: Some(thread),
            _socket: socket,
        })
    }

    /// Where health and metrics are on TCP.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Takes no more connections and ends those there are, answers under way first, within
    /// [`connections::GRACE`].
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // The thread ends by its own deadline.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// Serves `router` on a listener of the caller's until `stop`: one request per connection, within deadlines, with a [`Peer`].
/// To be called within a runtime.
///
/// # Errors
/// When the listener cannot be made one of the runtime.
pub fn serve_tcp(
    listener: std::net::TcpListener,
    router: Router,
    places: Places,
    stop: CancellationToken,
) -> io::Result<impl Future<Output = ()>> {
    listener.set_nonblocking(true)?;
    Listener::tcp(listener, router).places(places).serve(stop)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn run(listeners: Vec<Listener>, stop: &CancellationToken) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served: io::Result<()> = runtime.and_then(|runtime| {
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for listener in listeners {
                tasks.spawn(listener.serve(stop.clone())?);
            }
            tasks.join_all().await;
            Ok(())
        })
    });
    if let Err(error) = served {
        tracing::error!(%error, "health and metrics are not served");
    }
}
