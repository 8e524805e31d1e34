//! Owns the whole node: its tasks, accounts, addresses and ledger, and what each event does to them. Every input of
//! the core comes in through [`Node::apply`].

mod admission;
mod clock;
mod deadline;
mod desired_state;
mod health;
mod network;
mod restarted;
#[cfg(test)]
mod tests;

pub use admission::OVERTAKEN_MAX;
pub use deadline::Deadline;
use desired_state::{Refusal, Wanted};

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    addresses::{Addresses, Range},
    change::Change,
    desired::{Millis, Position},
    effect::Lane,
    event::{Completion, Event, TimerKey},
    ids::{NodeId, TaskId},
    ledger::{Ledger, LedgerWrite, Owned},
    network::{AppliedNetwork, Network},
    ports::{Binding, DynamicPorts, Ports},
    report::{Facts, Report, StopCode},
    resources::{Capacity, Resources},
    task::{Logs, Phase, Stranger, Task},
};

/// Sequence numbers are skipped by this many after a boot. A power loss may take the latest commits along, after the
/// control plane was told: a number that is used again would be taken for a repeated report, and the report be lost.
const SEQUENCES_LOST_MAX: u64 = 1 << 20;

/// What the operator decided about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    pub capacity: Capacity,
    /// Where addresses of tasks that are in no subnet come from.
    pub task_range: Range,
    /// Of the host's present boot.
    pub boot_id: String,
    /// Where it chooses ports of the host from.
    pub dynamic_ports: DynamicPorts,
    /// How long the logs of a stopped task are kept, milliseconds.
    pub log_retention_ms: i64,
    /// How long a task may wait for resources before it fails to start, milliseconds.
    pub admission_deadline_ms: i64,
}

/// What is stored of the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub position: Option<Position>,
    /// Sequence number of the last report.
    pub last_sequence: u64,
    pub last_arrival: u64,
    pub addresses: Addresses,
    /// Absent in what an earlier version stored.
    #[serde(default)]
    pub ports: Ports,
    /// As which node the position was reached; before the first snapshot, as which node it was first started. None in a
    /// record of an earlier version, and before the first start.
    #[serde(default)]
    pub identity: Option<NodeId>,
    /// What the control plane said of the cluster's network. None: nothing yet.
    #[serde(default)]
    pub network: Option<Network>,
}

impl NodeRecord {
    /// Of a node whose own record is lost: what its tasks say of it. `last_reported` is the highest sequence number that
    /// is still known; the control plane may have seen higher ones, and says so at the next link.
    pub fn recovered(range: Range, tasks: &[Task], last_reported: u64) -> Self {
        let mut addresses = Addresses::new(range);
        for task in tasks.iter().filter(|task| task.holds_host()) {
            if let Some(address) = task.address {
                addresses.hold(address, &task.spec.id);
            }
            for (container, address) in &task.container_addresses {
                addresses.hold_for(*address, &task.spec.id, container);
            }
        }
        let known = last_reported > 0 || !tasks.is_empty();
        Self {
            position: None,
            last_sequence: last_reported + if known { SEQUENCES_LOST_MAX } else { 0 },
            last_arrival: tasks.iter().map(|task| task.arrival).max().unwrap_or(0),
            addresses,
            ports: Ports::default(),
            identity: None,
            network: None,
        }
    }
}

/// The core's state.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    record: NodeRecord,
    tasks: BTreeMap<TaskId, Task>,
    ledger: Ledger,
    resources: Resources,
    /// The last snapshot was refused, and why: deltas upon it mean nothing here.
    snapshot_refused: Option<Refusal>,
    /// Resources were released, or somebody new wants some.
    admission_due: bool,
    /// What runs without a record, until a snapshot says what is wanted of it.
    strangers: BTreeMap<TaskId, Stranger>,
    /// As which node it speaks, where that is known.
    identity: Option<NodeId>,
    /// What is wrong with the node's network, as the agent last said.
    applied: AppliedNetwork,
    /// Why addresses of the node's own range are not what they should be.
    range_problem: Option<String>,
    /// It was registered anew since it followed a control plane: see [`Node::speaks_for`].
    rejoined: bool,
}

