//! `berth stop`.

use std::time::Duration;

use serde_json::json;

use super::wait;
use crate::api::{Client, find_task};
use crate::arguments::{Format, Global};
use crate::error::CliError;
use crate::ids::short;
use crate::output;

/// ECS allows a stopTimeout of up to 20 minutes outside Fargate; a task that takes longer is stuck.
const STOP_TIMEOUT: Duration = Duration::from_secs(25 * 60);

pub async fn run(
    client: &Client,
    global: &Global,
    given: &[String],
    reason: &str,
    detach: bool,
) -> Result<u8, CliError> {
    // All names are looked up before anything is stopped: a typo in the third must not stop the first.
    let mut tasks = Vec::with_capacity(given.len());
    for name in given {
        tasks.push(find_task(client, &global.cluster, name).await?);
    }
    for task in &tasks {
        client
            .ecs(
                "StopTask",
                &json!({"cluster": task.cluster, "task": task.id, "reason": reason}),
            )
            .await?;
    }
    let mut stopped = Vec::new();
    for task in &tasks {
        if detach {
            if global.output != Format::Json {
                output::print_line(&format!("task {} is to stop", short(&task.id)))?;
            }
            continue;
        }
        let (state, value) = wait::until(client, task, STOP_TIMEOUT, |task| task.is_stopped()).await?;
        if global.output != Format::Json {
            output::print_line(&format!(
                "task {} is STOPPED: {}",
                short(&task.id),
                state.why_stopped()
            ))?;
        }
        stopped.push(value);
    }
    if global.output == Format::Json {
        output::print_json(&json!({ "tasks": stopped }))?;
    }
    Ok(0)
}
