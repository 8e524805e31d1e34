//! Owns the names of what a node must be able to do. A node says which it honours; a task is refused by a node,
//! by name, and never placed on one, that lacks one it needs.

use super::{
    Condition, ContainerDefinition, Definition, IpcMode, LinuxOptions, LocalMount, NetworkMode, Networking,
    PidMode, VolumeSource,
};

/// A property of one run, not of its definition: an earlier task of the revision resolved an image.
pub const IMAGE_DIGEST: &str = "image.digest";
/// A property of one run, not of its definition: its cluster has subnets, and its address is one of theirs.
pub const NET_SUBNETS: &str = "net.subnets";
/// A property of one run, not of its definition: its address is one of a LAN, of which it is a host.
pub const NET_LAN: &str = "net.lan";
/// A property of one run, not of its definition: a subnet that its address may be of has IPv6.
pub const NET_IPV6: &str = "net.ipv6";
const NET_AWSVPC: &str = "net.awsvpc";
const NET_HOST: &str = "net.host";
const NET_NONE: &str = "net.none";
const NET_BRIDGE: &str = "net.bridge";
/// A property of one run, not of its definition: `assignPublicIp`.
pub const PUBLISHED_PORTS: &str = "net.published-ports";
const LOG_JSON_FILE: &str = "log.json-file";
const LOG_BUFFER: &str = "log.buffer";
const LOG_NONE: &str = "log.none";
const LOG_ATTRIBUTES: &str = "log.attributes";
const DEPENDS_START: &str = "depends.start";
const DEPENDS_COMPLETE: &str = "depends.complete";
const DEPENDS_SUCCESS: &str = "depends.success";
const DEPENDS_HEALTHY: &str = "depends.healthy";
const HEALTH_CHECK: &str = "health-check";
const ENVIRONMENT_FILES: &str = "environment-files";
const LIMITS_TASK: &str = "limits.task";
const LIMITS_CONTAINER: &str = "limits.container";
const ULIMITS: &str = "ulimits";
const ROOTFS_READONLY: &str = "rootfs.readonly";
const CAPABILITIES: &str = "linux.capabilities";
const PRIVILEGED: &str = "linux.privileged";
const NO_NEW_PRIVILEGES: &str = "linux.no-new-privileges";
const SECCOMP: &str = "linux.seccomp";
const APPARMOR: &str = "linux.apparmor";
/// What every container is where there is no AppArmor.
const UNCONFINED: &str = "unconfined";
const SYSCTLS: &str = "linux.sysctls";
const SHM_SIZE: &str = "linux.shm-size";
const TMPFS: &str = "linux.tmpfs";
const DEVICES: &str = "linux.devices";
const INIT: &str = "linux.init";
const MAX_SWAP: &str = "linux.max-swap";
const SWAPPINESS: &str = "linux.swappiness";
const PID_HOST: &str = "pid.host";
const PID_TASK: &str = "pid.task";
const IPC_TASK: &str = "ipc.task";
const IPC_HOST: &str = "ipc.host";
const IPC_NONE: &str = "ipc.none";
const HOSTNAME: &str = "networking.hostname";
const EXTRA_HOSTS: &str = "networking.extra-hosts";
const DNS: &str = "networking.dns";
const NETWORKING_DISABLED: &str = "networking.disabled";
const TERMINAL: &str = "terminal";
const INTERACTIVE: &str = "interactive";
const RESTART_POLICY: &str = "restart.policy";
const VOLUMES_HOST: &str = "volumes.host";
const VOLUMES_LOCAL: &str = "volumes.local";
const VOLUMES_FROM: &str = "volumes.from";
const STORAGE_EPHEMERAL: &str = "storage.ephemeral";
const GPU_CDI: &str = "gpu.cdi";
const VOLUMES_NFS: &str = "volumes.nfs";
/// A property of one run, not of its definition: its tag asks for it.
pub const RESTART_AFTER_REBOOT: &str = "restart.after-reboot";

/// Before the name of a runtime: a node says one of these for each that it offers, beside [`FEATURES`].
pub const RUNTIME_PREFIX: &str = "runtime.";

/// Every feature a task of this version can need. A node that honours all of this version's specs says all of them.
pub const FEATURES: &[&str] = &[
    IMAGE_DIGEST,
    NET_AWSVPC,
    NET_HOST,
    NET_NONE,
    NET_SUBNETS,
    NET_LAN,
    NET_IPV6,
    NET_BRIDGE,
    PUBLISHED_PORTS,
    LOG_JSON_FILE,
    LOG_BUFFER,
    LOG_NONE,
    LOG_ATTRIBUTES,
    DEPENDS_START,
    DEPENDS_COMPLETE,
    DEPENDS_SUCCESS,
    DEPENDS_HEALTHY,
    LIMITS_TASK,
    LIMITS_CONTAINER,
    ULIMITS,
    ROOTFS_READONLY,
    CAPABILITIES,
    PRIVILEGED,
    NO_NEW_PRIVILEGES,
    SECCOMP,
    APPARMOR,
    SYSCTLS,
    SHM_SIZE,
    TMPFS,
    DEVICES,
    INIT,
    MAX_SWAP,
    SWAPPINESS,
    PID_HOST,
    PID_TASK,
    IPC_HOST,
    IPC_TASK,
    IPC_NONE,
    HOSTNAME,
    EXTRA_HOSTS,
    DNS,
    NETWORKING_DISABLED,
    TERMINAL,
    INTERACTIVE,
    RESTART_POLICY,
    VOLUMES_HOST,
    VOLUMES_LOCAL,
    VOLUMES_FROM,
    STORAGE_EPHEMERAL,
    GPU_CDI,
    VOLUMES_NFS,
    HEALTH_CHECK,
    ENVIRONMENT_FILES,
    RESTART_AFTER_REBOOT,
];

