//! Owns what containerd says of processes while they run: exits as they happen, and the state of all. Never remembers
//! what was reported: `observe` does.

use std::time::{SystemTime, UNIX_EPOCH};

use berth_agent_core::{desired::Millis, event::ObservedState, ids::parse_runtime_id, oci::signal};
use containerd_client::{
    events::TaskExit,
    services::v1::{
        GetContainerRequest, GetRequest, ListTasksRequest, SubscribeRequest, events_client::EventsClient,
    },
    types::{
        Envelope,
        v1::{Process as TaskProcess, Status as TaskStatus},
    },
};
use futures_util::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use prost_types::Timestamp;

use super::{
    Identity, Runtime, RuntimeError, Step,
    call::{DEADLINE, call, or_gone},
    labels,
};

/// The first process of a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitNotice {
    /// The runtime id; it may be another instance's.
    pub id: String,
    /// Zero where containerd does not say.
    pub pid: u32,
    /// 0–255.
    pub code: i32,
    pub at: Millis,
}

/// The first process of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The runtime id; it may be another instance's.
    pub id: String,
    /// Also of one that has ended; zero where containerd does not say.
    pub pid: u32,
    pub state: ObservedState,
}

impl Runtime {
    /// Exits from now on, until containerd goes away. The subscription holds from shortly after the stream is first
    /// polled: containerd says nothing until the first event.
    pub fn exits(&self) -> impl Stream<Item = Result<ExitNotice, RuntimeError>> + Send + use<> {
        // One string: several would be alternatives. The namespace header does not filter.
        let filter = format!("namespace=={:?},topic==\"/tasks/exit\"", self.config().namespace);
        let request = self.request(SubscribeRequest {
            filters: vec![filter],
        });
        let mut client = EventsClient::new(self.shared.channel.clone());
        let subscribe = async move { client.subscribe(request).await.map(tonic::Response::into_inner) };
        futures_util::stream::once(subscribe)
            .try_flatten()
            .map_err(|status| RuntimeError::answered(Step::Watch, "exits", &status))
            .filter_map(|event| async { event.map(exit_notice).transpose() })
    }

    /// Every process that containerd knows in this namespace.
    pub async fn processes(&self) -> Result<Vec<Process>, RuntimeError> {
        let mut client = self.tasks();
        let request = self.request(ListTasksRequest::default());
        let answer = call(Step::List, "tasks", DEADLINE, client.list(request)).await?;
        Ok(answer
            .tasks
            .iter()
            .map(|task| Process {
                id: name(task).to_owned(),
                pid: task.pid,
                state: state(task),
            })
            .collect())
    }

    /// The process as containerd has it; `None` where it knows of none.
    pub(super) async fn process(&self, id: &str) -> Result<Option<TaskProcess>, RuntimeError> {
        let request = GetRequest {
            container_id: id.to_owned(),
            ..GetRequest::default()
        };
        let mut client = self.tasks();
        let answer = or_gone(call(Step::Inspect, id, DEADLINE, client.get(self.request(request))).await)?;
        Ok(answer.and_then(|answer| answer.process))
    }

    /// containerd knows of no process of that attempt: it was removed, or its shim died.
    pub async fn has_no_process(&self, id: &str) -> Result<bool, RuntimeError> {
        Ok(self.process(id).await?.is_none())
    }

    /// Whose container it is; `None` where it is not this instance's, or gone.
    pub async fn identify(&self, id: &str) -> Result<Option<Identity>, RuntimeError> {
        if let Some(known) = self.shared.index.get(id) {
            return Ok(Some(known));
        }
        let request = GetContainerRequest { id: id.to_owned() };
        let mut client = self.containers();
        let answer = or_gone(call(Step::Inspect, id, DEADLINE, client.get(self.request(request))).await)?;
        let container = answer.and_then(|answer| answer.container);
        Ok(container.and_then(|container| self.identity_of(id, &container.labels)))
    }

    /// Attempts that this agent started or found running, and whose exit it has not been told.
    pub fn running(&self) -> Vec<Identity> {
        self.shared.index.running()
    }

    /// As [`running`](Self::running), of one.
    pub fn is_running(&self, id: &str) -> bool {
        self.shared.index.is_running(id)
    }

    /// This agent made or found it, and has not removed it.
    pub fn is_known(&self, id: &str) -> bool {
        self.shared.index.has(id)
    }

    /// Its exit was told.
    pub fn exited(&self, id: &str) {
        self.shared.index.exited(id);
    }

    pub(super) fn identity_of(
        &self,
        id: &str,
        labels: &std::collections::HashMap<String, String>,
    ) -> Option<Identity> {
        let (task, container, attempt) = labels::parse(&self.config().instance, labels)?;
        // The name must be the one its labels give it, or removing it by them would miss it.
        (parse_runtime_id(id)? == (container.clone(), attempt)).then_some(())?;
        let stop_signal = labels
            .get(labels::STOP_SIGNAL)
            .and_then(|n| n.parse().ok())
            .unwrap_or(signal::DEFAULT);
        Some(Identity {
            task,
            container,
            attempt,
            stop_signal,
        })
    }
}

/// containerd leaves one of the two empty, depending on the call and the version.
fn name(task: &TaskProcess) -> &str {
    if task.container_id.is_empty() {
        &task.id
    } else {
        &task.container_id
    }
}

fn state(task: &TaskProcess) -> ObservedState {
    match task.status() {
        TaskStatus::Created => ObservedState::Created,
        TaskStatus::Stopped => ObservedState::Exited {
            code: code(task.exit_status),
            at: millis(task.exited_at.as_ref()),
            oom_killed: false,
        },
        // What is not known to have ended may be alive.
        TaskStatus::Unknown | TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing => {
            ObservedState::Running { pid: task.pid }
        }
    }
}

fn exit_notice(envelope: Envelope) -> Option<ExitNotice> {
    let exit = TaskExit::decode(envelope.event?.value.as_slice()).ok()?;
    // Others of the container's processes end too: those of exec.
    (exit.id == exit.container_id || exit.id.is_empty()).then_some(())?;
    Some(ExitNotice {
        pid: exit.pid,
        code: code(exit.exit_status),
        at: millis(exit.exited_at.as_ref()),
        id: exit.container_id,
    })
}

fn code(status: u32) -> i32 {
    i32::try_from(status).unwrap_or(i32::MAX)
}

/// A time that containerd does not know is now.
fn millis(time: Option<&Timestamp>) -> Millis {
    match time.filter(|time| time.seconds > 0) {
        Some(time) => Millis(
            time.seconds
                .saturating_mul(1000)
                .saturating_add(i64::from(time.nanos) / 1_000_000),
        ),
        None => now(),
    }
}

pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
