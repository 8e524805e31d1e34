//! Owns a task's containers at the border: their bounds, alone and among each other.

use std::collections::BTreeSet;

use berth_agent_core::{
    cdi::{DeviceName, InvalidName},
    desired::{
        CONTAINERS_PER_TASK_MAX, Condition, ContainerSpec, Dependency, LogSpec, PortMapping, Protocol,
        RestartPolicy, Ulimit,
    },
};
use berth_proto::node::v1 as wire;

use super::{ENTRIES_MAX, Refusal, environment, health, linux, networking, refuse, volumes};

const STOP_TIMEOUT_MS_MAX: u32 = 86_400_000;
const IGNORED_EXIT_CODES_MAX: usize = 50;
/// A minute to half an hour, as in ECS.
const RESTART_PERIOD_MS: std::ops::RangeInclusive<u32> = 60_000..=1_800_000;
/// GPUs of one container.
const GPUS_MAX: usize = 64;
const LOG_FILES_MAX: u32 = 1_000;
const LOG_FILE_BYTES_MIN: u64 = 4096;
const LOG_BUFFER_BYTES_MAX: u64 = 256 << 20;
/// They are in every line, and among the arguments of the container's logger.
const LOG_ATTRIBUTES_BYTES_MAX: usize = 16 << 10;

pub(super) fn containers(wire: Vec<wire::ContainerSpec>) -> Result<Vec<ContainerSpec>, Refusal> {
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
    let mut gpus = BTreeSet::new();
    if let Some(twice) = containers
        .iter()
        .flat_map(|c| &c.gpus)
        .find(|gpu| !gpus.insert(*gpu))
    {
        return refuse("gpu_ids", format!("{twice} is given twice"));
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
    Ok(ContainerSpec {
        id,
        name: wire.name,
        image: wire.image,
        image_digest: image_digest(wire.image_digest)?,
        entry_point: wire.entry_point,
        command: wire.command,
        environment: environment::variables("environment", wire.environment)?,
        environment_files: environment::files(wire.environment_files)?,
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
        interactive: wire.interactive,
        restart: wire.restart_policy.map(restart_policy).transpose()?,
        health_check: wire.health_check.map(health::check).transpose()?,
        gpus: gpus(&wire.gpu_ids)?,
        networking: networking::networking(wire.networking.unwrap_or_default())?,
        volumes: volumes::of_container(wire.mount_points, wire.volumes_from)?,
    })
}

fn gpus(ids: &[String]) -> Result<Vec<DeviceName>, Refusal> {
    if ids.len() > GPUS_MAX {
        return refuse(
            "gpu_ids",
            format!("{} entries are more than {GPUS_MAX}", ids.len()),
        );
    }
    let name = |id: &String| {
        id.parse().map_err(|error: InvalidName| Refusal {
            field: "gpu_ids".into(),
            problem: error.to_string(),
        })
    };
    ids.iter().map(name).collect()
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
pub(super) fn is_name(name: &str) -> bool {
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
    let number = |field: &str, port: u32, least: u16| match u16::try_from(port) {
        Ok(port) if port >= least => Ok(port),
        _ => refuse(
            format!("ports.{field}"),
            format!("{port} is not {least} to 65535"),
        ),
    };
    let protocol = match wire::Protocol::try_from(wire.protocol) {
        Ok(wire::Protocol::Tcp) => Protocol::Tcp,
        Ok(wire::Protocol::Udp) => Protocol::Udp,
        _ => return refuse("ports.protocol", "is not TCP or UDP"),
    };
    let container_port = number("container_port", wire.container_port, 1)?;
    let last_container_port = match wire.last_container_port {
        0 => None,
        last => Some(number("last_container_port", last, container_port)?),
    };
    Ok(PortMapping {
        container_port,
        // Whether it may be zero is a question of the mode.
        host_port: number("host_port", wire.host_port, 0)?,
        protocol,
        last_container_port,
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
    let bytes: usize = log
        .attributes
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > LOG_ATTRIBUTES_BYTES_MAX
        || log
            .attributes
            .iter()
            .any(|(name, value)| (name.clone() + value).contains('\0'))
    {
        return refuse(
            "log.attributes",
            format!("{bytes} bytes are more than {LOG_ATTRIBUTES_BYTES_MAX}, or there is a NUL"),
        );
    }
    Ok(LogSpec {
        max_size_bytes: log.max_size_bytes,
        max_files: log.max_files,
        blocking: log.blocking,
        max_buffer_bytes: log.max_buffer_bytes,
        discard: log.discard,
        attributes: log.attributes.into_iter().collect(),
    })
}
