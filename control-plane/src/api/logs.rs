//! Owns StreamLogs: lines of a task's containers as newline-delimited JSON. Never keeps more lines than the batch
//! under way: a slow reader holds up the node's stream, not our memory.

use std::sync::Arc;

use axum::body::Body;
use berth_proto::node::v1::{LogLine, LogRequest};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::{context::Api, error::ApiError, fields::Fields, records};
use crate::{
    model::{Task, keys},
    nodes::{LogReceiver, NodeError},
};

/// Most lines that can be asked for of each container's end.
const TAIL_LINES_MAX: i64 = 1_000_000;

/// `{"container","stream","timeMs","line"}` per line, then the end; `{"error"}` as the last line if it broke.
/// A container that discards its output has one line that says so. `line` is as the container wrote it, with its line end where it wrote one; bytes that are not UTF-8 are
/// replaced.
pub(super) async fn stream(api: &Arc<Api>, mut input: Fields) -> Result<Body, ApiError> {
    let cluster = input.string("cluster")?;
    let reference = input.required("task")?;
    let container = input.string("container")?.unwrap_or_default();
    let follow = input.boolean("follow")?;
    let tail_lines = input.integer("tailLines", 0, TAIL_LINES_MAX)?.unwrap_or(0);
    let since_ms = input.integer("sinceMs", 0, i64::MAX)?.unwrap_or(0);
    input.finish()?;
    let task = find(api, cluster.as_deref(), &reference).await?;
    if !container.is_empty() && !task.containers.iter().any(|one| one.name == container) {
        let names: Vec<&str> = task.containers.iter().map(|one| one.name.as_str()).collect();
        let problem = format!("the task has no '{container}': it has {}", names.join(", "));
        return Err(ApiError::field("container", problem));
    }
    let asked = task
        .containers
        .iter()
        .filter(|one| container.is_empty() || one.name == container);
    let (discarded, kept): (Vec<_>, Vec<_>) = asked.partition(|one| one.discards_output);
    let said: Vec<LogLine> = discarded.iter().map(|one| discarding(&task, &one.name)).collect();
    let said = encode(&said);
    if kept.is_empty() {
        return Ok(Body::from(said));
    }
    let permit = Arc::clone(&api.streams)
        .try_acquire_owned()
        .map_err(|_| ApiError::Busy)?;
    let request = LogRequest {
        task_id: task.id,
        container_name: container,
        follow,
        tail_lines: u32::try_from(tail_lines).unwrap_or(u32::MAX),
        since_ms,
    };
    let lines = api
        .nodes
        .open_logs(&task.node, request)
        .await
        .map_err(|error| match error {
            NodeError::NotConnected(_) => ApiError::Client(error.to_string()),
            NodeError::TimedOut(..) | NodeError::Busy(_) => ApiError::Unavailable(error.to_string()),
        })?;
    Ok(body(said, lines, permit))
}

/// The task a request of ours names.
pub(super) async fn find(api: &Api, cluster: Option<&str>, reference: &str) -> Result<Task, ApiError> {
    let cluster = records::active_cluster(api, cluster).await?;
    let id = api.realm.task_id(&cluster, reference)?;
    let found = records::get::<Task>(api, &keys::task(&cluster, &id)).await?;
    found.map(|task| task.value).ok_or_else(|| {
        ApiError::InvalidParameter(format!(
            "The referenced task was not found: {id} in cluster {cluster}"
        ))
    })
}

/// In place of what a container wrote.
fn discarding(task: &Task, name: &str) -> LogLine {
    let text = format!("berth: nothing of container {name} is kept: its log driver is none\n");
    LogLine {
        container_name: name.to_owned(),
        stream: "stderr".to_owned(),
        time_ms: task.created_at,
        data: text.into_bytes(),
    }
}

fn body(first: Bytes, lines: LogReceiver, permit: OwnedSemaphorePermit) -> Body {
    // When the client goes away the body is dropped, and with it the receiver, which ends the node's stream.
    let first = stream::iter((!first.is_empty()).then_some(Ok(first)));
    Body::from_stream(
        first.chain(stream::unfold(Some((lines, permit)), |open| async move {
            let (mut lines, permit) = open?;
            match lines.recv().await? {
                Ok(batch) => Some((
                    Ok::<_, std::convert::Infallible>(encode(&batch)),
                    Some((lines, permit)),
                )),
                Err(reason) => Some((Ok(Bytes::from(format!("{}\n", json!({"error": reason})))), None)),
            }
        })),
    )
}

fn encode(batch: &[LogLine]) -> Bytes {
    let mut out = String::with_capacity(batch.iter().map(|line| line.data.len() + 96).sum());
    for line in batch {
        let line = json!({
            "container": line.container_name,
            "stream": line.stream,
            "timeMs": line.time_ms,
            "line": String::from_utf8_lossy(&line.data),
        });
        out.push_str(&line.to_string());
        out.push('\n');
    }
    out.into()
}
