//! Owns what the agent says of itself on its local socket: documents in the style of ECS's introspection API, and
//! metrics. Read-only. Every answer is bounded in size and in time: a driver that hangs gives 503.

mod exposition;
mod render;
mod slots;
mod view;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::RawQuery,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use berth_agent_core::{
    ids::{ContainerId, TaskId},
    ledger::Owned,
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use self::slots::{Living, Slots};
use crate::{
    dns::NameTable, driver::Input, effects::cgroups::Cgroups, effects::images::PullProgress, health::Health,
    identity::IdentityState, link::LinkState, logs::LoggerRegistry, store::Store, telemetry::Sampler,
};
pub use view::{NodeView, status};

/// The driver has so long to answer.
const DRIVER_PATIENCE: Duration = Duration::from_secs(2);
/// Tasks and ledger entries in one answer.
const ENTRIES_MAX: usize = 2000;

/// Everything the answers are made of.
#[derive(Debug)]
pub struct Sources {
    pub node_id: String,
    pub boot_id: String,
    pub runtime_version: String,
    pub inputs: mpsc::WeakSender<Input>,
    pub link: watch::Receiver<LinkState>,
    pub identity: watch::Receiver<IdentityState>,
    pub pulls: watch::Receiver<PullProgress>,
    pub store: Store,
    pub sampler: Arc<Mutex<Sampler>>,
    pub cgroups: Cgroups,
    pub names: NameTable,
    pub loggers: LoggerRegistry,
    pub health: Health,
    /// Keeps the numbers of tasks in metrics.
    pub run_dir: PathBuf,
}

/// Answers questions, once it has [`Sources`]. Clones are the same.
#[derive(Clone, Default)]
pub struct Introspection(Arc<OnceLock<Inner>>);

struct Inner {
    sources: Sources,
    slots: Mutex<Slots>,
}

impl std::fmt::Debug for Introspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Introspection").finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Unanswered {
    #[error("the agent is starting or ending")]
    Gone,
    #[error("the agent's driver did not answer within {} s", DRIVER_PATIENCE.as_secs())]
    Slow,
}

impl IntoResponse for Unanswered {
    fn into_response(self) -> Response {
        let body = Document(json!({ "Error": self.to_string() }));
        (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
    }
}

/// An answer in JSON.
struct Document(Value);

impl IntoResponse for Document {
    fn into_response(self) -> Response {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        (kind, format!("{}\n", self.0)).into_response()
    }
}

/// `?taskarn=`, as ECS has it: an ARN or an id. The only characters of one that clients encode are `:` and `/`.
fn wanted_task(query: Option<&str>) -> Option<String> {
    let value = query?.split('&').find_map(|pair| pair.strip_prefix("taskarn="))?;
    let decoded = [("%3A", ":"), ("%3a", ":"), ("%2F", "/"), ("%2f", "/")]
        .iter()
        .fold(value.to_owned(), |text, (code, letter)| {
            text.replace(code, letter)
        });
    Some(decoded)
}

impl Introspection {
    /// Answers from now on. Given once.
    pub fn provide(&self, sources: Sources) {
        let slots = Mutex::new(Slots::load(sources.run_dir.join("metrics-slots.json")));
        // A second time there is nothing new to be had.
        let _ = self.0.set(Inner { sources, slots });
    }

    fn inner(&self) -> Result<&Inner, Unanswered> {
        self.0.get().ok_or(Unanswered::Gone)
    }

    /// `GET /v1/…`.
    pub fn routes(&self) -> Router {
        let at = || self.clone();
        let (metadata, tasks, ledger, impairments) = (at(), at(), at(), at());
        Router::new()
            .route("/v1/metadata", get(move || async move { metadata.metadata() }))
            .route(
                "/v1/tasks",
                get(move |RawQuery(query): RawQuery| async move {
                    tasks.tasks(wanted_task(query.as_deref())).await
                }),
            )
            .route("/v1/ledger", get(move || async move { ledger.ledger().await }))
            .route(
                "/v1/impairments",
                get(move || async move { impairments.impairments().await }),
            )
    }

    fn metadata(&self) -> Result<Document, Unanswered> {
        let sources = &self.inner()?.sources;
        let link = sources.link.borrow().clone();
        Ok(Document(json!({
            "Cluster": link.cluster.clone().unwrap_or_default(),
            "ContainerInstanceArn": sources.node_id,
            "Version": format!("Berth Agent - v{}", env!("CARGO_PKG_VERSION")),
            "BootId": sources.boot_id,
            "Runtime": sources.runtime_version,
            "CgroupVersion": sources.cgroups.version(),
            "Link": { "Up": link.is_up(), "Problem": link.problem() },
        })))
    }

