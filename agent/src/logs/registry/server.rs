//! Owns the loggers' socket and one small task for each logger, which waits for its death. Never holds a lock while it
//! waits.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    process::Child,
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::METRICS;

use super::{LOGGERS_MAX, RegistryError, Shared, handshake, process};

/// From the connection to the answer; the logger itself waits two seconds.
const HANDSHAKE: Duration = Duration::from_millis(1500);
/// After an error of `accept` (descriptors ran out): it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const ACCEPTED: &[u8] = b"+";
/// An agent that ended in the middle of starting a program has left the socket to that, until it is another program.
const LETTING_GO: Duration = Duration::from_secs(1);

/// Opens the socket; one that nobody listens on is replaced.
pub(super) fn bind(path: &Path) -> Result<UnixListener, RegistryError> {
    let listen = |source| RegistryError::Listen {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory);
        made.map_err(|source| RegistryError::Directory {
            path: directory.to_owned(),
            source,
        })?;
    }
    let begun = Instant::now();
    while std::os::unix::net::UnixStream::connect(path).is_ok() {
        if begun.elapsed() > LETTING_GO {
            return Err(RegistryError::InUse {
                path: path.to_owned(),
            });
        }
        std::thread::sleep(LETTING_GO / 50);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(listen(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(listen)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(listen)?;
    Ok(listener)
}

/// The part of the registry that waits. Dropping it lets go of the socket, and no logger is replaced any more.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listener: UnixListener,
    adopted: mpsc::Receiver<Watch>,
}

/// A logger whose death is to be waited for.
#[derive(Debug)]
pub(super) struct Watch {
    pub id: String,
    pub generation: u64,
    pub life: Life,
}

/// What tells of a logger's death.
#[derive(Debug)]
pub(super) enum Life {
    Link(UnixStream),
    Process(OwnedFd),
    Child(Child),
    /// It died before we came.
    Over,
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, listener: UnixListener, adopted: mpsc::Receiver<Watch>) -> Self {
        Self {
            shared,
            listener,
            adopted,
        }
    }

    /// Serves until `stop`. Loggers live on.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        loop {
            // Every arm is cancel-safe: what it gives is given only when it is taken.
            tokio::select! {
                () = stop.cancelled() => break,
                Some(watch) = self.adopted.recv() => {
                    tasks.spawn(watch.follow(self.shared.clone()));
                }
                // A resumed logger has two tasks: its link's and its process's.
                accepted = self.listener.accept(), if tasks.len() < 2 * LOGGERS_MAX => match accepted {
                    Ok((stream, _)) => {
                        tasks.spawn(serve(self.shared.clone(), stream));
                    }
                    Err(error) => {
                        warn!(%error, "accept a logger");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = tasks.join_next() => {}
            }
        }
        tasks.shutdown().await;
    }
}

/// One connection: registration, answer, and then silence until the logger is gone.
async fn serve(shared: Arc<Shared>, mut stream: UnixStream) {
    let registration = match timeout(HANDSHAKE, handshake::receive(&stream)).await {
        Ok(Ok(registration)) => registration,
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            return warn!(%error, cause, "logger refused");
        }
        Err(_) => return warn!("a logger did not register in time"),
    };
    let id = registration.id.clone();
    let Some(generation) = shared.keep(registration) else {
        return warn!(container = id, "logger refused: too many");
    };
    // One byte into an empty socket: it does not wait. A logger that is dead already is noticed next.
    let _ = stream.write_all(ACCEPTED).await;
    let watch = Watch {
        id,
        generation,
        life: Life::Link(stream),
    };
    watch.follow(shared).await;
}

impl Watch {
    /// Waits for the logger's death, and replaces it for as long as its container has something to say.
    async fn follow(mut self, shared: Arc<Shared>) {
        loop {
            self.life.end().await;
            match replace(&shared, &self.id, self.generation).await {
                Some((generation, child)) => {
                    self.generation = generation;
                    self.life = Life::Child(child);
                }
                None => return,
            }
        }
    }
}

impl Life {
    async fn end(&mut self) {
        match self {
            Self::Link(stream) => {
                // A logger says how many lines it dropped, and nothing else.
                while let Ok(dropped) = stream.read_u64_le().await {
                    METRICS.log_lines_dropped.fetch_add(dropped, Relaxed);
                }
            }
            Self::Process(pidfd) => {
                let waited = match pidfd.try_clone().and_then(process::watch) {
                    Ok(pidfd) => pidfd.readable().await.map(drop),
                    Err(error) => Err(error),
                };
                if let Err(error) = waited {
                    warn!(%error, "wait for an adopted logger");
                }
            }
            Self::Over => {}
            Self::Child(child) => {
                if let Err(error) = child.wait().await {
                    warn!(%error, "wait for a resumed logger");
                }
            }
        }
    }
}

/// Starts a successor; tries until it can. None: it needs none, or has one.
async fn replace(shared: &Shared, id: &str, generation: u64) -> Option<(u64, Child)> {
    loop {
        let pause = shared.pause_before_resume(id, generation)?;
        sleep(pause).await;
        match start(shared, id, generation)? {
            Ok(successor) => {
                let pid = successor.1.id().unwrap_or_default();
                METRICS.loggers_replaced.fetch_add(1, Relaxed);
                info!(container = id, pid, "logger died and was replaced");
                return Some(successor);
            }
            Err(error) => warn!(container = id, %error, "replace a dead logger"),
        }
    }
}

/// Starts a successor, unless another one came while we waited.
fn start(shared: &Shared, id: &str, generation: u64) -> Option<io::Result<(u64, Child)>> {
    let mut kept = shared.lock();
    let next = kept.generation + 1;
    let entry = kept
        .entries
        .get_mut(id)
        .filter(|entry| entry.generation == generation)?;
    let started = process::resume(&shared.config, &entry.registration);
    if started.is_ok() {
        entry.generation = next;
        entry.started = Instant::now();
        kept.generation = next;
    }
    drop(kept);
    if let Ok(child) = &started
        && let Some(pid) = child.id()
    {
        (shared.config.place)(id, pid);
    }
    Some(started.map(|child| (next, child)))
}
