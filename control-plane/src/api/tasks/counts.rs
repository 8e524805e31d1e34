//! Owns counting of tasks, for clusters and container instances. Never counts tasks of a deregistered node: nobody
//! accounts for those any more.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    api::{context::Api, error::ApiError, records},
    model::keys,
};

/// Tasks by what they do. Those that are being stopped are neither.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::api) struct Running {
    pub running: u32,
    pub pending: u32,
    stopping: u32,
}

/// The tasks of one cluster.
#[derive(Debug, Default)]
pub(in crate::api) struct Counts {
    /// Nodes that are ACTIVE or DRAINING.
    pub nodes: u32,
    pub total: Running,
    by_node: BTreeMap<String, Running>,
    by_launch_type: BTreeMap<String, Running>,
}

#[derive(Deserialize)]
struct SeenNode {
    id: String,
    status: String,
}

#[derive(Deserialize)]
struct SeenTask {
    node: String,
    last_status: String,
    launch_type: String,
}

impl Running {
    fn add(&mut self, status: &str) {
        match status {
            "STOPPED" => {}
            "RUNNING" => self.running += 1,
            "PROVISIONING" | "PENDING" | "ACTIVATING" => self.pending += 1,
            _ => self.stopping += 1,
        }
    }
}

/// Counts a cluster's tasks.
pub(in crate::api) async fn of(api: &Api, cluster: &str) -> Result<Counts, ApiError> {
    let mut counts = Counts::default();
    for node in records::all::<SeenNode>(api, &keys::nodes(cluster)).await? {
        if node.value.status != "INACTIVE" {
            counts.nodes += 1;
            counts.by_node.insert(node.value.id, Running::default());
        }
    }
    for task in records::all::<SeenTask>(api, &keys::tasks(cluster)).await? {
        let task = task.value;
        let Some(node) = counts.by_node.get_mut(&task.node) else {
            continue;
        };
        node.add(&task.last_status);
        counts.total.add(&task.last_status);
        counts
            .by_launch_type
            .entry(task.launch_type)
            .or_default()
            .add(&task.last_status);
    }
    Ok(counts)
}

impl Counts {
    /// No task is left that is not STOPPED.
    pub fn is_idle(&self) -> bool {
        self.total.running + self.total.pending + self.total.stopping == 0
    }

    pub fn node(&self, node: &str) -> Running {
        self.by_node.get(node).copied().unwrap_or_default()
    }

    /// As DescribeClusters has them, with STATISTICS included.
    pub fn statistics(&self) -> Value {
        let of = |launch_type: &str| self.by_launch_type.get(launch_type).copied().unwrap_or_default();
        let mut all = Vec::new();
        for (label, launch_type) in [("EC2", "EC2"), ("Fargate", "FARGATE"), ("External", "EXTERNAL")] {
            let tasks = of(launch_type);
            all.push(
                json!({"name": format!("running{label}TasksCount"), "value": tasks.running.to_string()}),
            );
            all.push(
                json!({"name": format!("pending{label}TasksCount"), "value": tasks.pending.to_string()}),
            );
            for state in ["active", "draining"] {
                all.push(json!({"name": format!("{state}{label}ServiceCount"), "value": "0"}));
            }
        }
        all.into()
    }
}
