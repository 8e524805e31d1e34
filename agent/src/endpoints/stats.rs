//! Owns the form of usage: that of the Docker Engine's `GET /containers/ID/stats`, which ECS's endpoint answers with.

use berth_agent_core::{desired::NetworkMode, task::Task};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::document::runtime_id;
use crate::telemetry::{NetworkUsage, NodeUsage, TaskUsage, Usage};

const USEC_NS: u64 = 1_000;

/// By runtime id; null for a container that does not run, as in ECS.
pub(super) fn of_task(
    task: &Task,
    node: &NodeUsage,
    usage: &TaskUsage,
    now: OffsetDateTime,
) -> Map<String, Value> {
    let read = now.format(&Rfc3339).unwrap_or_default();
    let of = |container: &crate::telemetry::ContainerUsage| {
        let id = runtime_id(task, &container.container)?;
        let runs = task.container(&container.container).is_up();
        let network = match task.spec.network {
            NetworkMode::Bridge => container.network.as_ref(),
            _ => usage.network.as_ref(),
        };
        let figures = runs.then(|| figures(&id, &container.name, node, network, &container.usage, &read));
        Some((id, figures.unwrap_or(Value::Null)))
    };
    usage.containers.iter().filter_map(of).collect()
}

fn figures(
    id: &str,
    name: &str,
    node: &NodeUsage,
    network: Option<&NetworkUsage>,
    usage: &Usage,
    read: &str,
) -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Docker, too, gives the host's memory where there is no limit.
    let limit = match usage.memory_limit_bytes {
        0 => node.memory_total_bytes,
        limit => limit,
    };
    let bytes = |operation: &str, value: u64| json!({"op": operation, "value": value});
    let mut document = json!({
        "id": id,
        "name": name,
        "read": read,
        "cpu_stats": {
            "cpu_usage": {"total_usage": usage.cpu_used_usec * USEC_NS},
            "system_cpu_usage": node.cpu_used_usec * USEC_NS,
            "online_cpus": cpus,
            "throttling_data": {"throttled_time": usage.cpu_throttled_usec * USEC_NS},
        },
        "memory_stats": {"usage": usage.memory_used_bytes, "limit": limit},
        "blkio_stats": {"io_service_bytes_recursive": [
            bytes("Read", usage.io_read_bytes),
            bytes("Write", usage.io_write_bytes),
        ]},
        "pids_stats": {"current": usage.pids},
    });
    if let Some(network) = network {
        document["networks"] = json!({"eth0": {
            "rx_bytes": network.rx_bytes,
            "rx_packets": network.rx_packets,
            "rx_dropped": network.rx_dropped,
            "tx_bytes": network.tx_bytes,
            "tx_packets": network.tx_packets,
            "tx_dropped": network.tx_dropped,
        }});
    }
    document
}
