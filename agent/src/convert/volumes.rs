//! Owns the border for volumes and where they are mounted. Checks what is sent as if nobody had checked before.

use std::collections::BTreeSet;

use berth_agent_core::{
    desired::ContainerSpec,
    volumes::{ContainerVolumes, LocalMount, MountPoint, Scope, Volume, VolumeKind, VolumesFrom, normal},
};
use berth_proto::node::v1 as wire;

use super::{ENTRIES_MAX, Refusal, is_name, linux::is_tmpfs_option, refuse};

/// The kernel's PATH_MAX, without its end.
const PATH_BYTES_MAX: usize = 4095;
/// A name in the DNS, bytes.
const HOST_BYTES_MAX: usize = 253;
/// Of one mount option of NFS, bytes.
const OPTION_BYTES_MAX: usize = 64;
/// The server is named otherwise, and what would mount something else, or elsewhere.
const NFS_OPTIONS_REFUSED: [&str; 6] = ["addr", "mountaddr", "mounthost", "bind", "rbind", "remount"];

pub(super) fn volumes(wire: Vec<wire::Volume>) -> Result<Vec<Volume>, Refusal> {
    if wire.len() > ENTRIES_MAX {
        return refuse(
            "volumes",
            format!("{} entries are more than {ENTRIES_MAX}", wire.len()),
        );
    }
    let mut names = BTreeSet::new();
    let mut volumes = Vec::new();
    for (at, volume) in wire.into_iter().enumerate() {
        if !is_name(&volume.name) || !names.insert(volume.name.clone()) {
            return refuse(
                format!("volumes[{at}].name"),
                format!(
                    "{:?} is not 1 to 255 of A-Z, a-z, 0-9, - and _, or is there twice",
                    volume.name
                ),
            );
        }
        let kind = kind(volume.kind).map_err(|refusal| Refusal {
            field: format!("volumes[{at}].{}", refusal.field),
            ..refusal
        })?;
        volumes.push(Volume {
            name: volume.name,
            kind,
        });
    }
    Ok(volumes)
}

fn kind(wire: Option<wire::volume::Kind>) -> Result<VolumeKind, Refusal> {
    match wire {
        Some(wire::volume::Kind::Host(host)) => Ok(VolumeKind::Host {
            path: path("host.path", &host.path)?,
        }),
        Some(wire::volume::Kind::Local(local)) => self::local(local),
        None => refuse("kind", "missing, or of a kind that this agent does not know"),
    }
}

fn local(local: wire::LocalVolume) -> Result<VolumeKind, Refusal> {
    if local.labels.len() > ENTRIES_MAX {
        return refuse("local.labels", format!("more than {ENTRIES_MAX} entries"));
    }
    let scope = if local.shared {
        Scope::Shared {
            autoprovision: local.autoprovision,
        }
    } else {
        Scope::Task
    };
    let mount = match local.mount {
        None => LocalMount::Directory,
        Some(wire::local_volume::Mount::Memory(_)) if local.shared => {
            return refuse("local.memory", "is freed with its task: it cannot be shared");
        }
        Some(wire::local_volume::Mount::Memory(memory)) => {
            let good = |option: &String| is_tmpfs_option(option) || is_size(option);
            if memory.options.len() > ENTRIES_MAX || !memory.options.iter().all(good) {
                return refuse("local.memory", "has options that no file system in memory has");
            }
            LocalMount::Memory {
                options: memory.options,
            }
        }
        Some(wire::local_volume::Mount::Bind(bind)) => LocalMount::Bind {
            path: path("local.bind.path", &bind.path)?,
            recursive: bind.recursive,
            read_only: bind.read_only,
        },
        Some(wire::local_volume::Mount::Nfs(nfs)) => self::nfs(nfs)?,
    };
    Ok(VolumeKind::Local {
        scope,
        mount,
        labels: local.labels.into_iter().collect(),
    })
}

