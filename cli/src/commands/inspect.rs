//! `berth inspect`: everything about one thing, whatever it is.

use serde_json::{Value, json};

use crate::api::{Client, describe_nodes, describe_task, find_node, find_task};
use crate::arguments::Global;
use crate::error::CliError;
use crate::ids::IdError;
use crate::output;

pub async fn run(client: &Client, global: &Global, id: &str) -> Result<u8, CliError> {
    let found = find(client, &global.cluster, id).await?;
    output::print_json(&found)?;
    Ok(0)
}

/// A definition is looked for last: every hexadecimal prefix is a possible family name.
async fn find(client: &Client, cluster: &str, id: &str) -> Result<Value, CliError> {
    let looks_like_definition =
        id.contains(":task-definition/") || (!id.starts_with("arn:") && id.contains(':'));
    if !looks_like_definition {
        if let Some(task) = or_none(find_task(client, cluster, id).await)?
            && let Some((_, value)) = describe_task(client, &task).await?
        {
            return Ok(value);
        }
        if let Some(node) = or_none(find_node(client, cluster, id).await)?
            && let Some(value) = describe_nodes(client, &node.cluster, &[node.id])
                .await?
                .into_iter()
                .next()
        {
            return Ok(value);
        }
    }
    match client
        .ecs(
            "DescribeTaskDefinition",
            &json!({"taskDefinition": id, "include": ["TAGS"]}),
        )
        .await
    {
        Ok(answer) => Ok(answer),
        Err(error) if error.code() == Some("ClientException") => Err(IdError::Nothing {
            given: id.into(),
            cluster: cluster.into(),
        }
        .into()),
        Err(error) => Err(error.into()),
    }
}

fn or_none<T>(found: Result<T, CliError>) -> Result<Option<T>, CliError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(CliError::Id(IdError::NotFound { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}
