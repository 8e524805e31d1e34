//! `berth ps`.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{Client, Task, describe_tasks, list_tasks};
use crate::arguments::{Format, Global};
use crate::duration;
use crate::error::CliError;
use crate::output;

pub async fn run(client: &Client, global: &Global, all: bool) -> Result<u8, CliError> {
    // A task that is being stopped has the desired status STOPPED, but is not: both lists are needed.
    let mut arns = list_tasks(client, &global.cluster, "RUNNING").await?;
    arns.extend(list_tasks(client, &global.cluster, "STOPPED").await?);
    let found: Vec<(Task, Value)> = describe_tasks(client, &global.cluster, &arns)
        .await?
        .into_iter()
        .map(|value| (Task::deserialize(&value).unwrap_or_default(), value))
        .filter(|(task, _)| all || !task.is_stopped())
        .collect();
    let (tasks, values): (Vec<Task>, Vec<Value>) = found.into_iter().unzip();
    if global.output == Format::Json {
        output::print_json(&json!({ "tasks": values }))?;
    } else {
        let table = output::tasks(&tasks, global.output == Format::Wide, duration::now_ms());
        output::print(&format!("{table}{}", output::warnings(&tasks)))?;
    }
    Ok(0)
}
