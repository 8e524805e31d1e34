//! Owns the OCI runtime specification of a container: what the image, the definition and the task together mean to a
//! runtime. Never touches the host: what the host is like arrives as [`HostFacts`].
//!
//! Defaults are Docker's, because images and ECS definitions were written against them: capabilities, seccomp,
//! masked paths, mounts, devices, sysctls. Where Berth differs, the place says so.

mod capabilities;
mod devices;
mod edits;
mod init;
mod linux;
mod mounts;
mod process;
pub mod seccomp;
pub mod seccomp_profile;
pub mod signal;
mod sysctls;
#[cfg(test)]
pub(crate) mod tests;
pub mod user;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    cdi,
    desired::{IpcMode, LinuxOptions, PidMode, Ulimit},
    effect::StartContainer,
    ids::{ContainerId, TaskId},
};
pub use capabilities::{DEFAULT_CAPABILITIES, is_capability};
pub use devices::{Device, DeviceKind};
pub use edits::{DeviceEdits, NodeNumbers, contradicts, given};
pub use init::INIT;
pub use linux::{Limits, NOFILE_DEFAULT, PIDS_MAX_DEFAULT, SECCOMP_UNCONFINED};
pub use mounts::Mount;
pub use process::{APPARMOR_UNCONFINED, DEFAULT_PATH, argv};
pub use sysctls::{SysctlNamespace, sysctl_namespace};
pub use user::User;

/// The OCI version written: the newest that runc 1.0 and crun 1.0 both know.
const OCI_VERSION: &str = "1.0.2";
/// Linux's HOST_NAME_MAX, bytes.
const HOSTNAME_BYTES_MAX: usize = 64;
/// Makes the runc v2 shim serve every container with the same value from one process.
pub const SHIM_GROUP: &str = "io.containerd.runc.v2.group";

/// Why no specification can be made of the inputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OciError {
    #[error("neither the image nor the definition says what to run")]
    NoCommand,
    #[error("{what} contains a NUL byte")]
    NulByte { what: &'static str },
    #[error("{0:?} is not the name of an environment variable")]
    EnvironmentName(String),
    #[error("working directory {0:?} is not absolute")]
    RelativeWorkingDirectory(String),
    #[error("mount destination {0:?} is not an absolute path without '..'")]
    RelativeMount(String),
    #[error("a volume cannot be mounted over the root directory")]
    MountOverRoot,
    #[error("host name {0:?} is empty or longer than {HOSTNAME_BYTES_MAX} bytes")]
    Hostname(String),
    #[error("ulimit {0:?} is not known")]
    UnknownUlimit(String),
    #[error("ulimit {0:?} is given twice")]
    RepeatedUlimit(String),
    #[error("ulimit {name}: {soft}:{hard} is not a soft limit under a hard one")]
    UlimitRange { name: String, soft: i64, hard: i64 },
    #[error("memory reservation {reservation} is above the memory limit {limit} (bytes)")]
    Reservation { reservation: u64, limit: u64 },
    #[error("capability {0:?} is not known")]
    UnknownCapability(String),
    #[error("this host has no {0} to give: its own init lacks it")]
    CapabilityMissing(String),
    #[error("kernel parameter {0:?} is not of a namespace of the container: it would change the host")]
    SysctlOfHost(String),
    #[error(
        "this node's kernel does not count swap per cgroup: boot it with swapaccount=1, or leave maxSwap out"
    )]
    SwapNotCounted,
    #[error("maxSwap is swap beyond the container's memory, which has no limit")]
    SwapWithoutMemory,
    #[error("this node has cgroup v2, whose cgroups have no swappiness")]
    SwappinessOnV2,
    #[error("AppArmor profile {0:?} is asked for, and AppArmor is not enabled on this node")]
    AppArmorMissing(String),
    #[error("seccomp profile {0:?} was not given")]
    SeccompMissing(String),
    #[error("cgroup path {0:?} is not absolute")]
    RelativeCgroup(String),
    #[error("no process holds the namespaces which the task's containers share")]
    NoHolder,
    #[error("the container needs berth-init, which is not on this node: install it beside berth-logger")]
    InitMissing,
    #[error("{0:?} is not a signal")]
    StopSignal(String),
}

/// The machine's word size and instruction set, as seccomp names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    X86_64 {
        /// The kernel runs programs of the x32 interface, which few are built for.
        x32: bool,
    },
    Aarch64,
    /// Any other: no seccomp profile is written for it.
    Other,
}

/// Which control group interface the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Legacy or hybrid.
    V1,
    Unified,
}

