//! Owns DescribeTasks and ListTasks. Never changes a task.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::shape;
use crate::{
    api::{context::Api, error::ApiError, fields::Fields, paging::Paging, records},
    model::{Node, Task, keys},
};

const DESCRIBE_MAX: usize = 100;
const LAUNCH_TYPES: [&str; 4] = ["EC2", "FARGATE", "EXTERNAL", "MANAGED_INSTANCES"];

pub(in crate::api) async fn describe(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let named = input.required_strings("tasks", DESCRIBE_MAX)?;
    let include = input.choices("include", &["TAGS"])?;
    input.finish()?;
    let cluster = records::active_cluster(api, cluster.as_deref()).await?;
    let ids: Vec<String> = named
        .iter()
        .map(|named| api.realm.task_id(&cluster, named))
        .collect::<Result<_, _>>()?;
    let (mut tasks, mut failures) = (Vec::new(), Vec::new());
    let mut nodes: BTreeMap<String, Option<Node>> = BTreeMap::new();
    for id in ids {
        let Some(task) = records::get::<Task>(api, &keys::task(&cluster, &id)).await? else {
            failures.push(json!({"arn": api.realm.task(&cluster, &id), "reason": "MISSING"}));
            continue;
        };
        let task = task.value;
        if !nodes.contains_key(&task.node) {
            let node = records::get::<Node>(api, &keys::node(&cluster, &task.node)).await?;
            nodes.insert(task.node.clone(), node.map(|node| node.value));
        }
        let node = nodes.get(&task.node).and_then(Option::as_ref);
        tasks.push(shape::task(api, &task, node, !include.is_empty()));
    }
    Ok(json!({"tasks": tasks, "failures": failures}))
}

/// Those that are wanted running, unless asked otherwise.
pub(in crate::api) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let instance = input.string("containerInstance")?.filter(|id| !id.is_empty());
    let family = input.string("family")?.filter(|family| !family.is_empty());
    let started_by = input.string("startedBy")?.filter(|by| !by.is_empty());
    let service = input.string("serviceName")?.filter(|name| !name.is_empty());
    input.unsupported("daemonName")?;
    let desired = input
        .choice("desiredStatus", &["RUNNING", "PENDING", "STOPPED"])?
        .unwrap_or("RUNNING");
    let launch_type = input.choice("launchType", &LAUNCH_TYPES)?;
    let paging = Paging::take(&mut input, "ListTasks")?;
    input.finish()?;
    let cluster = records::active_cluster(api, cluster.as_deref()).await?;
    if let Some(service) = service {
        return Err(ApiError::ServiceNotFound(service));
    }
    let node = instance
        .map(|named| api.realm.container_instance_id(&cluster, &named))
        .transpose()?;
    let keep = |task: Task| {
        let wanted = task.desired_status == desired
            && node.as_ref().is_none_or(|node| task.node == *node)
            && family.as_ref().is_none_or(|family| task.family == *family)
            && started_by
                .as_ref()
                .is_none_or(|by| task.started_by.as_ref() == Some(by))
            && launch_type.is_none_or(|launch_type| task.launch_type == launch_type);
        Ok(wanted.then(|| api.realm.task(&cluster, &task.id)))
    };
    Ok(paging
        .walk(api, &keys::tasks(&cluster), keep)
        .await?
        .respond("taskArns"))
}
