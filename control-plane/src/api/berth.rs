//! Owns Berth's own operations that answer at once: why a task is as it is, what is used, what this server is.
//! Never changes anything.

use berth_proto::node::v1::{
    Heartbeat, ImagePull, LayerPull, LayerStatus, NetworkUsage, NodeUsage, Pressure, TaskSpec, TaskUsage,
    Usage,
};
use prost::Message;
use serde_json::{Value, json};

use super::{context::Api, error::ApiError, fields::Fields, logs, records};
use crate::model::{ContainerHealth, Millis, Node, Task, keys};

pub(super) fn get_server_info(api: &Api, input: Fields) -> Result<Value, ApiError> {
    input.finish()?;
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "region": api.realm.region,
        "accountId": api.realm.account,
    }))
}

/// Why a task is in its state, since when, and until when at the latest, as far as the control plane knows.
pub(super) async fn explain_task(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let reference = input.required("task")?;
    input.finish()?;
    let task = logs::find(api, cluster.as_deref(), &reference).await?;
    let node = records::get::<Node>(api, &keys::node(&task.cluster, &task.node))
        .await?
        .map(|node| node.value);
    let connected = node.as_ref().is_some_and(|node| node.agent_connected);
    let deadline = deadline(api, &task).await?;
    let containers: Vec<Value> = task
        .containers
        .iter()
        .map(|one| {
            json!({
                "name": one.name, "lastStatus": one.last_status, "exitCode": one.exit_code, "reason": one.reason,
                "restartCount": one.restart_count,
                "health": one.health.as_ref().map(health),
            })
        })
        .collect();
    Ok(json!({
        "taskArn": api.realm.task(&task.cluster, &task.id),
        "lastStatus": task.last_status,
        "desiredStatus": task.desired_status,
        "why": why(&task, node.as_ref()),
        "waitingReason": task.waiting_reason,
        "warnings": task.all_warnings().collect::<Vec<_>>(),
        "stoppedReason": task.stopped_reason,
        "stopCode": task.stop_code,
        "sinceMs": since(&task),
        "deadlineMs": deadline,
        "node": task.node,
        "containerInstanceArn": api.realm.container_instance(&task.cluster, &task.node),
        "nodeHostname": node.as_ref().map(|node| node.hostname.clone()),
        "nodeStatus": node.as_ref().map(|node| node.status.clone()),
        "nodeConnected": connected,
        "nodeConnectivitySinceMs": node.as_ref().map(|node| node.connectivity_at),
        "containers": containers,
        "pulls": pulls(api, &task),
    }))
}

/// With what the probe said that changed it.
fn health(health: &ContainerHealth) -> Value {
    json!({
        "status": health.status, "sinceMs": health.since, "exitCode": health.exit_code, "output": health.output,
    })
}

/// Downloads under way on the task's node of images that it names. A canonical reference contains what the user wrote.
fn pulls(api: &Api, task: &Task) -> Vec<Value> {
    let known = api.nodes.latest_pulls(&task.node).unwrap_or_default();
    let wanted = |pull: &&ImagePull| {
        task.containers
            .iter()
            .any(|one| pull.reference.contains(&one.image))
    };
    known
        .images
        .iter()
        .filter(wanted)
        .map(|pull| json!({ "image": pull.reference, "layers": pull.layers.iter().map(layer).collect::<Vec<_>>() }))
        .collect()
}

fn layer(layer: &LayerPull) -> Value {
    let status = match layer.status() {
        LayerStatus::Unspecified | LayerStatus::Waiting => "waiting",
        LayerStatus::Downloading => "downloading",
        LayerStatus::Downloaded => "downloaded",
        LayerStatus::Unpacking => "unpacking",
        LayerStatus::Done => "done",
    };
    json!({
        "digest": layer.digest, "bytesDone": layer.bytes_done, "bytesTotal": layer.bytes_total, "status": status,
    })
}

/// One sentence for people.
fn why(task: &Task, node: Option<&Node>) -> String {
    let host = node.map_or(task.node.as_str(), |node| node.hostname.as_str());
    let away = node.is_none_or(|node| !node.agent_connected);
    let stopping = task.desired_status == "STOPPED";
    let state = match task.last_status.as_str() {
        "STOPPED" => {
            let reason = task
                .stopped_reason
                .as_deref()
                .unwrap_or("its node gave no reason");
            return format!("stopped: {reason}");
        }
        _ if stopping => {
            let reason = task.stopped_reason.as_deref().unwrap_or("no reason given");
            format!("is being stopped ({reason}); {host} has not reported that nothing of it is left")
        }
        "PROVISIONING" => format!("placed on {host}, which has not reported it yet"),
        "RUNNING" => "all that must run is running".to_owned(),
        status => format!("{status} on {host}"),
    };
    let waiting = task
        .waiting_reason
        .as_ref()
        .map(|reason| format!("; it waits: {reason}"));
    let away = away.then(|| format!("; {host} is not connected, so this is its last known state"));
    state + &waiting.unwrap_or_default() + &away.unwrap_or_default()
}