fn nfs(wire: wire::NfsMount) -> Result<LocalMount, Refusal> {
    let is_server = |server: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b".:_-".contains(&b);
        (1..=HOST_BYTES_MAX).contains(&server.len()) && !server.starts_with('-') && server.bytes().all(plain)
    };
    if !is_server(&wire.server) {
        return refuse("local.nfs.server", format!("{:?} names no host", wire.server));
    }
    if let Some(bad) = wire.options.iter().find(|option| !is_nfs_option(option)) {
        return refuse("local.nfs.options", format!("{bad:?} is not an option of NFS"));
    }
    if wire.options.len() > ENTRIES_MAX {
        return refuse("local.nfs.options", format!("more than {ENTRIES_MAX} entries"));
    }
    Ok(LocalMount::Nfs {
        path: path("local.nfs.path", &wire.path)?,
        server: wire.server,
        options: wire.options,
    })
}

/// A word, or a word and a plain value: one option to the kernel. Never the server's address, which the agent resolves.
fn is_nfs_option(option: &str) -> bool {
    let (name, value) = option
        .split_once('=')
        .map_or((option, None), |(name, value)| (name, Some(value)));
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".:".contains(&b);
    (1..=OPTION_BYTES_MAX).contains(&option.len())
        && !name.is_empty()
        && name.bytes().all(word)
        && !NFS_OPTIONS_REFUSED.contains(&name)
        && value.is_none_or(|value| !value.is_empty() && value.bytes().all(plain))
}

/// `size=` as tmpfs(5) has it.
fn is_size(option: &str) -> bool {
    let Some(size) = option.strip_prefix("size=") else {
        return false;
    };
    let digits = size
        .strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', '%'])
        .unwrap_or(size);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn path(field: &str, path: &str) -> Result<String, Refusal> {
    match normal(path) {
        Some(normal) if path.len() <= PATH_BYTES_MAX => Ok(normal),
        _ => refuse(
            field,
            format!("{path:?} is not an absolute path without .., or too long"),
        ),
    }
}

/// Of one container, by itself.
pub(super) fn of_container(
    mount_points: Vec<wire::MountPoint>,
    from: Vec<wire::VolumesFrom>,
) -> Result<ContainerVolumes, Refusal> {
    let mut places = BTreeSet::new();
    let mut volumes = ContainerVolumes::default();
    if mount_points.len() > ENTRIES_MAX || from.len() > ENTRIES_MAX {
        return refuse("mount_points", format!("more than {ENTRIES_MAX} entries"));
    }
    for point in mount_points {
        let path = path("mount_points.path", &point.path)?;
        if path == "/" || !places.insert(path.clone()) {
            return refuse(
                "mount_points.path",
                format!("{path} is the root, or is there twice"),
            );
        }
        volumes.mount_points.push(MountPoint {
            volume: point.volume,
            path,
            read_only: point.read_only,
        });
    }
    volumes.from = from
        .into_iter()
        .map(|from| VolumesFrom {
            container: from.container,
            read_only: from.read_only,
        })
        .collect();
    Ok(volumes)
}

/// Every mount point is of a volume.
pub(super) fn are_mounted(volumes: &[Volume], containers: &[ContainerSpec]) -> Result<(), Refusal> {
    for container in containers {
        let mut points = container.volumes.mount_points.iter();
        if let Some(point) = points.find(|point| volumes.iter().all(|v| v.name != point.volume)) {
            return refuse(
                "mount_points.volume",
                format!("no volume is named {:?}", point.volume),
            );
        }
    }
    Ok(())
}

/// Whose volumes are taken is a container of the task.
pub(super) fn sources_exist(containers: &[ContainerSpec]) -> Result<(), Refusal> {
    for container in containers {
        let mut from = container.volumes.from.iter();
        if let Some(from) = from.find(|from| containers.iter().all(|c| c.name != from.container)) {
            return refuse(
                "volumes_from",
                format!("no container is named {:?}", from.container),
            );
        }
    }
    Ok(())
}
