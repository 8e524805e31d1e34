//! Owns the probes of one task's containers: when one begins, when it is given up, and what its outcome changes. Never
//! judges an outcome: [`crate::health`] does.

use super::{Phase, Steps, Task};
use crate::{
    container::Life,
    desired::Millis,
    effect::{Effect, Lane, Probe},
    event::{Completion, TimerKey},
    ids::ContainerId,
};

impl Task {
    /// Begins a probe that is due, sets the timer for one that is not yet, and gives up one whose container is no longer to
    /// be looked at. A stop waits for none: it only goes on to remove the container when the probe is gone.
    pub(crate) fn watch_health(&mut self, id: &ContainerId, now: Millis, steps: &mut Steps) {
        let (task, active) = (self.spec.id.clone(), self.phase == Phase::Active);
        let Some(check) = self.spec.container(id).and_then(|spec| spec.health_check.clone()) else {
            return;
        };
        let Some(container) = self.container_mut(id) else {
            return;
        };
        let lane = Lane::Probe(task.clone(), id.clone());
        if !active || container.life != Life::Running {
            if container.health.cancel() {
                steps.effects.push(Effect::Cancel(lane));
            }
            return;
        }
        let started = container.runs_since(now);
        match container.health.due(&check, started, now) {
            Some(at) if at <= now => {
                container.health.on_begun(container.attempt, now);
                steps.effects.push(Effect::Probe(Probe {
                    task,
                    container: id.clone(),
                    attempt: container.attempt,
                    command: check.command,
                    timeout_ms: check.timeout_ms,
                }));
            }
            Some(at) => steps.timers.push((TimerKey::Probe(task, id.clone()), at)),
            None => {}
        }
    }

    /// A probe ended. Whether anything follows from it besides the next one; else what was impossible.
    pub(crate) fn on_probed(
        &mut self,
        id: &ContainerId,
        completion: Completion,
        now: Millis,
    ) -> Result<bool, String> {
        let active = self.phase == Phase::Active;
        let check = self.spec.container(id).and_then(|spec| spec.health_check.clone());
        let (Some(check), Some(container)) = (check, self.container_mut(id)) else {
            return Err(format!("container {id} has no health check at {completion:?}"));
        };
        if !container.health.is_under_way() {
            return Err(format!("no probe under way at {completion:?}"));
        }
        let started = container.runs_since(now);
        let runs = active && container.life == Life::Running;
        let changed = match completion {
            // What was found of a container that is ending says nothing any more.
            Completion::Probed { attempt, outcome } if runs => {
                container.health.on_probed(&check, attempt, started, outcome, now)
            }
            Completion::Probed { .. } | Completion::Cancelled => {
                container.health.on_not_probed(&check, started, None, now);
                false
            }
            Completion::Failed(failure) => {
                container
                    .health
                    .on_not_probed(&check, started, Some(failure.message), now);
                false
            }
            other => return Err(format!("probe completed with {other:?}")),
        };
        // Its removal may have waited for the probe.
        Ok(changed || !runs)
    }
}
