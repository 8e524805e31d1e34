//! Owns streams of bulk data, opened at the control plane's request: today logs. Never touches the link's own stream.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_agent_core::ids::{ContainerId, TaskId};
use berth_proto::node::v1::{
    self as wire, BulkFromNode, bulk_from_node::Message as Out, node_service_client::NodeServiceClient,
    open_bulk::Request,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::{
    driver::{ContainerView, Input},
    logs::{self, Line, LogQuery},
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
    let mut client = NodeServiceClient::new(channel).max_encoding_message_size(wire::MESSAGE_BYTES_MAX);
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
    let known = view(inputs, &task)
        .await
        .ok_or_else(|| format!("this node does not know task {task}"))?;
    let wanted = |c: &&ContainerView| request.container_name.is_empty() || c.name == request.container_name;
    let containers: Vec<_> = known
        .iter()
        .filter(wanted)
        .map(|c| (c.name.clone(), c.id.clone()))
        .collect();
    if containers.is_empty() {
        let names: Vec<_> = known.iter().map(|c| c.name.as_str()).collect();
        return Err(format!(
            "task {task} has no container {:?}; it has {names:?}",
            request.container_name
        ));
    }
    let alive = Alive::default();
    alive.update(Some(&known));
    let of_reader = alive.clone();
    let mut lines = logs::stream(LogQuery {
        task_dir: logs::task_dir(&log_dir, &task),
        containers,
        tail: request.tail_lines,
        since_ms: request.since_ms,
        follow: request.follow,
        alive: Arc::new(move |id| of_reader.contains(id)),
    });
    let watch = async {
        loop {
            tokio::time::sleep(ALIVE_INTERVAL).await;
            alive.update(view(inputs, &task).await.as_deref());
        }
    };
    let forward = async {
        while let Some(batch) = lines.recv().await {
            let lines = match batch {
                Ok(lines) => lines.into_iter().map(line).collect(),
                Err(error) if error.ends_stream() => return Err(Chain(&error).to_string()),
                // A gap is told in its place, and reading goes on behind it.
                Err(error) => vec![gap(&error)],
            };
            let message = Out::LogLines(wire::LogLines { lines });
            let sending = out.send(BulkFromNode {
                message: Some(message),
            });
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
        () = watch, if request.follow => Ok(()),
    }
}

async fn view(inputs: &mpsc::Sender<Input>, task: &TaskId) -> Option<Vec<ContainerView>> {
    let (reply, answer) = oneshot::channel();
    inputs
        .send(Input::Containers {
            task: task.clone(),
            reply,
        })
        .await
        .ok()?;
    answer.await.ok()?
}

/// Containers that may still write.
#[derive(Clone, Debug, Default)]
struct Alive(Arc<Mutex<BTreeSet<ContainerId>>>);

impl Alive {
    /// A task that the node no longer knows has none.
    fn update(&self, known: Option<&[ContainerView]>) {
        let alive = known
            .into_iter()
            .flatten()
            .filter(|c| !c.ended)
            .map(|c| c.id.clone())
            .collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = alive;
    }

    fn contains(&self, id: &ContainerId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

fn line(line: Line) -> wire::LogLine {
    wire::LogLine {
        container_name: line.container,
        stream: line.stream.as_str().into(),
        time_ms: line.time_ms,
        data: line.data,
    }
}

fn gap(error: &logs::LogReadError) -> wire::LogLine {
    let data = format!("berth: {}\n", Chain(error)).into_bytes();
    wire::LogLine {
        container_name: String::new(),
        stream: "stderr".into(),
        time_ms: crate::driver::now().0,
        data,
    }
}