/// What the specification needs to know of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFacts {
    pub arch: Arch,
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
    pub cgroups: Cgroups,
    /// The kernel can limit swap per cgroup; setting that limit without it fails the start.
    pub swap_limit: bool,
    /// AppArmor is enabled; naming a profile without it fails the start.
    pub apparmor: bool,
    /// The lowest OOM score adjustment a runtime may set here: 0, or its own where CAP_SYS_RESOURCE is missing.
    pub oom_score_adj_min: i32,
    /// The highest hard limit of open files a runtime may set here: its own where CAP_SYS_RESOURCE is missing.
    pub nofile_max: u64,
    /// The capabilities a runtime can give here, as the kernel numbers them: bit n is number n.
    pub capabilities: u64,
}

/// Where the container's packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// The namespace at this path, made by the agent.
    Join(String),
    /// A new one with nothing but loopback.
    Private,
    /// The host's.
    Host,
}

/// The directory of one task's containers: `/<parent>/<task>/c/<container>`, below every hierarchy's root.
pub fn container_cgroup(parent: &str, task: &TaskId, container: &ContainerId) -> String {
    format!("/{}/{task}/c/{container}", parent.trim_matches('/'))
}

/// Where the task's shim and loggers live: `/<parent>/<task>/rt`. It must exist before the first start.
pub fn shim_cgroup(parent: &str, task: &TaskId) -> String {
    format!("/{}/{task}/rt", parent.trim_matches('/'))
}

/// What the agent made for the task before its containers.
#[derive(Clone, Debug)]
pub struct TaskFacts {
    pub cgroup_parent: String,
    pub hostname: String,
    pub network: Network,
    /// Variables of the agent's own, which no definition replaces.
    pub environment: Vec<(String, String)>,
    /// The agent's own, `hosts`, `hostname`, `resolv.conf`, and the volumes.
    pub mounts: Vec<Mount>,
    /// What the definition maps; for a privileged container also all that the host has in `/dev`.
    pub devices: Vec<Device>,
    /// The profile that its options name, if they name one.
    pub seccomp: Option<seccomp_profile::Profile>,
    /// For its GPUs.
    pub edits: DeviceEdits,
    /// The process that holds the namespaces which the task's containers share, if they do.
    pub holder: Option<u32>,
    /// The directory of the task's `/dev/shm`, if its containers share one.
    pub shared_memory: Option<String>,
    /// Where berth-init is on this host, if it is.
    pub init: Option<String>,
}

/// Builder of a runtime specification.
#[derive(Clone, Debug)]
pub struct OciSpec {
    args: Vec<String>,
    cgroups_path: String,
    host: HostFacts,
    image_env: Vec<String>,
    env: Vec<(String, String)>,
    image_working_dir: String,
    working_directory: String,
    user: User,
    hostname: String,
    network: Network,
    readonly_root: bool,
    linux: LinuxOptions,
    beside_privileged: bool,
    task_swaps: bool,
    pid: PidMode,
    ipc: IpcMode,
    holder: Option<u32>,
    shared_memory: Option<String>,
    terminal: bool,
    interactive: bool,
    init: Option<String>,
    seccomp: Option<seccomp_profile::Profile>,
    task_sysctls: Vec<String>,
    ulimits: Vec<Ulimit>,
    limits: Limits,
    mounts: Vec<Mount>,
    devices: Vec<Device>,
    device_mounts: Vec<cdi::Mount>,
    hooks: Vec<cdi::Hook>,
    annotations: BTreeMap<String, String>,
}

impl OciSpec {
    /// A container that runs `args` as root in `/`, without limits and with a network of its own.
    pub fn new(args: Vec<String>, cgroups_path: impl Into<String>, host: HostFacts) -> Self {
        Self {
            args,
            cgroups_path: cgroups_path.into(),
            host,
            image_env: Vec::new(),
            env: Vec::new(),
            image_working_dir: String::new(),
            working_directory: String::new(),
            user: User::ROOT,
            hostname: "localhost".to_owned(),
            network: Network::Private,
            readonly_root: false,
            linux: LinuxOptions::default(),
            beside_privileged: false,
            task_swaps: false,
            pid: PidMode::Container,
            ipc: IpcMode::Container,
            holder: None,
            shared_memory: None,
            terminal: false,
            interactive: false,
            init: None,
            seccomp: None,
            task_sysctls: Vec::new(),
            ulimits: Vec::new(),
            limits: Limits::default(),
            mounts: Vec::new(),
            devices: Vec::new(),
            device_mounts: Vec::new(),
            hooks: Vec::new(),
            annotations: BTreeMap::new(),
        }
    }

