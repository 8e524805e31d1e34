//! Owns the border between the wire and the core: the only module that sees both. Checks every bound of what it is
//! sent; refuses by name what this agent does not know. Never repairs.

mod containers;
mod environment;
mod features;
mod health;
mod lan;
mod linux;
mod names;
mod network;
mod networking;
mod report;
mod volumes;

use berth_agent_core::{
    desired::{
        ContainerSpec, DesiredStatus, IpcMode, Limits, MANAGED_TAGS_MAX, Millis, NetworkMode, PidMode,
        Position, TAGS_MAX, TaskSpec,
    },
    event::{Event, Refused},
    ids::TaskId,
};
use berth_proto::node::v1 as wire;

pub use features::{
    APPARMOR, FEATURES, INIT, INTERACTIVE, IPC_TASK, MAX_SWAP, PID_TASK, RUNTIME_PREFIX, SWAPPINESS,
    VOLUMES_NFS,
};
pub(crate) use lan::is_link_name;
pub use names::names;
pub use network::network;
pub use report::{state_change, status};

use containers::{containers, is_name};

const ENTRIES_MAX: usize = 1_000;
const EPHEMERAL_STORAGE_BYTES_MAX: u64 = 1 << 40;
const GROUP_CHARS_MAX: usize = 255;
const CPU_UNITS_MAX: u32 = 1_024 * 1_024;
/// Of one task, each of a range counted.
const PORTS_MAX: u32 = 1_000;

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

/// What the host's ports are for; a range must fit in them.
fn check_ports(network: NetworkMode, containers: &[ContainerSpec]) -> Result<(), Refusal> {
    let mut count = 0;
    for mapping in containers.iter().flat_map(|container| &container.ports) {
        count += mapping.count();
        let last = u32::from(mapping.host_port) + mapping.count() - 1;
        match mapping.host_port {
            0 if network != NetworkMode::Bridge => {
                return refuse("containers.ports.host_port", "0 is not 1 to 65535");
            }
            port if last > u32::from(u16::MAX) => {
                return refuse(
                    "containers.ports.host_port",
                    format!("{port} and what follows is above 65535"),
                );
            }
            _ => {}
        }
    }
    if count > PORTS_MAX {
        return refuse(
            "containers.ports",
            format!("{count} ports, the limit is {PORTS_MAX}"),
        );
    }
    Ok(())
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
        Ok(wire::NetworkMode::Bridge) => NetworkMode::Bridge,
        _ => return refuse("network_mode", "is not AWSVPC, BRIDGE, HOST or NONE"),
    };
    let pid = match wire::PidMode::try_from(wire.pid_mode) {
        Ok(wire::PidMode::Unspecified) => PidMode::Container,
        Ok(wire::PidMode::Host) => PidMode::Host,
        Ok(wire::PidMode::Task) => PidMode::Task,
        _ => return refuse("pid_mode", "is not HOST or TASK, or absent"),
    };
    let ipc = match wire::IpcMode::try_from(wire.ipc_mode) {
        Ok(wire::IpcMode::Unspecified) => IpcMode::Container,
        Ok(wire::IpcMode::Host) => IpcMode::Host,
        Ok(wire::IpcMode::None) => IpcMode::None,
        Ok(wire::IpcMode::Task) => IpcMode::Task,
        _ => return refuse("ipc_mode", "is not HOST, TASK or NONE, or absent"),
    };
    let limits = wire.limits.unwrap_or_default();
    if limits.cpu_units > CPU_UNITS_MAX {
        return refuse(
            "limits.cpu_units",
            format!("{} is above {CPU_UNITS_MAX}", limits.cpu_units),
        );
    }
    if wire.ephemeral_storage_bytes > EPHEMERAL_STORAGE_BYTES_MAX {
        let problem = format!(
            "{} is above {EPHEMERAL_STORAGE_BYTES_MAX}",
            wire.ephemeral_storage_bytes
        );
        return refuse("ephemeral_storage_bytes", problem);
    }
    let tags = wire.tags.keys().filter(|key| !key.starts_with("aws:")).count();
    if tags > TAGS_MAX || wire.tags.len() > TAGS_MAX + MANAGED_TAGS_MAX {
        return refuse("tags", format!("{} are more than {TAGS_MAX}", wire.tags.len()));
    }
    if wire.group.chars().count() > GROUP_CHARS_MAX {
        return refuse("group", format!("is above {GROUP_CHARS_MAX} characters"));
    }
    let containers = containers(wire.containers)?;
    check_ports(network, &containers)?;
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
    let (subnet, lan) = (network::task_subnet(&wire.subnet_id)?, lan::lan(wire.lan)?);
    if lan.is_some() && (network != NetworkMode::Awsvpc || subnet.is_none() || wire.publish_ports) {
        return refuse(
            "lan",
            "is for a task in awsvpc mode, in a subnet, with no published port",
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
        subnet,
        lan,
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
        ephemeral_storage_bytes: wire.ephemeral_storage_bytes,
        publish_ports: wire.publish_ports,
        launch_type: wire.launch_type,
        group: wire.group,
        tags: wire.tags.into_iter().collect(),
    })
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