/// When the task came into its state, as far as is recorded.
fn since(task: &Task) -> Millis {
    let at = match task.last_status.as_str() {
        "STOPPED" => task.stopped_at,
        "DEPROVISIONING" => task.execution_stopped_at.or(task.stopping_at),
        "STOPPING" | "DEACTIVATING" => task.stopping_at,
        "RUNNING" => task.started_at,
        _ => task.pull_stopped_at.or(task.pull_started_at),
    };
    at.unwrap_or(task.created_at)
}

/// A stop ends with SIGKILL at the longest of the containers' stop timeouts.
async fn deadline(api: &Api, task: &Task) -> Result<Option<Millis>, ApiError> {
    let Some(stopping_at) = task.stopping_at.filter(|_| task.execution_stopped_at.is_none()) else {
        return Ok(None);
    };
    let key = keys::desired(&task.node, &task.id);
    let Some(entry) = api.store.get(&key).await? else {
        return Ok(None);
    };
    let spec = TaskSpec::decode(entry.value.as_ref()).map_err(|source| ApiError::Spec { key, source })?;
    let longest = spec
        .containers
        .iter()
        .map(|container| container.stop_timeout_ms)
        .max();
    Ok(longest.map(|longest| stopping_at + Millis::from(longest)))
}

/// The last heartbeat of every node of a cluster, and what it said of each task.
pub(super) async fn get_usage(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    input.finish()?;
    let cluster = records::active_cluster(api, cluster.as_deref()).await?;
    let (mut nodes, mut tasks) = (Vec::new(), Vec::new());
    for node in records::all::<Node>(api, &keys::nodes(&cluster)).await? {
        let node = node.value;
        if node.status == "INACTIVE" {
            continue;
        }
        let heartbeat = api.nodes.latest_heartbeat(&node.id);
        if let Some(heartbeat) = &heartbeat {
            // A node speaks for its own tasks only.
            let own = |usage: &&TaskUsage| node.allocations.contains_key(&usage.task_id);
            tasks.extend(
                heartbeat
                    .tasks
                    .iter()
                    .filter(own)
                    .map(|usage| task_usage(api, &node, usage)),
            );
        }
        nodes.push(node_report(api, &node, heartbeat));
    }
    Ok(json!({"nodes": nodes, "tasks": tasks}))
}

fn node_report(api: &Api, node: &Node, heartbeat: Option<Heartbeat>) -> Value {
    let heartbeat = heartbeat.unwrap_or_default();
    json!({
        "containerInstanceArn": api.realm.container_instance(&node.cluster, &node.id),
        "node": node.id,
        "hostname": node.hostname,
        "connected": node.agent_connected,
        // 0: no heartbeat since this control plane started.
        "sentAtMs": heartbeat.sent_at_ms,
        "impairments": heartbeat.impairments,
        "usage": heartbeat.node.map(node_usage),
    })
}

fn node_usage(usage: NodeUsage) -> Value {
    json!({
        "cpuUsedUsec": usage.cpu_used_usec,
        "memoryUsedBytes": usage.memory_used_bytes,
        "memoryTotalBytes": usage.memory_total_bytes,
        "diskUsedBytes": usage.disk_used_bytes,
        "diskTotalBytes": usage.disk_total_bytes,
        "load1Milli": usage.load1_milli,
        "pressure": usage.pressure.as_ref().map(pressure),
    })
}

fn task_usage(api: &Api, node: &Node, task: &TaskUsage) -> Value {
    let containers: Vec<Value> = task
        .containers
        .iter()
        .map(|one| json!({"id": one.container_id, "name": one.name, "usage": one.usage.map(usage)}))
        .collect();
    json!({
        "taskArn": api.realm.task(&node.cluster, &task.task_id),
        "task": task.task_id,
        "node": node.id,
        "total": task.total.map(usage),
        "containers": containers,
        "overhead": task.overhead.map(usage),
        "network": task.network.map(network),
    })
}

fn usage(usage: Usage) -> Value {
    json!({
        "cpuUsedUsec": usage.cpu_used_usec,
        "cpuThrottledUsec": usage.cpu_throttled_usec,
        "memoryUsedBytes": usage.memory_used_bytes,
        "memoryLimitBytes": usage.memory_limit_bytes,
        "pids": usage.pids,
        "ioReadBytes": usage.io_read_bytes,
        "ioWriteBytes": usage.io_write_bytes,
        "oomKills": usage.oom_kills,
        "pressure": usage.pressure.as_ref().map(pressure),
    })
}

/// Null where the node's kernel does not measure it.
fn pressure(usage: &Pressure) -> Value {
    json!({
        "cpuWaitingUsec": usage.cpu_waiting_usec,
        "cpuStalledUsec": usage.cpu_stalled_usec,
        "memoryWaitingUsec": usage.memory_waiting_usec,
        "memoryStalledUsec": usage.memory_stalled_usec,
        "ioWaitingUsec": usage.io_waiting_usec,
        "ioStalledUsec": usage.io_stalled_usec,
    })
}

fn network(usage: NetworkUsage) -> Value {
    json!({
        "rxBytes": usage.rx_bytes,
        "rxPackets": usage.rx_packets,
        "txBytes": usage.tx_bytes,
        "txPackets": usage.tx_packets,
        "rxDropped": usage.rx_dropped,
        "txDropped": usage.tx_dropped,
    })
}
