//! Owns the rule that one task has one network operation under way at a time. Never blocks one task on another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use berth_agent_core::ids::TaskId;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// One lock per task that has an operation under way or waiting; bounded by those.
#[derive(Debug, Default)]
pub(super) struct TaskLocks(Mutex<HashMap<TaskId, Arc<AsyncMutex<()>>>>);

impl TaskLocks {
    /// Waits for the task's turn. The guard may outlive the caller, on a thread that finishes what it began.
    pub(super) async fn lock(&self, task: &TaskId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Locks that nobody holds or waits for are only referenced from here.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(task.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }
}
