//! Owns what a task looks like from outside: the content of a `StateChange`. Derived from a task, never kept beside it.

use serde::{Deserialize, Serialize};

use crate::{
    addresses::Address,
    desired::Millis,
    health::HealthState,
    ids::{ContainerId, TaskId},
    ports::Binding,
};

/// How far a task is, as its node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Status {
    Pending,
    Running,
    Stopping,
    Deprovisioning,
    Stopped,
}

/// ECS's `stopCode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopCode {
    TaskFailedToStart,
    EssentialContainerExited,
    UserInitiated,
    HostRestarted,
}

/// One entry of the outbox: the whole state of a task after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub sequence: u64,
    pub task: TaskState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskState {
    pub id: TaskId,
    pub facts: Facts,
    pub times: Times,
}

/// What makes a new report when it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub status: Status,
    pub stop: Option<(StopCode, String)>,
    /// Why it waits for admission or a dependency.
    pub waiting: Option<String>,
    pub address: Option<Address>,
    pub mac_address: Option<String>,
    /// Where it did not get what it asked for.
    #[serde(default)]
    pub warnings: Vec<String>,
    pub containers: Vec<ContainerState>,
}

/// When things happened; carried along by the next report, never the reason for one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    pub pull_started: Option<Millis>,
    pub pull_stopped: Option<Millis>,
    pub started: Option<Millis>,
    pub stopping: Option<Millis>,
    pub execution_stopped: Option<Millis>,
    pub stopped: Option<Millis>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    pub id: ContainerId,
    pub name: String,
    /// Pending, Running or Stopped.
    pub status: Status,
    pub exit_code: Option<i32>,
    pub reason: Option<String>,
    pub runtime_id: Option<String>,
    pub image_digest: Option<String>,
    /// What another node pulls to run the same.
    #[serde(default)]
    pub resolved_digest: Option<String>,
    pub started: Option<Millis>,
    pub finished: Option<Millis>,
    pub pid: Option<u32>,
    /// How often it was started again by its restart policy.
    #[serde(default)]
    pub restart_count: u32,
    /// None: it has no health check.
    #[serde(default)]
    pub health: Option<HealthState>,
    /// Ports of the host that lead to it, since it was first started.
    #[serde(default)]
    pub bindings: Vec<Binding>,
}
