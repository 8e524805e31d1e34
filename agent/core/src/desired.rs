//! Owns what the control plane wants of this node: resolved task specs, checked once at the edge (`convert`).
//! Never holds ECS or protobuf shapes.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    cdi::DeviceName,
    environment::EnvironmentFile,
    ids::{ContainerId, SubnetId, TaskId},
    lan::Lan,
    volumes::{ContainerVolumes, Volume},
};

/// A point in time: milliseconds since the Unix epoch, UTC. Arrives with events; the core has no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Millis(pub i64);

impl Millis {
    /// This time plus `ms` milliseconds.
    pub fn plus(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// A place in one store's history of desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Identity of the control plane's store.
    pub store_id: String,
    /// Rises when a store is restored from a backup.
    pub epoch: u64,
    /// Rises with every change inside an epoch.
    pub revision: u64,
}

/// What the operator wants of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DesiredStatus {
    Running,
    Stopped,
}

/// Where a task's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// A network namespace and an address of its own.
    Awsvpc,
    /// The host's network.
    Host,
    /// A network namespace with nothing but loopback.
    None,
    /// A network namespace and an address of its own for each container; from outside, only published ports lead there.
    Bridge,
}

/// Hard ceilings; zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// 1024 = one core.
    pub cpu_units: u32,
    pub memory_bytes: u64,
}

/// One task as it is to be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub id: TaskId,
    /// For labels and people; never interpreted.
    pub arn: String,
    pub cluster: String,
    pub family: String,
    pub revision: u32,
    pub desired: DesiredStatus,
    pub network: NetworkMode,
    /// Of which its address is; none: of the node's own range.
    #[serde(default)]
    pub subnet: Option<SubnetId>,
    /// What that is, where the host does not route to it: then the mode is awsvpc, and no port is published.
    #[serde(default)]
    pub lan: Option<Lan>,
    /// Absent, as what follows, in what an older agent stored.
    #[serde(default)]
    pub pid: PidMode,
    #[serde(default)]
    pub ipc: IpcMode,
    /// For all containers of the task together.
    pub limits: Limits,
    /// What admission charges: the placement's figure.
    pub charge: Limits,
    /// At least one, at most [`CONTAINERS_PER_TASK_MAX`]; names and ids unique; dependencies acyclic.
    pub containers: Vec<ContainerSpec>,
    /// After a boot of the host it starts again, under the same id, instead of being stopped.
    pub restart_after_reboot: bool,
    /// Why `desired` is `Stopped`, for people.
    pub stop_reason: String,
    pub created_at: Millis,
    /// Names unique. Absent in what an older agent stored.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// The name of a runtime this node may offer; empty: its own choice. Absent in what an older agent stored.
    #[serde(default)]
    pub runtime: String,
    /// What its containers may write together; zero: no bound.
    #[serde(default)]
    pub ephemeral_storage_bytes: u64,
    /// In awsvpc: its ports are the host's too, and lead to it from there.
    #[serde(default)]
    pub publish_ports: bool,
    /// As the API had it when the task was made: `EC2`, `EXTERNAL`, `FARGATE`. Empty in what an older agent stored.
    #[serde(default)]
    pub launch_type: String,
    /// Likewise: what it was run as a part of, `family:…` where nothing was said.
    #[serde(default)]
    pub group: String,
    /// Likewise; at most [`TAGS_MAX`].
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// ECS allows 50 tags of a resource, besides its own, which begin with `aws:`.
pub const TAGS_MAX: usize = 50;
/// `aws:ecs:clusterName` and `aws:ecs:serviceName` are ECS's; for more there is room.
pub const MANAGED_TAGS_MAX: usize = 10;

/// ECS allows ten containers in a task definition.
pub const CONTAINERS_PER_TASK_MAX: usize = 10;

