//! Owns turning layers into snapshots: prepare, apply, commit, under chain ids. Never fetches a layer.

use std::collections::HashMap;

use containerd_client::{
    services::v1::{
        ApplyRequest,
        diff_client::DiffClient,
        snapshots::{
            CommitSnapshotRequest, Kind, PrepareSnapshotRequest, StatSnapshotRequest,
            snapshots_client::SnapshotsClient,
        },
    },
    types::Mount,
};
use tonic::Code;

use super::{
    containerd::{Containerd, LABEL_INSTANCE, descriptor},
    digest::Digest,
    document::Descriptor,
    error::Cause,
    workspace::{Workspace, remove_snapshot},
};

/// A layer and where it goes.
#[derive(Debug)]
pub(super) struct Layer<'a> {
    pub blob: &'a Descriptor,
    /// Digest of the unpacked tar, as the configuration has it.
    pub diff_id: &'a Digest,
    /// Chain id of the layers below; none for the first.
    pub parent: Option<&'a Digest>,
    pub chain_id: &'a Digest,
}

impl Containerd {
    /// True if the snapshot is there and committed. One call: this is on the path of every task start.
    pub async fn has_snapshot(&self, chain_id: &str) -> Result<bool, Cause> {
        let message = StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: chain_id.to_owned(),
        };
        match SnapshotsClient::new(self.channel())
            .stat(self.call(message))
            .await
        {
            Ok(answer) => Ok(answer
                .into_inner()
                .info
                .is_some_and(|info| info.kind == Kind::Committed as i32)),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(Cause::containerd("stat snapshot", chain_id, status)),
        }
    }
}

impl Workspace {
    /// Unpacks one layer onto its parent. Somebody else may do the same at the same time: the first commit wins,
    /// and both succeed.
    pub async fn unpack(&self, layer: &Layer<'_>) -> Result<(), Cause> {
        let key = self.name(layer.chain_id.as_str());
        self.began_snapshot(&key);
        let Some(mounts) = self.prepare(&key, layer).await? else {
            self.ended_snapshot(&key);
            return self.hold_snapshot(layer.chain_id).await;
        };
        self.apply(layer, mounts).await?;
        let committed = self.commit(&key, layer).await?;
        if !committed {
            remove_snapshot(&self.containerd, &key).await?;
            self.hold_snapshot(layer.chain_id).await?;
        }
        self.ended_snapshot(&key);
        Ok(())
    }

    /// None if the snapshotter had the layer already: it says so by "already exists".
    async fn prepare(&self, key: &str, layer: &Layer<'_>) -> Result<Option<Vec<Mount>>, Cause> {
        let message = PrepareSnapshotRequest {
            snapshotter: self.containerd.snapshotter.clone(),
            key: key.to_owned(),
            parent: layer.parent.map(Digest::to_string).unwrap_or_default(),
            labels: HashMap::from([
                (
                    "containerd.io/snapshot.ref".to_owned(),
                    layer.chain_id.to_string(),
                ),
                (LABEL_INSTANCE.to_owned(), self.containerd.instance.clone()),
            ]),
        };
        match SnapshotsClient::new(self.containerd.channel())
            .prepare(self.call(message))
            .await
        {
            Ok(answer) => Ok(Some(answer.into_inner().mounts)),
            Err(status) if status.code() == Code::AlreadyExists => Ok(None),
            Err(status) => Err(Cause::containerd("prepare snapshot", key, status)),
        }
    }

    async fn apply(&self, layer: &Layer<'_>, mounts: Vec<Mount>) -> Result<(), Cause> {
        let message = ApplyRequest {
            diff: Some(descriptor(layer.blob, &layer.blob.media_type)),
            mounts,
            payloads: HashMap::new(),
            sync_fs: false,
        };
        let failed = |status| Cause::Unpack {
            digest: layer.blob.digest.clone(),
            source: Box::new(status),
        };
        // Unpacking takes as long as it takes; the pull has a deadline.
        let answer = DiffClient::new(self.containerd.channel())
            .apply(self.stream(message))
            .await;
        let applied = answer.map_err(failed)?.into_inner().applied;
        let actual = applied.map(|applied| applied.digest).unwrap_or_default();
        if actual != layer.diff_id.as_str() {
            return Err(Cause::DigestMismatch {
                what: "unpacked layer",
                expected: layer.diff_id.clone(),
                actual,
            });
        }
        Ok(())
    }

    /// False if somebody else committed the same layer first.
    async fn commit(&self, key: &str, layer: &Layer<'_>) -> Result<bool, Cause> {
        let message = CommitSnapshotRequest {
            snapshotter: self.containerd.snapshotter.clone(),
            name: layer.chain_id.to_string(),
            key: key.to_owned(),
            labels: HashMap::from([(
                "containerd.io/snapshot.ref".to_owned(),
                layer.chain_id.to_string(),
            )]),
        };
        match SnapshotsClient::new(self.containerd.channel())
            .commit(self.call(message))
            .await
        {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(Cause::containerd(
                "commit snapshot",
                layer.chain_id.as_str(),
                status,
            )),
        }
    }
}
