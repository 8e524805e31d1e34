//! Owns the operations on container instances, which is what ECS calls nodes. Never talks to one.

use std::collections::BTreeSet;

use berth_control_plane_core::{
    expression::Expression,
    placement::{Allocation, NodeView},
};
use serde_json::{Value, json};

use super::{
    context::{Api, Caller, now_ms, seconds},
    error::ApiError,
    fields::Fields,
    node_view, nodes,
    paging::Paging,
    records, tags,
    tasks::{
        counts::{self, Running},
        stop,
    },
};
use crate::{
    model::{Attributes, Node, keys},
    store::typed::Versioned,
    subnets::settle,
};

const DESCRIBE_MAX: usize = 100;
const UPDATE_MAX: usize = 10;
const STATUSES: [&str; 5] = [
    "ACTIVE",
    "DRAINING",
    "REGISTERING",
    "DEREGISTERING",
    "REGISTRATION_FAILED",
];
const MIB: u64 = 1 << 20;

pub(super) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let filter = input.string("filter")?.filter(|filter| !filter.is_empty());
    let status = input.choice("status", &STATUSES)?;
    let paging = Paging::take(&mut input, "ListContainerInstances")?;
    input.finish()?;
    let filter = filter.map(|text| Expression::parse(&text)).transpose();
    let filter = filter.map_err(|error| ApiError::field("filter", error))?;
    let cluster = records::active_cluster(api, cluster.as_deref()).await?;
    let keep = |node: Node| {
        let listed = status.map_or(node.status != "INACTIVE", |status| node.status == status);
        let view = node_view::view(&node)?;
        let wanted = listed
            && filter
                .as_ref()
                .is_none_or(|filter| node_view::matches(filter, &view));
        Ok(wanted.then(|| api.realm.container_instance(&cluster, &node.id)))
    };
    Ok(paging
        .walk(api, &keys::nodes(&cluster), keep)
        .await?
        .respond("containerInstanceArns"))
}

pub(super) async fn describe(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let named = input.required_strings("containerInstances", DESCRIBE_MAX)?;
    let include = input.choices("include", &["TAGS", "CONTAINER_INSTANCE_HEALTH"])?;
    input.finish()?;
    let cluster = records::active_cluster(api, cluster.as_deref()).await?;
    let counts = counts::of(api, &cluster).await?;
    let (mut instances, mut failures) = (Vec::new(), Vec::new());
    for reference in named {
        let id = api.realm.container_instance_id(&cluster, &reference)?;
        match records::get::<Node>(api, &keys::node(&cluster, &id)).await? {
            Some(node) => instances.push(respond(api, &node, counts.node(&id), &include)?),
            None => failures.push(missing(api, &cluster, &id)),
        }
    }
    Ok(json!({"containerInstances": instances, "failures": failures}))
}

/// DRAINING keeps new tasks away, ACTIVE lets them in again; running tasks stay as they are.
pub(super) async fn update_state(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let named = input.required_strings("containerInstances", UPDATE_MAX)?;
    let status = input
        .choice("status", &STATUSES)?
        .ok_or_else(|| ApiError::field("status", "is required"))?;
    input.finish()?;
    if !matches!(status, "ACTIVE" | "DRAINING") {
        let problem = format!("'{status}' cannot be set: use ACTIVE or DRAINING");
        return Err(ApiError::field("status", problem));
    }
    let cluster = records::active_cluster(api, cluster.as_deref()).await?;
    let ids: Vec<String> = named
        .iter()
        .map(|named| api.realm.container_instance_id(&cluster, named))
        .collect::<Result<_, _>>()?;
    let counts = counts::of(api, &cluster).await?;
    let (mut instances, mut failures) = (Vec::new(), Vec::new());
    for id in ids {
        let changed = records::change(api, &keys::node(&cluster, &id), |node: &mut Node| {
            if node.status != "INACTIVE" {
                node.status = status.to_owned();
            }
            Ok(())
        })
        .await?;
        match changed {
            Some(node) if node.value.status == status => {
                instances.push(respond(api, &node, counts.node(&id), &[])?);
            }
            Some(_) => {
                let arn = api.realm.container_instance(&cluster, &id);
                failures.push(json!({"arn": arn, "reason": "INACTIVE"}));
            }
            None => failures.push(missing(api, &cluster, &id)),
        }
    }
    Ok(json!({"containerInstances": instances, "failures": failures}))
}

/// Makes a node INACTIVE. With tasks on it only by `force`, which asks the node to stop them: what a deregistered
/// node ran would be accounted for by nobody. A node that is away stops them when it is back; until then its tasks
/// keep their last known state. When none is left its identity is revoked: it comes back by registering anew.
pub(super) async fn deregister(api: &Api, caller: &Caller, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let reference = input.required("containerInstance")?;
    let force = input.boolean("force")?;
    input.finish()?;
    let cluster = records::active_cluster(api, cluster.as_deref()).await?;
    let id = api.realm.container_instance_id(&cluster, &reference)?;
    let retired = nodes::retire(api, caller, (&cluster, &id), |node| {
        if !force && !node.allocations.is_empty() {
            return Err(ApiError::InvalidParameter(format!(
                "Found running tasks on the instance: {} tasks. Stop them first, or set force, which stops them",
                node.allocations.len()
            )));
        }
        Ok(nodes::on_deregister(node))
    })
    .await?;
    for task in retired.held() {
        let reason = "container instance was deregistered";
        stop::request(api, &cluster, &task, reason, "UserInitiated").await?;
    }
    settle(api.store.as_ref(), &cluster, now_ms()).await?;
    let counts = counts::of(api, &cluster).await?;
    Ok(json!({"containerInstance": respond(api, &retired.node, counts.node(&id), &[])?}))
}

