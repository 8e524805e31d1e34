//! Owns which capabilities a container has: Docker's default set, changed by its definition, within what the host has to
//! give. Never decides which of them are effective: that depends on the user.

use super::{HostFacts, OciError};
use crate::desired::LinuxOptions;

/// What Docker leaves to a container that asks for nothing.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Stands for every capability in a definition.
const ALL: &str = "ALL";

/// The kernel's names, each at the place of its number: capabilities(7).
const KERNEL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Whether a definition may name it: `ALL`, or a name of the kernel's without `CAP_`.
pub fn is_capability(name: &str) -> bool {
    name == ALL || kernel_name(name).is_some()
}

fn kernel_name(name: &str) -> Option<(usize, &'static str)> {
    let mut known = KERNEL.iter().copied().enumerate();
    known.find(|(_, known)| known.strip_prefix("CAP_") == Some(name))
}

/// The bounding set, as Docker makes it: what is added is there though it is dropped too, but `ALL` added is all that is
/// not dropped. `ALL` and privileged mean all that the host has; what is named and the host lacks is an error.
pub(super) fn bounding(options: &LinuxOptions, host: &HostFacts) -> Result<Vec<&'static str>, OciError> {
    let everything = || {
        let has = |(number, _): &(usize, &str)| host.capabilities & (1 << number) != 0;
        KERNEL.into_iter().enumerate().filter(has).map(|(_, name)| name)
    };
    if options.privileged {
        return Ok(everything().collect());
    }
    let (add, add_all) = names(&options.capabilities_add)?;
    let (drop, drop_all) = names(&options.capabilities_drop)?;
    let kept = |name: &&str| !drop.iter().any(|(_, dropped)| dropped == name);
    if add_all {
        return Ok(everything().filter(kept).collect());
    }
    if let Some((_, name)) = add
        .iter()
        .find(|(number, _)| host.capabilities & (1 << number) == 0)
    {
        return Err(OciError::CapabilityMissing((*name).to_owned()));
    }
    let mut set: Vec<&str> = if drop_all {
        Vec::new()
    } else {
        DEFAULT_CAPABILITIES.into_iter().filter(kept).collect()
    };
    for (_, name) in add {
        if !set.contains(&name) {
            set.push(name);
        }
    }
    Ok(set)
}

/// The capabilities of a list, each with its number, and whether it says `ALL`.
type Named = (Vec<(usize, &'static str)>, bool);

fn names(list: &[String]) -> Result<Named, OciError> {
    let single = list.iter().filter(|name| *name != ALL);
    let known = |name: &String| kernel_name(name).ok_or_else(|| OciError::UnknownCapability(name.clone()));
    let named = single.map(known).collect::<Result<_, _>>()?;
    Ok((named, list.iter().any(|name| name == ALL)))
}
