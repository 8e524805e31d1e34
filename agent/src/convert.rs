//! Owns the border between the wire and the core: the only module that sees both. Checks every bound of what it is
//! sent; refuses by name what this agent does not know. Never repairs.

mod health;
mod linux;
mod networking;
mod volumes;

use std::collections::BTreeSet;

use berth_agent_core::{
    desired::{
        CONTAINERS_PER_TASK_MAX, Condition, ContainerSpec, Dependency, DesiredStatus, IpcMode, Limits,
        LogSpec, Millis, NetworkMode, PidMode, PortMapping, Position, Protocol, RestartPolicy, TaskSpec,
        Ulimit,
    },
    event::{Event, Refused},
    ids::TaskId,
    report::{Report, Status, StopCode},
};
use berth_proto::node::v1 as wire;

/// Only where cgroup v1 is.
pub const SWAPPINESS: &str = "linux.swappiness";
/// Only where the kernel counts swap.
pub const MAX_SWAP: &str = "linux.max-swap";
/// What this agent honours beyond the plain fields of a spec. A spec that requires more is refused by that name.
pub const FEATURES: &[&str] = &[
    "image.digest",
    "net.awsvpc",
    "net.host",
    "net.none",
    "log.json-file",
    "log.buffer",
    "depends.start",
    "depends.complete",
    "depends.success",
    "depends.healthy",
    "limits.task",
    "limits.container",
    "ulimits",
    "rootfs.readonly",
    "linux.capabilities",
    "linux.privileged",
    "linux.no-new-privileges",
    "linux.seccomp",
    "linux.sysctls",
    "linux.shm-size",
    "linux.tmpfs",
    "linux.devices",
    MAX_SWAP,
    SWAPPINESS,
    "pid.host",
    "ipc.host",
    "ipc.none",
    "networking.hostname",
    "networking.extra-hosts",
    "networking.dns",
    "networking.disabled",
    "terminal",
    "restart.policy",
    "volumes.host",
    "volumes.local",
    "volumes.from",
    "health-check",
    "restart.after-reboot",
];

/// Before the name of a runtime: what a task of it requires, and what a node says for each it offers.
pub const RUNTIME_PREFIX: &str = "runtime.";

const ENTRIES_MAX: usize = 1_000;
const STOP_TIMEOUT_MS_MAX: u32 = 86_400_000;
const IGNORED_EXIT_CODES_MAX: usize = 50;
/// A minute to half an hour, as in ECS.
const RESTART_PERIOD_MS: std::ops::RangeInclusive<u32> = 60_000..=1_800_000;
const LOG_FILES_MAX: u32 = 1_000;
const LOG_FILE_BYTES_MIN: u64 = 4096;
const LOG_BUFFER_BYTES_MAX: u64 = 256 << 20;
const CPU_UNITS_MAX: u32 = 1_024 * 1_024;

/// A spec that cannot be run as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Refusal {
    pub field: String,
    pub problem: String,
}

fn refuse<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        field: field.into(),
        problem: problem.into(),
    })
}

/// A snapshot, with what is not understood of it.
pub fn snapshot(message: wire::Snapshot) -> Result<Event, Refusal> {
    let position = position(message.position)?;
    let (tasks, refused) = specs(message.tasks)?;
    Ok(Event::Snapshot {
        position,
        tasks,
        refused,
        removals_confirmed: message.removals_confirmed,
    })
}

/// A delta likewise.
pub fn delta(message: wire::Delta) -> Result<Event, Refusal> {
    let position = position(message.position)?;
    let (changed, refused) = specs(message.changed)?;
    let removed = message
        .removed_task_ids
        .iter()
        .map(|id| task_id(id))
        .collect::<Result<_, _>>()?;
    Ok(Event::Delta {
        position,
        changed,
        removed,
        refused,
    })
}

fn position(position: Option<wire::Position>) -> Result<Position, Refusal> {
    match position {
        Some(p) if !p.store_id.is_empty() => Ok(Position {
            store_id: p.store_id,
            epoch: p.epoch,
            revision: p.revision,
        }),
        _ => refuse("position", "missing, or without a store id"),
    }
}

