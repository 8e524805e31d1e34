//! Owns the names of what this agent honours beyond the plain fields of a spec.

/// Only where cgroup v1 is.
pub const SWAPPINESS: &str = "linux.swappiness";
/// Only where the kernel has AppArmor and it is enabled.
pub const APPARMOR: &str = "linux.apparmor";
/// Only where the kernel counts swap.
pub const MAX_SWAP: &str = "linux.max-swap";
/// Only where berth-init is, as what follows.
pub const INIT: &str = "linux.init";
pub const PID_TASK: &str = "pid.task";
pub const IPC_TASK: &str = "ipc.task";
pub const INTERACTIVE: &str = "interactive";
/// Only where the kernel has NFS.
pub const VOLUMES_NFS: &str = "volumes.nfs";
/// What this agent honours beyond the plain fields of a spec, and of the link. A spec that requires more is refused by that name.
pub const FEATURES: &[&str] = &[
    berth_proto::node::v1::SNAPSHOT_PARTS,
    "image.digest",
    "net.awsvpc",
    "net.host",
    "net.none",
    "net.subnets",
    "net.lan",
    "net.bridge",
    "net.published-ports",
    "net.ipv6",
    "log.json-file",
    "log.buffer",
    "log.none",
    "log.attributes",
    "depends.start",
    "depends.complete",
    "depends.success",
    "depends.healthy",
    "limits.task",
    "limits.container",
    "ulimits",
    "rootfs.readonly",
    "linux.capabilities",
    "linux.privileged",
    "linux.no-new-privileges",
    "linux.seccomp",
    APPARMOR,
    "linux.sysctls",
    "linux.shm-size",
    "linux.tmpfs",
    "linux.devices",
    INIT,
    MAX_SWAP,
    SWAPPINESS,
    "pid.host",
    PID_TASK,
    "ipc.host",
    IPC_TASK,
    "ipc.none",
    "networking.hostname",
    "networking.extra-hosts",
    "networking.dns",
    "networking.disabled",
    "terminal",
    INTERACTIVE,
    "restart.policy",
    "volumes.host",
    "volumes.local",
    "volumes.from",
    "storage.ephemeral",
    "gpu.cdi",
    VOLUMES_NFS,
    "health-check",
    "environment-files",
    "restart.after-reboot",
];

/// Before the name of a runtime: what a task of it requires, and what a node says for each it offers.
pub const RUNTIME_PREFIX: &str = "runtime.";
