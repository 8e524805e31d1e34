//! Owns the end of one task's containers, in their order. Never waits longer than it is told.

use std::{sync::Arc, time::Duration};

use berth_agent_core::{effect::SignalKind, event::ObservedState, ids::TaskId};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};

use crate::{
    effects::runtime::{Ending, ListedContainer, Runtime, RuntimeError},
    sys::Chain,
};

/// How a task ended.
#[derive(Debug)]
pub(super) struct Ended {
    took: Duration,
    containers: Vec<String>,
    /// Their stop timeout ran out, or the time for all.
    killed: Vec<String>,
    problems: Vec<String>,
}

impl Ended {
    /// One line.
    pub(super) fn tell(&self, task: &TaskId) {
        let (containers, killed) = (self.containers.join(" "), self.killed.join(" "));
        let took = format!("{:.1} s", self.took.as_secs_f64());
        if !self.problems.is_empty() {
            let problems = self.problems.join("; ");
            tracing::error!(%task, took, containers, killed, problems, "task not ended in order");
        } else if killed.is_empty() {
            tracing::info!(%task, took, containers, "task ended");
        } else {
            tracing::warn!(%task, took, containers, killed, "task ended; some did not in time, and were killed");
        }
    }
}

/// Ends all containers of a task.
pub(super) async fn end(
    runtime: Runtime,
    containers: Vec<ListedContainer>,
    deadline: Instant,
    removals: Arc<Semaphore>,
) -> Ended {
    let begun = Instant::now();
    let mut ended = Ended {
        took: Duration::ZERO,
        containers: containers.iter().map(|c| c.ending.name.clone()).collect(),
        killed: Vec::new(),
        problems: Vec::new(),
    };
    let (mut waiting, mut going) = (containers, FuturesUnordered::new());
    // What has begun its end and is not done.
    let mut up: Vec<Ending> = Vec::new();
    loop {
        let late = Instant::now() >= deadline;
        let all: Vec<Ending> = waiting.iter().map(|c| c.ending.clone()).collect();
        let may =
            |c: &ListedContainer| late || !up.iter().chain(&all).any(|other| comes_before(other, &c.ending));
        let (mut next, mut rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(may);
        // Of a circle nobody is first.
        if next.is_empty() && going.is_empty() {
            std::mem::swap(&mut next, &mut rest);
        }
        waiting = rest;
        for container in next {
            up.push(container.ending.clone());
            going.push(end_one(&runtime, container, deadline, &removals));
        }
        let done = tokio::select! {
            done = going.next() => done,
            () = sleep_until(deadline), if !waiting.is_empty() => continue,
        };
        let Some((ending, result)) = done else { break };
        up.retain(|other| other.name != ending.name);
        match result {
            Ok(Stopped::Itself) => {}
            Ok(Stopped::Killed) => ended.killed.push(ending.name),
            Err(error) => ended.problems.push(format!("{}: {}", ending.name, Chain(&error))),
        }
    }
    ended.took = begun.elapsed();
    ended
}

/// `first` depends on `then`, so it ends before.
fn comes_before(first: &Ending, then: &Ending) -> bool {
    first.name != then.name && first.before.contains(&then.name)
}

#[derive(Debug)]
enum Stopped {
    Itself,
    Killed,
}

async fn end_one(
    runtime: &Runtime,
    container: ListedContainer,
    deadline: Instant,
    removals: &Semaphore,
) -> (Ending, Result<Stopped, RuntimeError>) {
    let ListedContainer {
        container: id,
        attempt,
        state,
        ending,
        ..
    } = container;
    let end = async {
        let mut stopped = Stopped::Itself;
        if matches!(state, ObservedState::Running { .. }) {
            let left = deadline.saturating_duration_since(Instant::now());
            // One that cannot be asked is killed with the rest of its end.
            let asked = runtime.signal(&id, attempt, SignalKind::Stop).await;
            if asked.is_err() || !runtime.await_end(&id, attempt, ending.timeout.min(left)).await? {
                stopped = Stopped::Killed;
            }
        }
        let _place = removals.acquire().await;
        runtime.end(&id, attempt).await.map(|()| stopped)
    };
    let result = end.await;
    (ending, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_on_another_ends_before_it() {
        let ending = |name: &str, before: &[&str]| Ending {
            name: name.into(),
            timeout: Duration::from_secs(1),
            before: before.iter().map(|&name| name.to_owned()).collect(),
        };
        let (web, database) = (ending("web", &["database"]), ending("database", &[]));
        assert!(comes_before(&web, &database));
        assert!(!comes_before(&database, &web));
        let itself = ending("a", &["a"]);
        assert!(!comes_before(&itself, &itself));
    }
}