pub fn position_to_wire(position: &Position) -> wire::Position {
    wire::Position {
        store_id: position.store_id.clone(),
        epoch: position.epoch,
        revision: position.revision,
    }
}

fn task_id(id: &str) -> Result<TaskId, Refusal> {
    id.parse()
        .map_err(|error: berth_agent_core::ids::InvalidId| Refusal {
            field: "task_id".into(),
            problem: error.to_string(),
        })
}

/// Good specs, and refusals. A spec without a usable id refuses the whole message.
fn specs(specs: Vec<wire::TaskSpec>) -> Result<(Vec<TaskSpec>, Vec<Refused>), Refusal> {
    let (mut good, mut refused) = (Vec::new(), Vec::new());
    for wire in specs {
        let id = task_id(&wire.task_id)?;
        let stopped = wire.desired_status == i32::from(wire::DesiredStatus::Stopped);
        match task_spec(wire) {
            Ok(spec) => good.push(spec),
            // What is to be stopped needs no understanding beyond its id: it never ran here.
            Err(refusal) => {
                let why = if stopped {
                    "never ran"
                } else {
                    "this node cannot run the task"
                };
                refused.push(Refused {
                    task: id,
                    stop: stopped,
                    reason: format!("{why}: {refusal}"),
                });
            }
        }
    }
    Ok((good, refused))
}

/// One task.
pub fn task_spec(wire: wire::TaskSpec) -> Result<TaskSpec, Refusal> {
    let id = task_id(&wire.task_id)?;
    if !wire.runtime.is_empty() && !crate::config::runtimes::is_name(&wire.runtime) {
        return refuse("runtime", "is not 1 to 32 of a-z, 0-9, -, _ and .");
    }
    let is_own_runtime = |feature: &str| {
        !wire.runtime.is_empty() && feature.strip_prefix(RUNTIME_PREFIX) == Some(&wire.runtime)
    };
    let unknown: Vec<_> = wire
        .required_features
        .iter()
        .filter(|f| !FEATURES.contains(&f.as_str()) && !is_own_runtime(f))
        .collect();
    if !unknown.is_empty() {
        return refuse(
            "required_features",
            format!("{unknown:?} is not known to agent {}", env!("CARGO_PKG_VERSION")),
        );
    }
    let desired = match wire::DesiredStatus::try_from(wire.desired_status) {
        Ok(wire::DesiredStatus::Running) => DesiredStatus::Running,
        Ok(wire::DesiredStatus::Stopped) => DesiredStatus::Stopped,
        _ => return refuse("desired_status", "is not RUNNING or STOPPED"),
    };
    let network = match wire::NetworkMode::try_from(wire.network_mode) {
        Ok(wire::NetworkMode::Awsvpc) => NetworkMode::Awsvpc,
        Ok(wire::NetworkMode::Host) => NetworkMode::Host,
        Ok(wire::NetworkMode::None) => NetworkMode::None,
        _ => return refuse("network_mode", "is not AWSVPC, HOST or NONE"),
    };
    let pid = match wire::PidMode::try_from(wire.pid_mode) {
        Ok(wire::PidMode::Unspecified) => PidMode::Container,
        Ok(wire::PidMode::Host) => PidMode::Host,
        _ => return refuse("pid_mode", "is not HOST, or absent"),
    };
    let ipc = match wire::IpcMode::try_from(wire.ipc_mode) {
        Ok(wire::IpcMode::Unspecified) => IpcMode::Container,
        Ok(wire::IpcMode::Host) => IpcMode::Host,
        Ok(wire::IpcMode::None) => IpcMode::None,
        _ => return refuse("ipc_mode", "is not HOST or NONE, or absent"),
    };
    let limits = wire.limits.unwrap_or_default();
    if limits.cpu_units > CPU_UNITS_MAX {
        return refuse(
            "limits.cpu_units",
            format!("{} is above {CPU_UNITS_MAX}", limits.cpu_units),
        );
    }
    let containers = containers(wire.containers)?;
    let volumes = volumes::volumes(wire.volumes)?;
    volumes::are_mounted(&volumes, &containers)?;
    if matches!(ipc, IpcMode::Host | IpcMode::None)
        && containers.iter().any(|c| c.linux.shared_memory_bytes != 0)
    {
        return refuse(
            "linux.shared_memory_bytes",
            "there is no /dev/shm of the container's own",
        );
    }
    Ok(TaskSpec {
        id,
        arn: wire.task_arn,
        cluster: wire.cluster,
        family: wire.family,
        revision: wire.revision,
        desired,
        network,
        pid,
        ipc,
        limits: Limits {
            cpu_units: limits.cpu_units,
            memory_bytes: limits.memory_bytes,
        },
        charge: Limits {
            cpu_units: wire.charged_cpu_units,
            memory_bytes: wire.charged_memory_bytes,
        },
        containers,
        restart_after_reboot: wire.restart_after_reboot,
        stop_reason: wire.stop_reason,
        created_at: Millis(wire.created_at_ms),
        volumes,
        runtime: wire.runtime,
    })
}