pub(super) fn missing(api: &Api, cluster: &str, id: &str) -> Value {
    json!({"arn": api.realm.container_instance(cluster, id), "reason": "MISSING"})
}

fn respond(
    api: &Api,
    record: &Versioned<Node>,
    running: Running,
    include: &[&str],
) -> Result<Value, ApiError> {
    let node = &record.value;
    let view = node_view::view(node)?;
    let mut body = json!({
        "containerInstanceArn": api.realm.container_instance(&node.cluster, &node.id),
        "version": record.modified,
        "versionInfo": {"agentVersion": node.agent_version, "dockerVersion": node.runtime_version},
        "registeredResources": registered(&view),
        "remainingResources": remaining(&view),
        "status": node.status,
        "agentConnected": node.agent_connected,
        "runningTasksCount": running.running,
        "pendingTasksCount": running.pending,
        "attributes": attributes(&view.attributes),
        "registeredAt": seconds(node.registered_at),
        "attachments": [],
        "tags": [],
    });
    if include.contains(&"TAGS") {
        body["tags"] = tags::respond(&node.tags);
    }
    if include.contains(&"CONTAINER_INSTANCE_HEALTH") {
        body["healthStatus"] = health(api, node);
    }
    Ok(body)
}

fn attributes(attributes: &Attributes) -> Value {
    let one = |(name, value): (&String, &Option<String>)| match value {
        Some(value) => json!({"name": name, "value": value}),
        None => json!({"name": name}),
    };
    attributes.iter().map(one).collect()
}

fn registered(view: &NodeView) -> Value {
    resources(view.cpu_units, view.memory_bytes, view, &[])
}

/// As placement counts: what is being stopped has given up CPU and memory, and still holds its ports and GPUs.
fn remaining(view: &NodeView) -> Value {
    resources(
        view.free_cpu_units(),
        view.free_memory_bytes(),
        view,
        &view.allocations,
    )
}

fn resources(cpu: u32, memory: u64, view: &NodeView, held: &[Allocation]) -> Value {
    let integer = |name: &str, value: u64| json!({"name": name, "type": "INTEGER", "doubleValue": 0.0, "longValue": 0, "integerValue": value});
    let strings = |name: &str, all: Value| json!({"name": name, "type": "STRINGSET", "doubleValue": 0.0, "longValue": 0, "integerValue": 0, "stringSetValue": all});
    let ports = |name: &str, reserved: &[u16], used: fn(&Allocation) -> &[u16]| {
        let all: BTreeSet<&u16> = reserved.iter().chain(held.iter().flat_map(used)).collect();
        let all: Vec<String> = all.into_iter().map(u16::to_string).collect();
        strings(name, json!(all))
    };
    let mut resources = json!([
        integer("CPU", cpu.into()),
        integer("MEMORY", memory / MIB),
        ports("PORTS", &view.reserved_tcp_ports, |held| &held.tcp_ports),
        ports("PORTS_UDP", &view.reserved_udp_ports, |held| &held.udp_ports),
    ]);
    // Unlike ports, those that are there: ECS has it so, and only where there are any.
    if !view.gpus.is_empty() {
        let held: BTreeSet<&String> = held.iter().flat_map(|held| &held.gpus).collect();
        let free: Vec<&String> = view.gpus.iter().filter(|id| !held.contains(id)).collect();
        if let Some(all) = resources.as_array_mut() {
            all.push(strings("GPU", json!(free)));
        }
    }
    resources
}

fn health(api: &Api, node: &Node) -> Value {
    let impairments = api
        .nodes
        .latest_heartbeat(&node.id)
        .map(|heartbeat| heartbeat.impairments);
    let (runtime, reason) = match impairments {
        _ if !node.agent_connected => ("INSUFFICIENT_DATA", "the agent is not connected".to_owned()),
        None => ("INITIALIZING", "no heartbeat yet".to_owned()),
        Some(impairments) if impairments.is_empty() => ("OK", String::new()),
        Some(impairments) => ("IMPAIRED", impairments.join("; ")),
    };
    let agent = if node.agent_connected { "OK" } else { "IMPAIRED" };
    let overall = if node.agent_connected { runtime } else { "IMPAIRED" };
    json!({"overallStatus": overall, "details": [
        {"type": "AGENT_CONNECTIVITY", "status": agent, "lastStatusChange": seconds(node.connectivity_at)},
        {"type": "CONTAINER_RUNTIME", "status": runtime, "statusReason": reason},
    ]})
}
