//! Owns the mounts every container gets, and those the agent adds. Never creates their sources.

use serde_json::{Value, json};

use super::{OciError, OciSpec, edits, init};
use crate::desired::{IpcMode, Tmpfs};

/// A file or directory of the host, seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    source: String,
    destination: String,
    readonly: bool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One of the agent's own files.
    File,
    Volume {
        /// With what is mounted below its source.
        recursive: bool,
        /// What is unmounted below its source is unmounted in the container too.
        follows: bool,
    },
}

impl Mount {
    /// `source` on the host appears at `destination`.
    pub fn bind(source: impl Into<String>, destination: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            destination: destination.into(),
            readonly: false,
            kind: Kind::File,
        }
    }

    /// A volume, whole and writable.
    pub fn volume(source: impl Into<String>, destination: impl Into<String>) -> Self {
        Self {
            kind: Kind::Volume {
                recursive: true,
                follows: false,
            },
            ..Self::bind(source, destination)
        }
    }

    /// Whether the container can write to it.
    pub fn readonly(self, readonly: bool) -> Self {
        Self { readonly, ..self }
    }

    /// Without what is mounted below the source of a volume.
    pub fn alone(mut self) -> Self {
        if let Kind::Volume { recursive, .. } = &mut self.kind {
            *recursive = false;
        }
        self
    }

    /// What is unmounted below the source of a volume goes in the container too: for a source that has the agent's own
    /// mounts in it, which must not be kept by a container that sees them (Docker does so for its own directory).
    pub fn following(mut self) -> Self {
        if let Kind::Volume { follows, .. } = &mut self.kind {
            *follows = true;
        }
        self
    }

    pub(super) fn destination(&self) -> &str {
        &self.destination
    }

    /// As [`bind`](Self::bind), and the container cannot write to it.
    pub fn read_only(source: impl Into<String>, destination: impl Into<String>) -> Self {
        Self {
            readonly: true,
            ..Self::bind(source, destination)
        }
    }

    fn json(&self, kernel: (u32, u32)) -> Result<Value, OciError> {
        check_destination(&self.destination)?;
        let access = if self.readonly { "ro" } else { "rw" };
        let mut options = match self.kind {
            Kind::File => vec!["rbind", "rprivate", access],
            Kind::Volume { recursive, follows } => {
                // An image may declare a volume anywhere.
                if depth(&self.destination) == 0 {
                    return Err(OciError::MountOverRoot);
                }
                let bind = if recursive { "rbind" } else { "bind" };
                let propagation = if follows { "rslave" } else { "rprivate" };
                vec![bind, propagation, access]
            }
        };
        let recursive = matches!(self.kind, Kind::Volume { recursive: true, .. });
        if self.readonly && recursive && kernel >= MOUNT_SETATTR {
            // Also what is mounted below (Docker 25).
            options.push("rro");
        }
        Ok(json!({
            "destination": self.destination,
            "type": "bind",
            "source": self.source,
            "options": options,
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

/// The first kernel that makes a whole tree of mounts read-only.
const MOUNT_SETATTR: (u32, u32) = (5, 12);

/// How many names a path has: what is mounted at a shorter one comes first.
fn depth(path: &str) -> usize {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .count()
}

const DEV: &str = "/dev";
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
    let usual = |&&(destination, ..): &&(&str, &str, &str, &[&str])| {
        destination != SHM || spec.ipc == IpcMode::Container
    };
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
    // What is mounted by the definition replaces a default, and all of /dev what is in it (Docker).
    let is_over = |path: &str| {
        let mut volumes = spec.mounts.iter().filter(|mount| mount.kind != Kind::File);
        volumes.any(|mount| mount.destination == path)
    };
    // What a device needs replaces both.
    let is_device = |path: &str| {
        spec.device_mounts
            .iter()
            .any(|mount| mount.container_path == path)
    };
    let replaced = |path: &str| is_over(path) || is_device(path) || path.starts_with("/dev/") && is_over(DEV);
    let defaults = DEFAULTS.iter().filter(|(path, ..)| !replaced(path));
    let init = init::mount(spec)?;
    let memory = spec.linux.tmpfs.iter().filter(|t| !is_device(&t.path));
    let tmpfs = memory.map(|t| (depth(&t.path), tmpfs(t)));
    let kernel = spec.host.kernel;
    let binds = spec
        .mounts
        .iter()
        .chain(&init)
        .filter(|mount| mount.kind != Kind::File || !is_over(&mount.destination))
        .filter(|mount| !is_device(&mount.destination))
        .map(|mount| (depth(mount.destination()), mount.json(kernel)));
    let devices = spec.device_mounts.iter();
    let devices = devices.map(|mount| (depth(&mount.container_path), Ok(edits::mount(mount))));
    let mut own: Vec<(usize, Result<Value, OciError>)> = tmpfs.chain(binds).chain(devices).collect();
    own.sort_by_key(|(depth, _)| *depth);
    let own = own.into_iter().map(|(_, mount)| mount);
    // The host's is what is there, or the task's; with none there is nothing.
    let shm = match spec.ipc {
        _ if replaced(SHM) => None,
        IpcMode::Host => Some(SHM),
        IpcMode::Task => Some(spec.shared_memory.as_deref().ok_or(OciError::NoHolder)?),
        IpcMode::Container | IpcMode::None => None,
    };
    let shm = shm.map(|source| Mount::bind(source, SHM).json(kernel));
    defaults
        .filter(usual)
        .map(default)
        .chain(shm)
        .chain(own)
        .collect()
}
