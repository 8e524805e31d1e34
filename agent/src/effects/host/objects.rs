//! Owns the list of everything that this instance has on the host, and the removal of what nobody answers for.

use std::collections::BTreeSet;

use berth_agent_core::{
    ids::{ContainerId, TaskId},
    ledger::HostObject,
};

use super::{Host, network, shared_memory, shims::Shim};
use crate::{
    audit::{ListError, directories},
    effects::runtime::ListedContainer,
    logs,
    sys::Chain,
};

impl Host {
    /// Everything of this instance on the host, as the host says.
    ///
    /// # Errors
    /// When a list cannot be had: never a partial list.
    pub async fn list(&self) -> Result<Vec<HostObject>, ListError> {
        let mut objects = Vec::new();
        let containers = self
            .runtime
            .list()
            .await
            .map_err(|e| list_error("containers", e))?;
        let id = |c: &ListedContainer| berth_agent_core::ids::runtime_id(&c.container, c.attempt);
        objects.extend(containers.iter().map(|c| HostObject::Container(id(c))));
        let lost = self.runtime.lost_shims().await.into_iter();
        // A younger one may be in the hands of a call that is not answered yet.
        let lost = lost.filter(Shim::is_old);
        objects.extend(lost.map(|shim| HostObject::Shim(shim.pid)));
        let snapshots = self
            .runtime
            .snapshots()
            .await
            .map_err(|e| list_error("snapshots", e))?;
        objects.extend(snapshots.into_iter().map(|s| HostObject::Snapshot(s.key)));
        let network = self.network.list().await.map_err(|e| list_error("network", e))?;
        objects.extend(network.iter().map(network_object));
        let published = self.network.published().await;
        let published = published.map_err(|e| list_error("published ports", e))?;
        objects.extend(published.into_iter().map(|(name, task)| {
            let kind = "published port".to_owned();
            match task {
                Some(task) => HostObject::OfTask { kind, task },
                None => HostObject::Unnamed { kind, name },
            }
        }));
        for name in self.cgroups.list().map_err(|e| list_error("cgroups", e))? {
            objects.push(named("cgroup", name));
        }
        let of_run = |task| HostObject::OfTask {
            kind: "run directory".into(),
            task,
        };
        let run = directories(&self.run_dir.join("tasks"), of_run, "run directory");
        objects.extend(run.map_err(|e| list_error("run directories", e))?);
        let bounded = self.quotas.tasks().map_err(|e| list_error("quotas", e))?;
        objects.extend(bounded.into_iter().map(|task| HostObject::OfTask {
            kind: "quota".into(),
            task,
        }));
        objects.extend(self.volumes.list().map_err(|e| list_error("volumes", e))?);
        let of_shared = |task| HostObject::OfTask {
            kind: "shared memory".into(),
            task,
        };
        let shared = directories(
            &shared_memory::directory(&self.run_dir),
            of_shared,
            "shared memory",
        );
        objects.extend(shared.map_err(|e| list_error("shared memory", e))?);
        let holders = self
            .runtime
            .holders()
            .await
            .map_err(|e| list_error("holders", e))?;
        objects.extend(holders.into_iter().map(|task| HostObject::OfTask {
            kind: "holder of namespaces".into(),
            task,
        }));
        let kept = directories(&self.log_dir, HostObject::Logs, "log directory");
        objects.extend(kept.map_err(|e| list_error("log directories", e))?);
        Ok(objects)
    }

    /// Removes what nobody answers for; says what cannot be removed. Strangers in our directories are left alone.
    pub async fn remove_unowned(&self, leaks: &[HostObject]) {
        for leak in leaks {
            let removed: anyhow::Result<()> = match leak {
                HostObject::Container(id) => match berth_agent_core::ids::parse_runtime_id(id) {
                    Some((container, attempt)) => {
                        self.runtime.remove(&container, attempt).await.map_err(Into::into)
                    }
                    None => Ok(()),
                },
                HostObject::Snapshot(key) => self.runtime.remove_snapshot(key).await.map_err(Into::into),
                HostObject::OfTask { task, .. } => self.release_all(task).await,
                HostObject::Logs(task) => logs::remove_task_logs(&self.log_dir, task).map_err(Into::into),
                HostObject::Shim(pid) => {
                    // Again: others were removed since it was seen, which may have taken a while.
                    let lost = self.runtime.lost_shims().await;
                    if lost.iter().any(|shim| shim.pid == *pid && shim.is_old()) {
                        self.runtime.end_shim(*pid).await;
                    }
                    Ok(())
                }
                HostObject::Route(route) => self.network.remove_route(route).await.map_err(Into::into),
                HostObject::Vlan(name) => self.network.remove_vlan(name).await.map_err(Into::into),
                HostObject::Unnamed { .. } => Ok(()),
            };
            if let Err(error) = removed {
                tracing::error!(object = ?leak, error = %Chain(error.as_ref()), "cannot remove an object that nobody answers for");
            }
        }
    }

    /// Of a task of which nothing is known but what is left.
    async fn release_all(&self, task: &TaskId) -> anyhow::Result<()> {
        let left = self.network.list().await?;
        let owners = left.iter().filter_map(network::HostObject::owner);
        let own = owners.filter(|owner| owner.task == *task);
        let containers: BTreeSet<ContainerId> = own.filter_map(|owner| owner.container.clone()).collect();
        let containers: Vec<_> = containers.into_iter().collect();
        let released = async {
            self.release(task, true, &containers).await?;
            self.release(task, true, &[]).await
        };
        let released = released.await;
        released.map_err(|failure| anyhow::anyhow!(failure.message))?;
        // What no table of ours was to hold goes with what is put in its place.
        let published = self.network.published().await?;
        if published.iter().any(|(_, owner)| owner.as_ref() == Some(task)) {
            self.network.repair().await?;
        }
        Ok(())
    }
}

fn list_error(what: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> ListError {
    ListError {
        what,
        source: Box::new(source),
    }
}

fn named(kind: &str, name: String) -> HostObject {
    match name.parse() {
        Ok(task) => HostObject::OfTask {
            kind: kind.into(),
            task,
        },
        Err(_) => HostObject::Unnamed {
            kind: kind.into(),
            name,
        },
    }
}

fn network_object(object: &network::HostObject) -> HostObject {
    match object {
        network::HostObject::RangeRoute { route, .. } => return HostObject::Route(route.clone()),
        network::HostObject::Vlan { name } => return HostObject::Vlan(name.clone()),
        _ => {}
    }
    match object.task() {
        Some(task) => HostObject::OfTask {
            kind: "network".into(),
            task: task.clone(),
        },
        None => HostObject::Unnamed {
            kind: "network".into(),
            name: format!("{object:?}"),
        },
    }
}
