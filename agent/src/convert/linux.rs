//! Owns the border for what a container may do to the kernel. Checks what is sent as if nobody had checked before.

use berth_agent_core::{
    desired::LinuxOptions,
    oci::{is_capability, sysctl_namespace},
};
use berth_proto::node::v1 as wire;

use super::{ENTRIES_MAX, Refusal, refuse};

/// More than any parameter takes.
const SYSCTL_VALUE_BYTES_MAX: usize = 1024;

pub(super) fn options(wire: wire::LinuxOptions) -> Result<LinuxOptions, Refusal> {
    for (field, names) in [
        ("linux.capabilities_add", &wire.capabilities_add),
        ("linux.capabilities_drop", &wire.capabilities_drop),
    ] {
        if names.len() > ENTRIES_MAX {
            return refuse(
                field,
                format!("{} entries are more than {ENTRIES_MAX}", names.len()),
            );
        }
        if let Some(unknown) = names.iter().find(|name| !is_capability(name)) {
            return refuse(field, format!("{unknown:?} is not a capability"));
        }
    }
    if wire.sysctls.len() > ENTRIES_MAX {
        let count = wire.sysctls.len();
        return refuse(
            "linux.sysctls",
            format!("{count} entries are more than {ENTRIES_MAX}"),
        );
    }
    for (name, value) in &wire.sysctls {
        if sysctl_namespace(name).is_none() {
            return refuse("linux.sysctls", format!("{name:?} is not a namespace's own"));
        }
        if !is_sysctl_value(value) {
            return refuse(
                "linux.sysctls",
                format!("the value of {name} is empty or not plain text"),
            );
        }
    }
    Ok(LinuxOptions {
        capabilities_add: wire.capabilities_add,
        capabilities_drop: wire.capabilities_drop,
        privileged: wire.privileged,
        no_new_privileges: wire.no_new_privileges,
        sysctls: wire.sysctls.into_iter().collect(),
    })
}

fn is_sysctl_value(value: &str) -> bool {
    let plain = |c: char| c == '\t' || !c.is_control();
    (1..=SYSCTL_VALUE_BYTES_MAX).contains(&value.len()) && value.chars().all(plain)
}