/// One container as it is to be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub id: ContainerId,
    /// The user's name: 1–255 of `[A-Za-z0-9_-]`, unique in the task.
    pub name: String,
    /// An image reference as the user wrote it.
    pub image: String,
    /// `sha256:…`: this very image of the repository, whatever its tag says. Empty: what the reference says.
    #[serde(default)]
    pub image_digest: String,
    /// Empty: the image's.
    pub entry_point: Vec<String>,
    /// Empty: the image's, unless `entry_point` is set.
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// In order; `environment` wins over all of them. Absent in what an older agent stored.
    #[serde(default)]
    pub environment_files: Vec<EnvironmentFile>,
    /// Empty: the image's, or `/`.
    pub working_directory: String,
    /// `user`, `user:group`, `uid`, `uid:gid`. Empty: the image's.
    pub user: String,
    /// Relative weight in CPU units; zero is the least.
    pub cpu_units: u32,
    /// Hard ceiling; zero: none but the task's.
    pub memory_bytes: u64,
    /// Soft ceiling; zero: none.
    pub memory_reservation_bytes: u64,
    pub essential: bool,
    pub depends_on: Vec<Dependency>,
    /// From the stop signal to SIGKILL, milliseconds.
    pub stop_timeout_ms: u32,
    /// Bounds how long others wait for this one's COMPLETE, SUCCESS or HEALTHY, milliseconds.
    pub start_timeout_ms: u32,
    pub ports: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub readonly_root_filesystem: bool,
    pub ulimits: Vec<Ulimit>,
    pub log: LogSpec,
    /// Absent in what an older agent stored.
    #[serde(default)]
    pub linux: LinuxOptions,
    #[serde(default)]
    pub networking: Networking,
    /// Its standard streams are a terminal: what it writes to stderr comes out as stdout.
    #[serde(default)]
    pub pseudo_terminal: bool,
    /// Its standard input stays open, and nobody writes to it; a terminal does so in any case.
    #[serde(default)]
    pub interactive: bool,
    #[serde(default)]
    pub volumes: ContainerVolumes,
    /// None: it is not started again when it ends.
    #[serde(default)]
    pub restart: Option<RestartPolicy>,
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    /// Those of the node's GPUs that it has to itself.
    #[serde(default)]
    pub gpus: Vec<DeviceName>,
}

impl ContainerSpec {
    /// The reference that is pulled.
    pub fn wanted_image(&self) -> String {
        match self.image_digest.as_str() {
            "" => self.image.clone(),
            digest => format!("{}@{digest}", self.image),
        }
    }
}

/// When a container that ended is started again: see [`crate::restart`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// With one of these it stays ended.
    pub ignored_exit_codes: Vec<i32>,
    /// One that ran for so long is started again at once, milliseconds.
    pub attempt_period_ms: u32,
}

/// How a container's health is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Program and arguments, at least one; executed in the container, as its own process is. 0 is healthy.
    pub command: Vec<String>,
    /// From the end of a probe to the next.
    pub interval_ms: u32,
    /// Then a probe is killed, and has failed.
    pub timeout_ms: u32,
    /// Failures in a row that make the container unhealthy, at least one.
    pub retries: u32,
    /// After the start of a container that has not been healthy yet, failures do not count for so long.
    pub start_period_ms: u32,
}

/// What a container has of the network that is not its task's. The default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Networking {
    /// Empty: the task's.
    pub hostname: String,
    /// Lines added to `/etc/hosts`: a name, and its address.
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// Empty: the host's.
    pub dns_servers: Vec<IpAddr>,
    /// Empty: the host's.
    pub dns_search_domains: Vec<String>,
    /// A network namespace of its own with nothing but loopback, whatever the task's is.
    pub disabled: bool,
}

/// What a container's processes may do to the kernel, beyond Docker's defaults, which are what the default asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxOptions {
    /// `ALL`, or the kernel's names without `CAP_`.
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    /// All capabilities and devices of the host, no system call filter, nothing masked.
    pub privileged: bool,
    /// No program it runs gains privileges, setuid or not: PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// The system call filter. Empty: Docker's default, none for the privileged. `unconfined`: none. Else the name of a
    /// profile that the node's operator wrote.
    pub seccomp: String,
    /// The name of an AppArmor profile that is loaded on the node, or `unconfined`. Empty: none is asked for.
    pub apparmor: String,
    /// Kernel parameters by name, of the container's own namespaces only.
    pub sysctls: BTreeMap<String, String>,
    /// Size of `/dev/shm`; zero: Docker's 64 MiB.
    pub shared_memory_bytes: u64,
    /// In the order in which they are mounted; each path once.
    pub tmpfs: Vec<Tmpfs>,
    /// Each place in the container once.
    pub devices: Vec<DeviceMapping>,
    /// Swap beyond `memory_bytes`, which is then not zero. `None`: not said, and none either.
    pub max_swap_bytes: Option<u64>,
    /// 0 to 100; cgroup v1 alone has it.
    pub swappiness: Option<u32>,
    /// Its first process is one that passes signals on and reaps, with its own program below it.
    pub init_process: bool,
}

/// A device of the host, or a directory of which every device is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMapping {
    /// Absolute.
    pub host_path: String,
    /// Absolute, in the container.
    pub container_path: String,
    /// What the container may do with it.
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

