//! Owns how usage looks on the wire.

use berth_proto::node::v1 as wire;

use crate::telemetry::{ContainerUsage, NetworkUsage, NodeUsage, Pressure, TaskUsage, Usage};

pub(super) fn node(usage: &NodeUsage) -> wire::NodeUsage {
    wire::NodeUsage {
        cpu_used_usec: usage.cpu_used_usec,
        memory_used_bytes: usage.memory_used_bytes,
        memory_total_bytes: usage.memory_total_bytes,
        disk_used_bytes: usage.disk_used_bytes,
        disk_total_bytes: usage.disk_total_bytes,
        load1_milli: usage.load1_milli,
        pressure: usage.pressure.as_ref().map(pressure),
    }
}

pub(super) fn task(usage: &TaskUsage) -> wire::TaskUsage {
    wire::TaskUsage {
        task_id: usage.task.to_string(),
        total: Some(of(&usage.total)),
        containers: usage.containers.iter().map(container).collect(),
        overhead: Some(of(&usage.overhead)),
        network: usage.network.as_ref().map(network),
    }
}

fn container(usage: &ContainerUsage) -> wire::ContainerUsage {
    wire::ContainerUsage {
        container_id: usage.container.to_string(),
        name: usage.name.clone(),
        usage: Some(of(&usage.usage)),
    }
}

fn of(usage: &Usage) -> wire::Usage {
    wire::Usage {
        cpu_used_usec: usage.cpu_used_usec,
        cpu_throttled_usec: usage.cpu_throttled_usec,
        memory_used_bytes: usage.memory_used_bytes,
        memory_limit_bytes: usage.memory_limit_bytes,
        pids: usage.pids,
        io_read_bytes: usage.io_read_bytes,
        io_write_bytes: usage.io_write_bytes,
        oom_kills: usage.oom_kills,
        pressure: usage.pressure.as_ref().map(pressure),
    }
}

fn pressure(usage: &Pressure) -> wire::Pressure {
    wire::Pressure {
        cpu_waiting_usec: usage.cpu.some_usec,
        cpu_stalled_usec: usage.cpu.full_usec,
        memory_waiting_usec: usage.memory.some_usec,
        memory_stalled_usec: usage.memory.full_usec,
        io_waiting_usec: usage.io.some_usec,
        io_stalled_usec: usage.io.full_usec,
    }
}

fn network(usage: &NetworkUsage) -> wire::NetworkUsage {
    wire::NetworkUsage {
        rx_bytes: usage.rx_bytes,
        rx_packets: usage.rx_packets,
        tx_bytes: usage.tx_bytes,
        tx_packets: usage.tx_packets,
        rx_dropped: usage.rx_dropped,
        tx_dropped: usage.tx_dropped,
    }
}
