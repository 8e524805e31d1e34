//! Owns how a task looks in a response. Never reads the store.

use serde_json::{Map, Value, json};

use crate::{
    api::{
        context::{Api, seconds},
        tags,
    },
    model::{Millis, Node, PortBinding, Task, TaskContainer},
};

/// A task as ECS describes it. Without `node` (its record is gone) it counts as disconnected.
pub(in crate::api) fn task(api: &Api, task: &Task, node: Option<&Node>, with_tags: bool) -> Value {
    let arn = api.realm.task(&task.cluster, &task.id);
    let connected = node.is_some_and(|node| node.agent_connected);
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            body.insert(name.to_owned(), value);
        }
    };
    put("attachments", attachments(task));
    put("attributes", attributes(task, node));
    put("clusterArn", api.realm.cluster(&task.cluster).into());
    put(
        "connectivity",
        if connected { "CONNECTED" } else { "DISCONNECTED" }.into(),
    );
    put(
        "connectivityAt",
        node.map_or(Value::Null, |node| seconds(node.connectivity_at)),
    );
    put(
        "containerInstanceArn",
        api.realm.container_instance(&task.cluster, &task.node).into(),
    );
    put(
        "containers",
        task.containers
            .iter()
            .map(|one| container(api, task, one, &arn))
            .collect(),
    );
    put("cpu", json!(task.cpu));
    put("desiredStatus", task.desired_status.clone().into());
    put("enableExecuteCommand", false.into());
    put("group", task.group.clone().into());
    put("healthStatus", task.health().into());
    put("lastStatus", task.last_status.clone().into());
    put("launchType", task.launch_type.clone().into());
    put("memory", json!(task.memory));
    let storage = task.ephemeral_storage_gib;
    put(
        "ephemeralStorage",
        storage.map_or(Value::Null, |size| json!({"sizeInGiB": size})),
    );
    put("overrides", task.overrides.clone());
    if task.launch_type == "FARGATE" {
        put("platformVersion", "1.4.0".into());
        put("platformFamily", "Linux".into());
    }
    put("startedBy", json!(task.started_by));
    put("stopCode", json!(task.stop_code));
    put("stoppedReason", json!(task.stopped_reason));
    put(
        "tags",
        if with_tags {
            tags::respond(&task.tags)
        } else {
            json!([])
        },
    );
    put(
        "taskDefinitionArn",
        api.realm.task_definition(&task.family, task.revision).into(),
    );
    put("taskArn", arn.into());
    put("version", task.version.into());
    for (name, at) in times(task) {
        put(name, at.map_or(Value::Null, seconds));
    }
    Value::Object(body)
}

