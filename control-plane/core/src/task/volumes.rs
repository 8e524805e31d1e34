//! Owns what a task's volumes are, read from a stored echo. Never checks what `definition` checked.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::read::EchoError;
use crate::definition::{local_volume, nfs::Nfs, volumes::normal};

/// A volume of a task, by the name that mount points use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub source: VolumeSource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// What is at this path of the host; a directory is made where there is nothing.
    Host {
        /// Absolute.
        path: String,
    },
    /// One that the node makes.
    Local {
        /// It outlives the task, and is found by its name by every task of its node.
        shared: bool,
        /// A shared one is made where it is missing.
        autoprovision: bool,
        /// Other than an empty directory on the node's disk.
        mount: LocalMount,
        labels: BTreeMap<String, String>,
    },
}

/// What a volume of the driver `local` is.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// What a server exports. The node asks its kernel for it.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    pub volume: String,
    /// Absolute, without repeated slashes.
    pub path: String,
    pub read_only: bool,
}

/// A container has what another one has mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumesFrom {
    pub container: String,
    pub read_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EchoVolume {
    name: String,
    #[serde(default)]
    host: EchoHost,
    docker_volume_configuration: Option<EchoDocker>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoHost {
    #[serde(default)]
    source_path: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoDocker {
    #[serde(default)]
    scope: String,
    #[serde(default)]
    autoprovision: bool,
    #[serde(default)]
    driver_opts: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EchoMountPoint {
    source_volume: String,
    container_path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EchoVolumesFrom {
    source_container: String,
    #[serde(default)]
    read_only: bool,
}

/// Without a path, ECS's empty host is a volume of Docker that lives with the task.
pub(super) fn volume(echo: EchoVolume) -> Result<Volume, EchoError> {
    let source = if echo.host.source_path.is_empty() {
        local(echo.docker_volume_configuration.unwrap_or_default())?
    } else {
        VolumeSource::Host {
            path: normal(&echo.host.source_path),
        }
    };
    Ok(Volume {
        name: echo.name,
        source,
    })
}

fn local(echo: EchoDocker) -> Result<VolumeSource, EchoError> {
    let option = |name: &str| echo.driver_opts.get(name).map(String::as_str).unwrap_or_default();
    let mount = if echo.driver_opts.is_empty() {
        LocalMount::Directory
    } else {
        match local_volume::parse(option("type"), option("device"), option("o")) {
            Ok(local_volume::Mount::Memory { options }) => LocalMount::Memory { options },
            Ok(local_volume::Mount::Bind {
                device,
                recursive,
                read_only,
            }) => LocalMount::Bind {
                path: device,
                recursive,
                read_only,
            },
            Ok(local_volume::Mount::Nfs(Nfs {
                server,
                path,
                options,
            })) => LocalMount::Nfs {
                server,
                path,
                options,
            },
            Err(wrong) => {
                let name = wrong.first().map_or("o", |(name, _)| name);
                return Err(EchoError::Value {
                    field: "driverOpts",
                    value: format!("{name}={}", option(name)),
                });
            }
        }
    };
    Ok(VolumeSource::Local {
        shared: echo.scope == "shared",
        autoprovision: echo.autoprovision,
        mount,
        labels: echo.labels,
    })
}

pub(super) fn mount_point(echo: EchoMountPoint) -> MountPoint {
    MountPoint {
        volume: echo.source_volume,
        path: normal(&echo.container_path),
        read_only: echo.read_only,
    }
}

pub(super) fn volumes_from(echo: EchoVolumesFrom) -> VolumesFrom {
    VolumesFrom {
        container: echo.source_container,
        read_only: echo.read_only,
    }
}
