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
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;
use tokio::sync::oneshot;

pub use self::{
    event::{Event, Outcome},
    read::{Listing, Page},
};
use self::{file::Log, refused::Attempt, thread::Job};

/// The log, in the state directory; rotated ones have `.1` (the newest) and so on added.
pub const AUDIT_FILE: &str = "audit.log";
/// A line is on disk at most so long after it was written.
pub const SYNC: Duration = Duration::from_secs(1);
/// Lines that may wait for the thread. More than there can be calls and links at once.
const QUEUE_MAX: usize = 1_024;
/// Longest wait of a listing for what was told before it to be written.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
/// How often a listing asks again for a place in a full queue.
const FLUSH_RETRY: Duration = Duration::from_millis(10);

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
    jobs: SyncSender<Job>,
    /// Refused attempts that found no place in the queue.
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
        let (jobs, queue) = sync_channel(QUEUE_MAX);
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
            overlooked,
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Writes what is about to be tried. The change must not be made if this fails.
    pub async fn intend(&self, event: Event) -> Result<Intent, AuditError> {
        let sequence = self.write(event.clone(), Outcome::Started, None).await?;
        Ok(Intent {
            audit: self.clone(),
            open: Some((sequence, event)),
        })
    }

    /// Writes what happened, for what needs no intent: something refused, or told by another party.
    pub async fn record(&self, event: Event, outcome: Outcome) -> Result<(), AuditError> {
        self.write(event, outcome, None).await.map(|_| ())
    }

    /// Counts an attempt of somebody who could not prove who they are. The first from an address for a reason is
    /// written at once, those that follow as one line a minute. Never waits, never fails.
    pub fn refused(&self, from: Option<IpAddr>, code: &'static str, claimed_key: Option<String>) {
        let attempt = Attempt {
            from,
            code,
            claimed_key,
        };
        if let Err(TrySendError::Full(_)) = self.0.jobs.try_send(Job::Refused(attempt)) {
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
        let (answer, answered) = oneshot::channel();
        let mut job = Job::Flush(answer);
        loop {
            match self.0.jobs.try_send(job) {
                Ok(()) => break,
                Err(TrySendError::Full(again)) => job = again,
                // Closed: everything is written.
                Err(TrySendError::Disconnected(_)) => return,
            }
            tokio::time::sleep(FLUSH_RETRY).await;
        }
        // No answer: it was closed meanwhile.
        answered.await.ok();
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

    async fn write(&self, event: Event, outcome: Outcome, of: Option<u64>) -> Result<u64, AuditError> {
        let (answer, answered) = oneshot::channel();
        let job = Job::Write {
            event,
            outcome,
            of,
            answer: Some(answer),
        };
        match self.0.jobs.try_send(job) {
            Ok(()) => answered.await.unwrap_or(Err(AuditError::Closed)),
            Err(TrySendError::Full(_)) => Err(AuditError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(AuditError::Closed),
        }
    }
}

/// A change that was announced to the log. Dropped without a conclusion (the caller went away, the deadline passed) it
/// is concluded as unknown.
#[derive(Debug)]
pub struct Intent {
    audit: Audit,
    open: Option<(u64, Event)>,
}

impl Intent {
    /// Adds what only the outcome told: the id of what was made.
    pub fn target(&mut self, name: &str, value: impl Into<Value>) {
        if let Some((_, event)) = &mut self.open {
            event.add_target(name, value.into());
        }
    }

    /// Writes the outcome. When the log cannot be written now the line is kept, and no other change is let through
    /// before it is written: the change is made, so its caller must hear of it.
    pub async fn conclude(mut self, outcome: Outcome) {
        let Some((sequence, event)) = self.open.take() else {
            return;
        };
        if let Err(error) = self.audit.write(event, outcome, Some(sequence)).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "an outcome is not in the audit log yet"
            );
        }
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        if let Some((sequence, event)) = self.open.take() {
            let job = Job::Write {
                event,
                outcome: Outcome::Unknown,
                of: Some(sequence),
                answer: None,
            };
            // Without a place in the queue the next start concludes it.
            self.audit.0.jobs.try_send(job).ok();
        }
    }
}