impl Node {
    /// A node that never ran.
    pub fn new(config: NodeConfig) -> Self {
        let addresses = Addresses::new(config.task_range);
        let record = NodeRecord {
            position: None,
            last_sequence: 0,
            last_arrival: 0,
            addresses,
            ports: Ports::default(),
            identity: None,
            network: None,
        };
        Self::load(config, record, [], Ledger::default())
    }

    /// A node as it was stored. [`Event::Restarted`] must be the first event.
    pub fn load(
        config: NodeConfig,
        mut record: NodeRecord,
        tasks: impl IntoIterator<Item = Task>,
        ledger: Ledger,
    ) -> Self {
        let mut addresses = Addresses::new(config.task_range);
        addresses.adopt(record.addresses);
        addresses.on_boot(&config.boot_id);
        record.addresses = addresses;
        let tasks: BTreeMap<_, _> = tasks
            .into_iter()
            .map(|task| (task.spec.id.clone(), task))
            .collect();
        let mut resources = Resources::new(config.capacity.clone());
        for task in tasks.values().filter(|task| task.holds_host()) {
            resources.charge(&task.spec);
            resources.hold_ports(&task.spec.id, task.bindings.iter().flat_map(Binding::host_ports));
            if !task.may_have_process() {
                resources.release_processes(&task.spec.id);
            }
        }
        Self {
            config,
            record,
            tasks,
            ledger,
            resources,
            snapshot_refused: None,
            admission_due: true,
            strangers: BTreeMap::new(),
            identity: None,
            applied: AppliedNetwork::default(),
            range_problem: None,
            rejoined: false,
        }
    }

    /// As which node it speaks. Another one than before means that the operator registered this host anew: nobody will
    /// ever say another word about its earlier tasks, so its first snapshot is taken without the guards against a control
    /// plane that lost its data. Until that comes, they go on.
    #[must_use]
    pub fn speaks_for(mut self, node: NodeId) -> Self {
        self.rejoined = self
            .record
            .identity
            .as_ref()
            .is_some_and(|before| *before != node);
        if self.rejoined {
            self.record.position = None;
            self.record.network = None;
        }
        self.identity = Some(node);
        self
    }

    /// Whether its tasks and reports so far are those of an earlier registration.
    pub fn is_rejoined(&self) -> bool {
        self.rejoined
    }

