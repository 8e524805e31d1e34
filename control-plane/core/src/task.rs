//! Owns what a task is made of: reads a stored definition, fills in the defaults, and says what the task needs of
//! a node. Never chooses the node, and never makes up an id.

mod environment_files;
mod features;
mod log;
mod read;
mod requirements;
mod resolve;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::BTreeMap;

pub use environment_files::{EnvironmentFile, STORED_BYTES_MAX, StoredFiles};
pub use features::{
    FEATURES, IMAGE_DIGEST, NET_IPV6, NET_LAN, NET_SUBNETS, PUBLISHED_PORTS, RESTART_AFTER_REBOOT,
    RUNTIME_PREFIX, required_features,
};
pub use log::LogOptions;
pub use read::EchoError;
pub use requirements::{Architecture, Requirements};
pub use resolve::{
    LOG, ResolveError, ResolvedContainer, ResolvedTask, Run, START_TIMEOUT_S, STOP_TIMEOUT_S, resolve,
};

pub use volumes::{LocalMount, MountPoint, Volume, VolumeSource, VolumesFrom};

use crate::{definition::EnvironmentSource, expression::Expression};

/// Bytes of one MiB: the unit of memory in definitions.
pub const MIB: u64 = 1 << 20;

/// Where a task's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// A network namespace and an address of its own.
    Awsvpc,
    /// The host's network.
    Host,
    /// A network namespace with nothing but loopback.
    None,
    /// A network namespace and an address of its own for each container; ports of the host lead to their port mappings.
    Bridge,
}

/// When a container that another depends on is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Start,
    Complete,
    Success,
    Healthy,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    pub container_name: String,
    pub condition: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// As ECS spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMapping {
    pub container_port: u16,
    /// Zero: the node chooses, in mode bridge; none, in mode none.
    pub host_port: u16,
    pub protocol: Protocol,
    /// Of a range: its last port.
    pub last_container_port: Option<u16>,
}

impl PortMapping {
    /// The host's ports that the definition names.
    pub fn host_ports(&self) -> impl Iterator<Item = u16> + use<> {
        let last = self.last_container_port.unwrap_or(self.container_port);
        let count = match self.host_port {
            0 => 0,
            _ => usize::from(last.saturating_sub(self.container_port)) + 1,
        };
        (self.host_port..=u16::MAX).take(count)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    pub name: String,
    /// −1: unlimited.
    pub soft: i64,
    pub hard: i64,
}

/// What a container's processes may do to the kernel, beyond Docker's defaults; the fields of the wire's message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinuxOptions {
    /// `ALL`, or the kernel's names without `CAP_`.
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    pub privileged: bool,
    pub no_new_privileges: bool,
    /// Empty: Docker's default; `unconfined`; or the name of a profile on the node.
    pub seccomp: String,
    /// The AppArmor profile; empty: none is asked for.
    pub apparmor: String,
    /// By name, with dots.
    pub sysctls: BTreeMap<String, String>,
    /// Zero: Docker's 64 MiB.
    pub shared_memory_bytes: u64,
    pub tmpfs: Vec<Tmpfs>,
    pub devices: Vec<Device>,
    /// Swap beyond the container's memory; zero: none. `None`: the definition does not say.
    pub max_swap_bytes: Option<u64>,
    /// 0 to 100.
    pub swappiness: Option<u32>,
    pub init_process: bool,
}

/// A device of the host, or a directory of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Absolute.
    pub host_path: String,
    /// Absolute, in the container.
    pub container_path: String,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

/// Whose processes a task's containers see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidMode {
    /// Each its own.
    Container,
    /// All of the host.
    Host,
    /// All of the task.
    Task,
}

/// Whose System V IPC, message queues and shared memory a task's containers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpcMode {
    /// Each its own.
    Container,
    /// The host's.
    Host,
    /// Each its own, and no `/dev/shm`.
    None,
    /// The task's containers share them.
    Task,
}

/// What a container has of the network that is not its task's; the fields of the wire's message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networking {
    /// Empty: the task's.
    pub hostname: String,
    /// Names with their addresses.
    pub extra_hosts: Vec<(String, String)>,
    pub dns_servers: Vec<String>,
    pub dns_search_domains: Vec<String>,
    pub disabled: bool,
}

/// A file system in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// Absolute, in the container.
    pub path: String,
    pub size_bytes: u64,
    /// As mount(8) spells them, without `size`.
    pub options: Vec<String>,
}

/// When a container that ended is started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// With one of these it stays ended.
    pub ignored_exit_codes: Vec<i32>,
    /// One that ran for so long is started again at once, seconds.
    pub attempt_period_s: u32,
}

/// How a container's health is told; the fields of the wire's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Program and arguments: what `CMD-SHELL` means is said here.
    pub command: Vec<String>,
    pub interval_ms: u32,
    pub timeout_ms: u32,
    pub retries: u32,
    pub start_period_ms: u32,
}

/// json-file: at most `max_size_bytes` × `max_files` are kept per container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSpec {
    pub max_size_bytes: u64,
    pub max_files: u32,
    /// The container waits for a disk that does not keep up.
    pub blocking: bool,
    /// Where it does not: bytes kept in memory meanwhile. Zero: the node's default, 1 MiB.
    pub max_buffer_bytes: u64,
    /// Nothing is kept.
    pub discard: bool,
    /// Added to every line.
    pub attributes: BTreeMap<String, String>,
}

/// A task definition as it was registered, typed. Absent values are `None`: defaults are [`resolve`]'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    pub family: String,
    pub network_mode: NetworkMode,
    pub pid_mode: PidMode,
    pub ipc_mode: IpcMode,
    pub cpu_units: Option<u32>,
    pub memory_mib: Option<u32>,
    /// What it may write, GiB.
    pub ephemeral_storage_gib: Option<u32>,
    pub architecture: Option<Architecture>,
    /// Its `memberOf` constraints.
    pub constraints: Vec<Expression>,
    /// EC2, FARGATE, EXTERNAL.
    pub requires_compatibilities: Vec<String>,
    pub compatibilities: Vec<String>,
    pub volumes: Vec<Volume>,
    pub containers: Vec<ContainerDefinition>,
}

impl ContainerDefinition {
    /// Whether its image may be another one tomorrow, and all tasks of the revision are to run the same.
    pub fn is_pinned(&self) -> bool {
        self.consistent_version && !self.image.contains('@')
    }
}

/// One container of a [`Definition`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerDefinition {
    pub name: String,
    pub image: String,
    /// All tasks of the revision run the image that the first one resolved.
    pub consistent_version: bool,
    pub entry_point: Vec<String>,
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// In order: of a variable the first file's value holds, and `environment` wins.
    pub environment_files: Vec<EnvironmentSource>,
    pub working_directory: Option<String>,
    pub user: Option<String>,
    pub cpu_units: u32,
    pub memory_mib: Option<u32>,
    pub memory_reservation_mib: Option<u32>,
    pub essential: bool,
    pub depends_on: Vec<Dependency>,
    pub stop_timeout_s: Option<u32>,
    pub start_timeout_s: Option<u32>,
    pub ports: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub readonly_root_filesystem: bool,
    pub ulimits: Vec<Ulimit>,
    pub linux: LinuxOptions,
    pub networking: Networking,
    pub pseudo_terminal: bool,
    pub interactive: bool,
    /// None: absent, or not enabled.
    pub restart: Option<RestartPolicy>,
    pub mount_points: Vec<MountPoint>,
    pub volumes_from: Vec<VolumesFrom>,
    pub health_check: Option<HealthCheck>,
    /// How many it has to itself.
    pub gpus: u32,
    pub log: LogOptions,
}
