//! Owns what the containers of one task have together beside cgroups, network and volumes: namespaces that a process
//! holds, memory in `/dev/shm`, and the bound of what they write.

use berth_agent_core::{desired::SharedNamespaces, effect::PrepareHost, event::Failure, ids::TaskId};

use super::{Host, failure, quotas, shared_memory, volume_failure};

impl Host {
    /// Why what the task writes to its volumes is not bounded, if it should be.
    pub(super) fn bound_volumes(&self, prepare: &PrepareHost) -> Result<Option<String>, Failure> {
        let bytes = prepare.ephemeral_storage_bytes;
        if bytes == 0 {
            return Ok(None);
        }
        let made = self.volumes.make_task(&prepare.task);
        let (directory, all) = made.map_err(|error| volume_failure(&error))?;
        let why = self.quotas.bound(&prepare.task, bytes, &all, &[directory]);
        let why = why.map_err(|error| failure(&error, true))?;
        Ok(why.map(|why| quotas::warning("in the task's volumes", &why)))
    }

    /// What the task's containers have together, in the task's cgroups, which are there.
    pub(super) async fn share(
        &self,
        task: &TaskId,
        shared: &SharedNamespaces,
        runs: bool,
    ) -> Result<(), Failure> {
        let held = self
            .runtime
            .holder_pid(task)
            .await
            .map_err(|error| error.failure())?;
        if held.is_none() && !runs {
            // What the halt or the try before left in it is nothing to who comes now.
            shared_memory::remove(&self.run_dir, task).map_err(|error| failure(&error, true))?;
        }
        if let Some(bytes) = shared.shared_memory_bytes {
            shared_memory::make(&self.run_dir, task, bytes).map_err(|error| failure(&error, true))?;
        }
        let held = self.runtime.hold(task, &shared.runtime, runs).await;
        held.map_err(|error| Failure {
            kind: "ResourceInitializationError".into(),
            ..error.failure()
        })
    }

    /// Gives it up. Gone is a success.
    pub(super) async fn unshare(&self, task: &TaskId) -> Result<(), Failure> {
        let holder = self.runtime.release_holder(task).await;
        holder.map_err(|error| error.failure())?;
        shared_memory::remove(&self.run_dir, task).map_err(|error| failure(&error, true))
    }
}
