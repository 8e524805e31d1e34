//! Owns the shape of the control plane's store: etcd's, so that SQLite here and etcd elsewhere can stand behind it.
//! Never knows what is stored.
//!
//! Keys are paths; values are bytes. One revision counter rises with every committed transaction that changes
//! something. Watches deliver changes in order from a revision. Leases delete their keys when they run out.

#[cfg(test)]
mod conformance;
pub mod sqlite;
pub mod typed;

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

/// Most operations in one transaction (etcd's default).
pub const TRANSACTION_OPERATIONS_MAX: usize = 128;
/// Longest key, bytes.
pub const KEY_BYTES_MAX: usize = 1_024;
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

impl Operation {
    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// All operations, or none. A key may be changed once.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub compare: Vec<Compare>,
    pub operations: Vec<Operation>,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Durable, as of this revision. A transaction that changed nothing has the revision it found.
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
    #[error("key of {bytes} bytes is over the limit of {KEY_BYTES_MAX}: it starts with {start:?}")]
    KeyTooLong { start: String, bytes: usize },
    #[error("transaction of {0} operations is over the limit of {TRANSACTION_OPERATIONS_MAX}")]
    TooManyOperations(usize),
    #[error("transaction changes {0:?} more than once")]
    DuplicateKey(String),
    /// The watcher must read the range again and watch from its revision.
    #[error("changes since revision {wanted} are compacted; the oldest kept is {oldest}")]
    Compacted { wanted: u64, oldest: u64 },
    #[error("lease {0:?} does not exist")]
    NoLease(LeaseId),
    #[error("store is closed")]
    Closed,
    /// The store has more to do than it can. Whether a change it was given is done is not known.
    #[error("store did not answer within {seconds} s")]
    Overloaded { seconds: u64 },
    /// What is on disk is damaged. Nothing helps but a restore.
    #[error("{action}: the database is damaged")]
    Corrupt {
        action: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The disk is full, or I/O failed. Nothing was changed; trying again may help.
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
    /// Durable (full sync) when it returns `Done`. Not cancelled by dropping the future.
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError>;
    /// Every change under `prefix` of revision ≥ `from`, in order, each revision's changes together. `from` may lie
    /// in the future.
    async fn watch(&self, prefix: &str, from: u64) -> Result<Box<dyn Watch>, StoreError>;
    /// Forgets changes before `revision`; current values stay.
    async fn compact(&self, revision: u64) -> Result<(), StoreError>;
    /// A lease that lives for `ttl` after the grant and after each [`Store::keep_alive`]; a restart of the store
    /// gives every lease a whole `ttl` again.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;
    /// Ends a lease now, and deletes its keys.
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

/// Checks a transaction's bounds, for every implementation alike.
pub(crate) fn check(transaction: &Transaction) -> Result<(), StoreError> {
    let count = transaction.operations.len().max(transaction.compare.len());
    if count > TRANSACTION_OPERATIONS_MAX {
        return Err(StoreError::TooManyOperations(count));
    }
    let mut seen = std::collections::BTreeSet::new();
    for operation in &transaction.operations {
        let key = operation.key();
        if key.len() > KEY_BYTES_MAX {
            let start = key.chars().take(64).collect();
            return Err(StoreError::KeyTooLong {
                start,
                bytes: key.len(),
            });
        }
        if !seen.insert(key) {
            return Err(StoreError::DuplicateKey(key.to_owned()));
        }
        if let Operation::Put { value, .. } = operation
            && value.len() > VALUE_BYTES_MAX
        {
            return Err(StoreError::ValueTooLarge {
                key: key.to_owned(),
                bytes: value.len(),
            });
        }
    }
    Ok(())
}