    pub fn record(&self) -> &NodeRecord {
        &self.record
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn task(&self, id: &TaskId) -> Option<&Task> {
        self.tasks.get(id)
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Conditions an operator should know of.
    pub fn impairments(&self) -> Vec<String> {
        let tasks = self.tasks.values().filter_map(Task::impairment);
        tasks.chain(self.network_impairments()).collect()
    }

    /// Takes one event. The caller stores the change before it acts on it.
    pub fn apply(&mut self, now: Millis, event: Event) -> Change {
        let mut change = Change::default();
        let touched = self.take(now, event, &mut change);
        let mut due: BTreeSet<TaskId> = touched;
        while !due.is_empty() || self.admission_due {
            for id in std::mem::take(&mut due) {
                self.advance(&id, now, &mut change);
            }
            if std::mem::take(&mut self.admission_due) {
                due = self.admit(now, &mut change);
            }
        }
        self.report(&mut change);
        change
    }

    /// Updates facts. Returns the tasks whose facts changed.
    fn take(&mut self, now: Millis, event: Event, change: &mut Change) -> BTreeSet<TaskId> {
        match event {
            Event::Restarted(restarted) => self.on_restarted(&restarted, now, change),
            Event::Snapshot {
                position,
                tasks,
                refused,
                removals_confirmed,
            } => {
                let wanted = Wanted { tasks, refused };
                self.on_snapshot(position, wanted, removals_confirmed, now, change)
            }
            Event::Delta {
                position,
                changed,
                removed,
                refused,
            } => {
                let wanted = Wanted {
                    tasks: changed,
                    refused,
                };
                self.on_delta(position, wanted, &removed, now, change)
            }
            Event::Completed { lane, completion } => self.on_completed(&lane, completion, now, change),
            Event::Exited(exit) => {
                let Some(task) = self.tasks.get_mut(&exit.task) else {
                    if let Some(stranger) = self.strangers.get_mut(&exit.task) {
                        stranger.on_exited(&exit);
                    }
                    return BTreeSet::new();
                };
                task.on_exited(&exit, now);
                BTreeSet::from([exit.task])
            }
            Event::HolderEnded { task: id } => {
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.on_holder_ended(now);
                }
                BTreeSet::from([id])
            }
            Event::Timer(key) => self.on_timer(key, now, change),
            Event::Acknowledged { sequence } => {
                // A node that lost its state goes on counting where the control plane saw it last: a repeated
                // sequence number would be taken for a repeated report.
                if sequence > self.record.last_sequence {
                    self.record.last_sequence = sequence;
                    change.node = true;
                }
                change.acknowledged = Some(sequence);
                BTreeSet::new()
            }
            Event::Network(network) => {
                self.on_network(network, change);
                BTreeSet::new()
            }
            Event::NetworkApplied(applied) => self.on_network_applied(applied, now, change),
            Event::OwnRange { problem } => {
                self.range_problem = problem;
                BTreeSet::new()
            }
            Event::ClockStepped { by_ms } => self.on_clock_stepped(by_ms, change),
            Event::StopAll { reason } => {
                for task in self.tasks.values_mut() {
                    task.begin_stop(StopCode::UserInitiated, reason.clone(), now);
                }
                self.tasks.keys().cloned().collect()
            }
        }
    }

    fn on_completed(
        &mut self,
        lane: &Lane,
        completion: Completion,
        now: Millis,
        change: &mut Change,
    ) -> BTreeSet<TaskId> {
        if let Lane::Probe(task, container) = lane {
            return self.on_probed(task, container, completion, now, change);
        }
        let id = lane.task();
        let Some(task) = self.tasks.get_mut(id) else {
            change
                .anomalies
                .push(format!("{lane:?} completed, but the task is not known"));
            return BTreeSet::new();
        };
        let removed = match (&completion, lane) {
            (Completion::Removed, Lane::Lifecycle(task_id, container)) => {
                let attempt = task.container(container).attempt;
                Some(Owned::Attempt(task_id.clone(), container.clone(), attempt))
            }
            _ => None,
        };
        let taken = match &completion {
            Completion::PortsTaken { ports } => ports.clone(),
            _ => Vec::new(),
        };
        let address_taken = match &completion {
            Completion::AddressTaken(failure) => Some(failure.clone()),
            _ => None,
        };
        if let Err(what) = task.on_completed(lane, completion, now) {
            change.anomalies.push(format!("task {id}: {what}"));
        }
        if let Some(removed) = removed {
            self.write_ledger(LedgerWrite::Release(removed), change);
        }
        if !taken.is_empty() {
            self.choose_other_ports(id, taken, now, change);
        }
        if let Some(failure) = address_taken {
            self.choose_other_address(id, &failure, now, change);
        }
        BTreeSet::from([id.clone()])
    }

    fn on_timer(&mut self, key: TimerKey, now: Millis, change: &mut Change) -> BTreeSet<TaskId> {
        let id = match &key {
            TimerKey::Probe(task, container) => {
                self.watch_health(task, container, now, change);
                return BTreeSet::new();
            }
            TimerKey::Stop(task, _) | TimerKey::StartTimeout(task, _) => task.clone(),
            TimerKey::Admission(task) | TimerKey::Retention(task) => task.clone(),
            TimerKey::Retry(lane) => lane.task().clone(),
            TimerKey::Quarantine => {
                self.record.addresses.expire(now);
                self.record.ports.expire(now);
                // The next one rests until later, and somebody may wait for it.
                self.await_quarantine(change);
                change.node = true;
                self.admission_due = true;
                return BTreeSet::new();
            }
        };
        let Some(task) = self.tasks.get_mut(&id) else {
            return BTreeSet::new();
        };
        match key {
            TimerKey::StartTimeout(_, container) => task.on_start_timeout(&container),
            TimerKey::Admission(_) => {
                if let Phase::Waiting { reason, since, .. } = &task.phase {
                    let until = since.plus(self.config.admission_deadline_ms);
                    if until <= now {
                        let seconds = self.config.admission_deadline_ms / 1000;
                        let reason = format!("{reason}; waited {seconds} s for it");
                        task.begin_stop(StopCode::TaskFailedToStart, reason, now);
                    } else {
                        // The host's clock was set back meanwhile: the deadline is not lost.
                        change.timers.push((TimerKey::Admission(id.clone()), until));
                    }
                }
            }
            TimerKey::Retention(_) if task.phase == Phase::Stopped && task.logs == Logs::Kept => {
                task.logs = Logs::Expired;
            }
            _ => {}
        }
        BTreeSet::from([id])
    }

    /// Begins what can be begun, and settles the accounts.
    fn advance(&mut self, id: &TaskId, now: Millis, change: &mut Change) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        let was_stopped = task.phase == Phase::Stopped;
        let steps = task.advance(now);
        let (has_process, is_stopped) = (task.may_have_process(), task.phase == Phase::Stopped);
        let gone = is_stopped && task.forgotten && task.logs == Logs::None;
        if is_stopped && !was_stopped && task.logs == Logs::Kept {
            change.timers.push((
                TimerKey::Retention(id.clone()),
                now.plus(self.config.log_retention_ms),
            ));
        }
        change.tasks.insert(id.clone());
        for write in steps.ledger {
            self.write_ledger(write, change);
        }
        change.effects.extend(steps.effects);
        change.timers.extend(steps.timers);
        if !has_process {
            self.admission_due |= self.resources.release_processes(id);
        }
        if is_stopped {
            // Also one that held nothing: others may have waited behind it.
            self.admission_due |= !was_stopped;
            self.release(id, now, change);
            if gone {
                self.tasks.remove(id);
            }
        }
    }

