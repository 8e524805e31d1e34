//! Owns the rule that a task, or container, has one network operation under way at a time. Never blocks one on another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::names::Owner;

/// One lock per owner that has an operation under way or waiting; bounded by those.
#[derive(Debug, Default)]
pub(super) struct OwnerLocks(Mutex<HashMap<Owner, Arc<AsyncMutex<()>>>>);

impl OwnerLocks {
    /// Waits for the owner's turn. The guard may outlive the caller, on a thread that finishes what it began.
    pub(super) async fn lock(&self, owner: &Owner) -> OwnedMutexGuard<()> {
        self.of(owner).lock_owned().await
    }

    /// The owner's turn, if nothing is under way for it.
    pub(super) fn try_lock(&self, owner: &Owner) -> Option<OwnedMutexGuard<()>> {
        self.of(owner).try_lock_owned().ok()
    }

    fn of(&self, owner: &Owner) -> Arc<AsyncMutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks that nobody holds or waits for are only referenced from here.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(owner.clone()).or_default().clone()
    }
}
