//! Owns wanting a task stopped: the task's desired status, the node's desired spec and its allocation, in one
//! transaction. Never says that a task is STOPPED: only its node may.

use berth_proto::node::v1::{DesiredStatus, TaskSpec};
use prost::Message;
use serde_json::{Value, json};

use super::shape;
use crate::{
    api::{
        context::Api,
        error::ApiError,
        fields::Fields,
        records::{self, Attempts},
    },
    model::{Node, Task, keys},
    store::{Compare, Operation, typed},
};

const REASON_CHARS_MAX: usize = 1024;

pub(in crate::api) async fn stop(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let reference = input.required("task")?;
    let reason = input.string("reason")?.filter(|reason| !reason.is_empty());
    input.finish()?;
    if reason
        .as_ref()
        .is_some_and(|reason| reason.chars().count() > REASON_CHARS_MAX)
    {
        return Err(ApiError::field("reason", "can have at most 1024 characters"));
    }
    let cluster = records::active_cluster(api, cluster.as_deref()).await?;
    let id = api.realm.task_id(&cluster, &reference)?;
    let reason = reason.unwrap_or_else(|| "Task stopped by user".to_owned());
    let task = request(api, &cluster, &id, &reason, "UserInitiated").await?;
    let task = task.ok_or_else(|| {
        ApiError::InvalidParameter(format!(
            "The referenced task was not found: {id} in cluster {cluster}"
        ))
    })?;
    let node = records::get::<Node>(api, &keys::node(&cluster, &task.node)).await?;
    Ok(json!({"task": shape::task(api, &task, node.as_ref().map(|node| &node.value), true)}))
}

/// Asks for a stop; a task that is asked already stays as it is, with its first reason. `None`: there is none.
pub(in crate::api) async fn request(
    api: &Api,
    cluster: &str,
    id: &str,
    reason: &str,
    code: &str,
) -> Result<Option<Task>, ApiError> {
    let mut attempts = Attempts::default();
    loop {
        let Some(mut task) = records::get::<Task>(api, &keys::task(cluster, id)).await? else {
            return Ok(None);
        };
        if task.value.desired_status == "STOPPED" || task.value.last_status == "STOPPED" {
            return Ok(Some(task.value));
        }
        task.value.desired_status = "STOPPED".to_owned();
        task.value.stop_code = Some(code.to_owned());
        task.value.stopped_reason = Some(reason.to_owned());
        task.value.version += 1;
        let mut compare = vec![task.unchanged()];
        let mut operations = vec![typed::put_json(task.key.as_str(), &task.value)?];
        free(api, &task.value, &mut compare, &mut operations).await?;
        tell(api, &task.value, reason, &mut compare, &mut operations).await?;
        if records::commit(api, compare, operations).await? {
            return Ok(Some(task.value));
        }
        attempts.again().await?;
    }
}

/// The node's allocation: CPU and memory count as free from now on.
async fn free(
    api: &Api,
    task: &Task,
    compare: &mut Vec<Compare>,
    operations: &mut Vec<Operation>,
) -> Result<(), ApiError> {
    let Some(mut node) = records::get::<Node>(api, &keys::node(&task.cluster, &task.node)).await? else {
        return Ok(());
    };
    if let Some(held) = node.value.allocations.get_mut(&task.id) {
        held.stopping = true;
        compare.push(node.unchanged());
        operations.push(typed::put_json(node.key.as_str(), &node.value)?);
    }
    Ok(())
}

/// The desired spec, which the link carries to the node.
async fn tell(
    api: &Api,
    task: &Task,
    reason: &str,
    compare: &mut Vec<Compare>,
    operations: &mut Vec<Operation>,
) -> Result<(), ApiError> {
    let key = keys::desired(&task.node, &task.id);
    let Some(entry) = api.store.get(&key).await? else {
        compare.push(Compare::Missing(key));
        return Ok(());
    };
    let mut spec = TaskSpec::decode(entry.value.as_ref()).map_err(|source| ApiError::Spec {
        key: entry.key.clone(),
        source,
    })?;
    spec.set_desired_status(DesiredStatus::Stopped);
    spec.stop_reason = reason.to_owned();
    compare.push(Compare::Modified(key.clone(), entry.modified));
    operations.push(Operation::Put {
        key,
        value: spec.encode_to_vec().into(),
        lease: None,
    });
    Ok(())
}
