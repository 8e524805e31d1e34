//! Owns when a task's environment files are fetched, and what their coming or not coming changes.

use super::{Phase, START_TRIES_MAX, Steps, Task};
use crate::{
    container::{Container, Life, Retry},
    desired::Millis,
    effect::{Effect, FetchEnvironment, Lane},
    environment::Fetching,
    event::{Completion, TimerKey},
    report::StopCode,
};

impl Task {
    /// Once, beside all that is prepared for the first container that needs them. One of a task that was taken up while it
    /// ran needs none until it starts again.
    pub(super) fn fetch_environment(&mut self, now: Millis, steps: &mut Steps) {
        let starts = |c: &&crate::desired::ContainerSpec| self.container(&c.id).life == Life::Waiting;
        let mut starting = self.spec.containers.iter().filter(starts);
        if self.environment != Fetching::Wanted || !starting.any(|c| c.environment_urls().next().is_some()) {
            return;
        }
        let task = self.spec.id.clone();
        if !self.environment_retry.due(now) {
            let key = TimerKey::Retry(Lane::Environment(task));
            steps.timers.extend(self.environment_retry.at.map(|at| (key, at)));
            return;
        }
        self.environment = Fetching::UnderWay { cancelled: false };
        steps.effects.push(Effect::FetchEnvironment(FetchEnvironment {
            task,
            urls: self.spec.environment_urls(),
        }));
    }

    /// On the way down nobody needs them.
    pub(super) fn cancel_environment(&mut self, steps: &mut Steps) {
        match self.environment {
            Fetching::Wanted => self.environment = Fetching::Abandoned,
            Fetching::UnderWay { cancelled: false } => {
                self.environment = Fetching::UnderWay { cancelled: true };
                let lane = Lane::Environment(self.spec.id.clone());
                steps.effects.push(Effect::Cancel(lane));
            }
            Fetching::UnderWay { cancelled: true } | Fetching::Done(_) | Fetching::Abandoned => {}
        }
    }

    /// A task does not start without its environment, whatever container it is of.
    pub(super) fn on_fetched(&mut self, completion: Completion, now: Millis) -> Result<(), String> {
        if !self.environment.is_under_way() {
            return Err(format!("environment is {:?} at {completion:?}", self.environment));
        }
        match completion {
            Completion::EnvironmentReady(files) => {
                (self.environment, self.environment_retry) = (Fetching::Done(files), Retry::default());
            }
            Completion::Cancelled => self.environment = Fetching::Abandoned,
            Completion::Failed(failure) => {
                self.environment_retry.failed(now);
                let again = failure.retryable && self.environment_retry.failures < START_TRIES_MAX;
                if again && self.phase == Phase::Active {
                    self.environment = Fetching::Wanted;
                    self.environment_failure = Some(Container::failure_reason(&failure));
                    return Ok(());
                }
                self.environment = Fetching::Abandoned;
                let reason = Container::failure_reason(&failure);
                self.begin_stop(StopCode::TaskFailedToStart, reason, now);
            }
            other => return Err(format!("the fetch of the environment completed with {other:?}")),
        }
        self.environment_failure = None;
        Ok(())
    }

    /// What is fetched, for people.
    pub(super) fn environment_waits_for(&self) -> Option<String> {
        match &self.environment {
            Fetching::Wanted => self.environment_failure.clone(),
            Fetching::UnderWay { .. } => Some("fetches environment files".into()),
            Fetching::Done(_) | Fetching::Abandoned => None,
        }
    }
}
