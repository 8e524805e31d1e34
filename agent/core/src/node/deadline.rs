//! Owns the answer to "until when": what a task that is not where it is wanted waits for at most, and what happens then.
//! For people; decisions are made where the deadlines are kept.

use super::Node;
use crate::{
    container::{Life, StopStage},
    dependency,
    desired::Millis,
    ids::TaskId,
    task::{Logs, Phase, Task},
};

/// A time at which something changes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    pub at: Millis,
    /// What happens then, for people.
    pub then: &'static str,
}

impl Node {
    /// The next deadline of a task; `None` where nothing is waited for, or the work under way has a deadline of its own.
    pub fn deadline(&self, id: &TaskId) -> Option<Deadline> {
        let task = self.tasks.get(id)?;
        let next = match &task.phase {
            Phase::Waiting { since, .. } => vec![Deadline {
                at: since.plus(self.config.admission_deadline_ms),
                then: "the task fails to start",
            }],
            Phase::Active => starting(task),
            Phase::Stopping => stopping(task),
            Phase::Releasing => retried(task.host_retry.at),
            Phase::Stopped => task
                .times
                .stopped
                .filter(|_| task.logs == Logs::Kept)
                .map(|stopped| Deadline {
                    at: stopped.plus(self.config.log_retention_ms),
                    then: "the task's logs are removed",
                })
                .into_iter()
                .collect(),
        };
        next.into_iter().min_by_key(|deadline| deadline.at)
    }
}

fn retried(at: Option<Millis>) -> Vec<Deadline> {
    let then = "what failed is tried again";
    at.map(|at| Deadline { at, then }).into_iter().collect()
}

fn starting(task: &Task) -> Vec<Deadline> {
    let mut deadlines = match &task.awaited {
        Some(awaited) => vec![Deadline {
            at: awaited.until(),
            then: "the task fails to start",
        }],
        None => retried(task.host_retry.at),
    };
    let somebody_waits = task.containers().any(|(_, c)| c.life == Life::Waiting);
    for spec in &task.spec.containers {
        let container = task.container(&spec.id);
        if container.life == Life::Waiting {
            deadlines.extend(retried(container.retry.at));
        }
        if let (Life::Waiting, Some(at)) = (container.life, container.restarts.at) {
            let then = "a container that ended is started again";
            deadlines.push(Deadline { at, then });
        }
        if let Some(at) = container.start_timeout_at(spec)
            && somebody_waits
            && !container.start_timed_out
            && dependency::is_waited_for(&task.spec, &spec.name)
        {
            deadlines.push(Deadline {
                at,
                then: "a container's startTimeout passes: who waits for its end or its health has waited long enough",
            });
        }
    }
    deadlines
}

fn stopping(task: &Task) -> Vec<Deadline> {
    let mut deadlines = Vec::new();
    for (_, container) in task.containers() {
        deadlines.extend(retried(container.retry.at));
        if !container.may_have_process() {
            continue;
        }
        deadlines.extend(match container.stop {
            StopStage::NotAsked => None,
            StopStage::Asked { kill_at } => Some(Deadline {
                at: kill_at,
                then: "SIGKILL is sent",
            }),
            StopStage::Killed { again_at, .. } => Some(Deadline {
                at: again_at,
                then: "SIGKILL is sent again",
            }),
        });
    }
    deadlines
}
