//! `berth node`: takes nodes out.

use serde_json::{Value, json};

use crate::api::{Client, find_node};
use crate::arguments::{Format, Global, NodeCommand};
use crate::error::CliError;
use crate::ids::{self, short};
use crate::output;

pub async fn run(client: &Client, global: &Global, command: NodeCommand) -> Result<u8, CliError> {
    let NodeCommand::Revoke { node, reason } = command;
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