fn times(task: &Task) -> [(&'static str, Option<Millis>); 7] {
    [
        ("createdAt", Some(task.created_at)),
        ("pullStartedAt", task.pull_started_at),
        ("pullStoppedAt", task.pull_stopped_at),
        ("startedAt", task.started_at),
        ("stoppingAt", task.stopping_at),
        ("executionStoppedAt", task.execution_stopped_at),
        ("stoppedAt", task.stopped_at),
    ]
}

/// ECS shows the architecture it placed for. What people should know comes after it, one attribute each.
fn attributes(task: &Task, node: Option<&Node>) -> Value {
    const ARCHITECTURE: &str = "ecs.cpu-architecture";
    const WARNING: &str = "berth.warning";
    let architecture = node.and_then(|node| node.node_attributes.get(ARCHITECTURE)?.as_ref());
    let architecture = architecture.map(|value| json!({"name": ARCHITECTURE, "value": value}));
    let warnings = task
        .all_warnings()
        .map(|text| json!({"name": WARNING, "value": text}));
    architecture.into_iter().chain(warnings).collect()
}

/// The network interface of an awsvpc task.
fn attachments(task: &Task) -> Value {
    let Some(id) = &task.attachment_id else {
        return json!([]);
    };
    let hex: String = id.chars().filter(char::is_ascii_hexdigit).take(17).collect();
    let mut details = vec![
        json!({"name": "subnetId", "value": task.subnets.first()}),
        json!({"name": "networkInterfaceId", "value": format!("eni-{hex}")}),
    ];
    if let Some(mac) = &task.mac_address {
        details.push(json!({"name": "macAddress", "value": mac}));
    }
    if let Some(address) = &task.ipv4_address {
        if let Some(name) = dns_name(task) {
            details.push(json!({"name": "privateDnsName", "value": name}));
        }
        details.push(json!({"name": "privateIPv4Address", "value": address}));
    }
    if let Some(address) = &task.ipv6_address {
        details.push(json!({"name": "ipv6Address", "value": address}));
    }
    let status = match (&task.ipv4_address, task.last_status.as_str()) {
        (_, "STOPPED") => "DELETED",
        (_, "DEPROVISIONING") => "DETACHING",
        (Some(_), _) => "ATTACHED",
        (None, "PROVISIONING") => "PRECREATED",
        (None, _) => "ATTACHING",
    };
    json!([{"id": id, "type": "ElasticNetworkInterface", "status": status, "details": details}])
}

/// What the resolver of every node answers for its cluster. None: the cluster's name is longer than a label of a name.
fn dns_name(task: &Task) -> Option<String> {
    /// RFC 1035, 2.3.4.
    const LABEL_BYTES_MAX: usize = 63;
    (task.cluster.len() <= LABEL_BYTES_MAX).then(|| format!("{}.{}.berth", task.id, task.cluster))
}

fn container(api: &Api, task: &Task, container: &TaskContainer, task_arn: &str) -> Value {
    let mut body = json!({
        "containerArn": api.realm.container(&task.cluster, &task.id, &container.id),
        "taskArn": task_arn,
        "name": container.name,
        "image": container.image,
        "lastStatus": container.last_status,
        "networkBindings": bindings(task, container),
        "networkInterfaces": interfaces(task),
        "healthStatus": container.health.as_ref().map_or("UNKNOWN", |health| health.status.as_str()),
        "cpu": container.cpu,
    });
    let gpus = Some(&container.gpus).filter(|gpus| !gpus.is_empty());
    let optional = [
        ("gpuIds", json!(gpus)),
        ("imageDigest", json!(container.image_digest)),
        ("runtimeId", json!(container.runtime_id)),
        ("exitCode", json!(container.exit_code)),
        ("reason", json!(container.reason)),
        ("memory", json!(container.memory)),
        ("memoryReservation", json!(container.memory_reservation)),
    ];
    for (name, value) in optional.into_iter().filter(|(_, value)| !value.is_null()) {
        body[name] = value;
    }
    body
}

fn interfaces(task: &Task) -> Value {
    match (&task.attachment_id, &task.ipv4_address) {
        (Some(id), Some(address)) => {
            let mut interface = json!({"attachmentId": id, "privateIpv4Address": address});
            if let Some(address) = &task.ipv6_address {
                interface["ipv6Address"] = address.as_str().into();
            }
            json!([interface])
        }
        _ => json!([]),
    }
}

/// As its node says; in host mode a container's ports are the host's, once it runs.
fn bindings(task: &Task, container: &TaskContainer) -> Value {
    if !container.bindings.is_empty() {
        return container.bindings.iter().map(binding).collect();
    }
    if task.network_mode != "host" || container.last_status != "RUNNING" {
        return json!([]);
    }
    let one = |(inside, outside, protocol): &(u16, u16, String)| json!({"bindIP": "0.0.0.0", "containerPort": inside, "hostPort": outside, "protocol": protocol});
    container.ports.iter().map(one).collect()
}

fn binding(binding: &PortBinding) -> Value {
    let (inside, outside) = (binding.container_port, binding.host_port);
    let mut body = json!({"bindIP": "0.0.0.0", "protocol": binding.protocol});
    match binding.last_container_port {
        None => {
            body["containerPort"] = inside.into();
            body["hostPort"] = outside.into();
        }
        Some(last) => {
            let count = last.saturating_sub(inside);
            body["containerPortRange"] = format!("{inside}-{last}").into();
            body["hostPortRange"] = format!("{outside}-{}", outside.saturating_add(count)).into();
        }
    }
    body
}
