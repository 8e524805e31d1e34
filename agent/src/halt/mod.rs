//! Owns the end of all tasks when their host shuts down: each container gets its stop signal and its stop timeout, those
//! that depend on others first, and loggers write what is left. Asks containerd what there is, and the cgroups where it
//! does not answer. Leaves records, logs and the agent's database as they are: its next start finds what a boot leaves.

mod command;
mod task;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use berth_agent_core::{event::ObservedState, ids::TaskId};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep},
};

pub use command::Halt;

use crate::{
    boot,
    effects::{
        cgroups::Cgroups,
        runtime::{self, ListedContainer, Runtime},
    },
    place::Place,
    purge,
    sys::Chain,
};

/// containerd is stopped after this: it answers at once, or not at all. No more than this share of the time, so that tasks
/// have the rest.
const CONTAINERD_LIMIT: Duration = Duration::from_secs(5);
const CONTAINERD_SHARE: u32 = 4;
/// Containers whose shim and logger go at a time; each is a few processes of the runtime.
const REMOVALS_MAX: usize = 16;
/// For shims to leave after their last container.
const SHIMS_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);

/// Ends every task of the instance. Those that are not done `within` are killed; what comes after that has bounds of its own,
/// together less than 30 s unless the kernel holds a process.
///
/// # Errors
/// An agent runs, and nothing was changed; or processes that could not be ended.
pub async fn halt(place: &Place, within: Duration) -> anyhow::Result<()> {
    purge::refuse_beside_an_agent(place)?;
    let deadline = Instant::now() + within;
    let cgroups = Cgroups::left_behind(&place.cgroup_parent())?;
    let seen = !with_processes(&cgroups)?.is_empty();
    // Where nothing is seen it is still asked: the cgroups may be others than those of the configuration's last change.
    let patience = if seen {
        CONTAINERD_LIMIT.min(within / CONTAINERD_SHARE)
    } else {
        Duration::ZERO
    };
    match runtime::connect(&place.containerd_address, patience, |_| {}).await {
        Ok(channel) => {
            let runtime = Runtime::new(channel, purge::runtime_config(place));
            if let Err(error) = end_containers(&runtime, place, seen, deadline).await {
                tracing::warn!(error = %Chain(error.as_ref()), "containerd does not say what runs; ending tasks by their cgroups");
            }
        }
        Err(error) if seen => {
            mark(place);
            tracing::warn!(error = %Chain(&error), "ending tasks by their cgroups, with SIGTERM");
        }
        Err(_) => return Ok(()),
    }
    end_the_rest(&cgroups, deadline).await
}

/// Before anything ends: an agent that is started when half is done must not take the ended half for failed.
fn mark(place: &Place) {
    if let Err(error) = boot::end(&place.run_dir) {
        tracing::warn!(run_dir = %place.run_dir.display(), %error, "cannot note the halt: an agent that is started before the next boot takes its tasks for failed");
    }
}

async fn end_containers(
    runtime: &Runtime,
    place: &Place,
    seen: bool,
    deadline: Instant,
) -> anyhow::Result<()> {
    if seen {
        mark(place);
    }
    let mut tasks: BTreeMap<TaskId, Vec<ListedContainer>> = BTreeMap::new();
    for container in runtime.list().await? {
        tasks.entry(container.task.clone()).or_default().push(container);
    }
    tasks.retain(|_, containers| containers.iter().any(|c| c.state != ObservedState::Created));
    if !seen && !tasks.is_empty() {
        mark(place);
    }
    let removals = std::sync::Arc::new(Semaphore::new(REMOVALS_MAX));
    let mut ending = JoinSet::new();
    for (id, containers) in tasks {
        let end = task::end(runtime.clone(), containers, deadline, removals.clone());
        ending.spawn(async move { (id, end.await) });
    }
    while let Some(ended) = ending.join_next().await {
        let (id, ended) = ended.context("end a task")?;
        ended.tell(&id);
    }
    // After all that they hold.
    for task in runtime.holders().await? {
        if let Err(error) = runtime.end_holder(&task).await {
            tracing::warn!(%task, error = %Chain(&error), "the holder of its namespaces does not end");
        }
    }
    Ok(())
}

fn with_processes(cgroups: &Cgroups) -> anyhow::Result<Vec<TaskId>> {
    let mut tasks = purge::cgroups::tasks(cgroups)?;
    tasks.retain(|task| !cgroups.processes(task).is_empty());
    Ok(tasks)
}

/// Processes that containerd does not know of, or all, where it did not answer.
async fn end_the_rest(cgroups: &Cgroups, deadline: Instant) -> anyhow::Result<()> {
    let beside_shims = |task: &TaskId| cgroups.processes(task).len() > cgroups.rt_processes(task).len();
    let mut tasks = with_processes(cgroups)?;
    // Shims leave by themselves after their last container.
    let begun = Instant::now();
    while !tasks.is_empty() && !tasks.iter().any(beside_shims) && begun.elapsed() < SHIMS_LIMIT {
        sleep(POLL).await;
        tasks = with_processes(cgroups)?;
    }
    let grace = deadline.saturating_duration_since(Instant::now());
    for task in purge::cgroups::end_below(cgroups, grace).await? {
        tracing::info!(%task, "task ended by its cgroups");
    }
    let begun = Instant::now();
    tasks = with_processes(cgroups)?;
    while !tasks.is_empty() && begun.elapsed() < SHIMS_LIMIT {
        sleep(POLL).await;
        tasks = with_processes(cgroups)?;
    }
    let names: Vec<String> = tasks.iter().map(ToString::to_string).collect();
    anyhow::ensure!(
        tasks.is_empty(),
        "processes outlive SIGKILL in tasks {}",
        names.join(", ")
    );
    Ok(())
}
