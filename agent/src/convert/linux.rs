//! Owns the border for what a container may do to the kernel. Checks what is sent as if nobody had checked before.

use berth_agent_core::{
    desired::{DeviceMapping, LinuxOptions, Tmpfs},
    oci::{is_capability, sysctl_namespace},
};
use berth_proto::node::v1 as wire;

use super::{ENTRIES_MAX, Refusal, refuse};

/// File systems in memory of one container.
const TMPFS_MAX: usize = 100;
/// Devices of one container, or directories of them.
const DEVICES_MAX: usize = 100;
/// The kernel's.
const SWAPPINESS_MAX: u32 = 100;
/// Of an AppArmor profile's name, bytes.
const APPARMOR_BYTES_MAX: usize = 255;
/// Of a seccomp profile.
const PROFILE_NAME_BYTES_MAX: usize = 64;
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
    if let Some(swappiness) = wire.swappiness.filter(|swappiness| *swappiness > SWAPPINESS_MAX) {
        return refuse(
            "linux.swappiness",
            format!("{swappiness} is above {SWAPPINESS_MAX}"),
        );
    }
    if !wire.apparmor.is_empty() && !is_apparmor_name(&wire.apparmor) {
        return refuse(
            "linux.apparmor",
            format!("{:?} is not the name of a profile", wire.apparmor),
        );
    }
    if !wire.seccomp.is_empty() && !is_profile_name(&wire.seccomp) {
        return refuse(
            "linux.seccomp",
            format!("{:?} is not the name of a profile", wire.seccomp),
        );
    }
    Ok(LinuxOptions {
        capabilities_add: wire.capabilities_add,
        capabilities_drop: wire.capabilities_drop,
        privileged: wire.privileged,
        no_new_privileges: wire.no_new_privileges,
        seccomp: wire.seccomp,
        apparmor: wire.apparmor,
        sysctls: wire.sysctls.into_iter().collect(),
        shared_memory_bytes: wire.shared_memory_bytes,
        tmpfs: tmpfs(wire.tmpfs)?,
        devices: devices(wire.devices)?,
        max_swap_bytes: wire.max_swap_bytes,
        swappiness: wire.swappiness,
        init_process: wire.init_process,
    })
}

fn tmpfs(wire: Vec<wire::Tmpfs>) -> Result<Vec<Tmpfs>, Refusal> {
    const FIELD: &str = "linux.tmpfs";
    if wire.len() > TMPFS_MAX {
        return refuse(FIELD, format!("{} entries are more than {TMPFS_MAX}", wire.len()));
    }
    let mut all: Vec<Tmpfs> = Vec::new();
    for one in wire {
        if !is_absolute(&one.path) {
            return refuse(
                FIELD,
                format!("{:?} is not an absolute path without ..", one.path),
            );
        }
        if one.size_bytes == 0 {
            return refuse(FIELD, format!("{} has no size", one.path));
        }
        if let Some(bad) = one.options.iter().find(|option| !is_tmpfs_option(option)) {
            return refuse(
                FIELD,
                format!("{bad:?} is not an option of a file system in memory"),
            );
        }
        if one.options.len() > ENTRIES_MAX || all.iter().any(|other| other.path == one.path) {
            return refuse(
                FIELD,
                format!("{} is given twice, or has too many options", one.path),
            );
        }
        all.push(Tmpfs {
            path: one.path,
            size_bytes: one.size_bytes,
            options: one.options,
        });
    }
    Ok(all)
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..")
}

fn devices(wire: Vec<wire::Device>) -> Result<Vec<DeviceMapping>, Refusal> {
    const FIELD: &str = "linux.devices";
    if wire.len() > DEVICES_MAX {
        return refuse(
            FIELD,
            format!("{} entries are more than {DEVICES_MAX}", wire.len()),
        );
    }
    let mut all: Vec<DeviceMapping> = Vec::new();
    for one in wire {
        for path in [&one.host_path, &one.container_path] {
            if !is_absolute(path) {
                return refuse(FIELD, format!("{path:?} is not an absolute path without .."));
            }
        }
        if !(one.read || one.write || one.mknod) {
            return refuse(FIELD, format!("{} may not be used at all", one.host_path));
        }
        if all.iter().any(|other| other.container_path == one.container_path) {
            return refuse(FIELD, format!("{} is given twice", one.container_path));
        }
        all.push(DeviceMapping {
            host_path: one.host_path,
            container_path: one.container_path,
            read: one.read,
            write: one.write,
            mknod: one.mknod,
        });
    }
    Ok(all)
}

/// One line to the kernel, and one word.
fn is_apparmor_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-+/".contains(&b);
    name.len() <= APPARMOR_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && name.bytes().all(plain)
}

/// A part of a path, and never one that leads elsewhere.
fn is_profile_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    name.len() <= PROFILE_NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(plain)
}

/// By its form: one word, and for those that have one a value that cannot hold another option.
pub(super) fn is_tmpfs_option(option: &str) -> bool {
    const WITH_VALUE: [&str; 6] = ["mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];
    let plain = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b":-_".contains(&b))
    };
    match option.split_once('=') {
        Some((name, value)) => WITH_VALUE.contains(&name) && plain(value),
        None => !option.is_empty() && option.bytes().all(|b| b.is_ascii_lowercase()),
    }
}

fn is_sysctl_value(value: &str) -> bool {
    let plain = |c: char| c == '\t' || !c.is_control();
    (1..=SYSCTL_VALUE_BYTES_MAX).contains(&value.len()) && value.chars().all(plain)
}
