//! Owns how a node's report changes a task's record. Pure: no store, no clock.

use std::net::{Ipv4Addr, Ipv6Addr};

use berth_proto::node::v1::{
    self as wire, ContainerState, HealthStatus, Protocol, StopCode, TaskState, TaskStatus,
};

use crate::model::{ContainerHealth, Millis, PortBinding, Task, TaskContainer};

/// Longest text of a report that is kept, characters.
const TEXT_CHARS_MAX: usize = 1_024;
/// Most warnings of a report that are kept.
const WARNINGS_MAX: usize = 32;
/// Most ports of a container that are kept: as many mappings as a task may have.
const BINDINGS_MAX: usize = 100;
/// How far a node's clock may be ahead in what is kept.
const AHEAD_MS_MAX: Millis = 24 * 3_600_000;

pub(super) const STOPPED: &str = "STOPPED";
pub(super) const RUNNING: &str = "RUNNING";

/// What a report did to a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Something that clients can see.
    pub(super) changed: bool,
    /// The task is on its way out and nobody had asked for that: what it was wanted to be has to follow, or a node
    /// that lost its state would run it again.
    pub(super) ends_by_itself: bool,
    pub(super) stopped: bool,
    /// It has an address, or another than before.
    pub(super) addressed: bool,
    /// It runs, and did not before.
    pub(super) runs: bool,
    /// A container that may decide what its revision runs has resolved its image.
    pub(super) resolved: bool,
}

impl Progress {
    /// Both, one after the other.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            changed: self.changed || other.changed,
            ends_by_itself: self.ends_by_itself || other.ends_by_itself,
            stopped: self.stopped || other.stopped,
            addressed: self.addressed || other.addressed,
            runs: self.runs || other.runs,
            resolved: self.resolved || other.resolved,
        }
    }
}

/// A report that cannot be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its status {0} is unknown")]
pub(super) struct UnknownStatus(i32);

/// ECS's name for a status. PROVISIONING is what a task is called before its node first reports it.
fn ecs_status(status: i32) -> Result<(TaskStatus, &'static str), UnknownStatus> {
    let known = TaskStatus::try_from(status).map_err(|_| UnknownStatus(status))?;
    let name = match known {
        TaskStatus::Unspecified => return Err(UnknownStatus(status)),
        TaskStatus::Pending => "PENDING",
        TaskStatus::Running => RUNNING,
        TaskStatus::Stopping => "STOPPING",
        TaskStatus::Deprovisioning => "DEPROVISIONING",
        TaskStatus::Stopped => STOPPED,
    };
    Ok((known, name))
}

/// ECS has no code for a host that restarted: its containers did exit, and the reason says why.
fn ecs_stop_code(code: i32) -> Option<&'static str> {
    match StopCode::try_from(code) {
        Ok(StopCode::TaskFailedToStart) => Some("TaskFailedToStart"),
        Ok(StopCode::EssentialContainerExited | StopCode::HostRestarted) => Some("EssentialContainerExited"),
        Ok(StopCode::UserInitiated) => Some("UserInitiated"),
        Ok(StopCode::Unspecified) | Err(_) => None,
    }
}

/// Brings a task's record up to what its node reports. A stopped task stays as it is.
pub(super) fn fold(task: &mut Task, state: &TaskState, now: Millis) -> Result<Progress, UnknownStatus> {
    let (status, name) = ecs_status(state.status)?;
    let containers: Vec<_> = state
        .containers
        .iter()
        .map(|c| Ok((c, ecs_status(c.status)?.1)))
        .collect::<Result<_, _>>()?;
    if task.last_status == STOPPED {
        return Ok(Progress::default());
    }
    let runs = status == TaskStatus::Running && task.last_status != RUNNING;
    let mut seen = Seen::default();
    seen.set(&mut task.last_status, name.to_owned());
    for (container, status) in containers {
        if let Some(record) = find(&mut task.containers, container) {
            fold_container(record, container, status, now, &mut seen);
        }
    }
    seen.set(&mut task.waiting_reason, text(&state.waiting_reason));
    let warnings = state.warnings.iter().filter_map(|warning| text(warning));
    seen.set(&mut task.node_warnings, warnings.take(WARNINGS_MAX).collect());
    let address = state.ipv4_address.parse::<Ipv4Addr>().ok();
    let ipv6 = state.ipv6_address.parse::<Ipv6Addr>().ok();
    let ipv6 = ipv6.map(|address| address.to_string());
    let addressed = address
        .is_some_and(|address| task.ipv4_address != Some(address.to_string()) || task.ipv6_address != ipv6);
    // One address is of both families: a new one may be without IPv6.
    if address.is_some() {
        seen.set(&mut task.ipv6_address, ipv6);
    }
    seen.fill(&mut task.ipv4_address, address.map(|address| address.to_string()));
    seen.fill(&mut task.mac_address, text(&state.mac_address));
    seen.fill(&mut task.pull_started_at, time(state.pull_started_at_ms, now));
    seen.fill(&mut task.pull_stopped_at, time(state.pull_stopped_at_ms, now));
    seen.fill(&mut task.started_at, time(state.started_at_ms, now));
    seen.fill(
        &mut task.execution_stopped_at,
        time(state.execution_stopped_at_ms, now),
    );
    let ending = matches!(
        status,
        TaskStatus::Stopping | TaskStatus::Deprovisioning | TaskStatus::Stopped
    );
    let mut ends_by_itself = false;
    if ending {
        ends_by_itself = task.desired_status != STOPPED;
        seen.set(&mut task.desired_status, STOPPED.to_owned());
        // The first reason is the reason: what a user asked for is not overwritten by how the node went about it.
        seen.first(
            &mut task.stop_code,
            ecs_stop_code(state.stop_code).map(str::to_owned),
        );
        seen.first(&mut task.stopped_reason, text(&state.stopped_reason));
        seen.first(
            &mut task.stopping_at,
            Some(time(state.stopping_at_ms, now).unwrap_or(now)),
        );
    }
    if status == TaskStatus::Stopped {
        seen.fill(
            &mut task.stopped_at,
            Some(time(state.stopped_at_ms, now).unwrap_or(now)),
        );
    }
    task.version += u64::from(seen.changed);
    Ok(Progress {
        changed: seen.changed,
        ends_by_itself,
        stopped: status == TaskStatus::Stopped,
        addressed,
        runs,
        resolved: seen.resolved,
    })
}

