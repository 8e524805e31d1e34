//! Owns the numbers that are counted in the store when somebody asks: nodes and tasks by status. Never counts more
//! often than [`FRESH`].

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::store::{PAGE_ENTRIES_MAX, SharedStore, StoreError};

/// A count that is younger serves again: several scrapers cost as much as one.
const FRESH: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct NodeLabels {
    status: String,
    connected: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct TaskLabels {
    last_status: String,
}

/// What is read of a node's record.
#[derive(Deserialize)]
struct NodeState {
    status: String,
    agent_connected: bool,
}

/// What is read of a task's record.
#[derive(Deserialize)]
struct TaskState {
    last_status: String,
}

/// The counts, as gauges of a registry.
pub struct Census {
    store: SharedStore,
    state_dir: PathBuf,
    nodes: Family<NodeLabels, Gauge>,
    tasks: Family<TaskLabels, Gauge>,
    free_bytes: Gauge,
    counted: Mutex<Option<Instant>>,
}

impl fmt::Debug for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Census").finish_non_exhaustive()
    }
}

impl Census {
    /// Registers the gauges; [`refresh`](Self::refresh) fills them.
    pub fn new(store: SharedStore, state_dir: PathBuf, registry: &mut Registry) -> Self {
        let census = Self {
            store,
            state_dir,
            nodes: Family::default(),
            tasks: Family::default(),
            free_bytes: Gauge::default(),
            counted: Mutex::default(),
        };
        registry.register(
            "berth_nodes",
            "Nodes, by status and connection",
            census.nodes.clone(),
        );
        registry.register(
            "berth_tasks",
            "Tasks that can be described, by last status",
            census.tasks.clone(),
        );
        registry.register(
            "berth_state_dir_free_bytes",
            "Room on the disk of the state directory",
            census.free_bytes.clone(),
        );
        census
    }

    /// Counts anew, unless that was done just now.
    ///
    /// # Errors
    /// The store cannot be read. The former counts stay.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let mut counted = self.counted.lock().await;
        if counted.is_some_and(|at| at.elapsed() < FRESH) {
            return Ok(());
        }
        let nodes = self
            .count("/nodes/", |node: NodeState| NodeLabels {
                status: node.status,
                connected: node.agent_connected,
            })
            .await?;
        let tasks = self
            .count("/tasks/", |task: TaskState| TaskLabels {
                last_status: task.last_status,
            })
            .await?;
        fill(&self.nodes, nodes);
        fill(&self.tasks, tasks);
        if let Ok(disk) = nix::sys::statvfs::statvfs(&self.state_dir) {
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            self.free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
        }
        *counted = Some(Instant::now());
        Ok(())
    }

    async fn count<T, L>(&self, prefix: &str, label: impl Fn(T) -> L) -> Result<BTreeMap<L, i64>, StoreError>
    where
        T: serde::de::DeserializeOwned,
        L: Ord,
    {
        let (mut counts, mut after) = (BTreeMap::new(), None::<String>);
        loop {
            let page = self
                .store
                .range(prefix, after.as_deref(), PAGE_ENTRIES_MAX)
                .await?;
            after = page.entries.last().map(|entry| entry.key.clone());
            // A record that cannot be read is an error where it is used.
            let states = page
                .entries
                .iter()
                .filter_map(|entry| serde_json::from_slice(&entry.value).ok());
            for state in states {
                *counts.entry(label(state)).or_default() += 1;
            }
            if !page.more {
                return Ok(counts);
            }
        }
    }
}

fn fill<L>(family: &Family<L, Gauge>, counts: BTreeMap<L, i64>)
where
    L: Clone + std::hash::Hash + Eq,
{
    family.clear();
    for (label, count) in counts {
        family.get_or_create(&label).set(count);
    }
}
