//! Owns the end of a container: nothing of an attempt is left in containerd or below the run directory. Never removes
//! logs or cgroups of the task.

use std::time::Duration;

use berth_agent_core::ids::{Attempt, ContainerId, runtime_id};
use containerd_client::services::v1::{
    DeleteContainerRequest, DeleteTaskRequest, WaitRequest, snapshots::RemoveSnapshotRequest,
};

use crate::effects::shims::{self, Shim};

use super::{
    Runtime, RuntimeError, Step,
    call::{DEADLINE, DELETE_DEADLINE, call, or_gone},
};

/// From SIGKILL to the end of the last process: longer means that the kernel holds one (dead NFS, mostly).
const KILL_WAIT: Duration = Duration::from_secs(10);

impl Runtime {
    /// Kills what is alive, waits for its end and removes process, files, record and snapshot. What is not there is
    /// a success, so it may be repeated.
    pub async fn remove(&self, container: &ContainerId, attempt: Attempt) -> Result<(), RuntimeError> {
        self.remove_id(&runtime_id(container, attempt)).await
    }

    /// Waits until its first process has ended. False: it goes on after `limit`.
    pub async fn await_end(
        &self,
        container: &ContainerId,
        attempt: Attempt,
        limit: Duration,
    ) -> Result<bool, RuntimeError> {
        match self.wait(&runtime_id(container, attempt), limit).await {
            Err(RuntimeError::StillAlive { .. }) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Kills what is alive, waits for its end, and lets shim and logger go, the logger once it has written everything.
    /// Record, files and snapshot stay: it is then as it is after a boot of the host. What is not there is a success.
    pub async fn end(&self, container: &ContainerId, attempt: Attempt) -> Result<(), RuntimeError> {
        self.delete_process(&runtime_id(container, attempt))
            .await
            .map(drop)
    }

    pub(super) async fn remove_id(&self, id: &str) -> Result<(), RuntimeError> {
        // In this order: a record that goes before its process strands the process.
        if !self.delete_process(id).await? {
            // A start that was cut off leaves a shim of which containerd does not know.
            self.end_lost_shim(id).await;
        }
        let identity = self.identify(id).await?;
        self.remove_files(id, identity.as_ref().map(|identity| &identity.task))
            .await?;
        let (record, snapshot) = tokio::join!(self.delete_record(id), self.remove_snapshot(id));
        record.and(snapshot)?;
        self.shared.index.removed(id);
        self.shared.processes.removed(id);
        Ok(())
    }

    /// The usual container has ended by now, and deleting it is one call. False: containerd knew of none.
    pub(super) async fn delete_process(&self, id: &str) -> Result<bool, RuntimeError> {
        match self.delete_ended(id).await {
            // Alive: containerd's versions say so with different codes.
            Err(RuntimeError::Call { .. }) => {}
            done => return done,
        }
        self.kill_all(id).await?;
        self.wait(id, KILL_WAIT).await?;
        self.delete_ended(id).await
    }

    async fn delete_ended(&self, id: &str) -> Result<bool, RuntimeError> {
        let request = DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        let mut client = self.tasks();
        or_gone(
            call(
                Step::Delete,
                id,
                DELETE_DEADLINE,
                client.delete(self.request(request)),
            )
            .await,
        )
        .map(|deleted| deleted.is_some())
    }

    /// Ends the shim that was started for it and is lost, and those that are lost for long: another container's of its task
    /// may be the one that is in its way.
    pub(super) async fn end_lost_shim(&self, id: &str) {
        let mut lost = self.lost_shims().await;
        lost.retain(|shim| shim.id == id || shim.is_old());
        for shim in lost {
            self.end_shim(shim.pid).await;
        }
    }

    /// No such process is what was wanted.
    pub(crate) async fn end_shim(&self, pid: i32) {
        // It panics nowhere.
        let _ = tokio::task::spawn_blocking(move || shims::end(pid)).await;
    }

    /// Those that serve nobody, and those that are only just being started.
    pub(crate) async fn lost_shims(&self) -> Vec<Shim> {
        let (namespace, containerd) = (self.config().namespace.clone(), self.config().containerd.clone());
        let look = move || {
            let mut shims = shims::of(&namespace, &containerd);
            shims.retain(Shim::is_lost);
            shims
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    async fn wait(&self, id: &str, limit: Duration) -> Result<(), RuntimeError> {
        let request = WaitRequest {
            container_id: id.to_owned(),
            ..WaitRequest::default()
        };
        let mut client = self.tasks();
        match or_gone(call(Step::Wait, id, limit, client.wait(self.request(request))).await) {
            Err(RuntimeError::Deadline { id, after, .. }) => Err(RuntimeError::StillAlive { id, after }),
            other => other.map(drop),
        }
    }

    async fn delete_record(&self, id: &str) -> Result<(), RuntimeError> {
        let request = DeleteContainerRequest { id: id.to_owned() };
        let mut client = self.containers();
        or_gone(
            call(
                Step::DeleteRecord,
                id,
                DEADLINE,
                client.delete(self.request(request)),
            )
            .await,
        )
        .map(drop)
    }

    /// Removes one snapshot that [`Runtime::snapshots`] listed and nobody owns; gone is a success.
    pub async fn remove_snapshot(&self, key: &str) -> Result<(), RuntimeError> {
        let request = RemoveSnapshotRequest {
            snapshotter: self.config().snapshotter.clone(),
            key: key.to_owned(),
        };
        let mut client = self.snapshot_service();
        or_gone(
            call(
                Step::RemoveSnapshot,
                key,
                DEADLINE,
                client.remove(self.request(request)),
            )
            .await,
        )
        .map(drop)
    }
}
