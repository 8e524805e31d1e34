//! Owns locks by name, so that two pulls that share a layer fetch and unpack it once. Never holds more names than
//! are in use.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::OwnedMutexGuard;

#[derive(Debug, Default)]
pub(super) struct KeyedLocks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl KeyedLocks {
    /// Waits until nobody else holds `key`. Released when the guard drops.
    pub async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(key.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_holder_per_key_and_no_keys_left_behind() {
        let locks = KeyedLocks::default();
        let held = locks.lock("a").await;
        assert!(futures_util::FutureExt::now_or_never(locks.lock("a")).is_none());
        let other = locks.lock("b").await;
        drop((held, other));
        let _again = locks.lock("a").await;
        assert_eq!(locks.0.lock().unwrap().len(), 1);
    }
}