fn containers(wire: Vec<wire::ContainerSpec>) -> Result<Vec<ContainerSpec>, Refusal> {
    if !(1..=CONTAINERS_PER_TASK_MAX).contains(&wire.len()) {
        return refuse(
            "containers",
            format!("{} is not 1 to {CONTAINERS_PER_TASK_MAX}", wire.len()),
        );
    }
    let convert = |(i, c)| {
        container(c).map_err(|r: Refusal| Refusal {
            field: format!("containers[{i}].{}", r.field),
            ..r
        })
    };
    let containers: Vec<ContainerSpec> = wire
        .into_iter()
        .enumerate()
        .map(convert)
        .collect::<Result<_, _>>()?;
    let names: BTreeSet<_> = containers.iter().map(|c| &c.name).collect();
    let ids: BTreeSet<_> = containers.iter().map(|c| &c.id).collect();
    if names.len() != containers.len() || ids.len() != containers.len() {
        return refuse("containers", "names and ids must be unique");
    }
    if !containers.iter().any(|c| c.essential) {
        return refuse("containers", "none is essential");
    }
    volumes::sources_exist(&containers)?;
    dependencies_end(&containers)?;
    health::dependencies(&containers)?;
    Ok(containers)
}

/// Every dependency names another container, and none waits for itself by way of others, or of their volumes.
fn dependencies_end(containers: &[ContainerSpec]) -> Result<(), Refusal> {
    let names: BTreeSet<&str> = containers.iter().map(|c| c.name.as_str()).collect();
    let mut settled: BTreeSet<&str> = BTreeSet::new();
    for container in containers {
        if let Some(missing) = container
            .depends_on
            .iter()
            .find(|d| !names.contains(d.container.as_str()))
        {
            return refuse(
                "depends_on",
                format!("no container is named {:?}", missing.container),
            );
        }
    }
    while settled.len() < containers.len() {
        let free = |c: &&ContainerSpec| {
            let on = c.depends_on.iter().map(|d| &d.container);
            let from = c.volumes.from.iter().map(|f| &f.container);
            on.chain(from).all(|name| settled.contains(name.as_str()))
        };
        let next: Vec<_> = containers
            .iter()
            .filter(|c| !settled.contains(c.name.as_str()))
            .filter(free)
            .map(|c| c.name.as_str())
            .collect();
        if next.is_empty() {
            let stuck: Vec<_> = names.difference(&settled).collect();
            return refuse("depends_on", format!("{stuck:?} wait for each other"));
        }
        settled.extend(next);
    }
    Ok(())
}

