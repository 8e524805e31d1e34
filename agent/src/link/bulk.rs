//! Owns streams of bulk data, opened at the control plane's request: today logs. Never touches the link's own stream.

use std::{path::PathBuf, time::Duration};

use berth_agent_core::ids::TaskId;
use berth_proto::node::v1::{
    self as wire, BulkFromNode, bulk_from_node::Message as Out, node_service_client::NodeServiceClient,
    open_bulk::Request,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::{
    driver::{ContainerView, Input},
    logs::{Line, LogQuery, LogReader},
    sys::Chain,
};

/// Batches of lines that may wait for the stream: the reader waits then.
const OUT_MAX: usize = 8;
/// A receiver that takes nothing for so long has gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Between looks whether a followed container has ended.
const ALIVE_INTERVAL: Duration = Duration::from_millis(500);

/// Serves one request to its end. Errors go to the asker; what cannot even be told is logged.
pub(super) async fn serve(
    channel: Channel,
    inputs: mpsc::Sender<Input>,
    log_dir: PathBuf,
    open: wire::OpenBulk,
) {
    let mut client =
        NodeServiceClient::new(channel).max_encoding_message_size(wire::MESSAGE_BYTES_MAX);
    let (out, outgoing) = mpsc::channel(OUT_MAX);
    let start = Out::Start(wire::BulkStart { ticket: open.ticket });
    if out.send(BulkFromNode { message: Some(start) }).await.is_err() {
        return;
    }
    let receive = async {
        let mut answers = client.bulk(ReceiverStream::new(outgoing)).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<(), tonic::Status>(())
    };
    let send = async {
        if let Err(reason) = answer(&inputs, log_dir, open.request, &out).await {
            let error = Out::Error(wire::BulkError { reason });
            let _ = out.send(BulkFromNode { message: Some(error) }).await;
        }
        drop(out);
    };
    // The asker closing its side ends the reading; the end of reading closes ours, and the asker answers with its end.
    tokio::pin!(receive);
    tokio::select! {
        result = &mut receive => {
            if let Err(error) = result {
                tracing::debug!(error = %Chain(&error), "bulk stream ended");
            }
        }
        () = send => {
            let _ = tokio::time::timeout(SEND_TIMEOUT, receive).await;
        }
    }
}

async fn answer(
    inputs: &mpsc::Sender<Input>,
    log_dir: PathBuf,
    request: Option<Request>,
    out: &mpsc::Sender<BulkFromNode>,
) -> Result<(), String> {
    let Some(Request::Logs(request)) = request else {
        return Err("this agent does not know the request".into());
    };
    let task: TaskId = request.task_id.parse().map_err(|error| format!("{error}"))?;
    let known = containers(inputs, &task).await.ok_or_else(|| format!("this node does not know task {task}"))?;
    let wanted: Vec<_> = known
        .iter()
        .filter(|c| request.container_name.is_empty() || c.name == request.container_name)
        .map(|c| (c.name.clone(), c.id.clone()))
        .collect();
    if wanted.is_empty() {
        let names: Vec<_> = known.iter().map(|c| c.name.as_str()).collect();
        return Err(format!("task {task} has no container {:?}; it has {names:?}", request.container_name));
    }
    let (alive, alive_seen) = tokio::sync::watch::channel(true);
    let query = LogQuery {
        task_dir: log_dir.join(task.as_str()),
        containers: wanted,
        tail: (request.tail_lines > 0).then_some(request.tail_lines as usize),
        since_ms: (request.since_ms > 0).then_some(request.since_ms),
        follow: request.follow,
        alive: alive_seen,
    };
    let mut lines = LogReader::stream(query);
    let watch = async {
        while request.follow {
            tokio::time::sleep(ALIVE_INTERVAL).await;
            let ended = |c: &ContainerView| {
                c.ended || !(request.container_name.is_empty() || c.name == request.container_name)
            };
            if containers(inputs, &task).await.is_none_or(|all| all.iter().all(ended)) {
                alive.send_replace(false);
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let forward = async {
        while let Some(batch) = lines.recv().await {
            let batch = batch.map_err(|error| Chain(&error).to_string())?;
            let message = Out::LogLines(wire::LogLines { lines: batch.into_iter().map(line).collect() });
            let sending = out.send(BulkFromNode { message: Some(message) });
            match tokio::time::timeout(SEND_TIMEOUT, sending).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(format!("nobody took the log for {} s", SEND_TIMEOUT.as_secs())),
            }
        }
        Ok(())
    };
    tokio::select! {
        result = forward => result,
        () = watch => Ok(()),
    }
}

async fn containers(inputs: &mpsc::Sender<Input>, task: &TaskId) -> Option<Vec<ContainerView>> {
    let (reply, answer) = oneshot::channel();
    inputs.send(Input::Containers { task: task.clone(), reply }).await.ok()?;
    answer.await.ok()?
}

fn line(line: Line) -> wire::LogLine {
    wire::LogLine {
        container_name: line.container,
        stream: line.stream.into(),
        time_ms: line.time_ms,
        data: line.data,
    }
}