/// Whose processes a task's containers see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// Each its own.
    #[default]
    Container,
    /// All of the host.
    Host,
    /// All of the task.
    Task,
}

/// Whose System V IPC, message queues and shared memory a task's containers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpcMode {
    /// Each its own.
    #[default]
    Container,
    /// The host's.
    Host,
    /// Each its own, and no `/dev/shm`.
    None,
    /// The task's containers share them.
    Task,
}

/// Docker's size of `/dev/shm`, bytes.
const SHARED_MEMORY_BYTES: u64 = 64 << 20;

/// Namespaces that containers of a task share, and a process holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedNamespaces {
    /// Size of the `/dev/shm` that they have together, the largest that one asks for. None: each has its own.
    pub shared_memory_bytes: Option<u64>,
    /// Of the task, by name; empty: the node's own choice.
    pub runtime: String,
}

/// What a cgroup may use of memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryCeiling {
    /// Zero: none.
    pub bytes: u64,
    /// Beyond it.
    pub swap_bytes: u64,
}

/// A file system in memory, which counts as the container's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute, in the container.
    pub path: String,
    /// More than zero.
    pub size_bytes: u64,
    /// As mount(8) spells them, without `size`.
    pub options: Vec<String>,
}

/// When a container that another depends on is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// It was started.
    Start,
    /// It ran to its end.
    Complete,
    /// It ran to its end and exited with 0.
    Success,
    /// Its health check succeeded, and has not failed since.
    Healthy,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The name of another container of the task.
    pub container: String,
    pub condition: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// As ECS spells it, and nftables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortMapping {
    pub container_port: u16,
    /// Zero: the node chooses, in bridge mode.
    pub host_port: u16,
    pub protocol: Protocol,
    /// Of a range: its last port; as many of the host's follow `host_port`.
    #[serde(default)]
    pub last_container_port: Option<u16>,
}

/// A POSIX resource limit; −1 is unlimited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// As ECS names it: `nofile`, `nproc` …
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// json-file: at most `max_size_bytes` × `max_files` are kept per container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpec {
    pub max_size_bytes: u64,
    pub max_files: u32,
    /// The container waits for a disk that does not keep up.
    #[serde(default)]
    pub blocking: bool,
    /// Where it does not: bytes kept in memory meanwhile. Zero: the logger's default.
    #[serde(default)]
    pub max_buffer_bytes: u64,
    /// Nothing is kept.
    #[serde(default)]
    pub discard: bool,
    /// Added to every line.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

impl ContainerSpec {
    /// Its own ceiling of memory, and of swap.
    pub fn memory_ceiling(&self) -> MemoryCeiling {
        MemoryCeiling {
            bytes: self.memory_bytes,
            swap_bytes: self.linux.max_swap_bytes.unwrap_or(0),
        }
    }
}

impl TaskSpec {
    /// The container of that id.
    pub fn container(&self, id: &ContainerId) -> Option<&ContainerSpec> {
        self.containers.iter().find(|c| &c.id == id)
    }

    /// The container of that name.
    pub fn container_named(&self, name: &str) -> Option<&ContainerSpec> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// What its containers share beside cgroups and network, if they do.
    pub fn shared(&self) -> Option<SharedNamespaces> {
        let ipc = self.ipc == IpcMode::Task;
        if !ipc && self.pid != PidMode::Task {
            return None;
        }
        let asked = self.containers.iter().map(|c| c.linux.shared_memory_bytes).max();
        Some(SharedNamespaces {
            shared_memory_bytes: ipc.then(|| asked.filter(|size| *size != 0).unwrap_or(SHARED_MEMORY_BYTES)),
            runtime: self.runtime.clone(),
        })
    }

    /// Swap that its containers may use together, bytes.
    pub fn swap_bytes(&self) -> u64 {
        let add = |sum: u64, c: &ContainerSpec| sum.saturating_add(c.memory_ceiling().swap_bytes);
        self.containers.iter().fold(0, add)
    }

    /// Its weight against other tasks where CPU is short: what it may use, else the sum of its containers' weights.
    pub fn cpu_shares(&self) -> u32 {
        if self.limits.cpu_units != 0 {
            return self.limits.cpu_units;
        }
        let add = |sum: u32, c: &ContainerSpec| sum.saturating_add(c.cpu_units);
        self.containers.iter().fold(0, add)
    }

    /// The GPUs that its containers have.
    pub fn gpus(&self) -> impl Iterator<Item = &DeviceName> {
        self.containers.iter().flat_map(|c| &c.gpus)
    }
}
