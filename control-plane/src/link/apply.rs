//! Owns how a node's reports get into the store: in order, each once, and everything that follows from one in the
//! same transaction. Never loses one: a report is acknowledged only when it is applied or can never be.

mod pins;
mod vanished;

use std::collections::{BTreeMap, BTreeSet};

use berth_proto::node::v1::{DesiredStatus, StateChange, TaskSpec, TaskState};
use prost::Message;

use self::pins::Pins;
use super::{
    dispatch::desired_prefix,
    map::{self, Progress},
    names::{self, Host},
    now,
    records::{ATTEMPTS_MAX, back_off, node_key},
};
use crate::{
    model::{DEREGISTERED, Node, Revocation, Task, keys},
    pki::{Peer, is_id},
    store::{
        Committed, Compare, Operation, SharedStore, StoreError, TRANSACTION_OPERATIONS_MAX, Transaction,
        typed::{self, RecordError, Versioned},
    },
    subnets,
};

/// Most reports in one transaction: each takes at most four operations, and three are the node's own.
pub(super) const BATCH_CHANGES_MAX: usize = (TRANSACTION_OPERATIONS_MAX - 3) / 4;
/// Unusable reports are logged once for each task, and for so many tasks of one link.
const NOTED_MAX: usize = 1_000;

#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error("read or write the records of a report")]
    Record {
        #[from]
        source: RecordError,
    },
    #[error("{key:?} does not hold a valid task spec")]
    Spec { key: String, source: prost::DecodeError },
    #[error("the records of a report change too often")]
    Contended,
}

impl From<StoreError> for ApplyError {
    fn from(source: StoreError) -> Self {
        Self::Record {
            source: source.into(),
        }
    }
}

/// What of one node is applied.
#[derive(Debug)]
pub(super) struct Applier {
    store: SharedStore,
    peer: Peer,
    applied: u64,
    /// The compare that makes "once" true, whoever else serves this node.
    unchanged: Compare,
    host: Host,
    noted: BTreeSet<String>,
}

/// Records under change.
struct Batch {
    transaction: Transaction,
    /// Task ids whose allocation is given up, and whose counts for less.
    released: Vec<String>,
    stopping: Vec<String>,
    pins: Pins,
}

impl Applier {
    /// `host`: where the node is reached.
    pub(super) async fn load(store: SharedStore, peer: Peer, host: Host) -> Result<Self, ApplyError> {
        let unchanged = Compare::Missing(applied_key(&peer));
        let mut applier = Self {
            store,
            peer,
            applied: 0,
            unchanged,
            host,
            noted: BTreeSet::new(),
        };
        applier.reload().await?;
        Ok(applier)
    }

    /// The highest sequence number that is applied.
    pub(super) fn applied(&self) -> u64 {
        self.applied
    }

    async fn reload(&mut self) -> Result<(), ApplyError> {
        if let Some(found) = typed::get_json::<u64>(&*self.store, &applied_key(&self.peer)).await? {
            self.applied = found.value;
            self.unchanged = found.unchanged();
        }
        Ok(())
    }

    /// Applies reports in the order given; those that are applied already, or come after a higher one, are passed
    /// over. At most [`BATCH_CHANGES_MAX`]. Returns what may be acknowledged.
    pub(super) async fn apply(&mut self, changes: &[StateChange]) -> Result<u64, ApplyError> {
        for attempt in 1..=ATTEMPTS_MAX {
            let mut highest = self.applied;
            let mut fresh = Vec::new();
            for change in changes {
                if change.sequence > highest {
                    highest = change.sequence;
                    fresh.push(change);
                }
            }
            if fresh.is_empty() || self.attempt(&fresh, highest).await? {
                return Ok(self.applied);
            }
            back_off(attempt).await;
            self.reload().await?;
        }
        Err(ApplyError::Contended)
    }

