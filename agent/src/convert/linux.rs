//! Owns the border for what a container may do to the kernel. Checks what is sent as if nobody had checked before.

use berth_agent_core::{desired::LinuxOptions, oci::is_capability};
use berth_proto::node::v1 as wire;

use super::{ENTRIES_MAX, Refusal, refuse};

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
    Ok(LinuxOptions {
        capabilities_add: wire.capabilities_add,
        capabilities_drop: wire.capabilities_drop,
        privileged: wire.privileged,
        no_new_privileges: wire.no_new_privileges,
    })
}
