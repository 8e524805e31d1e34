//! Owns the core's state: the only place where it changes. Takes inputs one by one, stores what they changed as one
//! transaction, then acts. Never decides (the core does) and never touches the host (effects do).

use std::{
    collections::BTreeMap,
    fmt,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use berth_agent_core::{
    addresses::Range,
    change::{Change, DesiredAck},
    desired::{Millis, Position},
    event::{Event, TimerKey},
    ids::{ContainerId, SubnetId, TaskId},
    ledger::Ledger,
    network::WantedNetwork,
    node::Node,
    report::Status,
    task::Task,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    dns::Own,
    executor::Executor,
    health::Health,
    introspection::NodeView,
    metrics::{METRICS, Starts},
    store::{Batch, Store, StoreError},
    sys::Chain,
    timers::Timers,
};

/// Inputs that may wait. Completions wait in their own tasks, so the driver never waits for itself.
pub const INPUTS_MAX: usize = 1024;
/// Inputs that are stored in one transaction.
const ROUND_MAX: usize = 64;
/// From so much on a difference between the two clocks is a step, milliseconds.
const CLOCK_STEP_MS: i64 = 1000;
/// Between tries to store what could not be stored.
const STORE_RETRY: Duration = Duration::from_millis(500);

/// What comes in.
pub enum Input {
    Event(Event),
    /// A timer, and the time it was set for, as [`ClockWatch::kept`] has it.
    Timer {
        key: TimerKey,
        due: Millis,
    },
    /// For the audit: what this agent answers for now.
    Ledger(oneshot::Sender<Ledger>),
    /// For the introspection API: the node at one moment.
    Inspect(oneshot::Sender<NodeView>),
    /// For the task metadata endpoint: the first task of which `find` is true.
    Find {
        find: Box<dyn Fn(&Task) -> bool + Send>,
        reply: oneshot::Sender<Option<Box<Task>>>,
    },
    /// Nothing happened: proof that something can. Has a transaction of its own if the round has no other.
    Pulse,
    /// What the node knows of its containers: name, id, and whether it may still write.
    Containers {
        task: TaskId,
        reply: oneshot::Sender<Option<Vec<ContainerView>>>,
    },
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Event(_) => "Event",
            Self::Timer { .. } => "Timer",
            Self::Ledger(_) => "Ledger",
            Self::Inspect(_) => "Inspect",
            Self::Find { .. } => "Find",
            Self::Pulse => "Pulse",
            Self::Containers { .. } => "Containers",
        };
        f.write_str(name)
    }
}

/// A container as the log reader needs it.
#[derive(Clone, Debug)]
pub struct ContainerView {
    pub name: String,
    pub id: ContainerId,
    pub ended: bool,
}

/// What the link says of the node, always the latest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeStatus {
    pub position: Option<Position>,
    pub last_sequence: u64,
    pub tasks: BTreeMap<TaskId, Status>,
    pub impairments: Vec<String>,
    /// Its parts of subnets.
    pub parts: BTreeMap<SubnetId, Range>,
}

/// Ends of the channels that the driver fills.
#[derive(Debug)]
pub struct Outputs {
    pub status: watch::Sender<NodeStatus>,
    pub desired_acks: mpsc::Sender<DesiredAck>,
    /// For names: where tasks of this node are reached.
    pub addresses: watch::Sender<Own>,
    /// What the host has to be made like.
    pub network: watch::Sender<WantedNetwork>,
}

#[derive(Debug)]
pub struct Driver {
    pub node: Node,
    pub store: Store,
    pub executor: Executor,
    pub timers: Timers,
    pub inputs: mpsc::Receiver<Input>,
    pub outputs: Outputs,
    /// Of the host's present boot; stored with the first round, which is what the core makes of the start.
    pub boot_id: Option<String>,
    /// Told of every round that is done.
    pub health: Health,
    pub starts: Starts,
    pub clock: ClockWatch,
}

impl Driver {
    /// Says what was loaded: the link's first Hello must not be that of an empty node.
    pub fn announce(&self) {
        self.publish(None);
        self.publish_addresses();
    }

