//! Owns the agent's database: the core's state, the ledger and the outbox, in SQLite. No other module speaks SQL.
//!
//! One thread has the connection. A batch is one transaction, so state and effects' intents are stored together.
//! Syncs fully only where a promise is made to somebody else: `Batch::promise`.

mod names;
mod sqlite;
#[cfg(test)]
mod tests;

use std::{path::Path, time::Instant};

use berth_agent_core::{
    ids::TaskId,
    ledger::{Ledger, LedgerWrite},
    node::NodeRecord,
    report::Report,
    task::Task,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    dns::{Addresses, Key},
    metrics::METRICS,
};

/// Requests that may wait for the database.
const QUEUE_MAX: usize = 64;

/// What one round of the driver stores.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// JSON of the task, or `None` when it is gone.
    pub tasks: Vec<(TaskId, Option<String>)>,
    /// JSON of the node's record.
    pub node: Option<String>,
    /// The boot that the state is of from now on, as [`crate::boot::ids`] has it. Goes with the state that knows of the boot, never before: an agent
    /// that ends between the two would take the next start for one without a boot.
    pub boot_id: Option<String>,
    pub ledger: Vec<LedgerWrite>,
    pub reports: Vec<Report>,
    /// The outbox is emptied up to here.
    pub acknowledged: Option<u64>,
    /// Somebody else will rely on this: sync to the disk before returning.
    pub promise: bool,
    /// Store something even if there is nothing to store: the proof that it can be done.
    pub pulse: bool,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
            && self.node.is_none()
            && self.boot_id.is_none()
            && self.ledger.is_empty()
            && self.reports.is_empty()
            && self.acknowledged.is_none()
            && !self.pulse
    }
}

/// What of the names of tasks is to be stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamesWrite {
    /// Whose names these are.
    pub cluster: String,
    /// What was there before goes first.
    pub whole: bool,
    pub changed: Vec<(Key, Addresses)>,
    pub removed: Vec<Key>,
}

impl NamesWrite {
    pub fn is_empty(&self) -> bool {
        !self.whole && self.changed.is_empty() && self.removed.is_empty()
    }
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub struct Loaded {
    pub node: Option<NodeRecord>,
    pub tasks: Vec<Task>,
    pub ledger: Ledger,
    /// The boot during which it was written.
    pub boot_id: Option<String>,
    /// The highest sequence number in the outbox; zero when it is empty.
    pub last_reported: u64,
    /// Names of tasks, as the control plane said them last.
    pub names: NamesWrite,
    /// Records that could not be read; they are set aside in a table of their own.
    pub quarantined: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("open database {path}")]
    Open { path: String, source: rusqlite::Error },
    #[error("database {path} is used by another agent")]
    InUse { path: String },
    /// Trying again does not help; the operator has to look.
    #[error(
        "database is damaged; move it away and restart: what runs is found by its labels and goes on; what cannot be told for \
         certain is ended and reported in order"
    )]
    Corrupt { source: rusqlite::Error },
    /// Full, or an I/O error: may pass.
    #[error("{action}")]
    Unavailable {
        action: &'static str,
        source: rusqlite::Error,
    },
    #[error("serialise {what}")]
    Encode {
        what: &'static str,
        source: serde_json::Error,
    },
    #[error("the database thread has ended")]
    Closed,
}

#[derive(Debug)]
enum Request {
    Commit(Box<Batch>, oneshot::Sender<Result<(), StoreError>>),
    Outbox {
        after: u64,
        limit: usize,
        reply: oneshot::Sender<Result<Vec<Report>, StoreError>>,
    },
    OutboxLength {
        reply: oneshot::Sender<Result<u64, StoreError>>,
    },
    Names(NamesWrite, oneshot::Sender<Result<(), StoreError>>),
}

/// A handle on the database thread, which ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    requests: mpsc::Sender<Request>,
}

impl Store {
    /// Opens or creates the database and reads all of it.
    ///
    /// # Errors
    /// When it cannot be opened, is damaged, or another process has it.
    pub fn open(path: &Path) -> Result<(Self, Loaded), StoreError> {
        let (mut connection, loaded) = sqlite::Database::open(path)?;
        let (requests, mut queue) = mpsc::channel(QUEUE_MAX);
        let serve = move || {
            while let Some(request) = queue.blocking_recv() {
                match request {
                    Request::Commit(batch, reply) => {
                        let begun = Instant::now();
                        let result = connection.commit(&batch);
                        METRICS.store_commit.observe(begun.elapsed());
                        drop(reply.send(result));
                    }
                    Request::Names(write, reply) => drop(reply.send(connection.write_names(&write))),
                    Request::OutboxLength { reply } => drop(reply.send(connection.outbox_length())),
                    Request::Outbox { after, limit, reply } => {
                        drop(reply.send(connection.outbox(after, limit)))
                    }
                }
            }
        };
        let spawned = std::thread::Builder::new().name("store".into()).spawn(serve);
        spawned.map_err(|error| StoreError::Open {
            path: path.display().to_string(),
            source: rusqlite::Error::ToSqlConversionFailure(Box::new(error)),
        })?;
        Ok((Self { requests }, loaded))
    }

    /// Stores a batch as one transaction.
    pub async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Commit(Box::new(batch), reply), answer).await
    }

    /// Reports after a sequence number, oldest first, at most `limit`.
    pub async fn outbox(&self, after: u64, limit: usize) -> Result<Vec<Report>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Outbox { after, limit, reply }, answer).await
    }

    /// Stores what changed of the names of tasks, as one transaction. It promises nothing to anybody: they are told again.
    pub async fn write_names(&self, write: NamesWrite) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Names(write, reply), answer).await
    }

    /// How many reports wait for the control plane to acknowledge them.
    pub async fn outbox_length(&self) -> Result<u64, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::OutboxLength { reply }, answer).await
    }

    async fn ask<T>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.requests
            .send(request)
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}
