//! Owns what becomes of a task that runs and of which this agent has no record: it goes on, where all of it is accounted
//! for. Never guesses: what is not certain is not taken up (the task then ends, see [`Task::found`]).

use std::collections::BTreeMap;

use super::{Host, Logs, Phase, Task};
use crate::{
    addresses::Address,
    container::{Container, Image, Life},
    desired::{Condition, ContainerSpec, Millis, NetworkMode, TaskSpec},
    event::{Exit, ObservedState},
    ids::{Attempt, ContainerId},
    ports::{DynamicPorts, Ports},
};

/// What the host has of a task without a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stranger {
    /// As the runtime listed them, and as they ended since.
    pub containers: BTreeMap<(ContainerId, Attempt), ObservedState>,
    /// That its interface has.
    pub address: Option<Address>,
}

impl Stranger {
    /// One of its processes ended.
    pub fn on_exited(&mut self, exit: &Exit) {
        let key = (exit.container.clone(), exit.attempt);
        if let Some(state @ ObservedState::Running { .. }) = self.containers.get_mut(&key) {
            *state = ObservedState::Exited {
                code: exit.code,
                at: exit.at,
                oom_killed: exit.oom_killed,
            };
        }
    }

    /// The only attempt of a container. None: there is none, or more than one.
    fn only(&self, id: &ContainerId) -> Option<(Attempt, &ObservedState)> {
        let mut found = self
            .containers
            .iter()
            .filter(|((container, _), _)| container == id);
        let ((_, attempt), state) = found.next()?;
        found.next().is_none().then_some((*attempt, state))
    }

    fn has(&self, id: &ContainerId) -> bool {
        self.containers.keys().any(|(container, _)| container == id)
    }
}

impl Task {
    /// The task as it runs, if every container of it is accounted for: its process runs or has ended and is still listed, or
    /// its end is what another one that was started had waited for.
    pub fn adopt(spec: TaskSpec, arrival: u64, stranger: &Stranger, now: Millis) -> Option<Self> {
        let mut task = Self::new(spec, arrival, now);
        // Which ports lead to its containers was the record's alone to know.
        if task.spec.network == NetworkMode::Bridge {
            return None;
        }
        if (task.spec.network == NetworkMode::Awsvpc) != stranger.address.is_some() {
            return None;
        }
        for spec in &task.spec.containers {
            let container = match stranger.only(&spec.id) {
                Some((attempt, state)) => taken_up(&task.spec, spec, attempt, state, now)?,
                None if !stranger.has(&spec.id) && must_have_ended(&task.spec, spec, stranger) => gone(),
                None => return None,
            };
            task.containers.insert(spec.id.clone(), container);
        }
        // Limits, network and directories are looked after again once they were made, again.
        (task.phase, task.host, task.logs) = (Phase::Active, Host::HalfMade, Logs::Kept);
        task.address = stranger.address;
        let chosen = Ports::default().choose(&task.spec, &DynamicPorts::default(), &|_, _| false, now);
        task.bindings = chosen.unwrap_or_default();
        task.adopted = true;
        Some(task)
    }
}

fn taken_up(
    task: &TaskSpec,
    spec: &ContainerSpec,
    attempt: Attempt,
    state: &ObservedState,
    now: Millis,
) -> Option<Container> {
    let mut container = Container {
        attempt,
        attempted: true,
        life: Life::Starting,
        // Which content it was started from is not known; a later start asks anew.
        image: Image::Abandoned,
        ..Container::new()
    };
    match state {
        ObservedState::Created => return None,
        ObservedState::Running { pid } => container.on_started(*pid, now),
        ObservedState::Exited { code, at, oom_killed } => {
            container.on_started(0, *at);
            container.on_exited(&Exit {
                task: task.id.clone(),
                container: spec.id.clone(),
                attempt,
                pid: 0,
                code: *code,
                at: *at,
                oom_killed: *oom_killed,
                holder_ended: false,
            });
        }
    }
    Some(container)
}

/// Another one waited for its end, and was started. The end of an essential one would have ended the task.
fn must_have_ended(task: &TaskSpec, spec: &ContainerSpec, stranger: &Stranger) -> bool {
    let waited = |other: &ContainerSpec| {
        other.depends_on.iter().any(|d| {
            d.container == spec.name && matches!(d.condition, Condition::Complete | Condition::Success)
        })
    };
    let mut started = task.containers.iter().filter(|other| stranger.has(&other.id));
    !spec.essential && started.any(waited)
}

/// One that ran to its end and was removed.
fn gone() -> Container {
    Container {
        life: Life::Gone,
        image: Image::Abandoned,
        reason: Some("how it ended is not known: the agent lost its record".into()),
        ..Container::new()
    }
}