    /// Runs until every sender of inputs is gone, or the database is damaged.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut waiting = Vec::with_capacity(ROUND_MAX);
        loop {
            let received = self.inputs.recv_many(&mut waiting, ROUND_MAX).await;
            if received == 0 {
                return Ok(());
            }
            // What the host runs comes first of all; a step that happened with it is noticed in the next round.
            let restarted = |input: &Input| matches!(input, Input::Event(Event::Restarted(_)));
            if !waiting.iter().any(restarted)
                && let Some(by_ms) = self.clock.stepped()
            {
                tracing::warn!(
                    by_ms,
                    "the host's clock was set; what waits keeps the time it had left"
                );
                waiting.insert(0, Input::Event(Event::ClockStepped { by_ms }));
            }
            let pulse = waiting.iter().any(|input| matches!(input, Input::Pulse));
            let (changes, queries) = self.apply(waiting.drain(..));
            let batch = Batch {
                pulse,
                ..self.batch(&changes)?
            };
            if !batch.is_empty() {
                self.commit(batch).await?;
            }
            let moved = changes.iter().any(|change| !change.tasks.is_empty());
            for change in changes {
                self.act(change);
            }
            self.publish(None);
            if moved {
                self.publish_addresses();
            }
            queries.into_iter().for_each(|query| self.answer(query));
            self.health.progress();
        }
    }

    fn apply(&mut self, inputs: impl Iterator<Item = Input>) -> (Vec<Change>, Vec<Input>) {
        let (mut changes, mut queries) = (Vec::new(), Vec::new());
        for input in inputs {
            match input {
                Input::Event(event) => changes.push(self.take(now(), event)),
                // Its time has come, whatever became of the host's clock since it was set.
                Input::Timer { key, due } => {
                    let due = self.clock.present(due);
                    changes.push(self.take(now().max(due), Event::Timer(key)));
                }
                query => queries.push(query),
            }
        }
        (changes, queries)
    }

    fn take(&mut self, now: Millis, event: Event) -> Change {
        tracing::debug!(event = event.name(), "event");
        let change = self.node.apply(now, event);
        for anomaly in &change.anomalies {
            tracing::error!(%anomaly, "the core met what cannot happen; please report it");
        }
        change
    }

    /// One transaction for the round. Later records of a task replace earlier ones.
    fn batch(&mut self, changes: &[Change]) -> Result<Batch, StoreError> {
        let mut batch = Batch {
            boot_id: self.boot_id.take(),
            ..Batch::default()
        };
        let mut tasks = BTreeMap::new();
        let mut node = false;
        for change in changes {
            for id in &change.tasks {
                tasks.entry(id.clone()).or_insert(());
            }
            node |= change.node;
            batch.ledger.extend(change.ledger.iter().cloned());
            batch.reports.extend(change.reports.iter().cloned());
            batch.acknowledged = batch.acknowledged.max(change.acknowledged);
            // An acknowledged assignment must survive a power loss. A report that left the outbox need not be gone
            // for good: sent again, its sequence number tells the control plane that it has it.
            batch.promise |= change.desired_ack.is_some();
        }
        for (id, ()) in tasks {
            let json = self.node.task(&id).map(serde_json::to_string).transpose();
            let json = json.map_err(|source| StoreError::Encode { what: "task", source })?;
            batch.tasks.push((id, json));
        }
        if node {
            let json = serde_json::to_string(self.node.record());
            batch.node = Some(json.map_err(|source| StoreError::Encode { what: "node", source })?);
        }
        Ok(batch)
    }

    /// Tries until it is stored: nothing new is begun meanwhile. Only damage ends the process.
    async fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        let mut told = false;
        loop {
            let stored = self.store.commit(batch.clone()).await;
            // An answer, whatever it says: the next one may be another.
            self.health.progress();
            match stored {
                Ok(()) => {
                    if told {
                        tracing::info!("database: stores again");
                    }
                    return Ok(());
                }
                Err(StoreError::Unavailable { action, source }) => {
                    METRICS.store_failures.fetch_add(1, Relaxed);
                    if !told {
                        tracing::error!(action, error = %source, "database cannot store; no new work until it can: make room on its disk");
                        told = true;
                    }
                    self.publish(Some(format!("{action}: {source}")));
                    tokio::time::sleep(STORE_RETRY).await;
                }
                Err(other) => return Err(other),
            }
        }
    }

    fn act(&mut self, change: Change) {
        change.reports.iter().for_each(|report| self.starts.see(report));
        for (key, at) in change.timers {
            self.set_timer(key, at);
        }
        for effect in change.effects {
            self.executor.submit(effect);
        }
        if let Some(network) = change.network {
            self.outputs.network.send_replace(network);
        }
        if let Some(ack) = change.desired_ack {
            if let Some(reason) = &ack.refused {
                tracing::error!(%reason, "desired state refused");
            }
            // The queue holds more than one link can have unanswered; without a link nobody wants the answer.
            if self.outputs.desired_acks.try_send(ack).is_err() {
                tracing::debug!("no link takes the acknowledgement of desired state");
            }
        }
    }

    fn set_timer(&self, key: TimerKey, at: Millis) {
        let delay = u64::try_from(at.0.saturating_sub(now().0)).unwrap_or(0);
        self.timers
            .set(key, Duration::from_millis(delay), self.clock.kept(at));
    }

    fn publish(&self, store_problem: Option<String>) {
        self.health.stored(store_problem.as_deref());
        let network = self.node.record().network.as_ref();
        let status = NodeStatus {
            parts: network.map(|network| network.ranges.clone()).unwrap_or_default(),
            position: self.node.record().position.clone(),
            last_sequence: self.node.record().last_sequence,
            tasks: self
                .node
                .tasks()
                .map(|task| (task.spec.id.clone(), task.status()))
                .collect(),
            impairments: store_problem
                .into_iter()
                .map(|problem| format!("store: {problem}"))
                .chain(self.impairments())
                .collect(),
        };
        replace(&self.outputs.status, status);
    }

    fn impairments(&self) -> Vec<String> {
        let mut all = self.node.impairments();
        all.extend(self.executor.impairments());
        all
    }

    fn publish_addresses(&self) {
        replace(&self.outputs.addresses, Own::of(self.node.tasks()));
    }

    fn answer(&self, query: Input) {
        match query {
            Input::Event(_) | Input::Timer { .. } | Input::Pulse => {}
            Input::Inspect(reply) => {
                let mut view = NodeView::of(&self.node);
                view.impairments = self.impairments();
                drop(reply.send(view));
            }
            Input::Find { find, reply } => {
                let found = self.node.tasks().find(|task| find(task));
                drop(reply.send(found.cloned().map(Box::new)));
            }
            Input::Ledger(reply) => drop(reply.send(self.node.ledger().clone())),
            Input::Containers { task, reply } => {
                let view = self.node.task(&task).map(|task| {
                    let of = |spec: &berth_agent_core::desired::ContainerSpec| ContainerView {
                        name: spec.name.clone(),
                        id: spec.id.clone(),
                        ended: task.container(&spec.id).life == berth_agent_core::container::Life::Gone,
                    };
                    task.spec.containers.iter().map(of).collect()
                });
                drop(reply.send(view));
            }
        }
    }
}

