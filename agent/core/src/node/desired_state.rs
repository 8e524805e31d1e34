//! Owns how desired state is taken over: level-triggered, guarded against a control plane that lost its data.

use std::collections::BTreeSet;

use super::Node;
use crate::{
    change::{Change, DesiredAck},
    desired::{DesiredStatus, Millis, Position, TaskSpec},
    event::{Refused, TimerKey},
    ids::TaskId,
    ledger::LedgerWrite,
    ports::Binding,
    report::{Facts, Report, Status, StopCode, TaskState, Times},
    task::{Phase, Task},
};

/// From so many running tasks that a snapshot does not name, and half of all, it is taken for a mistake. A control
/// plane keeps a task in its snapshots until the node reported it STOPPED, so one that is missing is never routine.
const UNEXPLAINED_STOPS_MAX: usize = 2;
/// What ECS says when nobody gave a reason.
const STOPPED_BY_USER: &str = "Task stopped by user";

/// Why desired state is not taken over.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    reason: String,
    /// An operator can have it taken over all the same.
    confirmable: bool,
}

impl Refusal {
    fn ack(self, position: Position) -> DesiredAck {
        DesiredAck {
            position,
            refused: Some(self.reason),
            confirmable: self.confirmable,
        }
    }
}

/// What desired state names: what is understood of it, and what is not.
pub(super) struct Wanted {
    pub tasks: Vec<TaskSpec>,
    pub refused: Vec<Refused>,
}

impl Node {
    pub(super) fn on_snapshot(
        &mut self,
        position: Position,
        wanted: Wanted,
        removals_confirmed: bool,
        now: Millis,
        change: &mut Change,
    ) -> BTreeSet<TaskId> {
        let understood = wanted.tasks.iter().map(|spec| &spec.id);
        let refused = wanted.refused.iter().map(|refused| &refused.task);
        let named: BTreeSet<TaskId> = understood.chain(refused).cloned().collect();
        let restored = self.is_restored(&position);
        let accepted = self.accepts(&position).and_then(|()| {
            if self.rejoined || removals_confirmed {
                return Ok(());
            }
            self.guards_against_lost_data(&named, restored)
        });
        self.snapshot_refused = accepted.err();
        let mut touched = BTreeSet::new();
        if restored {
            touched.extend(self.forget_reports(change));
        }
        if let Some(why) = self.snapshot_refused.clone() {
            change.desired_ack = Some(why.ack(position));
            return touched;
        }
        let missing: Vec<TaskId> = self
            .tasks
            .keys()
            .filter(|id| !named.contains(*id))
            .cloned()
            .collect();
        self.rejoined = false;
        self.record.identity.clone_from(&self.identity);
        touched.extend(self.take_over(position, wanted, &missing, now, change));
        self.strangers.clear();
        self.release_strangers(now, change);
        touched
    }

    /// Whether the control plane that this node follows was restored since it last spoke.
    fn is_restored(&self, position: &Position) -> bool {
        let mine = self.record.position.as_ref();
        mine.is_some_and(|mine| mine.store_id == position.store_id && mine.epoch < position.epoch)
    }

    /// A restored control plane has only those reports that its backup has: every task is told of again.
    fn forget_reports(&mut self, change: &mut Change) -> Vec<TaskId> {
        for (id, task) in &mut self.tasks {
            task.reported = None;
            change.tasks.insert(id.clone());
        }
        self.tasks.keys().cloned().collect()
    }

    /// What the ledger has of tasks that neither this node nor its control plane knows: from now on it is a leak, which
    /// the audit removes.
    fn release_strangers(&mut self, now: Millis, change: &mut Change) {
        let unknown = |task: &&TaskId| !self.tasks.contains_key(*task);
        let owned = self.ledger.entries().filter(|owned| unknown(&owned.task()));
        let owned: Vec<_> = owned.cloned().collect();
        let holders: Vec<_> = self.record.addresses.holders().filter(unknown).cloned().collect();
        for owned in owned {
            self.write_ledger(LedgerWrite::Release(owned), change);
        }
        for id in holders {
            self.release(&id, now, change);
        }
    }

    pub(super) fn on_delta(
        &mut self,
        position: Position,
        wanted: Wanted,
        removed: &[TaskId],
        now: Millis,
        change: &mut Change,
    ) -> BTreeSet<TaskId> {
        let accepted = match &self.snapshot_refused {
            Some(before) => Err(Refusal {
                reason: format!("{} (nor is what follows that snapshot taken over)", before.reason),
                confirmable: before.confirmable,
            }),
            None => self.accepts(&position),
        };
        if let Err(why) = accepted {
            change.desired_ack = Some(why.ack(position));
            return BTreeSet::new();
        }
        self.take_over(position, wanted, removed, now, change)
    }

    fn take_over(
        &mut self,
        position: Position,
        wanted: Wanted,
        removed: &[TaskId],
        now: Millis,
        change: &mut Change,
    ) -> BTreeSet<TaskId> {
        let mut touched = BTreeSet::new();
        for spec in wanted.tasks {
            touched.insert(spec.id.clone());
            self.want(spec, now, change);
        }
        for refused in wanted.refused {
            touched.insert(refused.task.clone());
            self.refuse(refused, now, change);
        }
        for id in removed {
            if let Some(task) = self.tasks.get_mut(id) {
                task.forgotten = true;
                let reason = "the control plane no longer has this task".to_owned();
                task.begin_stop(StopCode::UserInitiated, reason, now);
                touched.insert(id.clone());
            }
        }
        self.record.position = Some(position.clone());
        change.node = true;
        change.desired_ack = Some(DesiredAck {
            position,
            refused: None,
            confirmable: false,
        });
        touched
    }