fn container(wire: wire::ContainerSpec) -> Result<ContainerSpec, Refusal> {
    let id = wire
        .container_id
        .parse()
        .map_err(|error: berth_agent_core::ids::InvalidId| Refusal {
            field: "container_id".into(),
            problem: error.to_string(),
        })?;
    if !is_name(&wire.name) {
        return refuse(
            "name",
            format!("{:?} is not 1 to 255 of A-Z, a-z, 0-9, - and _", wire.name),
        );
    }
    if wire.image.is_empty() || wire.image.len() > 4096 {
        return refuse("image", "is empty or longer than 4096 bytes");
    }
    for (field, count) in [
        ("entry_point", wire.entry_point.len()),
        ("command", wire.command.len()),
        ("environment", wire.environment.len()),
        ("depends_on", wire.depends_on.len()),
        ("ports", wire.ports.len()),
        ("labels", wire.labels.len()),
        ("ulimits", wire.ulimits.len()),
    ] {
        if count > ENTRIES_MAX {
            return refuse(field, format!("{count} entries are more than {ENTRIES_MAX}"));
        }
    }
    for (field, ms) in [
        ("stop_timeout_ms", wire.stop_timeout_ms),
        ("start_timeout_ms", wire.start_timeout_ms),
    ] {
        if !(1..=STOP_TIMEOUT_MS_MAX).contains(&ms) {
            return refuse(field, format!("{ms} is not 1 to {STOP_TIMEOUT_MS_MAX}"));
        }
    }
    let environment = wire
        .environment
        .into_iter()
        .map(environment)
        .collect::<Result<_, _>>()?;
    Ok(ContainerSpec {
        id,
        name: wire.name,
        image: wire.image,
        image_digest: image_digest(wire.image_digest)?,
        entry_point: wire.entry_point,
        command: wire.command,
        environment,
        working_directory: wire.working_directory,
        user: wire.user,
        cpu_units: wire.cpu_units,
        memory_bytes: wire.memory_bytes,
        memory_reservation_bytes: wire.memory_reservation_bytes,
        essential: wire.essential,
        depends_on: wire
            .depends_on
            .into_iter()
            .map(dependency)
            .collect::<Result<_, _>>()?,
        stop_timeout_ms: wire.stop_timeout_ms,
        start_timeout_ms: wire.start_timeout_ms,
        ports: wire.ports.iter().map(port).collect::<Result<_, _>>()?,
        labels: wire.labels.into_iter().collect(),
        readonly_root_filesystem: wire.readonly_root_filesystem,
        ulimits: wire
            .ulimits
            .into_iter()
            .map(|u| Ulimit {
                name: u.name,
                soft: u.soft,
                hard: u.hard,
            })
            .collect(),
        log: log(wire.log)?,
        linux: linux::options(wire.linux.unwrap_or_default())?,
        pseudo_terminal: wire.pseudo_terminal,
        restart: wire.restart_policy.map(restart_policy).transpose()?,
        health_check: wire.health_check.map(health::check).transpose()?,
        networking: networking::networking(wire.networking.unwrap_or_default())?,
        volumes: volumes::of_container(wire.mount_points, wire.volumes_from)?,
    })
}

fn restart_policy(wire: wire::RestartPolicy) -> Result<RestartPolicy, Refusal> {
    if wire.ignored_exit_codes.len() > IGNORED_EXIT_CODES_MAX
        || wire
            .ignored_exit_codes
            .iter()
            .any(|code| !(0..=255).contains(code))
    {
        let bound = format!("are more than {IGNORED_EXIT_CODES_MAX}, or not 0 to 255");
        return refuse("restart_policy.ignored_exit_codes", bound);
    }
    if !RESTART_PERIOD_MS.contains(&wire.attempt_period_ms) {
        let bound = format!("{} is not 60000 to 1800000", wire.attempt_period_ms);
        return refuse("restart_policy.attempt_period_ms", bound);
    }
    Ok(RestartPolicy {
        ignored_exit_codes: wire.ignored_exit_codes,
        attempt_period_ms: wire.attempt_period_ms,
    })
}

/// ECS's rule for names, which makes them safe in paths too.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=255).contains(&name.len()) && name.bytes().all(plain)
}

