//! Owns the form of usage: that of the Docker Engine's `GET /containers/ID/stats`, which ECS's endpoint answers with.

use berth_agent_core::{desired::NetworkMode, ids::ContainerId, task::Task};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::document::runtime_id;
use crate::telemetry::{NetworkUsage, NodeUsage, TaskSample, TaskUsage, Usage};

const USEC_NS: u64 = 1_000;
/// Docker's time of a sample that was never taken.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// One container at one time.
#[derive(Clone, Copy, Debug)]
struct Figures<'a> {
    host_cpu_usec: u64,
    usage: &'a Usage,
    network: Option<&'a NetworkUsage>,
}

/// What went before.
#[derive(Clone, Copy, Debug)]
struct Before<'a> {
    figures: Figures<'a>,
    age: time::Duration,
}

/// By runtime id; null for a container that does not run, as in ECS.
pub(super) fn of_task(task: &Task, sample: &TaskSample, now: OffsetDateTime) -> Map<String, Value> {
    let of = |container: &crate::telemetry::ContainerUsage| {
        let id = runtime_id(task, &container.container)?;
        let runs = task.container(&container.container).is_up();
        let (node, usage) = (&sample.node, &sample.usage);
        let own = runs.then(|| figures(task, usage, node.cpu_used_usec, &container.container));
        let body = own.flatten().map(|own| {
            let before = before(task, sample, &container.container)
                .filter(|before| !began_anew(&before.figures, &own));
            document(&id, &container.name, node, (own, before), now)
        });
        Some((id, body.unwrap_or(Value::Null)))
    };
    sample.usage.containers.iter().filter_map(of).collect()
}

/// None: the container is not in it.
fn figures<'a>(
    task: &Task,
    usage: &'a TaskUsage,
    host_cpu_usec: u64,
    id: &ContainerId,
) -> Option<Figures<'a>> {
    let container = usage.containers.iter().find(|one| one.container == *id)?;
    Some(Figures {
        host_cpu_usec,
        usage: &container.usage,
        network: match task.spec.network {
            NetworkMode::Bridge => container.network.as_ref(),
            _ => usage.network.as_ref(),
        },
    })
}

fn before<'a>(task: &Task, sample: &'a TaskSample, id: &ContainerId) -> Option<Before<'a>> {
    let earlier = sample.before.as_ref()?;
    let age = sample.at.saturating_duration_since(earlier.at);
    Some(Before {
        figures: figures(task, &earlier.usage, earlier.host_cpu_usec, id)?,
        age: age.try_into().ok()?,
    })
}

/// Counters start with an attempt: what went before is another's.
fn began_anew(before: &Figures<'_>, now: &Figures<'_>) -> bool {
    let network = before.network.zip(now.network);
    before.usage.cpu_used_usec > now.usage.cpu_used_usec
        || network
            .is_some_and(|(before, now)| before.rx_bytes > now.rx_bytes || before.tx_bytes > now.tx_bytes)
}

fn document(
    id: &str,
    name: &str,
    node: &NodeUsage,
    (own, before): (Figures<'_>, Option<Before<'_>>),
    now: OffsetDateTime,
) -> Value {
    let usage = own.usage;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Docker, too, gives the host's memory where there is no limit.
    let limit = match usage.memory_limit_bytes {
        0 => node.memory_total_bytes,
        limit => limit,
    };
    let cpu = |figures: Option<&Figures<'_>>| {
        let of = |value: fn(&Usage) -> u64| figures.map_or(0, |figures| value(figures.usage)) * USEC_NS;
        json!({
            "cpu_usage": {"total_usage": of(|usage| usage.cpu_used_usec)},
            "system_cpu_usage": figures.map_or(0, |figures| figures.host_cpu_usec) * USEC_NS,
            "online_cpus": cpus,
            "throttling_data": {"throttled_time": of(|usage| usage.cpu_throttled_usec)},
        })
    };
    let bytes = |operation: &str, value: u64| json!({"op": operation, "value": value});
    let time = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_default();
    let mut document = json!({
        "id": id,
        "name": name,
        "read": time(now),
        "preread": before.map_or(NEVER.into(), |before| time(now - before.age)),
        "cpu_stats": cpu(Some(&own)),
        "precpu_stats": cpu(before.as_ref().map(|before| &before.figures)),
        "memory_stats": {"usage": usage.memory_used_bytes, "limit": limit},
        "blkio_stats": {"io_service_bytes_recursive": [
            bytes("Read", usage.io_read_bytes),
            bytes("Write", usage.io_write_bytes),
        ]},
        "pids_stats": {"current": usage.pids},
    });
    let Some(network) = own.network else {
        return document;
    };
    document["networks"] = json!({"eth0": {
        "rx_bytes": network.rx_bytes,
        "rx_packets": network.rx_packets,
        "rx_dropped": network.rx_dropped,
        "tx_bytes": network.tx_bytes,
        "tx_packets": network.tx_packets,
        "tx_dropped": network.tx_dropped,
    }});
    let earlier = before.and_then(|before| Some((before.figures.network?, before.age.as_seconds_f64())));
    if let Some((earlier, seconds)) = earlier.filter(|(_, seconds)| *seconds > 0.0) {
        #[allow(clippy::cast_precision_loss, reason = "a rate, not a count")]
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        document["network_rate_stats"] = json!({
            "rx_bytes_per_sec": rate(network.rx_bytes, earlier.rx_bytes),
            "tx_bytes_per_sec": rate(network.tx_bytes, earlier.tx_bytes),
        });
    }
    document
}