/// The features without which tasks of this definition would be run wrongly, in the order of [`FEATURES`].
pub fn required_features(definition: &Definition) -> Vec<&'static str> {
    FEATURES
        .iter()
        .copied()
        .filter(|feature| needs(definition, feature))
        .collect()
}

fn needs(definition: &Definition, feature: &str) -> bool {
    let waits_for = |condition| {
        let mut dependencies = definition.containers.iter().flat_map(|c| &c.depends_on);
        dependencies.any(|d| d.condition == condition)
    };
    let any = |asks: fn(&LinuxOptions) -> bool| definition.containers.iter().any(|c| asks(&c.linux));
    let networking =
        |asks: fn(&Networking) -> bool| definition.containers.iter().any(|c| asks(&c.networking));
    let volumes = |is: fn(&VolumeSource) -> bool| definition.volumes.iter().any(|v| is(&v.source));
    match feature {
        NET_AWSVPC => definition.network_mode == NetworkMode::Awsvpc,
        NET_HOST => definition.network_mode == NetworkMode::Host,
        NET_NONE => definition.network_mode == NetworkMode::None,
        NET_BRIDGE => definition.network_mode == NetworkMode::Bridge,
        // The default of every container.
        LOG_JSON_FILE => true,
        LOG_BUFFER => definition
            .containers
            .iter()
            .any(|c| c.log.blocking || c.log.max_buffer_bytes.is_some()),
        LOG_NONE => definition.containers.iter().any(|c| c.log.is_discarded()),
        LOG_ATTRIBUTES => definition.containers.iter().any(|c| c.log.has_attributes()),
        DEPENDS_START => waits_for(Condition::Start),
        DEPENDS_COMPLETE => waits_for(Condition::Complete),
        DEPENDS_SUCCESS => waits_for(Condition::Success),
        DEPENDS_HEALTHY => waits_for(Condition::Healthy),
        HEALTH_CHECK => definition.containers.iter().any(|c| c.health_check.is_some()),
        ENVIRONMENT_FILES => definition
            .containers
            .iter()
            .any(|c| !c.environment_files.is_empty()),
        LIMITS_TASK => definition.cpu_units.is_some() || definition.memory_mib.is_some(),
        LIMITS_CONTAINER => definition.containers.iter().any(is_limited),
        ULIMITS => definition.containers.iter().any(|c| !c.ulimits.is_empty()),
        ROOTFS_READONLY => definition.containers.iter().any(|c| c.readonly_root_filesystem),
        CAPABILITIES => {
            any(|linux| !linux.capabilities_add.is_empty() || !linux.capabilities_drop.is_empty())
        }
        PRIVILEGED => any(|linux| linux.privileged),
        NO_NEW_PRIVILEGES => any(|linux| linux.no_new_privileges),
        SECCOMP => any(|linux| !linux.seccomp.is_empty()),
        APPARMOR => any(|linux| !matches!(linux.apparmor.as_str(), "" | UNCONFINED)),
        SYSCTLS => any(|linux| !linux.sysctls.is_empty()),
        SHM_SIZE => any(|linux| linux.shared_memory_bytes != 0),
        TMPFS => any(|linux| !linux.tmpfs.is_empty()),
        DEVICES => any(|linux| !linux.devices.is_empty()),
        INIT => any(|linux| linux.init_process),
        MAX_SWAP => any(|linux| linux.max_swap_bytes.is_some()),
        SWAPPINESS => any(|linux| linux.swappiness.is_some()),
        PID_HOST => definition.pid_mode == PidMode::Host,
        PID_TASK => definition.pid_mode == PidMode::Task,
        IPC_TASK => definition.ipc_mode == IpcMode::Task,
        IPC_HOST => definition.ipc_mode == IpcMode::Host,
        IPC_NONE => definition.ipc_mode == IpcMode::None,
        HOSTNAME => networking(|n| !n.hostname.is_empty()),
        EXTRA_HOSTS => networking(|n| !n.extra_hosts.is_empty()),
        DNS => networking(|n| !n.dns_servers.is_empty() || !n.dns_search_domains.is_empty()),
        NETWORKING_DISABLED => networking(|n| n.disabled),
        VOLUMES_HOST => volumes(|source| matches!(source, VolumeSource::Host { .. })),
        VOLUMES_LOCAL => volumes(|source| matches!(source, VolumeSource::Local { .. })),
        VOLUMES_FROM => definition.containers.iter().any(|c| !c.volumes_from.is_empty()),
        STORAGE_EPHEMERAL => definition.ephemeral_storage_gib.is_some(),
        GPU_CDI => definition.containers.iter().any(|c| c.gpus != 0),
        VOLUMES_NFS => volumes(|source| {
            let nfs = |mount: &LocalMount| matches!(mount, LocalMount::Nfs { .. });
            matches!(source, VolumeSource::Local { mount, .. } if nfs(mount))
        }),
        TERMINAL => definition.containers.iter().any(|c| c.pseudo_terminal),
        // A terminal stays open by itself.
        INTERACTIVE => definition
            .containers
            .iter()
            .any(|c| c.interactive && !c.pseudo_terminal),
        RESTART_POLICY => definition.containers.iter().any(|c| c.restart.is_some()),
        _ => false,
    }
}

fn is_limited(container: &ContainerDefinition) -> bool {
    container.cpu_units > 0 || container.memory_mib.is_some() || container.memory_reservation_mib.is_some()
}
