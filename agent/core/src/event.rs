//! Owns the list of what can happen to the core. Every input is one of these, with the time it happened, so that a
//! recorded journal replays.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    addresses::Address,
    desired::{Millis, Position, Protocol, TaskSpec},
    effect::Lane,
    environment::FetchedFiles,
    health::Outcome,
    ids::{Attempt, ContainerId, TaskId},
    image::ResolvedImage,
    network::{AppliedNetwork, Network},
};

/// One input of the core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The agent started: what the host runs, as the host says.
    Restarted(Restarted),
    /// All that the control plane wants.
    Snapshot {
        position: Position,
        tasks: Vec<TaskSpec>,
        /// Wanted as well, but this agent does not understand what.
        refused: Vec<Refused>,
        /// An operator confirmed that all else is to stop.
        removals_confirmed: bool,
    },
    /// What it wants differently.
    Delta {
        position: Position,
        changed: Vec<TaskSpec>,
        removed: Vec<TaskId>,
        refused: Vec<Refused>,
    },
    /// An effect ended.
    Completed { lane: Lane, completion: Completion },
    /// A container's process ended, as the runtime says. May repeat, and may come before `Started`.
    Exited(Exit),
    /// The process ended that holds the namespaces of a task's containers. May repeat, and may come late.
    HolderEnded { task: TaskId },
    /// A timer that the core asked for.
    Timer(TimerKey),
    /// The control plane applied every report up to this sequence number.
    Acknowledged { sequence: u64 },
    /// The node's part of the cluster's network, from the control plane.
    Network(Network),
    /// The host is like that now, or that could not be done with some of it.
    NetworkApplied(AppliedNetwork),
    /// Whether the node's own range of addresses can be used: why not, for people.
    OwnRange { problem: Option<String> },
    /// The host's clock was set, by so many milliseconds: what waits keeps the time it had left.
    ClockStepped { by_ms: i64 },
    /// The operator of a private agent wants every task stopped (`berth dev` on its way out).
    StopAll { reason: String },
}

impl Event {
    /// What kind it is: for logs, which must not show what a task's environment holds.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Restarted(_) => "restarted",
            Self::Snapshot { .. } => "snapshot",
            Self::Delta { .. } => "delta",
            Self::Completed { .. } => "completed",
            Self::Exited(_) => "exited",
            Self::HolderEnded { .. } => "holder ended",
            Self::Timer(_) => "timer",
            Self::Acknowledged { .. } => "acknowledged",
            Self::Network(_) => "network",
            Self::NetworkApplied(_) => "network applied",
            Self::OwnRange { .. } => "own range",
            Self::ClockStepped { .. } => "clock stepped",
            Self::StopAll { .. } => "stop all",
        }
    }
}

/// A spec that `convert` refused. A task that never ran is reported as stopped with the reason; one that runs goes on: it
/// was understood once, by a later agent perhaps, and only its desired status can have changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub task: TaskId,
    /// Understood at least: it is to be stopped.
    pub stop: bool,
    pub reason: String,
}

/// How an effect ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Completion {
    HostReady {
        mac_address: String,
        /// Where the task does not get what it asked for.
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// Processes of the host have ports that were to lead to the task: none of its ports does. All else is made.
    PortsTaken {
        ports: Vec<(Protocol, u16)>,
    },
    /// Another host of the network outside has the address that the task was to have. Nothing of it is left on the host.
    AddressTaken(Failure),
    /// The network outside of which the task is to be a host is not there yet. May succeed later, with no change of the request.
    NetworkAwaited(Failure),
    ImageReady(Box<ResolvedImage>),
    EnvironmentReady(FetchedFiles),
    Started {
        attempt: Attempt,
        pid: u32,
        #[serde(default)]
        warnings: Vec<String>,
    },
    Signalled,
    Probed {
        attempt: Attempt,
        outcome: Outcome,
    },
    Removed,
    HostReleased,
    LogsRemoved,
    /// A start found that the image is no longer on this host; nothing was made.
    ImageGone(Failure),
    /// It could not be done.
    Failed(Failure),
    /// It was given up because the core asked; what it made is known to the ledger.
    Cancelled,
}

/// Why an effect could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Names the kind, as ECS does: `CannotPullContainerError`, `CannotStartContainerError`,
    /// `ResourceInitializationError`, `OutOfMemoryError`.
    pub kind: String,
    /// What failed, on what, and why; the whole chain of causes in one line.
    pub message: String,
    /// Trying again may help.
    pub retryable: bool,
}

/// The end of a container's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub task: TaskId,
    pub container: ContainerId,
    pub attempt: Attempt,
    /// Whose end it is: a start that failed and was undone leaves an exit too, and the next try of the same attempt is
    /// another process. Zero where it is not known.
    #[serde(default)]
    pub pid: u32,
    /// 0–255; 128 + n after signal n.
    pub code: i32,
    pub at: Millis,
    /// The kernel killed a process of this container, in this attempt, for want of memory.
    pub oom_killed: bool,
    /// The process that holds its task's shared namespaces had ended: the kernel then kills all that are in its PID namespace.
    #[serde(default)]
    pub holder_ended: bool,
}

/// What the agent finds when it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarted {
    /// The host booted since the state was written: nothing of it runs any more.
    pub host_rebooted: bool,
    /// Every container of this instance that the runtime knows.
    pub containers: Vec<Observed>,
    /// Addresses of tasks, as the host routes them: of those, at least, of which there is no record.
    #[serde(default)]
    pub addresses: BTreeMap<TaskId, Address>,
}

/// One attempt of a container, as the runtime lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    pub task: TaskId,
    pub container: ContainerId,
    pub attempt: Attempt,
    pub state: ObservedState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObservedState {
    /// A record without a process: created and never started.
    Created,
    Running {
        pid: u32,
    },
    Exited {
        code: i32,
        at: Millis,
        oom_killed: bool,
    },
}

/// A timer's name: setting one again moves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TimerKey {
    /// The stop timeout of a container passed.
    Stop(TaskId, ContainerId),
    /// A container's startTimeout passed: dependents have waited long enough.
    StartTimeout(TaskId, ContainerId),
    /// The next look at a container's health is due.
    Probe(TaskId, ContainerId),
    /// An effect failed and is tried again.
    Retry(Lane),
    /// A task has waited for resources as long as it may.
    Admission(TaskId),
    /// An address leaves its quarantine.
    Quarantine,
    /// The logs of a stopped task are kept no longer.
    Retention(TaskId),
}
