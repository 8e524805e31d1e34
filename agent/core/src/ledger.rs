//! Owns the record of what this agent makes on its host. Never lists the host itself: it is given the list.
//!
//! An intent is stored before the effect that makes the thing; it is released once the thing is known to be gone.
//! Names derive from task and attempt, so one entry covers everything that is made under that name.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{Attempt, ContainerId, TaskId, parse_runtime_id};

/// Something the agent answers for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Owned {
    /// Cgroups, network namespace, link, route, run directory, shared memory, the process that holds shared namespaces, and
    /// volumes of a task; not the node's shared volumes.
    Host(TaskId),
    /// Snapshot, container, shim and logger of one attempt.
    Attempt(TaskId, ContainerId, Attempt),
    /// The log directory of a task; outlives the task until its retention ends.
    Logs(TaskId),
}

impl Owned {
    /// The task it is made for.
    pub fn task(&self) -> &TaskId {
        match self {
            Self::Host(task) | Self::Attempt(task, ..) | Self::Logs(task) => task,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerWrite {
    Intend(Owned),
    Release(Owned),
}

/// Something found on the host under one of this instance's names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HostObject {
    /// A container record or runtime task, by its id.
    Container(String),
    /// An active snapshot, by its key.
    Snapshot(String),
    /// Anything named after a task: what it is ("netns", "link", "cgroup", "run directory", "volumes"), and the task's id.
    OfTask { kind: String, task: TaskId },
    /// A log directory.
    Logs(TaskId),
    /// A route to other nodes' tasks, or to none, that is not wanted any more: for people.
    Route(String),
    /// The link for one VLAN of a link of the host that no task is on: its name.
    Vlan(String),
    /// A shim of which containerd does not know, by its process id.
    Shim(i32),
    /// Under our name, but no task's.
    Unnamed { kind: String, name: String },
}

/// What the agent made and has not yet seen gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger(BTreeSet<Owned>);

impl Ledger {
    /// From what the store holds.
    pub fn load(entries: impl IntoIterator<Item = Owned>) -> Self {
        Self(entries.into_iter().collect())
    }

    pub fn apply(&mut self, write: &LedgerWrite) {
        match write {
            LedgerWrite::Intend(owned) => self.0.insert(owned.clone()),
            LedgerWrite::Release(owned) => self.0.remove(owned),
        };
    }

    pub fn contains(&self, owned: &Owned) -> bool {
        self.0.contains(owned)
    }

    pub fn entries(&self) -> impl Iterator<Item = &Owned> {
        self.0.iter()
    }

    /// Whether somebody answers for the object.
    pub fn owns(&self, object: &HostObject) -> bool {
        match object {
            HostObject::Container(id) | HostObject::Snapshot(id) => match parse_runtime_id(id) {
                Some((container, attempt)) => {
                    let same = |c: &ContainerId, a: &Attempt| *c == container && *a == attempt;
                    self.0
                        .iter()
                        .any(|o| matches!(o, Owned::Attempt(_, c, a) if same(c, a)))
                }
                None => false,
            },
            HostObject::OfTask { task, .. } => self.0.contains(&Owned::Host(task.clone())),
            HostObject::Logs(task) => self.0.contains(&Owned::Logs(task.clone())),
            HostObject::Route(_) | HostObject::Vlan(_) | HostObject::Shim(_) | HostObject::Unnamed { .. } => {
                false
            }
        }
    }

    /// The objects of the list that nobody answers for: each is a leak.
    pub fn unowned(&self, host: impl IntoIterator<Item = HostObject>) -> Vec<HostObject> {
        host.into_iter().filter(|object| !self.owns(object)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_intended_and_not_released_is_owned() {
        let task: TaskId = format!("{:032x}", 1).parse().unwrap();
        let container: ContainerId = format!("{:032x}", 2).parse().unwrap();
        let attempt = Owned::Attempt(task.clone(), container.clone(), Attempt(1));
        let mut ledger = Ledger::load([Owned::Host(task.clone()), attempt.clone()]);
        let host = || {
            vec![
                HostObject::Container(format!("{container}-1")),
                HostObject::Snapshot(format!("{container}-2")),
                HostObject::OfTask {
                    kind: "netns".into(),
                    task: task.clone(),
                },
                HostObject::Logs(task.clone()),
            ]
        };
        let other_attempt = HostObject::Snapshot(format!("{container}-2"));
        assert_eq!(
            ledger.unowned(host()),
            [other_attempt.clone(), HostObject::Logs(task.clone())]
        );
        ledger.apply(&LedgerWrite::Release(attempt));
        let container_record = HostObject::Container(format!("{container}-1"));
        assert_eq!(
            ledger.unowned(host()),
            [container_record, other_attempt, HostObject::Logs(task.clone())]
        );
    }
}