    /// False: somebody else changed a record meanwhile.
    async fn attempt(&mut self, changes: &[&StateChange], highest: u64) -> Result<bool, ApplyError> {
        let tasks = self.fold(changes).await?;
        let applied = typed::put_json(applied_key(&self.peer), &highest)?;
        let mut batch = Batch {
            transaction: Transaction {
                compare: vec![self.unchanged.clone()],
                operations: vec![applied],
            },
            released: vec![],
            stopping: vec![],
            pins: Pins::default(),
        };
        for (task, progress) in tasks.into_values() {
            self.add_task(&mut batch, task, progress).await?;
        }
        batch.pins.add_to(&*self.store, &mut batch.transaction).await?;
        let ended = self.add_node(&mut batch).await?;
        match self.store.commit(batch.transaction).await? {
            Committed::Conflict => Ok(false),
            Committed::Done(revision) => {
                self.applied = highest;
                self.unchanged = Compare::Modified(applied_key(&self.peer), revision);
                if ended {
                    // Its parts of the subnets are free. Also found by who looks now and then.
                    let settled = subnets::settle(&*self.store, &self.peer.cluster, now()).await;
                    if let Err(error) = settled {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "what a node had of the subnets is given back later"
                        );
                    }
                }
                Ok(true)
            }
        }
    }

    /// The tasks that the reports change, as they then are.
    async fn fold(
        &mut self,
        changes: &[&StateChange],
    ) -> Result<BTreeMap<String, (Versioned<Task>, Progress)>, ApplyError> {
        let mut tasks = BTreeMap::new();
        for change in changes {
            let Some(state) = &change.task else {
                self.note("", &"it names no task");
                continue;
            };
            if !tasks.contains_key(&state.task_id) {
                let Some(task) = self.task(state).await? else {
                    continue;
                };
                tasks.insert(state.task_id.clone(), (task, Progress::default()));
            }
            if let Some((task, progress)) = tasks.get_mut(&state.task_id) {
                match map::fold(&mut task.value, state, now()) {
                    Ok(more) => *progress = progress.and(more),
                    Err(unknown) => self.note(&state.task_id, &unknown),
                }
            }
        }
        Ok(tasks)
    }

    /// The task's record, if it is this node's to report.
    async fn task(&mut self, state: &TaskState) -> Result<Option<Versioned<Task>>, ApplyError> {
        if !is_id(&state.task_id) {
            self.note(&state.task_id, &"its task has no valid id");
            return Ok(None);
        }
        let key = format!("/tasks/{}/{}", self.peer.cluster, state.task_id);
        match typed::get_json::<Task>(&*self.store, &key).await? {
            None => self.note(&state.task_id, &"its task is not known here"),
            Some(task) if task.value.node != self.peer.node_id => {
                self.note(&state.task_id, &"its task belongs to another node");
            }
            found => return Ok(found),
        }
        Ok(None)
    }

    async fn add_task(
        &self,
        batch: &mut Batch,
        task: Versioned<Task>,
        progress: Progress,
    ) -> Result<(), ApplyError> {
        if !progress.changed {
            return Ok(());
        }
        if progress.resolved {
            batch.pins.note(&task.value);
        }
        let (compare, operations) = (&mut batch.transaction.compare, &mut batch.transaction.operations);
        compare.push(task.unchanged());
        operations.push(typed::put_json(task.key.clone(), &task.value)?);
        operations.extend(names::operation(&task.value, progress, &self.host)?);
        let desired_key = format!("{}{}", desired_prefix(&self.peer.node_id), task.value.id);
        if progress.stopped {
            operations.push(Operation::Delete { key: desired_key });
            batch.released.push(task.value.id);
        } else if progress.ends_by_itself {
            if let Some(entry) = self.store.get(&desired_key).await? {
                let mut spec = TaskSpec::decode(&*entry.value).map_err(|source| ApplyError::Spec {
                    key: desired_key.clone(),
                    source,
                })?;
                spec.set_desired_status(DesiredStatus::Stopped);
                spec.stop_reason = task.value.stopped_reason.unwrap_or_default();
                compare.push(Compare::Modified(desired_key.clone(), entry.modified));
                let value = spec.encode_to_vec().into();
                operations.push(Operation::Put {
                    key: desired_key,
                    value,
                    lease: None,
                });
            }
            batch.stopping.push(task.value.id);
        }
        Ok(())
    }

    /// Gives back what stopped tasks held on the node. Says whether a deregistered node has none left.
    async fn add_node(&self, batch: &mut Batch) -> Result<bool, ApplyError> {
        if batch.released.is_empty() && batch.stopping.is_empty() {
            return Ok(false);
        }
        let key = node_key(&self.peer.cluster, &self.peer.node_id);
        let Some(mut node) = typed::get_json::<Node>(&*self.store, &key).await? else {
            return Ok(false);
        };
        let before = node.value.allocations.clone();
        for task in &batch.stopping {
            if let Some(allocation) = node.value.allocations.get_mut(task) {
                allocation.stopping = true;
            }
        }
        for task in &batch.released {
            node.value.allocations.remove(task);
        }
        let ended = node.value.status == "INACTIVE" && node.value.allocations.is_empty();
        if node.value.allocations != before {
            if ended {
                // It was deregistered with tasks, and was let in to stop them. That is done.
                self.revoke(batch).await?;
            }
            batch.transaction.compare.push(node.unchanged());
            batch
                .transaction
                .operations
                .push(typed::put_json(key, &node.value)?);
        }
        Ok(ended)
    }

    /// Unless somebody has meanwhile: the first reason is the reason.
    async fn revoke(&self, batch: &mut Batch) -> Result<(), ApplyError> {
        let key = keys::revocation(&self.peer.node_id);
        if self.store.get(&key).await?.is_some() {
            return Ok(());
        }
        let revocation = Revocation {
            node: self.peer.node_id.clone(),
            cluster: self.peer.cluster.clone(),
            reason: DEREGISTERED.into(),
            revoked_by: DEREGISTERED.into(),
            revoked_at: now(),
        };
        let (compare, operations) = (&mut batch.transaction.compare, &mut batch.transaction.operations);
        compare.push(Compare::Missing(key.clone()));
        operations.push(typed::put_json(key, &revocation)?);
        Ok(())
    }

    /// Says once that reports of a task are acknowledged without being applied.
    fn note(&mut self, task: &str, why: &dyn std::fmt::Display) {
        if self.noted.len() < NOTED_MAX && self.noted.insert(task.chars().take(64).collect()) {
            tracing::warn!(node = %self.peer.node_id, task, "a report is dropped: {why}");
        }
    }
}

fn applied_key(peer: &Peer) -> String {
    format!("/applied/{}", peer.node_id)
}