/// Tells only what is news.
fn replace<T: PartialEq>(watched: &watch::Sender<T>, value: T) {
    watched.send_if_modified(|last| {
        let changed = *last != value;
        *last = value;
        changed
    });
}

/// Notices that the host's clock was set, against the one that only counts.
#[derive(Debug)]
pub struct ClockWatch {
    began: Instant,
    /// What the host's clock said at `began`, as it is set now.
    origin: Millis,
    /// By how much it was set since.
    stepped_ms: i64,
}

impl Default for ClockWatch {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            origin: now(),
            stepped_ms: 0,
        }
    }
}

impl ClockWatch {
    /// By how many milliseconds it was set since this was last asked; small corrections add up first.
    fn stepped(&mut self) -> Option<i64> {
        let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.step(now(), elapsed)
    }

    fn step(&mut self, wall: Millis, elapsed_ms: i64) -> Option<i64> {
        let by_ms = wall.0.saturating_sub(self.origin.plus(elapsed_ms).0);
        if by_ms.abs() < CLOCK_STEP_MS {
            return None;
        }
        self.origin = self.origin.plus(by_ms);
        self.stepped_ms = self.stepped_ms.saturating_add(by_ms);
        Some(by_ms)
    }

    /// A time of the present clock as one that never was set would have it: so it can wait while the clock is set.
    fn kept(&self, at: Millis) -> Millis {
        at.plus(-self.stepped_ms)
    }

    /// What was kept, by the present clock.
    fn present(&self, kept: Millis) -> Millis {
        kept.plus(self.stepped_ms)
    }
}

/// The host's clock: the core is told, it never asks.
pub fn now() -> Millis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// Sends an event; says so once when the driver is gone, which only happens on the way out.
pub async fn send(inputs: &mpsc::Sender<Input>, event: Event) {
    if let Err(error) = inputs.send(Input::Event(event)).await {
        tracing::debug!(error = %Chain(&error), "event after the driver ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_noticed_once_and_a_corrected_one_when_it_adds_up() {
        let mut clock = ClockWatch {
            began: Instant::now(),
            origin: Millis(1_000_000),
            stepped_ms: 0,
        };
        assert_eq!(clock.step(Millis(1_005_000), 5_000), None);
        assert_eq!(clock.step(Millis(1_010_600), 10_000), None);
        assert_eq!(clock.step(Millis(1_021_200), 20_000), Some(1_200));
        assert_eq!(clock.step(Millis(1_031_200), 30_000), None);
        assert_eq!(clock.step(Millis(41_200), 40_000), Some(-1_000_000));
        assert_eq!(clock.step(Millis(51_200), 50_000), None);
    }

    #[test]
    fn a_timer_that_fires_with_a_step_is_due_by_the_clock_as_it_is_now() {
        let mut clock = ClockWatch {
            began: Instant::now(),
            origin: Millis(10_000_000),
            stepped_ms: 0,
        };
        let kept = clock.kept(Millis(10_030_000));
        // Set back by an hour, noticed when the timer fires: what follows from it must not wait for that hour.
        let wall = Millis(10_030_000 - 3_600_000);
        assert_eq!(clock.step(wall, 30_000), Some(-3_600_000));
        assert_eq!(wall.max(clock.present(kept)), wall);
        let later = clock.kept(wall.plus(5_000));
        assert_eq!(clock.present(later), wall.plus(5_000));
    }
}
