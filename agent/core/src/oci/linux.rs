//! Owns the `linux` part: namespaces, cgroup limits, devices, sysctls. Never sets the task's own limits: they are on
//! the cgroup above.

use serde_json::{Map, Value, json};

use super::{Cgroups, Network, OciError, OciSpec, devices, mounts, seccomp, sysctls};
use crate::desired::{ContainerSpec, IpcMode, PidMode};

/// Processes and threads of one container. Docker sets no limit and so a fork bomb takes the host's last pid;
/// 32 768 is above what threaded servers use.
pub const PIDS_MAX_DEFAULT: i64 = 32_768;
/// Open files, soft and hard: what Fargate documents. Docker hands down whatever its daemon was started with, which
/// differs from host to host.
pub const NOFILE_DEFAULT: u64 = 65_535;
/// What stands for no system call filter.
pub const SECCOMP_UNCONFINED: &str = "unconfined";
/// The range of a v1 cpu.shares; runtimes convert it to a v2 weight.
const CPU_SHARES: (u32, u32) = (2, 262_144);

/// What one container may use, beside its task's limits. Zero is no limit of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Relative weight; 1024 = one core's worth.
    pub cpu_units: u32,
    pub memory_bytes: u64,
    pub memory_reservation_bytes: u64,
}

impl Limits {
    pub(super) fn of(spec: &ContainerSpec) -> Self {
        Self {
            cpu_units: spec.cpu_units,
            memory_bytes: spec.memory_bytes,
            memory_reservation_bytes: spec.memory_reservation_bytes,
        }
    }
}

/// `capabilities` is the bounding set: it widens the system call filter.
pub(super) fn linux(spec: &OciSpec, capabilities: &[&str]) -> Result<Value, OciError> {
    let mut linux = json!({
        "cgroupsPath": spec.cgroups_path,
        "namespaces": namespaces(spec)?,
        "resources": resources(spec)?,
    });
    if !spec.devices.is_empty() {
        linux["devices"] = devices::nodes(&spec.devices).into();
    }
    if !spec.linux.privileged {
        linux["maskedPaths"] = json!(mounts::MASKED);
        let sysfs = spec.beside_privileged.then_some(mounts::SYSFS);
        linux["readonlyPaths"] = json!(mounts::READONLY.into_iter().chain(sysfs).collect::<Vec<_>>());
    }
    if let Some(filter) = system_calls(spec, capabilities)? {
        linux["seccomp"] = filter;
    }
    let sysctls = sysctls::sysctls(spec)?;
    if !sysctls.is_empty() {
        linux["sysctl"] = sysctls.into();
    }
    Ok(linux)
}

/// A named profile also holds for the privileged, as in Docker.
fn system_calls(spec: &OciSpec, capabilities: &[&str]) -> Result<Option<Value>, OciError> {
    match spec.linux.seccomp.as_str() {
        "" if spec.linux.privileged => Ok(None),
        "" => Ok(seccomp::profile(spec.host.arch, spec.host.kernel, capabilities)),
        SECCOMP_UNCONFINED => Ok(None),
        name => match &spec.seccomp {
            Some(profile) => Ok(Some(profile.filter(&spec.host, capabilities))),
            None => Err(OciError::SeccompMissing(name.to_owned())),
        },
    }
}

fn namespaces(spec: &OciSpec) -> Result<Vec<Value>, OciError> {
    let own = [
        ("pid", spec.pid == PidMode::Container),
        ("ipc", matches!(spec.ipc, IpcMode::Container | IpcMode::None)),
        ("uts", true),
        ("mount", true),
    ];
    let own = own.iter().filter_map(|(kind, own)| own.then_some(kind));
    let mut all: Vec<Value> = own.map(|kind| json!({"type": kind})).collect();
    let shared = [
        ("pid", spec.pid == PidMode::Task),
        ("ipc", spec.ipc == IpcMode::Task),
    ];
    for (kind, _) in shared.iter().filter(|(_, shared)| *shared) {
        let holder = spec.holder.ok_or(OciError::NoHolder)?;
        all.push(json!({"type": kind, "path": format!("/proc/{holder}/ns/{kind}")}));
    }
    match &spec.network {
        Network::Join(path) => all.push(json!({"type": "network", "path": path})),
        Network::Private => all.push(json!({"type": "network"})),
        Network::Host => {}
    }
    if spec.host.cgroups == Cgroups::Unified {
        // Docker's default on v2: the container sees its own cgroup as the root.
        all.push(json!({"type": "cgroup"}));
    }
    Ok(all)
}

fn resources(spec: &OciSpec) -> Result<Value, OciError> {
    let mut resources = json!({
        "devices": devices::rules(spec),
        "memory": memory(spec)?,
        "cpu": {"shares": spec.limits.cpu_units.clamp(CPU_SHARES.0, CPU_SHARES.1)},
        "pids": {"limit": PIDS_MAX_DEFAULT},
    });
    if spec.host.cgroups == Cgroups::Unified {
        // The container dies as a whole, and its siblings do not. Never on the task: that would take the shim's
        // other containers along. v1 has no such switch.
        resources["unified"] = json!({"memory.oom.group": "1"});
        if without_swap(spec) {
            resources["unified"]["memory.swap.max"] = json!("0");
        }
    }
    Ok(resources)
}

/// Its task may use swap, because another container may: this one has no ceiling that keeps it from that.
fn without_swap(spec: &OciSpec) -> bool {
    spec.task_swaps && spec.limits.memory_bytes == 0
}

/// Swap beyond `limit`.
fn max_swap(spec: &OciSpec) -> Result<u64, OciError> {
    let Some(swap) = spec.linux.max_swap_bytes else {
        return Ok(0);
    };
    if !spec.host.swap_limit {
        return Err(OciError::SwapNotCounted);
    }
    if spec.limits.memory_bytes == 0 {
        return Err(OciError::SwapWithoutMemory);
    }
    Ok(swap)
}

fn swappiness(spec: &OciSpec) -> Result<Option<u32>, OciError> {
    match (spec.linux.swappiness, spec.host.cgroups) {
        (Some(_), Cgroups::Unified) => Err(OciError::SwappinessOnV2),
        (Some(swappiness), Cgroups::V1) => Ok(Some(swappiness)),
        (None, cgroups) => Ok((cgroups == Cgroups::V1 && without_swap(spec)).then_some(0)),
    }
}

fn memory(spec: &OciSpec) -> Result<Value, OciError> {
    let Limits {
        memory_bytes: limit,
        memory_reservation_bytes: reservation,
        ..
    } = spec.limits;
    if limit != 0 && reservation > limit {
        return Err(OciError::Reservation { reservation, limit });
    }
    let swap = max_swap(spec)?;
    let mut memory = Map::new();
    if limit != 0 {
        memory.insert("limit".to_owned(), json!(limit));
        if spec.host.swap_limit {
            // The sum of memory and swap: unless it is asked for, no swap beyond the limit.
            memory.insert("swap".to_owned(), json!(limit.saturating_add(swap)));
        }
    }
    if reservation != 0 {
        memory.insert("reservation".to_owned(), json!(reservation));
    }
    if let Some(swappiness) = swappiness(spec)? {
        memory.insert("swappiness".to_owned(), json!(swappiness));
    }
    Ok(memory.into())
}
