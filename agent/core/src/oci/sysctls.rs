//! Owns which kernel parameters a container may set: those that are its namespaces' own. Never one of the host's.

use serde_json::{Map, Value, json};

use super::{Network, OciError, OciSpec};
use crate::desired::IpcMode;

/// The unprivileged may send ICMP echo and bind ports below 1024, as under Docker ≥ 20.10.
const DEFAULTS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];
/// Of the IPC namespace, besides `fs.mqueue.*`: ipc_namespaces(7).
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Whose a namespaced parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SysctlNamespace {
    Network,
    Ipc,
}

/// Whose the parameter is, by its name with dots; `None` if it is the host's, or no name.
pub fn sysctl_namespace(name: &str) -> Option<SysctlNamespace> {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    if !name.split('.').all(part) {
        return None;
    }
    let below = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
    if below("net.") {
        Some(SysctlNamespace::Network)
    } else if IPC.contains(&name) || below("fs.mqueue.") {
        Some(SysctlNamespace::Ipc)
    } else {
        None
    }
}

/// The defaults, but for those that a container of the task sets, this one or another: they share the network
/// namespace, and whoever starts later would take the other's setting back. Then the container's own.
pub(super) fn sysctls(spec: &OciSpec) -> Result<Map<String, Value>, OciError> {
    let own = &spec.linux.sysctls;
    for name in own.keys() {
        match sysctl_namespace(name) {
            None => return Err(OciError::SysctlOfHost(name.clone())),
            Some(SysctlNamespace::Ipc) if spec.ipc == IpcMode::Host => {
                return Err(OciError::SysctlOfHost(name.clone()));
            }
            Some(SysctlNamespace::Network) if spec.network == Network::Host => {
                return Err(OciError::SysctlOfHost(name.clone()));
            }
            Some(_) => {}
        }
    }
    // A runtime refuses these in the host's namespace, where they would change the host.
    let defaults = DEFAULTS.iter().filter(|(name, _)| {
        spec.network != Network::Host && !spec.task_sysctls.iter().any(|of_task| of_task == name)
    });
    let defaults = defaults.map(|(name, value)| ((*name).to_owned(), json!(value)));
    let own = own.iter().map(|(name, value)| (name.clone(), json!(value)));
    Ok(defaults.chain(own).collect())
}
