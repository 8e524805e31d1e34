//! Owns the mounts every container gets, and those the agent adds. Never creates their sources.

use serde_json::{Value, json};

use super::{OciError, OciSpec};
use crate::desired::Tmpfs;

/// A file or directory of the host, seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    source: String,
    destination: String,
    readonly: bool,
}

impl Mount {
    /// `source` on the host appears at `destination`.
    pub fn bind(source: impl Into<String>, destination: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            destination: destination.into(),
            readonly: false,
        }
    }

    /// As [`bind`](Self::bind), and the container cannot write to it.
    pub fn read_only(source: impl Into<String>, destination: impl Into<String>) -> Self {
        Self {
            readonly: true,
            ..Self::bind(source, destination)
        }
    }

    fn json(&self) -> Result<Value, OciError> {
        check_destination(&self.destination)?;
        let access = if self.readonly { "ro" } else { "rw" };
        Ok(json!({
            "destination": self.destination,
            "type": "bind",
            "source": self.source,
            "options": ["rbind", "rprivate", access],
        }))
    }
}

fn check_destination(path: &str) -> Result<(), OciError> {
    if path.starts_with('/') && !path.split('/').any(|part| part == "..") {
        Ok(())
    } else {
        Err(OciError::RelativeMount(path.to_owned()))
    }
}

/// Docker's defaults, then the definition's options, of which each takes back its contrary, then the size.
fn tmpfs(tmpfs: &Tmpfs) -> Result<Value, OciError> {
    check_destination(&tmpfs.path)?;
    let size = format!("size={}", tmpfs.size_bytes);
    let options = ["noexec", "nosuid", "nodev"].into_iter();
    let options = options
        .chain(tmpfs.options.iter().map(String::as_str))
        .chain([size.as_str()]);
    Ok(json!({
        "destination": tmpfs.path,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": options.collect::<Vec<_>>(),
    }))
}

const SHM: &str = "/dev/shm";

pub(super) const SYSFS: &str = "/sys";

/// Destination, type, source, options: Docker's, with /dev/shm of 64 MiB.
const DEFAULTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    (SYSFS, "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    (
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["ro", "nosuid", "noexec", "nodev"],
    ),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    (
        SHM,
        "tmpfs",
        "shm",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
];

/// Hidden from the container (Docker 28).
pub(super) const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Seen, not written (Docker).
pub(super) const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

pub(super) fn mounts(spec: &OciSpec) -> Result<Vec<Value>, OciError> {
    let default = |&(destination, kind, source, options): &(&str, &str, &str, &[&str])| {
        // The privileged may write to sysfs and to the cgroups (Docker). The sysfs of a network namespace is one file
        // system, read-only for all if the first who mounts it says so: those beside a privileged container have it
        // made read-only for themselves afterwards.
        let writable = spec.linux.privileged || spec.beside_privileged && destination == SYSFS;
        let kept = |option: &&str| !(writable && *option == "ro");
        let mut options: Vec<String> = options.iter().copied().filter(kept).map(str::to_owned).collect();
        if destination == SHM && spec.linux.shared_memory_bytes != 0 {
            // The last of a name counts.
            options.push(format!("size={}", spec.linux.shared_memory_bytes));
        }
        Ok(json!({"destination": destination, "type": kind, "source": source, "options": options}))
    };
    DEFAULTS
        .iter()
        .map(default)
        .chain(spec.linux.tmpfs.iter().map(tmpfs))
        .chain(spec.mounts.iter().map(Mount::json))
        .collect()
}