    /// Nothing of the task is left on the host.
    fn release(&mut self, id: &TaskId, now: Millis, change: &mut Change) {
        self.admission_due |= self.resources.release_all(id);
        let bindings = self
            .tasks
            .get_mut(id)
            .map(|task| std::mem::take(&mut task.bindings));
        let bindings = bindings.unwrap_or_default();
        let rests = !bindings.is_empty();
        if rests {
            let ports = bindings.iter().flat_map(Binding::host_ports);
            self.record.ports.rest(ports, now);
        }
        if self.record.addresses.release(id, now).is_some() || rests {
            change.node = true;
            self.await_quarantine(change);
            self.admission_due = true;
        }
    }

    /// Until the next address or port comes out of quarantine.
    fn await_quarantine(&self, change: &mut Change) {
        let (addresses, ports) = (&self.record.addresses, &self.record.ports);
        let next = addresses.next_expiry().into_iter().chain(ports.next_expiry());
        change
            .timers
            .extend(next.min().map(|at| (TimerKey::Quarantine, at)));
    }

    fn write_ledger(&mut self, write: LedgerWrite, change: &mut Change) {
        self.ledger.apply(&write);
        change.ledger.push(write);
    }

    /// Says what changed, for every task of the change whose facts are new.
    fn report(&mut self, change: &mut Change) {
        for id in &change.tasks {
            let Some(task) = self.tasks.get_mut(id) else {
                continue;
            };
            let state = task.state();
            if task
                .reported
                .as_ref()
                .is_some_and(|last| !is_news(last, &state.facts))
            {
                continue;
            }
            task.reported = Some(state.facts.clone());
            self.record.last_sequence += 1;
            change.node = true;
            change.reports.push(Report {
                sequence: self.record.last_sequence,
                task: state,
            });
        }
    }
}

/// A wait that ended is no news by itself: what follows it is.
fn is_news(last: &Facts, now: &Facts) -> bool {
    if last == now {
        return false;
    }
    let without_wait = |facts: &Facts| Facts {
        waiting: None,
        ..facts.clone()
    };
    now.waiting.is_some() || without_wait(last) != without_wait(now)
}

fn deadlines(task: &Task, config: &NodeConfig) -> Vec<(TimerKey, Millis)> {
    let id = &task.spec.id;
    let mut timers = Vec::new();
    if let Phase::Waiting { since, .. } = task.phase {
        timers.push((
            TimerKey::Admission(id.clone()),
            since.plus(config.admission_deadline_ms),
        ));
    }
    if let (Phase::Stopped, Some(stopped)) = (&task.phase, task.times.stopped) {
        timers.push((
            TimerKey::Retention(id.clone()),
            stopped.plus(config.log_retention_ms),
        ));
    }
    for spec in &task.spec.containers {
        let container = task.container(&spec.id);
        if let Some(at) = container.start_timeout_at(spec)
            && crate::dependency::is_waited_for(&task.spec, &spec.name)
        {
            let key = TimerKey::StartTimeout(id.clone(), spec.id.clone());
            timers.push((key, at));
        }
    }
    timers
}
