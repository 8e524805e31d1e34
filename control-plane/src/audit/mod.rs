//! Owns the audit log: who changed what, from where and with what outcome, as JSON lines in a file that only grows and
//! is rotated by size. Never holds a secret, a request's body, or the value of an environment variable.
//!
//! A change is written down before it is made ([`Audit::intend`]) and again when its outcome is known
//! ([`Intent::conclude`]): a log that cannot be written stops changes before they happen, and a control plane that dies
//! in between leaves a trace, which the next start concludes as unknown. Lines are handed to the kernel before an
//! answer is sent, so they survive the death of this process; they are synced at most [`SYNC`] later.
//!
//! One thread writes. Listings read the files themselves, after the thread wrote what was told it before.

mod event;
mod file;
mod read;
mod refused;
mod thread;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;
use tokio::sync::{Semaphore, oneshot};

pub use self::{
    event::{Event, Outcome},
    read::{Listing, Page},
};
use self::{
    file::Log,
    refused::Attempt,
    thread::{Concluded, Job, Place},
};

/// The log, in the state directory; rotated ones have `.1` (the newest) and so on added.
pub const AUDIT_FILE: &str = "audit.log";
/// A line is on disk at most so long after it was written.
pub const SYNC: Duration = Duration::from_secs(1);
/// Changes under way, other lines that wait for the thread, and listings among them. More than there can be calls and
/// links at once. A change keeps its place to its end, so that its outcome always finds one.
const PLACES_MAX: usize = 1_024;
/// Refused attempts that may wait for the thread. They have places of their own: they take none from changes.
const REFUSED_MAX: usize = 1_024;
/// Longest wait of a listing for what was told before it to be written.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A file is rotated before it grows over this, bytes.
    pub file_bytes_max: u64,
    /// Rotated files, besides the one that is written.
    pub rotated_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes_max: 32 << 20,
            rotated_max: 9,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("more waits to be written to the audit log than it can take")]
    Busy,
    #[error("the audit log is closed")]
    Closed,
}

