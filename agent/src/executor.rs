//! Owns effects under way: one task per lane, a deadline on each, exactly one completion each. Never decides what to
//! do next.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_agent_core::{
    effect::{Effect, Lane},
    event::{Completion, Event, Failure},
};
use futures_util::FutureExt;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    driver::{Input, send},
    effects::Host,
    metrics::METRICS,
};

/// What a cancelled effect may still take to undo what it began.
const CANCEL_GRACE: Duration = Duration::from_secs(20);

/// What a probe may take beyond its own timeout: until its process is made, and until that is gone.
const PROBE_SLACK_S: u64 = 60;

/// How long an effect may take. Pulls are bounded by their own, finer deadlines; this one is the last resort.
fn deadline(effect: &Effect) -> Duration {
    let seconds = match effect {
        Effect::PullImage { .. } => 2 * 3600,
        Effect::Start(_) => 180,
        Effect::PrepareHost(_) | Effect::ReleaseHost { .. } | Effect::RemoveLogs { .. } => 60,
        Effect::Signal { .. } => 15,
        Effect::Remove { .. } => 60,
        // A hundred files at most, eight at a time, each with a deadline of its own.
        Effect::FetchEnvironment(_) => 150,
        Effect::Probe(probe) => u64::from(probe.timeout_ms / 1000) + PROBE_SLACK_S,
        Effect::Cancel(_) => 0,
    };
    Duration::from_secs(seconds)
}

#[derive(Debug)]
struct Running {
    cancel: CancellationToken,
    handle: AbortHandle,
}

#[derive(Debug)]
pub struct Executor {
    host: Arc<Host>,
    inputs: mpsc::WeakSender<Input>,
    lanes: HashMap<Lane, Running>,
    tasks: JoinSet<()>,
    ending: CancellationToken,
}

impl Executor {
    /// Completions go to `inputs`, whose lifetime is the driver's. Once the agent is `ending`, pulls are dropped without
    /// a completion: the next start begins them anew, and what was downloaded is still there.
    pub fn new(host: Arc<Host>, inputs: &mpsc::Sender<Input>, ending: CancellationToken) -> Self {
        Self {
            host,
            inputs: inputs.downgrade(),
            lanes: HashMap::new(),
            tasks: JoinSet::new(),
            ending,
        }
    }

    /// What the host itself has against tasks, for an operator.
    pub fn impairments(&self) -> Vec<String> {
        self.host.network.impairments()
    }

    /// Begins an effect, or cancels one. Never blocks.
    pub fn submit(&mut self, effect: Effect) {
        while self.tasks.try_join_next().is_some() {}
        self.lanes.retain(|_, running| !running.handle.is_finished());
        let lane = effect.lane();
        if matches!(effect, Effect::Cancel(_)) {
            if let Some(running) = self.lanes.get(&lane) {
                running.cancel.cancel();
            }
            return;
        }
        let Some(inputs) = self.inputs.upgrade() else {
            return;
        };
        // Nobody waits for the outcome of a probe once the agent ends.
        let cancel = match &effect {
            Effect::Probe(_) => self.ending.child_token(),
            _ => CancellationToken::new(),
        };
        let what = describe(&effect);
        let phase = METRICS.phase(&effect);
        let given_up = given_up(self.ending.clone(), &effect);
        let work = perform(Arc::clone(&self.host), effect, cancel.clone());
        let of_lane = lane.clone();
        let handle = self.tasks.spawn(async move {
            let begun = Instant::now();
            let completion = tokio::select! {
                completion = completed(&what, work) => completion,
                () = given_up => return,
            };
            if let (Some(phase), false) = (phase, unsuccessful(&completion)) {
                phase.observe(begun.elapsed());
            }
            send(
                &inputs,
                Event::Completed {
                    lane: of_lane,
                    completion,
                },
            )
            .await;
        });
        self.lanes.insert(lane, Running { cancel, handle });
    }
}

/// Ends when the agent does, for an effect that nothing on the host depends on.
fn given_up(ending: CancellationToken, effect: &Effect) -> impl Future<Output = ()> + use<> {
    let pull = matches!(effect, Effect::PullImage { .. } | Effect::FetchEnvironment(_));
    async move {
        if pull {
            ending.cancelled().await;
        } else {
            std::future::pending::<()>().await;
        }
    }
}

fn unsuccessful(completion: &Completion) -> bool {
    matches!(completion, Completion::Failed(_) | Completion::Cancelled)
}

/// A lane whose effect never completes is wedged for good: a panic is a failure as well.
async fn completed(what: &str, work: impl Future<Output = Completion>) -> Completion {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(completion) => completion,
        Err(_) => {
            tracing::error!(effect = %what, "effect panicked; please report it");
            Completion::Failed(Failure {
                kind: "InternalError".into(),
                message: format!("{what} panicked"),
                retryable: true,
            })
        }
    }
}

async fn perform(host: Arc<Host>, effect: Effect, cancel: CancellationToken) -> Completion {
    let limit = deadline(&effect);
    let what = describe(&effect);
    let work = host.perform(effect, cancel.clone());
    tokio::pin!(work);
    let late = async {
        tokio::select! {
            () = tokio::time::sleep(limit) => {}
            () = async { cancel.cancelled().await; tokio::time::sleep(CANCEL_GRACE).await } => {}
        }
    };
    tokio::select! {
        completion = &mut work => completion,
        () = late => {
            tracing::warn!(effect = %what, "effect gave no answer within its deadline");
            let message = format!("{what} gave no answer within {} s", limit.as_secs());
            Completion::Failed(Failure { kind: "TimeoutError".into(), message, retryable: true })
        }
    }
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::PrepareHost(p) => format!("preparing cgroups, network and volumes of task {}", p.task),
        Effect::PullImage { image, .. } => format!("pulling {image}"),
        Effect::FetchEnvironment(fetch) => format!("fetching environment files of task {}", fetch.task),
        Effect::Start(s) => format!("starting container {} of task {}", s.spec.name, s.task),
        Effect::Signal { container, kind, .. } => format!("sending {kind:?} to container {container}"),
        Effect::Probe(probe) => format!("checking the health of container {}", probe.container),
        Effect::Remove { container, .. } => format!("removing container {container}"),
        Effect::ReleaseHost { task, .. } => format!("removing cgroups, network and volumes of task {task}"),
        Effect::RemoveLogs { task } => format!("removing logs of task {task}"),
        Effect::Cancel(lane) => format!("cancelling {lane:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_effect_that_panics_completes_as_a_failure() {
        let completion = completed("pulling x", async { panic!("no") }).await;
        let Completion::Failed(failure) = completion else {
            panic!("{completion:?}")
        };
        assert_eq!(failure.message, "pulling x panicked");
    }
}
