//! Owns waiting for a task. Polls: ECS has no way to be told.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::{Client, ClientError, Found, Task, describe_task};
use crate::error::CliError;
use crate::ids::IdError;
use crate::output::{Progress, Pull};

/// A task starts in a fraction of a second when its image is there; later there is no hurry.
const POLL_FIRST: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_millis(500);

/// Waits until `done` says so; returns the task as it is then.
pub async fn until(
    client: &Client,
    task: &Found,
    timeout: Duration,
    done: impl Fn(&Task) -> bool,
) -> Result<(Task, Value), CliError> {
    let began = Instant::now();
    let mut pause = POLL_FIRST;
    let mut progress = Progress::start();
    let outcome = loop {
        let (state, value) = match describe_task(client, task).await {
            Ok(Some(found)) => found,
            Ok(None) => break Err(gone(task)),
            Err(error) => break Err(error.into()),
        };
        if done(&state) {
            break Ok((state, value));
        }
        if began.elapsed() >= timeout {
            let late = CliError::Late {
                task: task.id.clone(),
                status: state.last_status,
                seconds: timeout.as_secs(),
            };
            break Err(late);
        }
        let (detail, pulls) = waiting_for(client, task).await.unwrap_or_default();
        progress.show(
            &format!("task {} is {}", crate::ids::short(&task.id), state.last_status),
            &detail,
            &pulls,
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(POLL_MAX);
    };
    progress.finish();
    outcome
}

/// What the task waits for, in a line for people, and the downloads among it.
async fn waiting_for(client: &Client, task: &Found) -> Result<(String, Vec<Pull>), ClientError> {
    let answer = client
        .berth("ExplainTask", &json!({"cluster": task.cluster, "task": task.id}))
        .await?;
    let reason = answer
        .get("waitingReason")
        .and_then(Value::as_str)
        .unwrap_or_default();
    // An older control plane says nothing of downloads.
    let pulls = answer.get("pulls").cloned().unwrap_or_default();
    Ok((
        reason.to_owned(),
        serde_json::from_value(pulls).unwrap_or_default(),
    ))
}

fn gone(task: &Found) -> CliError {
    IdError::NotFound {
        kind: "task",
        given: task.id.clone(),
        cluster: task.cluster.clone(),
        listing: "ps -a",
    }
    .into()
}