    /// The specification of one attempt of a task's container.
    pub fn for_container(request: &StartContainer, user: User, task: TaskFacts, host: HostFacts) -> Self {
        let (spec, image) = (&request.spec, &request.image.config);
        let cgroup = container_cgroup(&task.cgroup_parent, &request.task, &spec.id);
        let built = Self::new(argv(image, spec), cgroup, host)
            .environment(&image.env, &[&spec.environment[..], &task.environment].concat())
            .working_directory(&image.working_dir, &spec.working_directory)
            .user(user)
            .hostname(task.hostname)
            .network(if spec.networking.disabled {
                Network::Private
            } else {
                task.network
            })
            .readonly_root(spec.readonly_root_filesystem)
            .linux(&spec.linux)
            .terminal(spec.pseudo_terminal)
            .interactive(spec.interactive)
            .init(task.init)
            .beside_privileged(request.task_privileged && !spec.linux.privileged)
            .task_sysctls(&request.task_sysctls)
            .task_swaps(request.task_swaps)
            .sharing(request.pid, request.ipc)
            .held_by(task.holder, task.shared_memory)
            .devices(task.devices)
            .edits(task.edits)
            .seccomp(task.seccomp)
            .ulimits(&spec.ulimits)
            .limits(Limits::of(spec))
            .annotation(SHIM_GROUP, request.task.as_str());
        task.mounts.into_iter().fold(built, Self::mount)
    }

    /// The image's `KEY=value` list, and what the definition adds or replaces.
    pub fn environment(mut self, image: &[String], definition: &[(String, String)]) -> Self {
        self.image_env = image.to_vec();
        self.env = definition.to_vec();
        self
    }

    /// The image's directory, and the definition's, which wins unless empty. Runtimes create a missing one.
    pub fn working_directory(mut self, image: &str, definition: &str) -> Self {
        self.image_working_dir = image.to_owned();
        self.working_directory = definition.to_owned();
        self
    }

    /// Numbers already resolved against the image's own files: see [`user::resolve`].
    pub fn user(mut self, user: User) -> Self {
        self.user = user;
        self
    }

    /// The name inside; at most 64 bytes.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = name.into();
        self
    }

    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    pub fn readonly_root(mut self, readonly: bool) -> Self {
        self.readonly_root = readonly;
        self
    }

    /// What its processes may do to the kernel, beyond Docker's defaults.
    pub fn linux(mut self, options: &LinuxOptions) -> Self {
        self.linux = options.clone();
        self
    }

    /// Whether its standard streams are a terminal.
    pub fn terminal(mut self, terminal: bool) -> Self {
        self.terminal = terminal;
        self
    }

    /// Whether its standard input stays open.
    pub fn interactive(mut self, interactive: bool) -> Self {
        self.interactive = interactive;
        self
    }

    /// Where berth-init is on the host: it is mounted into those containers that need it.
    pub fn init(mut self, path: Option<String>) -> Self {
        self.init = path;
        self
    }

    /// Whether it is not privileged, and another of its task is.
    pub fn beside_privileged(mut self, beside: bool) -> Self {
        self.beside_privileged = beside;
        self
    }

    /// Names of the kernel parameters that containers of its task set: defaults must not undo them.
    pub fn task_sysctls(mut self, names: &[String]) -> Self {
        self.task_sysctls = names.to_vec();
        self
    }

    /// Whether a container of its task may use swap, this one or another.
    pub fn task_swaps(mut self, swaps: bool) -> Self {
        self.task_swaps = swaps;
        self
    }

    /// Whose processes it sees, and whose IPC it has.
    pub fn sharing(mut self, pid: PidMode, ipc: IpcMode) -> Self {
        (self.pid, self.ipc) = (pid, ipc);
        self
    }

    /// Where what is shared with the task's other containers comes from: a process, and a directory for `/dev/shm`.
    pub fn held_by(mut self, holder: Option<u32>, shared_memory: Option<String>) -> Self {
        (self.holder, self.shared_memory) = (holder, shared_memory);
        self
    }

    /// Device nodes that it gets.
    pub fn devices(mut self, devices: Vec<Device>) -> Self {
        self.devices = devices;
        self
    }

    /// The profile that its options name.
    pub fn seccomp(mut self, profile: Option<seccomp_profile::Profile>) -> Self {
        self.seccomp = profile;
        self
    }

    pub fn ulimits(mut self, ulimits: &[Ulimit]) -> Self {
        self.ulimits = ulimits.to_vec();
        self
    }

    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// After the default mounts; one at a shorter path comes before one at a longer.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.mounts.push(mount);
        self
    }

    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// Checks every input and writes the specification.
    pub fn build(self) -> Result<Value, OciError> {
        if self.hostname.is_empty() || self.hostname.len() > HOSTNAME_BYTES_MAX {
            return Err(OciError::Hostname(self.hostname));
        }
        if !self.cgroups_path.starts_with('/') {
            return Err(OciError::RelativeCgroup(self.cgroups_path));
        }
        let capabilities = capabilities::bounding(&self.linux, &self.host)?;
        let mut spec = json!({
            "ociVersion": OCI_VERSION,
            "process": process::process(&self, &capabilities)?,
            "root": {"path": "rootfs", "readonly": self.readonly_root},
            "hostname": self.hostname,
            "mounts": mounts::mounts(&self)?,
            "annotations": self.annotations,
            "linux": linux::linux(&self, &capabilities)?,
        });
        if let Some(hooks) = edits::hooks(&self) {
            spec["hooks"] = hooks;
        }
        Ok(spec)
    }
}
