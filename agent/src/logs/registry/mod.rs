//! Owns the knowledge of which container has a living logger, and duplicates of its pipes' read ends, so that a
//! container never sees its logger die: a new one goes on from the duplicates. Each is with the service manager too, so
//! that agent and logger may die together. Never reads from a pipe.

mod handshake;
mod process;
mod server;
mod store;

use std::{
    collections::HashMap,
    ffi::OsString,
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_service::notify::{Notifier, StoredFd};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use handshake::Registration;
pub use process::AdoptError;
pub use server::Server;
use server::{Life, Watch};
use store::{Ends, Store};

/// Containers with a logger on one host. Each has two kept descriptors and one connection.
pub const LOGGERS_MAX: usize = 4096;
/// A logger that lived this long did not die of its start.
const STABLE: Duration = Duration::from_secs(10);
/// Between attempts to replace a logger that dies again and again; doubles. The first is made at once.
const RESUME_PAUSE_MIN: Duration = Duration::from_millis(50);
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Adopted loggers that the server did not take up yet.
const ADOPTED_QUEUE: usize = 64;

/// Called with a container's runtime id and the pid of the logger that was started in place of a dead one: to move it
/// into the task's `rt` cgroup. Runs on the runtime's threads, so it must be short.
pub type PlaceLogger = Arc<dyn Fn(&str, u32) + Send + Sync>;

/// What the registry needs to know.
#[derive(Clone)]
pub struct RegistryConfig {
    /// Where loggers connect; its directory is made, for this user only, if it is missing.
    pub socket: PathBuf,
    /// The binary that replaces a logger.
    pub logger: PathBuf,
    pub place: PlaceLogger,
    /// Keeps duplicates of the pipes for the next agent.
    pub notifier: Notifier,
}

impl fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryConfig")
            .field("socket", &self.socket)
            .field("logger", &self.logger)
            .finish_non_exhaustive()
    }
}

/// The socket for loggers could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("make directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("another agent listens on {path}")]
    InUse { path: PathBuf },
    #[error("listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
}

/// Handle on the registry; clones are the same one.
#[derive(Clone, Debug)]
pub struct LoggerRegistry {
    shared: Arc<Shared>,
    adopted: mpsc::Sender<Watch>,
}

impl LoggerRegistry {
    /// Opens the socket. Nothing is answered until [`Server::run`] is polled.
    pub fn listen(config: RegistryConfig) -> Result<(Self, Server), RegistryError> {
        let listener = server::bind(&config.socket)?;
        let kept = Kept {
            entries: HashMap::new(),
            generation: 0,
            stored: HashMap::new(),
            store: Store::new(config.notifier.clone()),
        };
        let shared = Arc::new(Shared {
            config,
            kept: Mutex::new(kept),
        });
        let (adopted, queue) = mpsc::channel(ADOPTED_QUEUE);
        let server = Server::new(shared.clone(), listener, queue);
        Ok((Self { shared, adopted }, server))
    }

    /// The container's logger registered, and did not yet reach the end of the output. True before the runtime answers
    /// that the task is created; false then means that the container has no logger.
    pub fn registered(&self, runtime_id: &str) -> bool {
        self.shared.lock().entries.contains_key(runtime_id)
    }

    /// How many containers have kept pipes.
    pub fn len(&self) -> usize {
        self.shared.lock().entries.len()
    }

    /// No container has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets go of a container's pipes: it is gone. Unknown ids are fine.
    pub fn forget(&self, runtime_id: &str) {
        let mut kept = self.shared.lock();
        kept.entries.remove(runtime_id);
        kept.store.forget(runtime_id);
    }

    /// Takes what an earlier agent left with the service manager, until [`resume`](Self::resume) or
    /// [`drop_unclaimed`](Self::drop_unclaimed). What makes no sense leaves the store.
    pub fn take_back(&self, stored: Vec<StoredFd>) {
        let (pairs, strange) = store::pairs(stored);
        store::forget_names(&self.shared.config.notifier, &strange);
        let mut kept = self.shared.lock();
        for (id, ends) in pairs {
            kept.store.found(&id, &ends);
            kept.stored.insert(id, ends);
        }
    }

    /// Read ends of that container's output came back from the service manager, and nobody has them yet.
    pub fn has_stored(&self, runtime_id: &str) -> bool {
        self.shared.lock().stored.contains_key(runtime_id)
    }

