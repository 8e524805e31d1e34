//! Owns the step between records and bytes, for what is stored as JSON, and the store's own identity record. Never
//! decides what is stored where: keys are the caller's.

use serde::{Serialize, de::DeserializeOwned};

use super::{Committed, Compare, Entry, Operation, PAGE_ENTRIES_MAX, Store, StoreError, Transaction};
use crate::model::StoreIdentity;

/// A record that is not what its key promises.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{key:?} does not hold a valid record")]
    Decode { key: String, source: serde_json::Error },
    #[error("record for {key:?} cannot be written as JSON")]
    Encode { key: String, source: serde_json::Error },
    #[error("the store failed")]
    Store {
        #[from]
        source: StoreError,
    },
}

/// A record with the revision that last changed it, for a compare.
#[derive(Clone, Debug)]
pub struct Versioned<T> {
    pub key: String,
    pub value: T,
    pub modified: u64,
}

impl<T> Versioned<T> {
    /// Holds as long as nobody else changed the record.
    pub fn unchanged(&self) -> Compare {
        Compare::Modified(self.key.clone(), self.modified)
    }
}

/// Reads the record out of an entry.
pub fn decode<T: DeserializeOwned>(entry: Entry) -> Result<Versioned<T>, RecordError> {
    match serde_json::from_slice(&entry.value) {
        Ok(value) => Ok(Versioned {
            key: entry.key,
            value,
            modified: entry.modified,
        }),
        Err(source) => Err(RecordError::Decode {
            key: entry.key,
            source,
        }),
    }
}

/// The record at `key`.
pub async fn get_json<T: DeserializeOwned>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<Versioned<T>>, RecordError> {
    store.get(key).await?.map(decode).transpose()
}

/// Every record under `prefix`, page by page. For what is bounded by the number of nodes or clusters.
pub async fn all_json<T: DeserializeOwned>(
    store: &dyn Store,
    prefix: &str,
) -> Result<Vec<Versioned<T>>, RecordError> {
    let (mut all, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = store.range(prefix, after.as_deref(), PAGE_ENTRIES_MAX).await?;
        after = page.entries.last().map(|entry| entry.key.clone());
        for entry in page.entries {
            all.push(decode(entry)?);
        }
        if !page.more {
            return Ok(all);
        }
    }
}

/// The operation that writes `value` at `key`.
pub fn put_json<T: Serialize>(key: impl Into<String>, value: &T) -> Result<Operation, RecordError> {
    let key = key.into();
    match serde_json::to_vec(value) {
        Ok(bytes) => Ok(Operation::Put {
            key,
            value: bytes.into(),
            lease: None,
        }),
        Err(source) => Err(RecordError::Encode { key, source }),
    }
}

/// Where a store keeps its identity.
pub const IDENTITY_KEY: &str = "/store";

/// The store's identity; made up once, by whoever asks first.
pub async fn identity(store: &dyn Store) -> Result<StoreIdentity, RecordError> {
    loop {
        if let Some(found) = get_json(store, IDENTITY_KEY).await? {
            return Ok(found.value);
        }
        let fresh = StoreIdentity {
            store_id: uuid::Uuid::new_v4().simple().to_string(),
            epoch: 1,
        };
        let transaction = Transaction {
            compare: vec![Compare::Missing(IDENTITY_KEY.into())],
            operations: vec![put_json(IDENTITY_KEY, &fresh)?],
        };
        if let Committed::Done(_) = store.commit(transaction).await? {
            return Ok(fresh);
        }
    }
}
