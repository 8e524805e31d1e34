//! Owns the list of what the core may ask of the host. Never performs any of it.
//!
//! Every effect is idempotent, names what it makes by task and attempt, and yields exactly one
//! [`Completion`](crate::event::Completion). A task has bounded lanes: one for the task itself (host resources and
//! network), one for its environment files and, per container, one each for the pull, the lifecycle and the probe; each lane has at most one effect under
//! way.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    addresses::Address,
    desired::{ContainerSpec, IpcMode, Limits, MemoryCeiling, NetworkMode, PidMode, SharedNamespaces},
    ids::{Attempt, ContainerId, TaskId},
    image::ResolvedImage,
    lan::Lan,
    ports::Published,
    volumes::{Volume, VolumeMount},
};

/// Where a task runs its effects one after the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Lane {
    /// Cgroups, network, directories, volumes.
    Host(TaskId),
    /// Beside the others: the environment files that are fetched.
    Environment(TaskId),
    Pull(TaskId, ContainerId),
    Lifecycle(TaskId, ContainerId),
    /// Beside the lifecycle: a probe delays neither a start nor a stop.
    Probe(TaskId, ContainerId),
}

impl Lane {
    /// The task the lane belongs to.
    pub fn task(&self) -> &TaskId {
        match self {
            Self::Host(task)
            | Self::Environment(task)
            | Self::Pull(task, _)
            | Self::Lifecycle(task, _)
            | Self::Probe(task, _) => task,
        }
    }
}

/// Something to do on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Make the task's cgroups, directories, volumes and network. Completes with `HostReady`, or `PortsTaken`,
    /// `AddressTaken`, `NetworkAwaited`.
    PrepareHost(PrepareHost),
    /// Have the image on this host, unpacked. Completes with `ImageReady`.
    PullImage {
        task: TaskId,
        container: ContainerId,
        image: String,
    },
    /// Fetch environment files of the task, all or none. Completes with `EnvironmentReady`.
    FetchEnvironment(FetchEnvironment),
    /// Create and start one attempt of a container. Completes with `Started`.
    Start(Box<StartContainer>),
    /// Send the container's stop signal, or SIGKILL. Completes with `Signalled`; a container that is already
    /// gone is a success. The exit arrives as an observation.
    Signal {
        task: TaskId,
        container: ContainerId,
        attempt: Attempt,
        kind: SignalKind,
    },
    /// Look at the health of a container that runs. Completes with `Probed`; a failure says nothing of its health.
    Probe(Probe),
    /// Remove what one attempt of a container left in the runtime. Completes with `Removed`.
    Remove {
        task: TaskId,
        container: ContainerId,
        attempt: Attempt,
    },
    /// Remove cgroups, directories, volumes and network of the task. Completes with `HostReleased`.
    ReleaseHost {
        task: TaskId,
        network: NetworkMode,
        /// The containers share namespaces: a process may hold them.
        shares: bool,
        /// Those with a network of their own.
        #[serde(default)]
        containers: Vec<ContainerId>,
    },
    /// Give up what the lane is doing. Has no completion of its own: the lane's effect completes as cancelled.
    Cancel(Lane),
    /// Delete the logs of a task whose retention ended. Completes with `LogsRemoved`.
    RemoveLogs { task: TaskId },
}

impl Effect {
    /// The lane it runs in.
    pub fn lane(&self) -> Lane {
        match self {
            Self::PrepareHost(p) => Lane::Host(p.task.clone()),
            Self::ReleaseHost { task, .. } | Self::RemoveLogs { task } => Lane::Host(task.clone()),
            Self::FetchEnvironment(fetch) => Lane::Environment(fetch.task.clone()),
            Self::PullImage { task, container, .. } => Lane::Pull(task.clone(), container.clone()),
            Self::Start(start) => Lane::Lifecycle(start.task.clone(), start.spec.id.clone()),
            Self::Signal { task, container, .. } | Self::Remove { task, container, .. } => {
                Lane::Lifecycle(task.clone(), container.clone())
            }
            Self::Probe(probe) => Lane::Probe(probe.task.clone(), probe.container.clone()),
            Self::Cancel(lane) => lane.clone(),
        }
    }
}

/// Which signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalKind {
    /// The image's stop signal, else SIGTERM.
    Stop,
    /// SIGKILL, to every process of the container.
    Kill,
}

/// One execution of a health check's command. What it makes is the attempt's, and goes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub task: TaskId,
    pub container: ContainerId,
    pub attempt: Attempt,
    /// Program and arguments.
    pub command: Vec<String>,
    pub timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchEnvironment {
    pub task: TaskId,
    pub urls: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareHost {
    pub task: TaskId,
    pub limits: Limits,
    /// Its weight against other tasks where CPU is short, CPU units.
    pub cpu_shares: u32,
    pub network: NetworkMode,
    /// Leased to this task; set if and only if `network` is awsvpc.
    pub address: Option<Address>,
    /// Of which that is an address, where the host does not route to it.
    #[serde(default)]
    pub lan: Option<Box<Lan>>,
    /// Leased to its containers, in bridge mode: those that have a network.
    #[serde(default)]
    pub addresses: BTreeMap<ContainerId, Address>,
    /// Ports of the host that are to lead to it.
    #[serde(default)]
    pub published: Vec<Published>,
    /// Container names, for the log directories.
    pub containers: Vec<(ContainerId, String)>,
    /// Those that run already, with their own ceiling of memory: of a task that was taken up.
    pub running: Vec<(ContainerId, MemoryCeiling)>,
    /// What the containers may use together beyond `limits`.
    #[serde(default)]
    pub swap_bytes: u64,
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// A process holds them until the host is released.
    #[serde(default)]
    pub shared: Option<SharedNamespaces>,
    /// What the task may write; zero: no bound.
    #[serde(default)]
    pub ephemeral_storage_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartContainer {
    pub task: TaskId,
    pub attempt: Attempt,
    /// Its environment is whole: what its files hold is in it.
    pub spec: ContainerSpec,
    pub image: ResolvedImage,
    pub network: NetworkMode,
    /// The task's; in bridge mode its own.
    pub address: Option<Address>,
    /// The task's limits: they bound what a container without its own may ask for.
    pub task_limits: Limits,
    /// A container of the task is privileged, this one or another.
    #[serde(default)]
    pub task_privileged: bool,
    /// Names of the kernel parameters that containers of the task set, this one or others.
    #[serde(default)]
    pub task_sysctls: Vec<String>,
    /// What of the task's volumes it sees, and where.
    #[serde(default)]
    pub mounts: Vec<VolumeMount>,
    /// A container of the task may use swap, this one or another.
    #[serde(default)]
    pub task_swaps: bool,
    #[serde(default)]
    pub pid: PidMode,
    #[serde(default)]
    pub ipc: IpcMode,
    /// The task's runtime by name; empty: the node's own choice.
    #[serde(default)]
    pub runtime: String,
    /// What the task may write, with its other containers; zero: no bound.
    #[serde(default)]
    pub ephemeral_storage_bytes: u64,
    /// For labels.
    pub task_arn: String,
    pub cluster: String,
    pub family: String,
    pub revision: u32,
}
