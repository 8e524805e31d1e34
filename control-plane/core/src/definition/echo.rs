//! Owns what AWS adds to a definition it accepts. Never adds an empty object or a field without a value:
//! Terraform would see a difference and replace the task definition for ever.

use serde_json::{Value, json};

use super::read::{Object, integer, objects, requires, text};
use super::{gpus, linux, log, namespaces, networking, sizes, volumes};

/// Lists that every echoed container has.
const CONTAINER_LISTS: &[&str] = &[
    "portMappings",
    "environment",
    "mountPoints",
    "volumesFrom",
    "systemControls",
];
/// What AWS fills in of a health check: seconds, but for the retries. A start period is not filled in.
const HEALTH_CHECK: &[(&str, u32)] = &[("interval", 30), ("timeout", 5), ("retries", 3)];
/// Lists that every echoed task has.
const TASK_LISTS: &[&str] = &["volumes", "placementConstraints"];

/// Fills in the defaults; tolerates a task that has problems.
pub(super) fn fill(task: &mut Object) -> &Object {
    let fixed_ports = matches!(text(task, "networkMode"), Some("awsvpc" | "host"));
    let chosen_ports = matches!(text(task, "networkMode"), None | Some("bridge"));
    for name in TASK_LISTS {
        task.entry(*name).or_insert_with(|| json!([]));
    }
    let volumes = task.get_mut("volumes").and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten() {
        let docker = volume.get_mut("dockerVolumeConfiguration");
        if let Some(docker) = docker.and_then(Value::as_object_mut) {
            docker.entry("scope").or_insert_with(|| json!("task"));
        }
    }
    let containers = task.get_mut("containerDefinitions").and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
        container.entry("cpu").or_insert_with(|| json!(0));
        container.entry("essential").or_insert_with(|| json!(true));
        for name in CONTAINER_LISTS {
            container.entry(*name).or_insert_with(|| json!([]));
        }
        let check = container.get_mut("healthCheck").and_then(Value::as_object_mut);
        if let Some(check) = check {
            for (name, default) in HEALTH_CHECK {
                check.entry(*name).or_insert_with(|| json!(default));
            }
        }
        let ports = container.get_mut("portMappings").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            port.entry("protocol").or_insert_with(|| json!("tcp"));
            if let Some(container_port) = integer(port, "containerPort") {
                let host_port = if chosen_ports { 0 } else { container_port };
                if fixed_ports || chosen_ports {
                    port.entry("hostPort").or_insert_with(|| json!(host_port));
                }
            }
        }
    }
    task
}

/// Adds what follows from the rest: `compatibilities` and `requiresAttributes`.
pub(super) fn derive(task: &mut Object) {
    let (compatibilities, attributes) = (compatibilities(task), requires_attributes(task));
    task.insert("compatibilities".into(), json!(compatibilities));
    if !attributes.is_empty() {
        let attributes: Vec<Value> = attributes
            .into_iter()
            .map(|name| json!({ "name": name }))
            .collect();
        task.insert("requiresAttributes".into(), json!(attributes));
    }
}

/// AWS's own answer, in its order, and what was asked for: our nodes also run awsvpc tasks as EXTERNAL.
fn compatibilities(task: &Object) -> Vec<&'static str> {
    let awsvpc = text(task, "networkMode") == Some("awsvpc");
    let number = |name| text(task, name).and_then(|t| t.parse().ok());
    let size = number("cpu").zip(number("memory"));
    let fargate = awsvpc
        && !linux::is_beyond_fargate(task)
        && !namespaces::is_beyond_fargate(task)
        && !networking::is_disabled_somewhere(task)
        && !volumes::is_beyond_fargate(task)
        && !gpus::is_beyond_fargate(task)
        && size.is_some_and(|(cpu, memory)| sizes::check_fargate(cpu, memory).is_ok());
    let external = !awsvpc || requires(task, "EXTERNAL");
    [("EXTERNAL", external), ("EC2", true), ("FARGATE", fargate)]
        .into_iter()
        .filter_map(|(name, compatible)| compatible.then_some(name))
        .collect()
}

fn requires_attributes(task: &Object) -> Vec<&'static str> {
    let any = |name: &str| objects(task, "containerDefinitions").any(|(_, c)| c.contains_key(name));
    let docker_volume = |(_, v): (usize, &Object)| v.contains_key("dockerVolumeConfiguration");
    let others = [
        (
            "com.amazonaws.ecs.capability.docker-plugin.local",
            objects(task, "volumes").any(docker_volume),
        ),
        (
            "com.amazonaws.ecs.capability.task-iam-role",
            task.contains_key("taskRoleArn"),
        ),
        ("ecs.capability.container-health-check", any("healthCheck")),
        ("ecs.capability.container-ordering", any("dependsOn")),
        ("ecs.capability.env-files.s3", any("environmentFiles")),
        (
            "ecs.capability.task-cpu-mem-limit",
            task.contains_key("cpu") || task.contains_key("memory"),
        ),
        (
            "ecs.capability.task-eni",
            text(task, "networkMode") == Some("awsvpc"),
        ),
    ];
    let others = others
        .into_iter()
        .filter_map(|(name, required)| required.then_some(name));
    log::required_attributes(task).into_iter().chain(others).collect()
}
