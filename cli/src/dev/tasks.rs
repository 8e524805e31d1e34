//! Owns what `berth dev` asks of its own API: is the node there, and stop every task.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::{CLUSTER, DevError};
use crate::api::{
    Client, ClientError, ContainerInstance, Task, describe_nodes, describe_tasks, list_nodes, list_tasks,
};

const NODE_TIMEOUT: Duration = Duration::from_secs(20);
/// Beyond the default stopTimeout of 30 s; tasks that ask for more are killed by the agent's own end.
const STOP_TIMEOUT: Duration = Duration::from_secs(45);
const POLL: Duration = Duration::from_millis(50);

/// Waits until the node is registered and connected: from then on RunTask finds it.
pub async fn wait_for_node(client: &Client) -> Result<(), DevError> {
    let deadline = Instant::now() + NODE_TIMEOUT;
    while Instant::now() < deadline {
        let nodes = list_nodes(client, CLUSTER).await?;
        let connected = describe_nodes(client, CLUSTER, &nodes)
            .await?
            .iter()
            .any(|node| ContainerInstance::deserialize(node).is_ok_and(|node| node.agent_connected));
        if connected {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    Err(DevError::NodeSilent {
        seconds: NODE_TIMEOUT.as_secs(),
    })
}

/// Stops every task and waits until all are STOPPED, for as long as is reasonable.
pub async fn stop_all(client: &Client, reason: &str) -> Result<(), ClientError> {
    let mut tasks = list_tasks(client, CLUSTER, "RUNNING").await?;
    if !tasks.is_empty() {
        eprintln!(
            "berth: stopping {} task{}",
            tasks.len(),
            if tasks.len() == 1 { "" } else { "s" }
        );
    }
    for task in &tasks {
        client
            .ecs(
                "StopTask",
                &json!({"cluster": CLUSTER, "task": task, "reason": reason}),
            )
            .await?;
    }
    // Those that somebody else is stopping already.
    tasks.extend(list_tasks(client, CLUSTER, "STOPPED").await?);
    let deadline = Instant::now() + STOP_TIMEOUT;
    while Instant::now() < deadline {
        let described = describe_tasks(client, CLUSTER, &tasks).await?;
        if described
            .iter()
            .all(|task| Task::deserialize(task).is_ok_and(|task| task.is_stopped()))
        {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