    async fn tasks(&self, wanted: Option<String>) -> Result<Document, Unanswered> {
        let mut view = self.view().await?;
        if let Some(wanted) = wanted {
            view.tasks.retain(|task| task.arn == wanted || task.id == wanted);
        }
        let all = view.tasks.len();
        view.tasks.truncate(ENTRIES_MAX);
        Ok(Document(
            json!({ "Tasks": view.tasks, "Truncated": all > ENTRIES_MAX }),
        ))
    }

    async fn ledger(&self) -> Result<Document, Unanswered> {
        let ledger = self.ask(Input::Ledger).await?;
        let entries: Vec<LedgerEntry> = ledger.entries().take(ENTRIES_MAX).map(entry).collect();
        let truncated = ledger.entries().count() > ENTRIES_MAX;
        Ok(Document(json!({ "Entries": entries, "Truncated": truncated })))
    }

    async fn impairments(&self) -> Result<Document, Unanswered> {
        let mut impairments = self.ask(Input::Inspect).await?.impairments;
        impairments.extend(self.inner()?.sources.identity.borrow().problem.clone());
        Ok(Document(json!({ "Impairments": impairments })))
    }

    /// The node as the driver has it, with what only the host's layout says.
    async fn view(&self) -> Result<NodeView, Unanswered> {
        let mut view = self.ask(Input::Inspect).await?;
        let Inner { sources, slots } = self.inner()?;
        let cgroups = &sources.cgroups;
        let slots = assign(slots, &view);
        for task in &mut view.tasks {
            task.metrics_slot = slots.of(&task.id);
            let Ok(id) = task.id.parse::<TaskId>() else {
                continue;
            };
            task.cgroup = cgroups.limited_path(&id);
            for container in &mut task.containers {
                if let Ok(container_id) = container.id.parse::<ContainerId>() {
                    container.cgroup = cgroups.container_path(&id, &container_id);
                }
            }
        }
        drop(slots);
        Ok(view)
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Unanswered> {
        let inputs = self.inner()?.sources.inputs.upgrade().ok_or(Unanswered::Gone)?;
        let (reply, answer) = oneshot::channel();
        let asked = async {
            inputs.send(question(reply)).await.map_err(|_| Unanswered::Gone)?;
            answer.await.map_err(|_| Unanswered::Gone)
        };
        tokio::time::timeout(DRIVER_PATIENCE, asked)
            .await
            .unwrap_or(Err(Unanswered::Slow))
    }
}

/// The numbers of the tasks that live now.
fn assign<'a>(slots: &'a Mutex<Slots>, view: &NodeView) -> MutexGuard<'a, Slots> {
    let living: Vec<Living<'_>> = view
        .tasks
        .iter()
        .filter(|task| task.live)
        .map(|task| Living {
            task: &task.id,
            family: &task.family,
            arrival: task.arrival,
        })
        .collect();
    let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
    slots.assign(&living);
    slots
}

/// One thing that the agent answers for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct LedgerEntry {
    kind: &'static str,
    task: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime_id: Option<String>,
}

fn entry(owned: &Owned) -> LedgerEntry {
    let task = owned.task().to_string();
    let (kind, runtime_id) = match owned {
        Owned::Host(_) => ("host", None),
        Owned::Logs(_) => ("logs", None),
        Owned::Attempt(_, container, attempt) => {
            let id = berth_agent_core::ids::runtime_id(container, *attempt);
            ("attempt", Some(id))
        }
    };
    LedgerEntry {
        kind,
        task,
        runtime_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_asked_for_by_arn_as_clients_write_it() {
        let arn = "arn:aws:ecs:r:1:task/default/1f";
        let encoded = "taskarn=arn%3Aaws%3Aecs%3Ar%3A1%3Atask%2Fdefault%2F1f";
        assert_eq!(wanted_task(Some(encoded)).as_deref(), Some(arn));
        assert_eq!(
            wanted_task(Some(&format!("x=1&taskarn={arn}"))).as_deref(),
            Some(arn)
        );
        assert_eq!(wanted_task(Some("other=1")), None);
    }
}