fn find<'a>(records: &'a mut [TaskContainer], state: &ContainerState) -> Option<&'a mut TaskContainer> {
    records.iter_mut().find(|record| record.id == state.container_id)
}

fn fold_container(
    record: &mut TaskContainer,
    state: &ContainerState,
    status: &str,
    now: Millis,
    seen: &mut Seen,
) {
    seen.set(&mut record.last_status, status.to_owned());
    // A container that is started again has neither ended nor a reason to.
    seen.set(&mut record.exit_code, state.exit_code);
    seen.set(&mut record.reason, text(&state.reason));
    seen.fill(&mut record.runtime_id, text(&state.runtime_id));
    seen.fill(&mut record.image_digest, text(&state.image_digest));
    seen.set(&mut record.restart_count, state.restart_count);
    let bindings = state.bindings.iter().take(BINDINGS_MAX).filter_map(binding);
    seen.set(&mut record.bindings, bindings.collect());
    if record.pins && is_digest(&state.resolved_digest) && record.resolved_digest.is_none() {
        record.resolved_digest = Some(state.resolved_digest.clone());
        (seen.changed, seen.resolved) = (true, true);
    }
    // A node that says nothing of it is of an earlier version, or there is no health check.
    if let Some(health) = health(state, now) {
        seen.set(&mut record.health, Some(health));
    }
}

/// None: it is none that ECS has a form for.
fn binding(wire: &wire::PortBinding) -> Option<PortBinding> {
    let port = |port: u32| u16::try_from(port).ok().filter(|port| *port != 0);
    let protocol = match Protocol::try_from(wire.protocol) {
        Ok(Protocol::Tcp) => "tcp",
        Ok(Protocol::Udp) => "udp",
        Ok(Protocol::Unspecified) | Err(_) => return None,
    };
    let (host_port, container_port) = (port(wire.host_port)?, port(wire.container_port)?);
    let last_container_port = match wire.last_container_port {
        0 => None,
        last => Some(port(last).filter(|last| *last >= container_port)?),
    };
    let count = last_container_port.map_or(0, |last| last - container_port);
    host_port.checked_add(count)?;
    Some(PortBinding {
        protocol: protocol.to_owned(),
        host_port,
        container_port,
        last_container_port,
    })
}

fn health(state: &ContainerState, now: Millis) -> Option<ContainerHealth> {
    let status = match HealthStatus::try_from(state.health) {
        Ok(HealthStatus::Unspecified) | Err(_) => return None,
        Ok(HealthStatus::Unknown) => "UNKNOWN",
        Ok(HealthStatus::Healthy) => "HEALTHY",
        Ok(HealthStatus::Unhealthy) => "UNHEALTHY",
    };
    let probe = state.health_probe.as_ref();
    Some(ContainerHealth {
        status: status.into(),
        since: time(state.health_since_ms, now),
        exit_code: probe.and_then(|probe| probe.exit_code),
        output: probe.and_then(|probe| text(&probe.output)),
    })
}

/// Remembers whether anything was changed.
#[derive(Default)]
struct Seen {
    changed: bool,
    resolved: bool,
}

impl Seen {
    fn set<T: PartialEq>(&mut self, field: &mut T, value: T) {
        if *field != value {
            *field = value;
            self.changed = true;
        }
    }

    /// What is not reported stays.
    fn fill<T: PartialEq>(&mut self, field: &mut Option<T>, value: Option<T>) {
        if value.is_some() {
            self.set(field, value);
        }
    }

    /// What is known stays.
    fn first<T: PartialEq>(&mut self, field: &mut Option<T>, value: Option<T>) {
        if field.is_none() {
            self.set(field, value);
        }
    }
}

/// It becomes a part of what other nodes pull.
fn is_digest(text: &str) -> bool {
    let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    text.strip_prefix("sha256:").is_some_and(hex)
}

/// As much of a text as is kept: a node must not fill the store.
fn text(text: &str) -> Option<String> {
    Some(text.chars().take(TEXT_CHARS_MAX).collect()).filter(|t: &String| !t.is_empty())
}

/// Not far in the future, where nothing would ever be old enough to be forgotten.
fn time(ms: i64, now: Millis) -> Option<Millis> {
    Some(ms.min(now.saturating_add(AHEAD_MS_MAX))).filter(|ms| *ms > 0)
}