    /// Wants a task as `spec` says. A running task's spec never changes but for its desired status.
    fn want(&mut self, spec: TaskSpec, now: Millis, change: &mut Change) {
        let id = spec.id.clone();
        let (desired, reason) = (spec.desired, spec.stop_reason.clone());
        if !self.tasks.contains_key(&id) && !self.adopt(&spec, now, change) {
            self.record.last_arrival += 1;
            let deadline = now.plus(self.config.admission_deadline_ms);
            change.timers.push((TimerKey::Admission(id.clone()), deadline));
            let mut task = Task::new(spec, self.record.last_arrival, now);
            let remains: Vec<_> = self
                .ledger
                .entries()
                .filter(|owned| *owned.task() == id)
                .collect();
            if !remains.is_empty() {
                task.found(&remains, now);
            }
            self.tasks.insert(id.clone(), task);
            self.admission_due = true;
        }
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        task.spec.desired = desired;
        task.forgotten = false;
        if desired == DesiredStatus::Stopped {
            let reason = if reason.is_empty() {
                STOPPED_BY_USER.into()
            } else {
                reason
            };
            task.begin_stop(StopCode::UserInitiated, reason, now);
        }
    }

    /// Takes up a task that runs without a record, if it is whole and has a place here.
    fn adopt(&mut self, spec: &TaskSpec, now: Millis, change: &mut Change) -> bool {
        let Some(stranger) = self.strangers.remove(&spec.id) else {
            return false;
        };
        let addresses = &mut self.record.addresses;
        let has_place = stranger
            .address
            .is_none_or(|address| addresses.may_hold(address, &spec.id));
        if spec.desired != DesiredStatus::Running || !has_place {
            return false;
        }
        let arrival = self.record.last_arrival + 1;
        let Some(task) = Task::adopt(spec.clone(), arrival, &stranger, now) else {
            return false;
        };
        self.record.last_arrival = arrival;
        if let Some(address) = stranger.address {
            addresses.hold(address, &spec.id);
        }
        self.resources.charge(&task.spec);
        let ports = task.bindings.iter().flat_map(Binding::host_ports);
        self.resources.hold_ports(&task.spec.id, ports);
        self.tasks.insert(spec.id.clone(), task);
        change.node = true;
        true
    }

    /// A spec that this node does not understand. One of a task that it does not have is told once per time it is wanted,
    /// and not kept.
    fn refuse(&mut self, refused: Refused, now: Millis, change: &mut Change) {
        let Refused {
            task: id,
            stop,
            reason,
        } = refused;
        if let Some(task) = self.tasks.get_mut(&id) {
            task.forgotten = false;
            if stop {
                task.spec.desired = DesiredStatus::Stopped;
                task.begin_stop(StopCode::UserInitiated, STOPPED_BY_USER.into(), now);
            }
            return;
        }
        self.record.last_sequence += 1;
        let facts = Facts {
            status: Status::Stopped,
            stop: Some((StopCode::TaskFailedToStart, reason)),
            waiting: None,
            address: None,
            mac_address: None,
            warnings: Vec::new(),
            containers: Vec::new(),
        };
        let times = Times {
            stopping: Some(now),
            stopped: Some(now),
            ..Times::default()
        };
        change.reports.push(Report {
            sequence: self.record.last_sequence,
            task: TaskState { id, facts, times },
        });
    }

    /// Whether desired state from `position` may be taken over at all.
    fn accepts(&self, position: &Position) -> Result<(), Refusal> {
        let refuse = |reason| {
            Err(Refusal {
                reason,
                confirmable: false,
            })
        };
        let Some(mine) = &self.record.position else {
            return Ok(());
        };
        if mine.store_id != position.store_id {
            return refuse(format!(
                "this node follows store {}, not {}: the control plane lost its data or is another one; \
                 if that is meant, join it anew with `berth-agent register --force`, which stops its tasks",
                mine.store_id, position.store_id
            ));
        }
        let order = |p: &Position| (p.epoch, p.revision);
        if order(position) < order(mine) {
            return refuse(format!(
                "this node has seen epoch {} revision {}, which is newer than epoch {} revision {}: \
                 the control plane was restored from an older backup without raising its epoch",
                mine.epoch, mine.revision, position.epoch, position.revision
            ));
        }
        Ok(())
    }

    /// Tasks that run and are not named any more were lost, where a control plane was restored or most of them go at
    /// once: a control plane keeps a task in its snapshots until it was reported STOPPED.
    fn guards_against_lost_data(&self, named: &BTreeSet<TaskId>, restored: bool) -> Result<(), Refusal> {
        let wanted = |task: &&Task| {
            task.spec.desired == DesiredStatus::Running
                && matches!(task.phase, Phase::Active | Phase::Waiting { .. })
        };
        let running = self.tasks.values().filter(wanted).count();
        let missing = self
            .tasks
            .values()
            .filter(wanted)
            .filter(|task| !named.contains(&task.spec.id))
            .count();
        let reason = if restored && missing > 0 {
            format!(
                "the control plane was restored from a backup that does not know {missing} of {running} running tasks: \
                 they go on until an operator says with `berth node confirm` that they are to stop"
            )
        } else if missing >= UNEXPLAINED_STOPS_MAX && missing * 2 >= running {
            format!(
                "the snapshot would stop {missing} of {running} running tasks without a word of why: they go on until \
                 an operator says with `berth node confirm` that they are to stop"
            )
        } else {
            return Ok(());
        };
        Err(Refusal {
            reason,
            confirmable: true,
        })
    }
}
