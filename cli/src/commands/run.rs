//! `berth run`: registers a definition, runs it once, and waits until it runs or has stopped.

use std::path::Path;

use serde_json::{Value, json};

use super::{logs, subnet, wait};
use crate::api::{Client, Found, Task};
use crate::arguments::{Format, Global, LogsArgs, RunArgs};
use crate::definition;
use crate::error::{CliError, INTERRUPTED, TASK_FAILED};
use crate::ids;
use crate::output;

pub async fn run(client: &Client, global: &Global, args: RunArgs) -> Result<u8, CliError> {
    let definition = match (&args.file, &args.image) {
        (Some(path), _) => definition::from_file(path.clone(), &read(path)?)?,
        (None, Some(image)) => definition::from_flags(image, &args, &|name| std::env::var(name).ok())?,
        // clap asks for one of them.
        (None, None) => return Ok(crate::error::USAGE),
    };
    let task = start(client, &global.cluster, &definition).await?;
    if args.detach {
        output::print_line(&task.id)?;
        return Ok(0);
    }
    let up = |task: &Task| task.is_running() || task.is_stopped();
    let (state, value) = tokio::select! {
        outcome = wait::until(client, &task, args.timeout, up) => outcome?,
        _ = tokio::signal::ctrl_c() => return Ok(left_running(&task)),
    };
    if args.follow {
        return follow(client, global, &definition, &task, state).await;
    }
    if global.output == Format::Json {
        output::print_json(&value)?;
    } else {
        output::print_line(&summary(&state))?;
    }
    Ok(if state.is_stopped() {
        verdict(&state, &definition).min(1) * TASK_FAILED
    } else {
        0
    })
}

fn read(path: &Path) -> Result<String, CliError> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    text.map_err(|source| CliError::ReadFile {
        path: path.into(),
        source,
    })
}

/// Registers and places it.
async fn start(client: &Client, cluster: &str, definition: &Value) -> Result<Found, CliError> {
    let registered = client.ecs("RegisterTaskDefinition", definition).await?;
    let registered = &registered["taskDefinition"];
    let arn = registered["taskDefinitionArn"].as_str().unwrap_or_default();
    let token = uuid::Uuid::new_v4().to_string();
    let mode = registered["networkMode"].as_str();
    let subnets = match mode {
        Some("awsvpc") => subnet::all(client, cluster).await?,
        _ => Vec::new(),
    };
    let request = definition::run_request(cluster, arn, &subnets, &token);
    let answer = client.ecs("RunTask", &request).await?;
    if let Some(task) = answer["tasks"][0]["taskArn"].as_str() {
        return Ok(Found {
            cluster: cluster.into(),
            id: ids::last_part(task).into(),
        });
    }
    let failures = answer["failures"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let reasons: Vec<String> = failures.iter().map(failure).collect();
    Err(CliError::NotPlaced(if reasons.is_empty() {
        "no reason given".into()
    } else {
        reasons.join("; ")
    }))
}

/// `node 0a11…: RESOURCE:MEMORY (detail)`.
fn failure(failure: &Value) -> String {
    let text = |name: &str| failure.get(name).and_then(Value::as_str);
    let mut line = text("reason").unwrap_or("no reason given").to_owned();
    // Of a cluster without nodes it is the cluster's.
    if let Some(arn) = text("arn").filter(|arn| arn.contains(":container-instance/")) {
        line = format!("node {}: {line}", ids::short(ids::last_part(arn)));
    }
    match text("detail") {
        Some(detail) => format!("{line} ({detail})"),
        None => line,
    }
}

fn summary(task: &Task) -> String {
    let id = ids::short(task.id());
    if task.is_stopped() {
        return format!("task {id} is STOPPED: {}", task.why_stopped());
    }
    let address = task
        .address()
        .map(|address| format!(" at {address}"))
        .unwrap_or_default();
    format!("task {id} is RUNNING{address}\nberth logs -f {id}\nberth stop {id}")
}

/// Shows the output until the task stops.
async fn follow(
    client: &Client,
    global: &Global,
    definition: &Value,
    task: &Found,
    state: Task,
) -> Result<u8, CliError> {
    if state.is_stopped() && state.stop_code.as_deref() == Some("TaskFailedToStart") {
        eprintln!("{}", summary(&state));
        return Ok(TASK_FAILED);
    }
    let args = LogsArgs {
        task: task.id.clone(),
        container: None,
        follow: true,
        tail: None,
        since: None,
        timestamps: false,
    };
    tokio::select! {
        outcome = logs::stream(client, task, &args) => outcome?,
        _ = tokio::signal::ctrl_c() => return Ok(left_running(task)),
    }
    let (state, value) = wait::until(client, task, logs::STOP_AFTER_LOG_TIMEOUT, |task| {
        task.is_stopped()
    })
    .await?;
    if global.output == Format::Json {
        output::print_json(&value)?;
    }
    let code = verdict(&state, definition);
    if code != 0 {
        eprintln!("{}", summary(&state));
    }
    Ok(code)
}

fn left_running(task: &Found) -> u8 {
    let id = ids::short(&task.id);
    eprintln!("task {id} goes on: `berth stop {id}` stops it");
    INTERRUPTED
}

/// The exit code of a stopped task: that of the first essential container that failed, else of any that did.
fn verdict(task: &Task, definition: &Value) -> u8 {
    let none = Vec::new();
    let containers = definition["containerDefinitions"].as_array().unwrap_or(&none);
    let essential = |name: &str| {
        let found = containers
            .iter()
            .find(|container| container["name"] == json!(name));
        found.is_none_or(|container| container["essential"] != json!(false))
    };
    let failed = |code: Option<i32>| {
        code.map(|code| u8::try_from(code).unwrap_or(u8::MAX))
            .filter(|code| *code != 0)
    };
    if let Some(code) = task
        .containers
        .iter()
        .filter(|container| essential(&container.name))
        .find_map(|container| failed(container.exit_code))
    {
        return code;
    }
    let nothing_ran = task
        .containers
        .iter()
        .all(|container| container.exit_code.is_none());
    if nothing_ran { TASK_FAILED } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(containers: Value) -> Task {
        serde_json::from_value(json!({"lastStatus": "STOPPED", "containers": containers})).unwrap()
    }

    #[test]
    fn the_exit_code_is_the_essential_containers() {
        let definition =
            json!({"containerDefinitions": [{"name": "side", "essential": false}, {"name": "main"}]});
        for (containers, code) in [
            (
                json!([{"name": "side", "exitCode": 3}, {"name": "main", "exitCode": 7}]),
                7,
            ),
            (
                json!([{"name": "side", "exitCode": 3}, {"name": "main", "exitCode": 0}]),
                0,
            ),
            (json!([{"name": "main", "exitCode": 137}]), 137),
            (json!([{"name": "main", "exitCode": -1}]), 255),
            (
                json!([{"name": "main", "reason": "CannotPullContainerError"}]),
                TASK_FAILED,
            ),
        ] {
            assert_eq!(
                verdict(&stopped(containers.clone()), &definition),
                code,
                "{containers}"
            );
        }
    }

    #[test]
    fn a_failure_names_the_node_and_the_reason() {
        let arn = format!("arn:aws:ecs:r:0:container-instance/default/{}", "0a".repeat(16));
        assert_eq!(
            failure(&json!({"arn": arn, "reason": "RESOURCE:MEMORY", "detail": "needs 512 MiB, has 100"})),
            "node 0a0a0a0a0a0a: RESOURCE:MEMORY (needs 512 MiB, has 100)"
        );
        assert_eq!(failure(&json!({})), "no reason given");
    }
}
