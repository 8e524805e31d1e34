//! Owns the step from a resolved task's volumes to the message its node gets. Field for field, as in `spec`.

use berth_control_plane_core::task::{LocalMount, MountPoint, Volume, VolumeSource, VolumesFrom};
use berth_proto::node::v1 as wire;

pub(super) fn volume(volume: Volume) -> wire::Volume {
    let kind = match volume.source {
        VolumeSource::Host { path } => wire::volume::Kind::Host(wire::HostVolume { path }),
        VolumeSource::Local {
            shared,
            autoprovision,
            mount,
            labels,
        } => wire::volume::Kind::Local(wire::LocalVolume {
            shared,
            autoprovision,
            mount: local_mount(mount),
            labels: labels.into_iter().collect(),
        }),
    };
    wire::Volume {
        name: volume.name,
        kind: Some(kind),
    }
}

fn local_mount(mount: LocalMount) -> Option<wire::local_volume::Mount> {
    match mount {
        LocalMount::Directory => None,
        LocalMount::Memory { options } => {
            Some(wire::local_volume::Mount::Memory(wire::MemoryMount { options }))
        }
        LocalMount::Bind {
            path,
            recursive,
            read_only,
        } => Some(wire::local_volume::Mount::Bind(wire::BindMount {
            path,
            recursive,
            read_only,
        })),
        LocalMount::Nfs {
            server,
            path,
            options,
        } => Some(wire::local_volume::Mount::Nfs(wire::NfsMount {
            server,
            path,
            options,
        })),
    }
}

pub(super) fn mount_point(point: MountPoint) -> wire::MountPoint {
    wire::MountPoint {
        volume: point.volume,
        path: point.path,
        read_only: point.read_only,
    }
}

pub(super) fn volumes_from(from: VolumesFrom) -> wire::VolumesFrom {
    wire::VolumesFrom {
        container: from.container,
        read_only: from.read_only,
    }
}
