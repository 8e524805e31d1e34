//! Owns what the agent tells of itself as documents: field names as in ECS's introspection API where it has them
//! (`/v1/metadata`, `/v1/tasks`), the same style where it has not. Made inside the driver, so that one answer is of one
//! moment; never holds what a task's environment holds.

use berth_agent_core::{
    desired::{ContainerSpec, DesiredStatus, Millis, NetworkMode},
    node::Node,
    report::{ContainerState, Status, StopCode},
    task::Task,
};
use serde::Serialize;

/// The node at one moment.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    pub tasks: Vec<TaskView>,
    pub impairments: Vec<String>,
}

/// One task.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskView {
    pub arn: String,
    pub id: String,
    pub cluster: String,
    pub desired_status: &'static str,
    pub known_status: &'static str,
    pub family: String,
    /// The definition's revision.
    pub version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DeadlineView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// Of the task's limits, relative to the hierarchies' roots; set by who knows the layout.
    pub cgroup: String,
    /// Which of the family's tasks on this node it is, in metrics; set by who numbers them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_slot: Option<u32>,
    pub times: TimesView,
    pub containers: Vec<ContainerView>,
    /// Processes of it may be alive.
    #[serde(skip)]
    pub live: bool,
    /// Order of arrival on this node.
    #[serde(skip)]
    pub arrival: u64,
}

/// Milliseconds since the Unix epoch.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeadlineView {
    pub at: i64,
    pub then: &'static str,
}

/// Milliseconds since the Unix epoch; what did not happen is left out.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TimesView {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_started_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_stopped_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopping_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<i64>,
}

/// One container.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerView {
    /// ECS's name for the runtime's id; empty before the first attempt.
    pub docker_id: String,
    pub docker_name: String,
    pub name: String,
    pub id: String,
    pub known_status: &'static str,
    pub image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<i64>,
    /// By its restart policy.
    pub restart_count: u32,
    /// Absent: it has no health check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthView>,
    pub cgroup: String,
    pub networks: Vec<NetworkView>,
    pub ports: Vec<PortView>,
}

/// As ECS's metadata endpoint names it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthView {
    pub status: &'static str,
    /// Milliseconds since the Unix epoch. Absent: since the container's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_since: Option<i64>,
    /// Of the latest probe; absent where it was killed or could not be executed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkView {
    pub network_mode: &'static str,
    #[serde(rename = "IPv4Addresses", skip_serializing_if = "Vec::is_empty")]
    pub ipv4_addresses: Vec<String>,
    #[serde(rename = "IPv6Addresses", skip_serializing_if = "Vec::is_empty")]
    pub ipv6_addresses: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortView {
    pub container_port: u16,
    pub host_port: u16,
    pub protocol: &'static str,
}

impl NodeView {
    /// What `node` knows now.
    pub fn of(node: &Node) -> Self {
        Self {
            tasks: node.tasks().map(|task| of_task(node, task)).collect(),
            impairments: node.impairments(),
        }
    }
}

fn of_task(node: &Node, task: &Task) -> TaskView {
    let state = task.state();
    let ms = |at: Option<Millis>| at.map(|at| at.0);
    let spec = &task.spec;
    let containers = spec.containers.iter().zip(&state.facts.containers);
    let deadline = node.deadline(&spec.id);
    TaskView {
        arn: spec.arn.clone(),
        id: spec.id.to_string(),
        cluster: spec.cluster.clone(),
        desired_status: match spec.desired {
            DesiredStatus::Running => "RUNNING",
            DesiredStatus::Stopped => "STOPPED",
        },
        known_status: status(state.facts.status),
        family: spec.family.clone(),
        version: spec.revision.to_string(),
        waiting: state.facts.waiting.clone(),
        deadline: deadline.map(|deadline| DeadlineView {
            at: deadline.at.0,
            then: deadline.then,
        }),
        stop_code: state.facts.stop.as_ref().map(|(code, _)| stop_code(*code)),
        stopped_reason: state.facts.stop.as_ref().map(|(_, reason)| reason.clone()),
        mac_address: state.facts.mac_address.clone(),
        cgroup: String::new(),
        metrics_slot: None,
        times: TimesView {
            pull_started_at: ms(state.times.pull_started),
            pull_stopped_at: ms(state.times.pull_stopped),
            started_at: ms(state.times.started),
            stopping_at: ms(state.times.stopping),
            stopped_at: ms(state.times.stopped),
        },
        containers: containers
            .map(|(spec, state)| of_container(task, spec, state))
            .collect(),
        live: task.may_have_process(),
        arrival: task.arrival,
    }
}

fn of_container(task: &Task, spec: &ContainerSpec, state: &ContainerState) -> ContainerView {
    let docker_id = state.runtime_id.clone().unwrap_or_default();
    let network_mode = match task.spec.network {
        NetworkMode::Awsvpc => "awsvpc",
        NetworkMode::Host => "host",
        NetworkMode::None => "none",
        NetworkMode::Bridge => "bridge",
    };
    let port = |port: &berth_agent_core::desired::PortMapping| {
        let bound = task.bindings.iter().find(|bound| {
            bound.container == spec.id
                && (bound.container_port, bound.protocol) == (port.container_port, port.protocol)
        });
        PortView {
            container_port: port.container_port,
            host_port: bound.map_or(port.host_port, |bound| bound.host_port),
            protocol: port.protocol.as_str(),
        }
    };
    let address = task.address_of(&spec.id);
    ContainerView {
        docker_name: docker_id.clone(),
        docker_id,
        name: spec.name.clone(),
        id: spec.id.to_string(),
        known_status: status(state.status),
        image: spec.image.clone(),
        image_digest: state.image_digest.clone(),
        pid: state.pid,
        exit_code: state.exit_code,
        reason: state.reason.clone(),
        started_at: state.started.map(|at| at.0),
        finished_at: state.finished.map(|at| at.0),
        restart_count: state.restart_count,
        health: state.health.as_ref().map(|health| {
            let latest = task.container(&spec.id).health.latest();
            HealthView {
                status: health.status.as_str(),
                status_since: health.since.map(|at| at.0),
                exit_code: latest.and_then(|outcome| outcome.exit_code),
                output: latest.map(|outcome| outcome.output.clone()),
            }
        }),
        cgroup: String::new(),
        networks: vec![NetworkView {
            network_mode,
            ipv4_addresses: address.iter().map(|address| address.ipv4.to_string()).collect(),
            ipv6_addresses: address
                .iter()
                .filter_map(|address| address.ipv6)
                .map(|ipv6| ipv6.to_string())
                .collect(),
        }],
        ports: spec.ports.iter().map(port).collect(),
    }
}

/// As ECS says it.
pub fn status(status: Status) -> &'static str {
    match status {
        Status::Pending => "PENDING",
        Status::Running => "RUNNING",
        Status::Stopping => "STOPPING",
        Status::Deprovisioning => "DEPROVISIONING",
        Status::Stopped => "STOPPED",
    }
}

fn stop_code(code: StopCode) -> &'static str {
    match code {
        StopCode::TaskFailedToStart => "TaskFailedToStart",
        StopCode::EssentialContainerExited => "EssentialContainerExited",
        StopCode::UserInitiated => "UserInitiated",
        // ECS has no such code; the reason says it.
        StopCode::HostRestarted => "EssentialContainerExited",
    }
}
