//! Owns who waits for which changes inside this process. Never carries a change: a watch reads those from the
//! database, the hub only says from which revision on it is worth reading.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::store::StoreError;

/// Everybody who watches.
#[derive(Debug, Default)]
pub(super) struct Hub(Mutex<Watchers>);

#[derive(Debug, Default)]
struct Watchers {
    closed: bool,
    slots: Vec<Arc<Slot>>,
}

#[derive(Debug)]
struct Slot {
    prefix: String,
    marks: Mutex<Marks>,
    wake: Notify,
}

/// The revisions that hold something for a watch and are not read yet lie between these two. Zero: none.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    first: u64,
    last: u64,
    closed: bool,
}

/// One watch's place in the hub; left when dropped.
#[derive(Debug)]
pub(super) struct Interest {
    hub: Arc<Hub>,
    slot: Arc<Slot>,
}

// Nothing panics while it holds one of these locks, so a poisoned lock guards sound data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(super) fn register(self: &Arc<Self>, prefix: &str) -> Interest {
        let mut watchers = lock(&self.0);
        let marks = Marks {
            closed: watchers.closed,
            ..Marks::default()
        };
        let slot = Arc::new(Slot {
            prefix: prefix.to_owned(),
            marks: Mutex::new(marks),
            wake: Notify::new(),
        });
        watchers.slots.push(slot.clone());
        Interest {
            hub: self.clone(),
            slot,
        }
    }

    /// Tells whom it concerns that `revision` is committed and changed `keys`.
    pub(super) fn committed(&self, revision: u64, keys: &[String]) {
        for slot in &lock(&self.0).slots {
            if keys.iter().any(|key| key.starts_with(&slot.prefix)) {
                slot.mark(revision);
            }
        }
    }

    pub(super) fn close(&self) {
        let mut watchers = lock(&self.0);
        watchers.closed = true;
        for slot in &watchers.slots {
            lock(&slot.marks).closed = true;
            slot.wake.notify_one();
        }
    }
}

impl Slot {
    fn mark(&self, revision: u64) {
        let mut marks = lock(&self.marks);
        marks.first = if marks.first == 0 {
            revision
        } else {
            marks.first.min(revision)
        };
        marks.last = marks.last.max(revision);
        drop(marks);
        self.wake.notify_one();
    }
}

impl Interest {
    /// There may be something from `revision` on.
    pub(super) fn mark(&self, revision: u64) {
        // Revision zero never holds a change, and here it means "none".
        self.slot.mark(revision.max(1));
    }

    /// Waits for something to read, and says from which revision on. Cancel-safe.
    pub(super) async fn marked(&self) -> Result<u64, StoreError> {
        loop {
            let marks = *lock(&self.slot.marks);
            match marks {
                Marks { closed: true, .. } => return Err(StoreError::Closed),
                Marks { first: 0, .. } => self.slot.wake.notified().await,
                Marks { first, .. } => return Ok(first),
            }
        }
    }

    /// All up to `revision` was read.
    pub(super) fn clear(&self, revision: u64) {
        let mut marks = lock(&self.slot.marks);
        if marks.last <= revision {
            (marks.first, marks.last) = (0, 0);
        } else {
            marks.first = marks.first.max(revision + 1);
        }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        lock(&self.hub.0)
            .slots
            .retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}
