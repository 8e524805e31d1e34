//! Owns the embedded implementation of the store: one SQLite database, one thread that writes, one that reads.
//! Never lets SQL out of this folder.
//!
//! Commits that wait at the same time share one synced SQLite transaction (group commit); a fault of the disk is
//! reported to exactly those whose change it undid. Every change is also written to a history table, which feeds
//! the watches and is compacted without being asked beyond [`Limits::revisions_kept`].

mod copy;
mod hub;
mod reader;
mod schema;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

pub use self::copy::{CopyFacts, copy};
use self::{
    hub::{Hub, Interest},
    reader::{History, Query},
    writer::Job,
};
use super::{
    Change, Committed, Entry, LeaseId, PAGE_ENTRIES_MAX, Page, Store, StoreError, Transaction, Watch, check,
};

/// Requests that may wait for either thread; more make their callers wait.
const QUEUE_JOBS_MAX: usize = 256;
/// Longest wait for a place in a queue, and again for an answer.
const ANSWER_SECONDS_MAX: u64 = 30;

/// How much history is kept for watches.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Revisions; older ones are compacted by themselves.
    pub revisions_kept: u64,
    /// Bytes of values in the history.
    pub history_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            revisions_kept: 100_000,
            history_bytes_max: 256 << 20,
        }
    }
}

/// The store in one file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    writer: mpsc::Sender<Job>,
    reader: mpsc::Sender<Query>,
    hub: Arc<Hub>,
    threads: Mutex<Option<Threads>>,
}

#[derive(Debug)]
struct Threads {
    writer: JoinHandle<()>,
    reader: JoinHandle<()>,
}

impl SqliteStore {
    /// Opens or creates the database at `path` (its directory must exist).
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the file is damaged or no database; [`StoreError::Backend`] if it cannot be read
    /// or written, or was made by a newer version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(path, Limits::default())
    }

    /// As [`SqliteStore::open`], with other limits.
    pub fn open_with(path: impl AsRef<Path>, limits: Limits) -> Result<Self, StoreError> {
        let path = path.as_ref().to_path_buf();
        let hub = Arc::new(Hub::default());
        let write = writer::Writer::open(&path, limits, hub.clone())?;
        Self::start(path, write, hub)
    }

    fn start(path: PathBuf, write: writer::Writer, hub: Arc<Hub>) -> Result<Self, StoreError> {
        let read = reader::Reader::open(&path)?;
        let (writer, jobs) = mpsc::channel(QUEUE_JOBS_MAX);
        let (reader, queries) = mpsc::channel(QUEUE_JOBS_MAX);
        let threads = Threads {
            writer: spawn("store-writer", move || write.run(jobs))?,
            reader: spawn("store-reader", move || read.run(queries))?,
        };
        Ok(Self {
            path,
            writer,
            reader,
            hub,
            threads: Mutex::new(Some(threads)),
        })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Finishes what is queued, ends every watch, and closes the file. Later calls answer [`StoreError::Closed`].
    pub async fn close(&self) {
        let threads = self.threads.lock().map(|mut threads| threads.take());
        let Ok(Some(Threads { writer, reader })) = threads else {
            return;
        };
        self.reader.send(Query::Close).await.ok();
        let read = joined(reader).await;
        // Last, for SQLite merges the log into the file, and removes it, at the end of the last connection only. Of two that
        // end at once, each takes the other for one that stays.
        self.writer.send(Job::Close).await.ok();
        if !(joined(writer).await && read) {
            tracing::error!(store = %self.path.display(), "a thread of the store panicked");
        }
    }

    async fn write<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, StoreError> {
        ask(&self.writer, job).await
    }
}

/// False: it panicked.
async fn joined(thread: JoinHandle<()>) -> bool {
    let joined = tokio::task::spawn_blocking(move || thread.join().is_ok());
    joined.await.unwrap_or(false)
}

