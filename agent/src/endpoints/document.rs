//! Owns the form of metadata: that of ECS's task metadata endpoint, version 4, of which version 3 is a part. What has no meaning
//! on a node of one's own (availability zone, VPC, ENI attachment ids) is left out.

use berth_agent_core::{
    addresses::Range,
    desired::{ContainerSpec, DesiredStatus, LogSpec, NetworkMode, PortMapping, Protocol},
    ids::{ContainerId, runtime_id as name_of_attempt},
    ports::Binding,
    report::ContainerState,
    task::Task,
};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::on_host::{Found, OfContainer};
use crate::{
    effects::network::{GATEWAY, GATEWAY_IPV6},
    introspection::status,
};

const MIB: u64 = 1 << 20;
/// CPU units of one CPU.
const CPU_UNITS: f64 = 1024.0;
/// Nanoseconds in a millisecond.
const MS_NS: i128 = 1_000_000;

/// What a document is made of besides the task.
#[derive(Clone, Debug, Default)]
pub(super) struct Context {
    /// Where the task's address comes from.
    pub(super) range: Option<Range>,
    pub(super) found: Found,
}

/// The runtime's name of a container's latest attempt; None before the first.
pub(super) fn runtime_id(task: &Task, container: &ContainerId) -> Option<String> {
    let known = task.container(container);
    known.attempted.then(|| name_of_attempt(container, known.attempt))
}

/// None: the task has no such container.
pub(super) fn container(task: &Task, id: &ContainerId, context: &Context) -> Option<Value> {
    let state = task.state();
    let states = task.spec.containers.iter().zip(&state.facts.containers);
    states
        .filter(|(spec, _)| spec.id == *id)
        .map(|(spec, state)| of_container(task, spec, state, context))
        .next()
}

pub(super) fn task(task: &Task, context: &Context) -> Value {
    let spec = &task.spec;
    let state = task.state();
    let times = &state.times;
    let containers: Vec<Value> = spec
        .containers
        .iter()
        .zip(&state.facts.containers)
        .map(|(spec, state)| of_container(task, spec, state, context))
        .collect();
    let mut limits = Map::new();
    if spec.limits.cpu_units > 0 {
        limits.insert("CPU".into(), json!(f64::from(spec.limits.cpu_units) / CPU_UNITS));
    }
    if spec.limits.memory_bytes > 0 {
        limits.insert("Memory".into(), json!(spec.limits.memory_bytes / MIB));
    }
    let mut document = Map::from_iter([
        ("Cluster".to_owned(), json!(spec.cluster)),
        ("TaskARN".to_owned(), json!(spec.arn)),
        ("Family".to_owned(), json!(spec.family)),
        ("Revision".to_owned(), json!(spec.revision.to_string())),
        ("DesiredStatus".to_owned(), json!(desired(spec.desired))),
        ("KnownStatus".to_owned(), json!(status(state.facts.status))),
        ("Containers".to_owned(), containers.into()),
        ("FaultInjectionEnabled".to_owned(), json!(false)),
    ]);
    if !limits.is_empty() {
        document.insert("Limits".into(), limits.into());
    }
    for (name, text) in [("LaunchType", &spec.launch_type), ("Group", &spec.group)] {
        if !text.is_empty() {
            document.insert(name.into(), json!(text));
        }
    }
    if let Some(written) = context.found.written {
        let reserved = spec.ephemeral_storage_bytes / MIB;
        let metrics = json!({"Utilized": written / MIB, "Reserved": reserved});
        document.insert("EphemeralStorageMetrics".into(), metrics);
    }
    for (name, at) in [
        ("PullStartedAt", times.pull_started),
        ("PullStoppedAt", times.pull_stopped),
        ("ExecutionStoppedAt", times.execution_stopped),
    ] {
        if let Some(text) = at.and_then(|at| rfc3339(at.0)) {
            document.insert(name.into(), text.into());
        }
    }
    document.into()
}

/// With the tags that it had when it was made: the node is told of no later ones. Those of the node stay with the control
/// plane, which is said in the way ECS says that it could not get them.
pub(super) fn task_with_tags(of: &Task, context: &Context) -> Value {
    let mut document = task(of, context);
    document["TaskTags"] = json!(of.spec.tags);
    document["Errors"] = json!([{
        "ErrorField": "ContainerInstanceTags",
        "ErrorCode": "NotAvailable",
        "ErrorMessage": "a node is not told of its own tags: ask ListTagsForResource",
        "StatusCode": 404,
        "ResourceARN": of.spec.arn,
    }]);
    document
}

