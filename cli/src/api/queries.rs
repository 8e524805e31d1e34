//! Owns the questions that take more than one request: all tasks of a cluster, the task a prefix names.

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, ClientError, PAGES_MAX};
use super::shapes::Task;
use crate::error::CliError;
use crate::ids::{self, IdError};

/// DescribeTasks and DescribeContainerInstances take at most so many.
const DESCRIBE_MAX: usize = 100;

/// A task or node as somebody named it, found.
#[derive(Clone, Debug)]
pub struct Found {
    pub cluster: String,
    pub id: String,
}

/// Every page of a List operation's ARNs.
async fn list_all(
    client: &Client,
    operation: &str,
    field: &str,
    mut body: Value,
) -> Result<Vec<String>, ClientError> {
    let mut arns = Vec::new();
    for _ in 0..PAGES_MAX {
        let answer = client.ecs(operation, &body).await?;
        let page = answer
            .get(field)
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        arns.extend(page.iter().filter_map(Value::as_str).map(str::to_owned));
        match answer.get("nextToken").and_then(Value::as_str) {
            Some(token) if !token.is_empty() => body["nextToken"] = token.into(),
            _ => break,
        }
    }
    Ok(arns)
}

/// Every item of one of Berth's own listings.
pub async fn list_pages(
    client: &Client,
    operation: &str,
    field: &str,
    body: Value,
) -> Result<Vec<Value>, ClientError> {
    list_pages_until(client, operation, field, body, |_| false).await
}

/// As [`list_pages`], but only until `enough` says so of what has come so far.
pub async fn list_pages_until(
    client: &Client,
    operation: &str,
    field: &str,
    mut body: Value,
    enough: impl Fn(&[Value]) -> bool,
) -> Result<Vec<Value>, ClientError> {
    let mut items = Vec::new();
    for _ in 0..PAGES_MAX {
        let mut answer = client.berth(operation, &body).await?;
        if let Some(Value::Array(page)) = answer.get_mut(field).map(Value::take) {
            items.extend(page);
        }
        match answer.get("nextToken").and_then(Value::as_str) {
            Some(token) if !token.is_empty() && !enough(&items) => body["nextToken"] = token.into(),
            _ => break,
        }
    }
    Ok(items)
}

/// ARNs of the tasks whose desired status is `desired` (RUNNING or STOPPED).
pub async fn list_tasks(client: &Client, cluster: &str, desired: &str) -> Result<Vec<String>, ClientError> {
    list_all(
        client,
        "ListTasks",
        "taskArns",
        json!({"cluster": cluster, "desiredStatus": desired}),
    )
    .await
}

pub async fn list_nodes(client: &Client, cluster: &str) -> Result<Vec<String>, ClientError> {
    list_all(
        client,
        "ListContainerInstances",
        "containerInstanceArns",
        json!({"cluster": cluster}),
    )
    .await
}

async fn describe(
    client: &Client,
    operation: &str,
    (asked, field, include): (&str, &str, &[&str]),
    cluster: &str,
    arns: &[String],
) -> Result<Vec<Value>, ClientError> {
    let mut found = Vec::with_capacity(arns.len());
    for part in arns.chunks(DESCRIBE_MAX) {
        let mut answer = client
            .ecs(
                operation,
                &json!({"cluster": cluster, asked: part, "include": include}),
            )
            .await?;
        if let Some(Value::Array(page)) = answer.get_mut(field).map(Value::take) {
            found.extend(page);
        }
    }
    Ok(found)
}

/// Descriptions of those tasks that exist; what vanished since is left out.
pub async fn describe_tasks(
    client: &Client,
    cluster: &str,
    tasks: &[String],
) -> Result<Vec<Value>, ClientError> {
    describe(
        client,
        "DescribeTasks",
        ("tasks", "tasks", &["TAGS"]),
        cluster,
        tasks,
    )
    .await
}

pub async fn describe_nodes(
    client: &Client,
    cluster: &str,
    nodes: &[String],
) -> Result<Vec<Value>, ClientError> {
    let include: &[&str] = &["TAGS", "CONTAINER_INSTANCE_HEALTH"];
    let fields = ("containerInstances", "containerInstances", include);
    describe(client, "DescribeContainerInstances", fields, cluster, nodes).await
}

/// One task's description, in both forms.
pub async fn describe_task(client: &Client, task: &Found) -> Result<Option<(Task, Value)>, ClientError> {
    let found = describe_tasks(client, &task.cluster, std::slice::from_ref(&task.id)).await?;
    Ok(found
        .into_iter()
        .next()
        .map(|value| (Task::deserialize(&value).unwrap_or_default(), value)))
}

/// The task that `given` names: an ARN, an id or a unique prefix.
pub async fn find_task(client: &Client, cluster: &str, given: &str) -> Result<Found, CliError> {
    let cluster = ids::cluster_of(given).unwrap_or(cluster);
    let wanted = ids::last_part(given);
    let mut known = Vec::new();
    if !ids::is_whole(wanted) {
        for desired in ["RUNNING", "STOPPED"] {
            known.extend(list_tasks(client, cluster, desired).await?);
        }
    } else if !describe_tasks(client, cluster, &[wanted.to_owned()])
        .await?
        .is_empty()
    {
        known.push(wanted.to_owned());
    }
    choose("task", "ps -a", cluster, given, &known)
}

/// The node that `given` names: an ARN, an id or a unique prefix.
pub async fn find_node(client: &Client, cluster: &str, given: &str) -> Result<Found, CliError> {
    let cluster = ids::cluster_of(given).unwrap_or(cluster);
    let known = list_nodes(client, cluster).await?;
    choose("node", "nodes", cluster, given, &known)
}

fn choose(
    kind: &'static str,
    listing: &'static str,
    cluster: &str,
    given: &str,
    known: &[String],
) -> Result<Found, CliError> {
    let known: Vec<String> = known.iter().map(|arn| ids::last_part(arn).to_owned()).collect();
    match ids::unique(ids::last_part(given), &known)? {
        Some(id) => Ok(Found {
            cluster: cluster.into(),
            id: id.into(),
        }),
        None => Err(IdError::NotFound {
            kind,
            given: given.into(),
            cluster: cluster.into(),
            listing,
        }
        .into()),
    }
}
