//! Owns the shape of the control plane's store: etcd's, so that SQLite here and etcd elsewhere can stand behind it.
//! Never knows what is stored.
//!
//! Keys are paths; values are bytes. One revision counter rises with every committed transaction. Watches deliver
//! changes in order from a revision. Leases delete their keys when they run out.

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

/// Most operations in one transaction (etcd's default).
pub const TRANSACTION_OPERATIONS_MAX: usize = 128;
/// Largest value, bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most entries in one page of a range.
pub const PAGE_ENTRIES_MAX: usize = 1_000;

/// A key's current value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    /// Revision that created the key.
    pub created: u64,
    /// Revision that last changed it.
    pub modified: u64,
}

/// Part of a range, in key order.
#[derive(Clone, Debug)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// There are more entries after the last.
    pub more: bool,
    /// The store's revision this page is a view of.
    pub revision: u64,
}

/// What must hold for a transaction to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    Exists(String),
    Missing(String),
    /// The key was last changed in exactly this revision.
    Modified(String, u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Put {
        key: String,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    Delete {
        key: String,
    },
}

/// All operations, or none.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub compare: Vec<Compare>,
    pub operations: Vec<Operation>,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Durable, as of this revision.
    Done(u64),
    /// A compare did not hold; nothing was changed.
    Conflict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    /// None: deleted.
    pub value: Option<Bytes>,
    pub revision: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{key:?}: value of {bytes} bytes is over the limit of {VALUE_BYTES_MAX}")]
    ValueTooLarge { key: String, bytes: usize },
    #[error("transaction of {0} operations is over the limit of {TRANSACTION_OPERATIONS_MAX}")]
    TooManyOperations(usize),
    /// The watcher must read the range again and watch from its revision.
    #[error("changes since revision {wanted} are compacted; the oldest kept is {oldest}")]
    Compacted { wanted: u64, oldest: u64 },
    #[error("lease {0:?} does not exist")]
    NoLease(LeaseId),
    #[error("store is closed")]
    Closed,
    #[error("{action}")]
    Backend {
        action: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The store.
#[async_trait]
pub trait Store: Send + Sync + Debug {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    /// Entries whose key starts with `prefix`, after the key `after`, at most `limit` (≤ [`PAGE_ENTRIES_MAX`]).
    async fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError>;
    /// Durable (full sync) when it returns `Done`.
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError>;
    /// Every change under `prefix` of revision ≥ `from`, in order, each revision's changes together.
    async fn watch(&self, prefix: &str, from: u64) -> Result<Box<dyn Watch>, StoreError>;
    /// Forgets changes before `revision`; current values stay.
    async fn compact(&self, revision: u64) -> Result<(), StoreError>;
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}

/// A watch under way.
#[async_trait]
pub trait Watch: Send + Debug {
    /// The changes of the next revision. Cancel-safe.
    async fn next(&mut self) -> Result<Vec<Change>, StoreError>;
}

/// As it is passed around.
pub type SharedStore = Arc<dyn Store>;