fn of_container(task: &Task, spec: &ContainerSpec, state: &ContainerState, context: &Context) -> Value {
    let nothing = OfContainer::default();
    let found = context.found.containers.get(&spec.id).unwrap_or(&nothing);
    let runtime_id = state.runtime_id.clone().unwrap_or_default();
    let mut document = Map::from_iter([
        ("DockerId".to_owned(), json!(runtime_id)),
        ("Name".to_owned(), json!(spec.name)),
        ("DockerName".to_owned(), json!(runtime_id)),
        ("Image".to_owned(), json!(spec.image)),
        (
            "ImageID".to_owned(),
            json!(state.image_digest.clone().unwrap_or_default()),
        ),
        ("Labels".to_owned(), labels(task, spec)),
        ("DesiredStatus".to_owned(), json!(desired(task.spec.desired))),
        ("KnownStatus".to_owned(), json!(status(state.status))),
        (
            "Limits".to_owned(),
            json!({"CPU": spec.cpu_units, "Memory": spec.memory_bytes / MIB}),
        ),
        ("Type".to_owned(), json!("NORMAL")),
        ("ContainerARN".to_owned(), json!(arn(&task.spec.arn, &spec.id))),
        (
            "LogDriver".to_owned(),
            json!(if spec.log.discard { "none" } else { "json-file" }),
        ),
    ]);
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            document.insert(name.into(), value);
        }
    };
    add("ExitCode", state.exit_code.map(Value::from));
    // ECS has a time of creation, too: here a container is created when it starts.
    let started = state.started.and_then(|at| rfc3339(at.0));
    add("CreatedAt", started.clone().map(Value::from));
    add("StartedAt", started.map(Value::from));
    let finished = state.finished.and_then(|at| rfc3339(at.0));
    add("FinishedAt", finished.map(Value::from));
    if spec.restart.is_some() {
        add("RestartCount", Some(state.restart_count.into()));
    }
    add("Health", health(task, spec, state));
    add("Ports", ports(task, spec));
    add("LogOptions", log_options(&spec.log));
    let snapshotter = &context.found.snapshotter;
    add(
        "Snapshotter",
        (!snapshotter.is_empty()).then(|| json!(snapshotter)),
    );
    add("Volumes", volumes(found));
    let network = (!spec.networking.disabled).then(|| network(task, spec, found, context));
    add("Networks", network.map(|network| json!([network])));
    document.into()
}

fn desired(status: DesiredStatus) -> &'static str {
    match status {
        DesiredStatus::Running => "RUNNING",
        DesiredStatus::Stopped => "STOPPED",
    }
}

/// The definition's, and those that the ECS agent gives every container.
fn labels(task: &Task, spec: &ContainerSpec) -> Value {
    let mut labels: Map<String, Value> = spec
        .labels
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let own = &task.spec;
    for (name, value) in [
        ("cluster", own.cluster.clone()),
        ("container-name", spec.name.clone()),
        ("task-arn", own.arn.clone()),
        ("task-definition-family", own.family.clone()),
        ("task-definition-version", own.revision.to_string()),
    ] {
        labels.insert(format!("com.amazonaws.ecs.{name}"), value.into());
    }
    labels.into()
}

/// As the control plane forms it from the same parts.
fn arn(task: &str, container: &ContainerId) -> String {
    format!("{}/{container}", task.replacen(":task/", ":container/", 1))
}

fn health(task: &Task, spec: &ContainerSpec, state: &ContainerState) -> Option<Value> {
    let health = state.health.as_ref()?;
    let latest = task.container(&spec.id).health.latest();
    let mut document = Map::from_iter([("status".to_owned(), json!(health.status.as_str()))]);
    if let Some(since) = health.since.and_then(|at| rfc3339(at.0)) {
        document.insert("statusSince".into(), since.into());
    }
    if let Some(code) = latest.and_then(|outcome| outcome.exit_code) {
        document.insert("exitCode".into(), code.into());
    }
    if let Some(outcome) = latest {
        document.insert("output".into(), outcome.output.clone().into());
    }
    Some(document.into())
}

