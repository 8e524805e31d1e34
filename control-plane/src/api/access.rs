//! Owns who may call: finding an access key, and remembering coarsely when it was last used. Never verifies a
//! signature.
//!
//! Keys of the store are read at every call, so one that is deleted is worth nothing from then on, on open connections
//! and in other control planes on the same store, too.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{ApiKey, context::now_ms};
use crate::{
    model::{ApiKeyRecord, Role, keys},
    store::{
        Compare, Store, Transaction,
        typed::{self, RecordError},
    },
};

/// The time of last use is exact to this.
const USE_GRAIN: Duration = Duration::from_secs(15 * 60);
/// How long a call may wait for its time to be written: it is not worth more.
const USE_DEADLINE: Duration = Duration::from_millis(500);

/// A key as far as a call needs it.
#[derive(Clone)]
pub(super) struct Key {
    pub secret: String,
    pub role: Role,
    /// In the store, not in the configuration.
    pub stored: bool,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Access {
    /// Admins, by access key id.
    configured: HashMap<String, ApiKey>,
    /// When the last use of a stored key was written. As many as there are keys.
    written: Mutex<HashMap<String, Instant>>,
}

impl Access {
    pub fn new(configured: Vec<ApiKey>) -> Self {
        let configured = configured
            .into_iter()
            .map(|key| (key.access_key_id.clone(), key))
            .collect();
        Self {
            configured,
            written: Mutex::default(),
        }
    }

    /// Ids of the configuration's keys.
    pub fn configured(&self) -> impl Iterator<Item = &str> {
        self.configured.keys().map(String::as_str)
    }

    pub fn is_configured(&self, access_key_id: &str) -> bool {
        self.configured.contains_key(access_key_id)
    }

    /// The key of this id, as it is now.
    pub async fn find(&self, store: &dyn Store, access_key_id: &str) -> Result<Option<Key>, RecordError> {
        if let Some(key) = self.configured.get(access_key_id) {
            return Ok(Some(Key {
                secret: key.secret.clone(),
                role: Role::Admin,
                stored: false,
            }));
        }
        if !is_key_id(access_key_id) {
            return Ok(None);
        }
        let found = typed::get_json::<ApiKeyRecord>(store, &keys::api_key(access_key_id)).await?;
        Ok(found.map(|found| Key {
            secret: found.value.secret,
            role: found.value.role,
            stored: true,
        }))
    }

    /// Remembers that a key was used. That it could not be written is no reason to refuse a call.
    pub async fn used(&self, store: &dyn Store, access_key_id: &str, key: &Key) {
        if !key.stored || !self.is_due(access_key_id) {
            return;
        }
        let Ok(put) = typed::put_json(keys::api_key_use(access_key_id), &now_ms()) else {
            return;
        };
        let write = store.commit(Transaction {
            // A key that is being deleted leaves nothing behind.
            compare: vec![Compare::Exists(keys::api_key(access_key_id))],
            operations: vec![put],
        });
        match tokio::time::timeout(USE_DEADLINE, write).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(access_key_id, %error, "last use is not written"),
            Err(_) => tracing::debug!(access_key_id, "last use is not written in time"),
        }
    }

    /// Nothing is remembered of a key that is gone.
    pub fn forget(&self, access_key_id: &str) {
        if let Ok(mut written) = self.written.lock() {
            written.remove(access_key_id);
        }
    }

    fn is_due(&self, access_key_id: &str) -> bool {
        let Ok(mut written) = self.written.lock() else {
            return false;
        };
        let now = Instant::now();
        match written.get(access_key_id) {
            Some(at) if now.duration_since(*at) < USE_GRAIN => false,
            _ => {
                written.insert(access_key_id.to_owned(), now);
                true
            }
        }
    }
}

/// Whether a text can be the id of an access key: AWS's bounds, which clients check.
pub fn is_key_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (16..=128).contains(&text.len()) && text.bytes().all(allowed)
}