/// Empty, or the SHA-256 of a manifest: it becomes a part of the reference.
fn image_digest(digest: String) -> Result<String, Refusal> {
    let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if digest.is_empty() || digest.strip_prefix("sha256:").is_some_and(hex) {
        return Ok(digest);
    }
    Err(Refusal {
        field: "image_digest".into(),
        problem: format!(
            "{:?} is not sha256: and 64 hexadecimal digits",
            digest.chars().take(80).collect::<String>()
        ),
    })
}

fn environment(pair: wire::KeyValue) -> Result<(String, String), Refusal> {
    if pair.key.is_empty() || pair.key.contains(['=', '\0']) || pair.value.contains('\0') {
        return refuse(
            "environment",
            format!("{:?} is not a usable name or has a NUL in its value", pair.key),
        );
    }
    Ok((pair.key, pair.value))
}

fn dependency(wire: wire::Dependency) -> Result<Dependency, Refusal> {
    let condition = match wire::DependencyCondition::try_from(wire.condition) {
        Ok(wire::DependencyCondition::Start) => Condition::Start,
        Ok(wire::DependencyCondition::Complete) => Condition::Complete,
        Ok(wire::DependencyCondition::Success) => Condition::Success,
        Ok(wire::DependencyCondition::Healthy) => Condition::Healthy,
        _ => {
            return refuse(
                "depends_on.condition",
                "is not START, COMPLETE, SUCCESS or HEALTHY",
            );
        }
    };
    Ok(Dependency {
        container: wire.container_name,
        condition,
    })
}

fn port(wire: &wire::PortMapping) -> Result<PortMapping, Refusal> {
    let number = |field: &str, port: u32| match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => refuse(format!("ports.{field}"), format!("{port} is not 1 to 65535")),
    };
    let protocol = match wire::Protocol::try_from(wire.protocol) {
        Ok(wire::Protocol::Tcp) => Protocol::Tcp,
        Ok(wire::Protocol::Udp) => Protocol::Udp,
        _ => return refuse("ports.protocol", "is not TCP or UDP"),
    };
    let container_port = number("container_port", wire.container_port)?;
    Ok(PortMapping {
        container_port,
        host_port: number("host_port", wire.host_port)?,
        protocol,
    })
}

fn log(wire: Option<wire::LogSpec>) -> Result<LogSpec, Refusal> {
    let Some(log) = wire else {
        return refuse("log", "missing");
    };
    if log.max_size_bytes < LOG_FILE_BYTES_MIN || !(1..=LOG_FILES_MAX).contains(&log.max_files) {
        return refuse(
            "log",
            format!("needs at least {LOG_FILE_BYTES_MIN} bytes and 1 to {LOG_FILES_MAX} files"),
        );
    }
    if log.max_buffer_bytes > LOG_BUFFER_BYTES_MAX {
        return refuse(
            "log",
            format!("a buffer of more than {LOG_BUFFER_BYTES_MAX} bytes"),
        );
    }
    Ok(LogSpec {
        max_size_bytes: log.max_size_bytes,
        max_files: log.max_files,
        blocking: log.blocking,
        max_buffer_bytes: log.max_buffer_bytes,
    })
}

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
    };
    let task = wire::TaskState {
        task_id: report.task.id.to_string(),
        status: status(facts.status).into(),
        stop_code: stop_code.into(),
        stopped_reason,
        waiting_reason: facts.waiting.clone().unwrap_or_default(),
        ipv4_address: facts.address.map(|a| a.to_string()).unwrap_or_default(),
        mac_address: facts.mac_address.clone().unwrap_or_default(),
        pull_started_at_ms: ms(times.pull_started),
        pull_stopped_at_ms: ms(times.pull_stopped),
        started_at_ms: ms(times.started),
        stopping_at_ms: ms(times.stopping),
        execution_stopped_at_ms: ms(times.execution_stopped),
        stopped_at_ms: ms(times.stopped),
        containers: facts.containers.iter().map(container).collect(),
        warnings: vec![],
    };
    wire::StateChange {
        sequence: report.sequence,
        task: Some(task),
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

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