/// Of a range, each. Where the host's lead to it, those; else its own.
fn ports(task: &Task, spec: &ContainerSpec) -> Option<Value> {
    let port = |protocol: Protocol, inside: u16, outside: u16| json!({"ContainerPort": inside, "HostPort": outside, "Protocol": protocol.as_str()});
    let bound = |binding: &Binding| {
        let protocol = binding.protocol;
        let all = binding.ports().map(move |(outside, inside)| {
            let mut one = port(protocol, inside, outside);
            one["HostIp"] = "0.0.0.0".into();
            one
        });
        all.collect::<Vec<_>>()
    };
    let own = |mapping: &PortMapping| {
        let last = mapping.last_container_port.unwrap_or(mapping.container_port);
        let outside = mapping.host_port..=u16::MAX;
        let all = (mapping.container_port..=last).zip(outside);
        all.map(|(inside, outside)| port(mapping.protocol, inside, outside))
            .collect::<Vec<_>>()
    };
    let ports: Vec<Value> = if task.spec.publishes() {
        let bindings = task
            .bindings
            .iter()
            .filter(|binding| binding.container == spec.id);
        bindings.flat_map(bound).collect()
    } else {
        spec.ports.iter().flat_map(own).collect()
    };
    (!ports.is_empty()).then(|| ports.into())
}

/// What happens, in Docker's words, whatever driver the definition names. What is added to every line may hold values of
/// variables, and stays out.
fn log_options(log: &LogSpec) -> Option<Value> {
    if log.discard {
        return None;
    }
    let mut options = Map::from_iter([
        ("max-size".to_owned(), json!(log.max_size_bytes.to_string())),
        ("max-file".to_owned(), json!(log.max_files.to_string())),
    ]);
    let mode = if log.blocking { "blocking" } else { "non-blocking" };
    options.insert("mode".into(), mode.into());
    if !log.blocking && log.max_buffer_bytes > 0 {
        options.insert("max-buffer-size".into(), json!(log.max_buffer_bytes.to_string()));
    }
    Some(options.into())
}

fn volumes(found: &OfContainer) -> Option<Value> {
    let mounts = found.mounts.iter();
    let volumes: Vec<Value> = mounts
        .map(|mount| json!({"DockerName": mount.name, "Source": mount.source, "Destination": mount.path}))
        .collect();
    (!volumes.is_empty()).then(|| volumes.into())
}

fn network(task: &Task, spec: &ContainerSpec, found: &OfContainer, context: &Context) -> Value {
    let range = context.range;
    let mode = match task.spec.network {
        NetworkMode::Awsvpc => "awsvpc",
        NetworkMode::Host => "host",
        NetworkMode::None => "none",
        NetworkMode::Bridge => "bridge",
    };
    let mut network = Map::from_iter([("NetworkMode".to_owned(), json!(mode))]);
    if let Some(address) = task.address_of(&spec.id) {
        network.insert("IPv4Addresses".into(), json!([address.ipv4.to_string()]));
        if let Some(ipv6) = address.ipv6 {
            network.insert("IPv6Addresses".into(), json!([ipv6.to_string()]));
        }
    }
    if task.address.is_some() {
        network.insert("AttachmentIndex".into(), 0.into());
        let cidr = range.map(|range| range.ipv4.to_string()).unwrap_or_default();
        network.insert("IPv4SubnetCIDRBlock".into(), cidr.into());
        if let Some(cidr) = range.and_then(|range| range.ipv6()) {
            network.insert("IPv6SubnetCIDRBlock".into(), cidr.to_string().into());
        }
        let gateway = match &task.spec.lan {
            None => Some(format!("{GATEWAY}/32")),
            Some(lan) => lan
                .gateway
                .map(|gateway| format!("{gateway}/{}", lan.network.prefix_len())),
        };
        if let Some(gateway) = gateway {
            network.insert("SubnetGatewayIpv4Address".into(), gateway.into());
        }
        if task.address.is_some_and(|own| own.ipv6.is_some()) {
            network.insert(
                "SubnetGatewayIpv6Address".into(),
                format!("{GATEWAY_IPV6}/128").into(),
            );
        }
        if let Some(name) = &context.found.name {
            network.insert("PrivateDNSName".into(), json!(name));
        }
    }
    if let Some(mac) = &task.mac_address {
        network.insert("MACAddress".into(), mac.clone().into());
    }
    let resolver = &found.resolver;
    for (name, words) in [
        ("DomainNameServers", &resolver.servers),
        ("DomainNameSearchList", &resolver.search),
    ] {
        if !words.is_empty() {
            network.insert(name.into(), json!(words));
        }
    }
    network.into()
}

/// Milliseconds since the Unix epoch, as RFC 3339 has a time.
fn rfc3339(ms: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * MS_NS).ok()?;
    time.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests;
