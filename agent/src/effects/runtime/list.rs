//! Owns what containerd has of this instance, told by labels alone: after a restart and for the audit. Never asks the
//! agent's own records.

use std::collections::BTreeMap;

use berth_agent_core::{
    event::ObservedState,
    ids::{Attempt, ContainerId, TaskId},
};
use containerd_client::services::v1::{
    ListContainersRequest,
    snapshots::{Info, ListSnapshotsRequest},
};
use futures_util::{Stream, TryStreamExt};
use tonic::Status;

use super::{
    Identity, Runtime, RuntimeError, Step,
    call::{DEADLINE, call},
    labels::{self, Ending},
};

/// One attempt of a container, as containerd has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContainer {
    pub task: TaskId,
    pub container: ContainerId,
    pub attempt: Attempt,
    /// `Created` also where a process was and its shim died while nobody watched: containerd then forgets the
    /// process. `oom_killed` is never set here: the kernel's counters say that.
    pub state: ObservedState,
    pub ending: Ending,
}

/// A container's writable layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSnapshot {
    /// The runtime id.
    pub key: String,
    pub task: TaskId,
    pub container: ContainerId,
    pub attempt: Attempt,
}

impl Runtime {
    /// Every container of this instance. A start under way may or may not be among them.
    pub async fn list(&self) -> Result<Vec<ListedContainer>, RuntimeError> {
        let (records, processes) = tokio::try_join!(self.records(), self.processes())?;
        let mut states: BTreeMap<String, ObservedState> = processes
            .into_iter()
            .map(|process| (process.id, process.state))
            .collect();
        let mut listed = Vec::with_capacity(records.len());
        for (identity, ending) in records {
            let state = states
                .remove(&identity.runtime_id())
                .unwrap_or(ObservedState::Created);
            // One that is being started may be listed without its process yet: the start says that it runs.
            if state != ObservedState::Created || !self.is_known(&identity.runtime_id()) {
                let running = matches!(state, ObservedState::Running { .. });
                self.shared.index.put(identity.clone(), running);
            }
            let Identity {
                task,
                container,
                attempt,
                ..
            } = identity;
            listed.push(ListedContainer {
                task,
                container,
                attempt,
                state,
                ending,
            });
        }
        Ok(listed)
    }

    /// One by one: a record carries its whole specification, and a thousand in one answer are more than containerd
    /// sends.
    async fn records(&self) -> Result<Vec<(Identity, Ending)>, RuntimeError> {
        let filter = format!("labels.{:?}=={:?}", labels::INSTANCE, self.config().instance);
        let request = ListContainersRequest {
            filters: vec![filter],
        };
        let mut client = self.containers();
        let stream = call(
            Step::List,
            "containers",
            DEADLINE,
            client.list_stream(self.request(request)),
        )
        .await?;
        let named = stream.try_filter_map(|message| async move {
            Ok(message.container.and_then(|container| {
                let identity = self.identity_of(&container.id, &container.labels)?;
                Some((identity, labels::ending(&container.labels)))
            }))
        });
        collect("containers", named).await
    }

    /// Every writable snapshot of this instance.
    pub async fn snapshots(&self) -> Result<Vec<ListedSnapshot>, RuntimeError> {
        let filter = format!(
            "kind==active,labels.{:?}=={:?}",
            labels::INSTANCE,
            self.config().instance
        );
        let snapshotter = self.config().snapshotter.clone();
        let request = ListSnapshotsRequest {
            snapshotter,
            filters: vec![filter],
        };
        let mut client = self.snapshot_service();
        let stream = call(
            Step::List,
            "snapshots",
            DEADLINE,
            client.list(self.request(request)),
        )
        .await?;
        let pages: Vec<Vec<Info>> = collect("snapshots", stream.map_ok(|page| page.info)).await?;
        let listed = |info: Info| {
            let (task, container, attempt) = labels::parse(&self.config().instance, &info.labels)?;
            Some(ListedSnapshot {
                key: info.name,
                task,
                container,
                attempt,
            })
        };
        Ok(pages.into_iter().flatten().filter_map(listed).collect())
    }
}

async fn collect<T>(
    what: &str,
    stream: impl Stream<Item = Result<T, Status>>,
) -> Result<Vec<T>, RuntimeError> {
    let all = async { stream.try_collect().await.map(tonic::Response::new) };
    call(Step::List, what, DEADLINE, all).await
}