    /// Starts a logger on stored read ends, in place of one that died together with its agent. `arguments` are the dead
    /// one's, without the socket. Needs [`Server::run`].
    ///
    /// # Errors
    /// Nothing is stored for that container, or the logger's binary does not start; it is then tried again.
    pub async fn resume(
        &self,
        runtime_id: &str,
        arguments: Vec<(OsString, OsString)>,
    ) -> Result<(), AdoptError> {
        let ends = self.shared.lock().stored.remove(runtime_id);
        let registration = ends.and_then(|ends| Registration::new(arguments, ends).ok());
        let Some(registration) = registration.filter(|registration| registration.id == runtime_id) else {
            self.shared.lock().store.forget(runtime_id);
            return Err(AdoptError::NotFound {
                runtime_id: runtime_id.to_owned(),
                processes: 0,
            });
        };
        let generation = self.shared.keep(registration).ok_or(AdoptError::TooMany)?;
        self.follow(runtime_id, generation, Life::Over).await
    }

    /// Lets go of stored read ends that nobody took: their containers are gone.
    pub fn drop_unclaimed(&self) {
        let mut kept = self.shared.lock();
        let unclaimed = std::mem::take(&mut kept.stored);
        for id in unclaimed
            .keys()
            .filter(|id| !kept.entries.contains_key(*id))
            .cloned()
            .collect::<Vec<_>>()
        {
            kept.store.forget(&id);
        }
    }

    /// Takes up a logger that registered with an earlier agent, or with none: finds it among the processes of the
    /// task's `rt` cgroup and opens its pipes. A logger that is registered already is left as it is.
    ///
    /// Needs the right to trace it (root has); [`Server::run`] must be running.
    ///
    /// # Errors
    /// None of the processes is that container's logger, or it went away while looked at.
    pub async fn adopt(&self, runtime_id: &str, rt_pids: &[u32]) -> Result<(), AdoptError> {
        if self.registered(runtime_id) {
            return Ok(());
        }
        let found = process::find(runtime_id, rt_pids)?;
        let generation = self.shared.keep(found.registration).ok_or(AdoptError::TooMany)?;
        self.follow(runtime_id, generation, Life::Process(found.pidfd))
            .await
    }

    async fn follow(&self, id: &str, generation: u64, life: Life) -> Result<(), AdoptError> {
        let id = id.to_owned();
        let watch = Watch { id, generation, life };
        self.adopted
            .send(watch)
            .await
            .map_err(|_| AdoptError::ServerStopped)
    }
}

#[derive(Debug)]
struct Shared {
    config: RegistryConfig,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    entries: HashMap<String, Entry>,
    /// Of the last logger that was taken up: every one has its own.
    generation: u64,
    /// What came back from the service manager and nobody took yet.
    stored: HashMap<String, Ends>,
    store: Store,
}

/// One container's logger.
#[derive(Debug)]
struct Entry {
    registration: Registration,
    /// Tells a notice of this logger's death from one of its predecessor's.
    generation: u64,
    started: Instant,
    /// Replacements since one was stable.
    resumed: u32,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Every change is whole before anything can panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a logger's pipes, in place of its predecessor's. None: there are too many.
    fn keep(&self, registration: Registration) -> Option<u64> {
        let mut kept = self.lock();
        let id = registration.id.clone();
        let resumed = match kept.entries.get(&id) {
            Some(entry) => entry.resumed,
            None if kept.entries.len() >= LOGGERS_MAX => return None,
            None => 0,
        };
        kept.generation += 1;
        let generation = kept.generation;
        kept.store.keep(&id, &registration.ends);
        let entry = Entry {
            registration,
            generation,
            started: Instant::now(),
            resumed,
        };
        kept.entries.insert(id, entry);
        Some(generation)
    }

    /// How long to wait before that logger is replaced. None: it needs no successor.
    fn pause_before_resume(&self, id: &str, generation: u64) -> Option<Duration> {
        let mut kept = self.lock();
        let entry = kept
            .entries
            .get_mut(id)
            .filter(|entry| entry.generation == generation)?;
        if entry.registration.ends.iter().all(drained) {
            kept.entries.remove(id);
            kept.store.forget(id);
            return None;
        }
        if entry.started.elapsed() >= STABLE {
            entry.resumed = 0;
        }
        let doublings = entry.resumed.checked_sub(1);
        entry.resumed = entry.resumed.saturating_add(1);
        Some(doublings.map_or(Duration::ZERO, |n| {
            RESUME_PAUSE_MIN
                .saturating_mul(1 << n.min(10))
                .min(RESUME_PAUSE_MAX)
        }))
    }
}

/// Nobody writes any more and nothing is left: the logger ended because its work was done.
fn drained(end: &OwnedFd) -> bool {
    let mut entry = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
    if poll(&mut entry, PollTimeout::ZERO).is_err() {
        return false;
    }
    let events = entry[0].revents().unwrap_or(PollFlags::empty());
    events.contains(PollFlags::POLLHUP) && !events.contains(PollFlags::POLLIN)
}
