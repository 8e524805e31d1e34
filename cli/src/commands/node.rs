//! `berth node`: takes nodes out.

use serde_json::{Value, json};

use crate::api::{Client, find_node};
use crate::arguments::{Format, Global, NodeCommand};
use crate::error::CliError;
use crate::ids::{self, short};
use crate::output;

pub async fn run(client: &Client, global: &Global, command: NodeCommand) -> Result<u8, CliError> {
    match command {
        NodeCommand::Revoke { node, reason } => revoke(client, global, node, reason).await,
        NodeCommand::Confirm { node, yes } => confirm(client, global, &node, yes).await,
    }
}

async fn confirm(client: &Client, global: &Global, node: &str, yes: bool) -> Result<u8, CliError> {
    let found = find_node(client, &global.cluster, node).await?;
    let body = json!({"cluster": found.cluster, "containerInstance": found.id, "dryRun": !yes});
    let answer = client.berth("ConfirmDesiredState", &body).await?;
    if global.output == Format::Json {
        output::print_json(&answer)?;
        return Ok(0);
    }
    let (id, reason) = (short(&found.id), answer["reason"].as_str().unwrap_or_default());
    output::print_line(&format!("node {id} held back: {reason}"))?;
    output::print_line(&if yes {
        "it is told to stop them".to_owned()
    } else {
        format!("to have those tasks stopped: berth node confirm {id} --yes")
    })?;
    Ok(0)
}

async fn revoke(
    client: &Client,
    global: &Global,
    node: String,
    reason: Option<String>,
) -> Result<u8, CliError> {
    let (cluster, id) = if ids::is_whole(&node) {
        // Nodes that are not listed any more can be revoked as well.
        (global.cluster.clone(), node)
    } else {
        let found = find_node(client, &global.cluster, &node).await?;
        (found.cluster, found.id)
    };
    let body = json!({"cluster": cluster, "containerInstance": id, "reason": reason});
    let answer = client.berth("RevokeNode", &body).await?;
    if global.output == Format::Json {
        output::print_json(&answer)?;
        return Ok(0);
    }
    output::print_line(&format!(
        "node {} is revoked: its link ends, and its certificate is worth nothing",
        short(&id)
    ))?;
    let tasks = answer.get("tasks").and_then(Value::as_array).map_or(0, Vec::len);
    if tasks > 0 {
        output::print_line(&format!(
            "{tasks} of its tasks may still run there: they keep their last known state and count as nobody's"
        ))?;
    }
    Ok(0)
}
