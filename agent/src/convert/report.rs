//! Owns how a report is said on the wire.

use berth_agent_core::{
    desired::{Millis, Protocol},
    ports::Binding,
    report::{Report, Status, StopCode},
};
use berth_proto::node::v1 as wire;

use super::health;

/// A report as it goes over the wire.
pub fn state_change(report: &Report) -> wire::StateChange {
    let facts = &report.task.facts;
    let times = &report.task.times;
    let ms = |time: Option<Millis>| time.map_or(0, |time| time.0);
    let (stop_code, stopped_reason) = match &facts.stop {
        Some((code, reason)) => (stop_code(*code), reason.clone()),
        None => (wire::StopCode::Unspecified, String::new()),
    };
    let container = |c: &berth_agent_core::report::ContainerState| wire::ContainerState {
        container_id: c.id.to_string(),
        name: c.name.clone(),
        status: status(c.status).into(),
        exit_code: c.exit_code,
        reason: c.reason.clone().unwrap_or_default(),
        runtime_id: c.runtime_id.clone().unwrap_or_default(),
        image_digest: c.image_digest.clone().unwrap_or_default(),
        resolved_digest: c.resolved_digest.clone().unwrap_or_default(),
        started_at_ms: ms(c.started),
        finished_at_ms: ms(c.finished),
        pid: c.pid.unwrap_or_default(),
        restart_count: c.restart_count,
        health: health::status(c.health.as_ref()).into(),
        health_since_ms: ms(c.health.as_ref().and_then(|health| health.since)),
        health_probe: c
            .health
            .as_ref()
            .and_then(|health| health.probe.as_ref())
            .map(health::probe),
        bindings: c.bindings.iter().map(binding).collect(),
    };
    let task = wire::TaskState {
        task_id: report.task.id.to_string(),
        status: status(facts.status).into(),
        stop_code: stop_code.into(),
        stopped_reason,
        waiting_reason: facts.waiting.clone().unwrap_or_default(),
        ipv4_address: facts.address.map(|a| a.ipv4.to_string()).unwrap_or_default(),
        ipv6_address: facts
            .address
            .and_then(|a| a.ipv6)
            .map(|a| a.to_string())
            .unwrap_or_default(),
        mac_address: facts.mac_address.clone().unwrap_or_default(),
        pull_started_at_ms: ms(times.pull_started),
        pull_stopped_at_ms: ms(times.pull_stopped),
        started_at_ms: ms(times.started),
        stopping_at_ms: ms(times.stopping),
        execution_stopped_at_ms: ms(times.execution_stopped),
        stopped_at_ms: ms(times.stopped),
        containers: facts.containers.iter().map(container).collect(),
        warnings: facts.warnings.clone(),
    };
    wire::StateChange {
        sequence: report.sequence,
        task: Some(task),
    }
}

fn binding(binding: &Binding) -> wire::PortBinding {
    let protocol = match binding.protocol {
        Protocol::Tcp => wire::Protocol::Tcp,
        Protocol::Udp => wire::Protocol::Udp,
    };
    wire::PortBinding {
        protocol: protocol.into(),
        host_port: binding.host_port.into(),
        container_port: binding.container_port.into(),
        last_container_port: binding.last_container_port.map_or(0, u32::from),
    }
}

pub fn status(status: Status) -> wire::TaskStatus {
    match status {
        Status::Pending => wire::TaskStatus::Pending,
        Status::Running => wire::TaskStatus::Running,
        Status::Stopping => wire::TaskStatus::Stopping,
        Status::Deprovisioning => wire::TaskStatus::Deprovisioning,
        Status::Stopped => wire::TaskStatus::Stopped,
    }
}

fn stop_code(code: StopCode) -> wire::StopCode {
    match code {
        StopCode::TaskFailedToStart => wire::StopCode::TaskFailedToStart,
        StopCode::EssentialContainerExited => wire::StopCode::EssentialContainerExited,
        StopCode::UserInitiated => wire::StopCode::UserInitiated,
        StopCode::HostRestarted => wire::StopCode::HostRestarted,
    }
}