/// The audit log. Clones write to the same.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    limits: Limits,
    /// Has no bound of its own: each job has a place.
    jobs: Sender<Job>,
    places: Arc<Semaphore>,
    refused_places: Arc<Semaphore>,
    /// Refused attempts that found no place.
    overlooked: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// Opens the log at `path`, or begins it, for its owner alone. What an earlier process began and did not conclude
    /// is concluded as unknown.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        Self::open_with(path, Limits::default())
    }

    /// As [`Audit::open`], with other limits.
    pub fn open_with(path: &Path, limits: Limits) -> Result<Self, AuditError> {
        let log = Log::open(path, limits)?;
        let (jobs, queue) = channel();
        let overlooked = Arc::new(AtomicU64::new(0));
        let writer = thread::Writer::new(log, overlooked.clone());
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(&queue))
            .map_err(|source| AuditError::File {
                action: "start the thread that writes",
                path: path.into(),
                source,
            })?;
        Ok(Self(Arc::new(Inner {
            path: path.into(),
            limits,
            jobs,
            places: Arc::new(Semaphore::new(PLACES_MAX)),
            refused_places: Arc::new(Semaphore::new(REFUSED_MAX)),
            overlooked,
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Writes what is about to be tried. The change must not be made if this fails.
    pub async fn intend(&self, event: Event) -> Result<Intent, AuditError> {
        let (answer, answered) = oneshot::channel();
        let intent = Intent {
            audit: self.clone(),
            asked: Some((event, self.place()?)),
            open: None,
        };
        self.tell(Job::Intend { intent, answer })?;
        answered.await.unwrap_or(Err(AuditError::Closed))
    }

    /// Writes what happened, for what needs no intent: something refused, or told by another party.
    pub async fn record(&self, event: Event, outcome: Outcome) -> Result<(), AuditError> {
        let (answer, answered) = oneshot::channel();
        let place = self.place()?;
        self.tell(Job::Record {
            event,
            outcome,
            place,
            answer,
        })?;
        answered.await.unwrap_or(Err(AuditError::Closed))
    }

    /// Counts an attempt of somebody who could not prove who they are. The first from an address for a reason is
    /// written at once, those that follow as one line a minute. Never waits, never fails.
    pub fn refused(&self, from: Option<IpAddr>, code: &'static str, claimed_key: Option<String>) {
        self.count(Attempt::stranger(from, code, claimed_key));
    }

    /// Counts a call that a known caller must not make, in the same way by caller, operation and reason.
    pub fn refused_call(&self, event: Event, code: &'static str) {
        self.count(Attempt::call(event, code));
    }

    fn count(&self, attempt: Attempt) {
        let told = match self.0.refused_places.clone().try_acquire_owned() {
            Ok(place) => self.tell(Job::Refused { attempt, place }).is_ok(),
            Err(_) => false,
        };
        if !told {
            self.0.overlooked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A page of concluded events, newest first. It has all that was told the log before; when that is not written in
    /// time, it is [`AuditError::Busy`].
    pub async fn list(&self, listing: Listing) -> Result<Page, AuditError> {
        tokio::time::timeout(FLUSH_DEADLINE, self.flush())
            .await
            .map_err(|_| AuditError::Busy)?;
        let (path, rotated_max) = (self.0.path.clone(), self.0.limits.rotated_max);
        let read = tokio::task::spawn_blocking(move || read::page(&path, rotated_max, listing));
        read.await.unwrap_or(Err(AuditError::Closed))
    }

    /// Waits until the thread has come to what was told it before.
    async fn flush(&self) {
        let Ok(place) = self.0.places.clone().acquire_owned().await else {
            return;
        };
        let (answer, answered) = oneshot::channel();
        // Neither told nor answered: it is closed, and everything is written.
        if self.tell(Job::Flush { place, answer }).is_ok() {
            answered.await.ok();
        }
    }

    /// Writes what waits, syncs, and closes the file. Later calls answer [`AuditError::Closed`].
    pub async fn close(&self) {
        let thread = self.0.thread.lock().ok().and_then(|mut thread| thread.take());
        let Some(thread) = thread else { return };
        let jobs = self.0.jobs.clone();
        let joined = tokio::task::spawn_blocking(move || {
            jobs.send(Job::Close).ok();
            thread.join().is_ok()
        });
        if !joined.await.unwrap_or(false) {
            tracing::error!(log = %self.0.path.display(), "the thread of the audit log panicked");
        }
    }

    fn place(&self) -> Result<Place, AuditError> {
        let place = self.0.places.clone().try_acquire_owned();
        place.map_err(|_| AuditError::Busy)
    }

    fn tell(&self, job: Job) -> Result<(), AuditError> {
        self.0.jobs.send(job).map_err(|_| AuditError::Closed)
    }
}

/// A change that was announced to the log. Dropped without a conclusion (the caller went away, the deadline passed) it
/// is concluded as unknown.
#[derive(Debug)]
pub struct Intent {
    audit: Audit,
    /// What is to be written before it is open.
    asked: Option<(Event, Place)>,
    open: Option<(u64, Event, Place)>,
}

impl Intent {
    /// Opens it, if `write` could write it down; the line's sequence is what it is known by.
    fn begun(mut self, write: impl FnOnce(&Event) -> Result<u64, AuditError>) -> Result<Self, AuditError> {
        if let Some((event, place)) = self.asked.take() {
            self.open = Some((write(&event)?, event, place));
        }
        Ok(self)
    }

    /// Adds what only the outcome told: the id of what was made.
    pub fn target(&mut self, name: &str, value: impl Into<Value>) {
        if let Some((_, event, _)) = &mut self.open {
            event.add_target(name, value.into());
        }
    }

    /// Writes the outcome. When the log cannot be written now the line is kept, and no other change is let through
    /// before it is written: the change is made, so its caller must hear of it.
    pub async fn conclude(mut self, outcome: Outcome) {
        let (answer, answered) = oneshot::channel();
        let told = self.end(outcome, Some(answer));
        let written = match told {
            Ok(()) => answered.await.unwrap_or(Err(AuditError::Closed)),
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "an outcome is not in the audit log yet"
            );
        }
    }

    fn end(
        &mut self,
        outcome: Outcome,
        answer: Option<oneshot::Sender<Result<(), AuditError>>>,
    ) -> Result<(), AuditError> {
        let Some((of, event, place)) = self.open.take() else {
            return Ok(());
        };
        let outcome = Concluded {
            event,
            outcome,
            of,
            _place: place,
        };
        self.audit.tell(Job::Conclude { outcome, answer })
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        // When it is closed, the next start concludes it.
        self.end(Outcome::Unknown, None).ok();
    }
}
