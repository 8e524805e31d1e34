//! Owns what the agent remembers of its containers between calls: it saves a question to containerd on every exit
//! and signal. A cache: what it does not know is asked for, and the labels are the truth.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_agent_core::ids::{Attempt, ContainerId, TaskId, runtime_id};

/// Removed containers that are remembered for the exit events still under way.
const REMOVED_MAX: usize = 256;

/// One attempt of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub task: TaskId,
    pub container: ContainerId,
    pub attempt: Attempt,
    /// What `SignalKind::Stop` sends.
    pub stop_signal: u32,
}

impl Identity {
    /// The name containerd knows it by.
    pub fn runtime_id(&self) -> String {
        runtime_id(&self.container, self.attempt)
    }
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    /// Started, and its exit is not known yet.
    running: bool,
}

#[derive(Debug, Default)]
struct Known {
    entries: BTreeMap<String, Entry>,
    /// Oldest first.
    removed: VecDeque<String>,
}

#[derive(Debug, Default)]
pub(super) struct Index(Mutex<Known>);

impl Index {
    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic while it was held cannot leave it half changed in a way that matters: it is a cache.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, identity: Identity, running: bool) {
        let (id, mut known) = (identity.runtime_id(), self.known());
        known.removed.retain(|other| *other != id);
        known.entries.insert(id, Entry { identity, running });
    }

    pub(super) fn get(&self, id: &str) -> Option<Identity> {
        self.known().entries.get(id).map(|entry| entry.identity.clone())
    }

    pub(super) fn exited(&self, id: &str) {
        if let Some(entry) = self.known().entries.get_mut(id) {
            entry.running = false;
        }
    }

    pub(super) fn removed(&self, id: &str) {
        let mut known = self.known();
        let Some(entry) = known.entries.get_mut(id) else {
            return;
        };
        entry.running = false;
        if !known.removed.iter().any(|other| other == id) {
            known.removed.push_back(id.to_owned());
        }
        if known.removed.len() > REMOVED_MAX
            && let Some(oldest) = known.removed.pop_front()
        {
            known.entries.remove(&oldest);
        }
    }

    pub(super) fn running(&self) -> Vec<Identity> {
        let known = self.known();
        known
            .entries
            .values()
            .filter(|entry| entry.running)
            .map(|entry| entry.identity.clone())
            .collect()
    }

    /// Known and not removed.
    pub(super) fn has(&self, id: &str) -> bool {
        let known = self.known();
        known.entries.contains_key(id) && !known.removed.iter().any(|other| other == id)
    }

    pub(super) fn is_running(&self, id: &str) -> bool {
        self.known().entries.get(id).is_some_and(|entry| entry.running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(attempt: u32) -> Identity {
        let (task, container) = ("a".repeat(32).parse().unwrap(), "b".repeat(32).parse().unwrap());
        Identity {
            task,
            container,
            attempt: Attempt(attempt),
            stop_signal: 15,
        }
    }

    #[test]
    fn removed_containers_are_forgotten_in_order() {
        let index = Index::default();
        for attempt in 0..=300 {
            index.put(identity(attempt), true);
            index.removed(&identity(attempt).runtime_id());
        }
        assert_eq!(index.get(&identity(0).runtime_id()), None);
        assert_eq!(index.get(&identity(300).runtime_id()), Some(identity(300)));
        assert!(index.running().is_empty());
        assert_eq!(index.known().entries.len(), REMOVED_MAX);
    }

    #[test]
    fn an_exit_ends_running() {
        let index = Index::default();
        index.put(identity(1), true);
        assert_eq!(index.running(), [identity(1)]);
        index.exited(&identity(1).runtime_id());
        assert!(!index.is_running(&identity(1).runtime_id()));
    }
}