/// Where an answer goes.
type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

async fn ask<J, T>(queue: &mpsc::Sender<J>, job: impl FnOnce(Answer<T>) -> J) -> Result<T, StoreError> {
    let (answer, answered) = oneshot::channel();
    let wait = Duration::from_secs(ANSWER_SECONDS_MAX);
    let overloaded = StoreError::Overloaded {
        seconds: ANSWER_SECONDS_MAX,
    };
    match queue.send_timeout(job(answer), wait).await {
        Ok(()) => {}
        Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(overloaded),
        Err(mpsc::error::SendTimeoutError::Closed(_)) => return Err(StoreError::Closed),
    }
    match tokio::time::timeout(wait, answered).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(StoreError::Closed),
        Err(_) => Err(overloaded),
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|source| StoreError::Backend {
            action: format!("start the thread {name}"),
            source: source.into(),
        })
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        ask(&self.reader, |answer| Query::Get { key, answer }).await
    }

    async fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let limit = limit.min(PAGE_ENTRIES_MAX);
        ask(&self.reader, |answer| Query::Range {
            prefix,
            after,
            limit,
            answer,
        })
        .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        check(&transaction)?;
        self.write(|answer| Job::Commit(writer::Commit { transaction, answer }))
            .await
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Box<dyn Watch>, StoreError> {
        // Interest first, then the look at what is there: a commit in between is seen by either.
        let interest = self.hub.register(prefix);
        let (oldest, current) = ask(&self.reader, |answer| Query::Bounds { answer }).await?;
        if from < oldest {
            return Err(StoreError::Compacted { wanted: from, oldest });
        }
        if from <= current {
            interest.mark(from);
        }
        Ok(Box::new(SqliteWatch {
            prefix: prefix.to_owned(),
            from,
            interest,
            reader: self.reader.clone(),
            ready: VecDeque::new(),
        }))
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        self.write(|answer| Job::Compact { revision, answer }).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.write(|answer| Job::Grant { ttl, answer }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.write(|answer| Job::KeepAlive { lease, answer }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.write(|answer| Job::Revoke { lease, answer }).await
    }
}

/// Reads the history from `from` whenever the hub says that there is something in it for the prefix.
#[derive(Debug)]
struct SqliteWatch {
    prefix: String,
    /// The next revision to deliver.
    from: u64,
    interest: Interest,
    reader: mpsc::Sender<Query>,
    ready: VecDeque<Vec<Change>>,
}

#[async_trait]
impl Watch for SqliteWatch {
    async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        loop {
            if let Some(changes) = self.ready.pop_front() {
                return Ok(changes);
            }
            // Nothing before the first marked revision is of interest, so a quiet watch neither scans the history
            // nor minds its compaction.
            let from = self.interest.marked().await?.max(self.from);
            let prefix = self.prefix.clone();
            // Dropped here, nothing is lost: the mark stays until what it promised was read.
            let history: History =
                ask(&self.reader, |answer| Query::History { prefix, from, answer }).await?;
            self.ready.extend(history.revisions);
            self.from = self.from.max(history.read_to + 1);
            self.interest.clear(history.read_to);
        }
    }
}

/// An error of SQLite, told apart by what can be done about it.
fn failed(action: impl Into<String>, source: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
    let mut action = action.into();
    if source.sqlite_error_code() == Some(DiskFull) {
        action.push_str(
            " (no space is left on the disk of the state directory: make some; nothing was changed)",
        );
    }
    match source.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => StoreError::Corrupt {
            action,
            source: source.into(),
        },
        _ => StoreError::Backend {
            action,
            source: source.into(),
        },
    }
}

/// Revisions and ids fit SQLite's signed integers for the next 292 million years at a thousand commits a second.
fn sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The inverse of [`sql`]; the schema never stores a negative one.
fn number(sql: i64) -> u64 {
    u64::try_from(sql).unwrap_or(0)
}
