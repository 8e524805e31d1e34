//! Owns what a task's volumes are, and which of them a container sees where: its own mount points, those of containers whose
//! volumes it takes, and what images declare. Never makes or mounts one.
//!
//! As Docker has it: a container's own mount points win over those it takes from others, of which the last taken wins; and a
//! volume that an image declares is made where nothing else is mounted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    desired::{ContainerSpec, TaskSpec},
    ids::ContainerId,
};

/// A volume of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The user's: 1–255 of `[A-Za-z0-9_-]`, unique in the task. Also the name by which a shared one is found on its node.
    pub name: String,
    pub kind: VolumeKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    /// What is at this path of the host; a directory is made where there is nothing. Its content is never the image's.
    Host {
        /// Absolute.
        path: String,
    },
    /// One that the node makes.
    Local {
        scope: Scope,
        mount: LocalMount,
        /// Kept beside it, for people.
        labels: BTreeMap<String, String>,
    },
}

/// How long a volume lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// With its task.
    Task,
    /// Until an operator removes it.
    Shared {
        /// It is made where it is missing; else that fails the task.
        autoprovision: bool,
    },
}

/// What a volume that the node makes is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalMount {
    /// A directory on the node's disk.
    Directory,
    /// A file system in memory; options as mount(8) spells them.
    Memory { options: Vec<String> },
    /// A directory of the host, which must be there, with or without what is mounted below it.
    Bind {
        path: String,
        recursive: bool,
        read_only: bool,
    },
    /// What a server exports. It is mounted for the task alone, in either scope.
    Nfs {
        /// A name or an address.
        server: String,
        /// Absolute, on the server.
        path: String,
        /// As nfs(5) spells them, without `addr`.
        options: Vec<String>,
    },
}

/// Where a volume appears in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// The name of a volume of the task.
    pub volume: String,
    /// Absolute and [normal](normal); no two of a container are the same.
    pub path: String,
    pub read_only: bool,
}

/// A container sees what another one has mounted, where that has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesFrom {
    /// The name of another container of the task.
    pub container: String,
    pub read_only: bool,
}

/// What a container asks for. The default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerVolumes {
    pub mount_points: Vec<MountPoint>,
    /// Without cycles; waits, as a dependency does, for the start of each.
    pub from: Vec<VolumesFrom>,
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    pub source: MountSource,
    /// Absolute, in the container.
    pub path: String,
    pub read_only: bool,
    /// If it is empty, it begins with what the image has there.
    pub populate: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A path of the host, which the task's volume of this name stands for.
    Host {
        volume: String,
        path: String,
        /// With what is mounted below it.
        recursive: bool,
    },
    /// The task's volume of this name.
    Task { volume: String },
    /// The node's volume of this name.
    Shared { volume: String },
    /// One that the image of this container declares, by its place in the image's list.
    Image { container: ContainerId, number: usize },
}

/// An absolute path as the kernel reads it: without repeated slashes, `.` and a slash at the end. None: it is no absolute
/// path, or holds `..`.
pub fn normal(path: &str) -> Option<String> {
    let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    if !path.starts_with('/') || parts.clone().any(|part| part == "..") || path.contains('\0') {
        return None;
    }
    let first = parts.next().unwrap_or_default().to_owned();
    Some(parts.fold(format!("/{first}"), |path, part| path + "/" + part))
}

/// All that is mounted into a container, by path. `of_image` are the volumes that a container's image declares.
pub fn mounts<'a>(
    task: &'a TaskSpec,
    container: &'a ContainerSpec,
    of_image: &impl Fn(&ContainerSpec) -> &'a [String],
) -> Vec<VolumeMount> {
    collect(task, container, of_image, task.containers.len())
        .into_values()
        .collect()
}

/// `depth` bounds a chain of `volumesFrom`, which without cycles is no longer than there are containers.
fn collect<'a>(
    task: &'a TaskSpec,
    container: &'a ContainerSpec,
    of_image: &impl Fn(&ContainerSpec) -> &'a [String],
    depth: usize,
) -> BTreeMap<String, VolumeMount> {
    let mut mounts = BTreeMap::new();
    let sources = container.volumes.from.iter().filter(|_| depth > 0);
    for from in sources {
        let Some(source) = task.container_named(&from.container) else {
            continue;
        };
        for (path, mount) in collect(task, source, of_image, depth - 1) {
            let taken = VolumeMount {
                read_only: mount.read_only || from.read_only,
                // Whose it is has filled it.
                populate: false,
                ..mount
            };
            mounts.insert(path, taken);
        }
    }
    for point in &container.volumes.mount_points {
        if let Some(volume) = task.volumes.iter().find(|v| v.name == point.volume) {
            mounts.insert(point.path.clone(), own(volume, point));
        }
    }
    for (number, path) in of_image(container).iter().enumerate() {
        // One that cannot be mounted is refused with the specification it is in.
        let path = normal(path).unwrap_or_else(|| path.clone());
        let is_tmpfs = |path: &str| {
            let mut tmpfs = container.linux.tmpfs.iter();
            tmpfs.any(|tmpfs| normal(&tmpfs.path).as_deref() == Some(path))
        };
        if !mounts.contains_key(&path) && !is_tmpfs(&path) {
            let source = MountSource::Image {
                container: container.id.clone(),
                number,
            };
            let mount = VolumeMount {
                source,
                path: path.clone(),
                read_only: false,
                populate: true,
            };
            mounts.insert(path, mount);
        }
    }
    mounts
}

fn own(volume: &Volume, point: &MountPoint) -> VolumeMount {
    let name = || volume.name.clone();
    let (source, read_only, populate) = match &volume.kind {
        VolumeKind::Host { path } => {
            let source = MountSource::Host {
                volume: name(),
                path: path.clone(),
                recursive: true,
            };
            (source, false, false)
        }
        VolumeKind::Local {
            mount:
                LocalMount::Bind {
                    path,
                    recursive,
                    read_only,
                },
            ..
        } => {
            let source = MountSource::Host {
                volume: name(),
                path: path.clone(),
                recursive: *recursive,
            };
            (source, *read_only, !read_only)
        }
        VolumeKind::Local {
            mount: LocalMount::Nfs { options, .. },
            ..
        } => {
            let mut options = options.iter().rev();
            let last = options.find(|option| matches!(option.as_str(), "ro" | "rw"));
            let read_only = last.is_some_and(|option| option == "ro");
            (MountSource::Task { volume: name() }, read_only, !read_only)
        }
        VolumeKind::Local {
            scope: Scope::Shared { .. },
            mount: LocalMount::Directory | LocalMount::Memory { .. },
            ..
        } => (MountSource::Shared { volume: name() }, false, true),
        VolumeKind::Local { .. } => (MountSource::Task { volume: name() }, false, true),
    };
    VolumeMount {
        source,
        path: point.path.clone(),
        read_only: read_only || point.read_only,
        populate,
    }
}

#[cfg(test)]
mod tests;
