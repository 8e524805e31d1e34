//! Owns the volumes of a container as its specification has them, and the sight of its image for those that begin with it. Never
//! makes a volume.

use berth_agent_core::{
    effect::StartContainer,
    oci::Mount,
    volumes::{MountSource, VolumeMount},
};
use containerd_client::types;

use super::{Runtime, RuntimeError};
use crate::effects::volumes::ImageMount;

impl Runtime {
    pub(super) fn volume_mounts(&self, request: &StartContainer) -> Vec<Mount> {
        let mount = |mount: &VolumeMount| {
            let (source, follows) = self.config().volumes.source(&request.task, &mount.source);
            let built = Mount::volume(source.to_string_lossy(), &mount.path).readonly(mount.read_only);
            let built = match mount.source {
                MountSource::Host { recursive: false, .. } => built.alone(),
                _ => built,
            };
            if follows { built.following() } else { built }
        };
        request.mounts.iter().map(mount).collect()
    }

    /// `snapshot` is the container's own, on which nothing was written yet.
    pub(super) async fn fill_volumes(
        &self,
        request: &StartContainer,
        snapshot: &[types::Mount],
    ) -> Result<(), RuntimeError> {
        let image = match snapshot {
            [one] => Some(ImageMount {
                kind: one.r#type.clone(),
                source: one.source.clone(),
                options: one.options.clone(),
            }),
            _ => None,
        };
        let volumes = &self.config().volumes;
        Ok(volumes.populate(&request.task, &request.mounts, image).await?)
    }
}
