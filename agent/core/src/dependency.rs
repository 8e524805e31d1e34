//! Owns what `dependsOn` means: when a container may start, when it never will, and in which order containers stop. One that
//! takes the volumes of another waits for its start too, which makes and fills them, but they stop at once.

use crate::{
    container::{Container, Image, Life},
    desired::{Condition, ContainerSpec, TaskSpec},
    health::HealthStatus,
    ids::ContainerId,
    task::Task,
};

/// The exit code ECS gives a container that never ran because a dependency failed.
pub const DEPENDENCY_FAILED_EXIT_CODE: i32 = 143;

/// Whether a container's dependencies allow it to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Satisfied,
    /// What it waits for, for people.
    Waiting(String),
    /// It can never start, and why.
    Impossible(String),
}

/// The verdict over all dependencies of `spec`: the worst of each.
pub fn verdict(task: &Task, spec: &ContainerSpec) -> Verdict {
    let mut waiting = None;
    for dependency in &spec.depends_on {
        let Some(other) = task.spec.container_named(&dependency.container) else {
            return Verdict::Impossible(format!(
                "depends on {:?}, which the task does not have",
                dependency.container
            ));
        };
        match one(task.container(&other.id), other, dependency.condition) {
            Verdict::Satisfied => {}
            Verdict::Waiting(reason) => waiting = waiting.or(Some(reason)),
            impossible => return impossible,
        }
    }
    for from in &spec.volumes.from {
        let Some(other) = task.spec.container_named(&from.container) else {
            return Verdict::Impossible(format!(
                "takes volumes of {:?}, which the task does not have",
                from.container
            ));
        };
        let source = task.container(&other.id);
        match one(source, other, Condition::Start) {
            Verdict::Satisfied if !matches!(source.image, Image::Ready(_)) => {
                let name = &from.container;
                return Verdict::Impossible(format!(
                    "it is no longer known which volumes the image of {name} has"
                ));
            }
            Verdict::Satisfied => {}
            Verdict::Waiting(reason) => waiting = waiting.or(Some(reason)),
            impossible => return impossible,
        }
    }
    waiting.map_or(Verdict::Satisfied, Verdict::Waiting)
}

fn one(other: &Container, spec: &ContainerSpec, condition: Condition) -> Verdict {
    let name = &spec.name;
    if other.never_ran() {
        return Verdict::Impossible(format!("dependency {name} did not run"));
    }
    match (condition, other.exit_code()) {
        (Condition::Start, _) if other.has_started() => Verdict::Satisfied,
        (Condition::Start, _) => Verdict::Waiting(format!("waits for container {name} to START")),
        (Condition::Complete, Some(_)) | (Condition::Success, Some(0)) => Verdict::Satisfied,
        (Condition::Success, Some(code)) => Verdict::Impossible(format!(
            "dependency {name} exited with {code}, SUCCESS was needed"
        )),
        (Condition::Complete | Condition::Success, None) if other.start_timed_out => {
            let seconds = spec.start_timeout_ms / 1000;
            Verdict::Impossible(format!(
                "dependency {name} did not end within its startTimeout of {seconds} s"
            ))
        }
        (Condition::Complete, None) => Verdict::Waiting(format!("waits for container {name} to COMPLETE")),
        (Condition::Success, None) => {
            Verdict::Waiting(format!("waits for container {name} to reach SUCCESS"))
        }
        (Condition::Healthy, _) => healthy(other, spec),
    }
}

/// As in the ECS agent an unhealthy one may still become healthy, until its startTimeout; one that has ended may not.
fn healthy(other: &Container, spec: &ContainerSpec) -> Verdict {
    let (name, seconds) = (&spec.name, spec.start_timeout_ms / 1000);
    if other.has_ended() {
        let how = other
            .exit_code()
            .map_or("ended".into(), |code| format!("exited with {code}"));
        return Verdict::Impossible(format!("dependency {name} {how}, HEALTHY was needed"));
    }
    match other.health.status() {
        HealthStatus::Healthy if other.life == Life::Running => Verdict::Satisfied,
        _ if other.start_timed_out => Verdict::Impossible(format!(
            "dependency {name} was not HEALTHY within its startTimeout of {seconds} s"
        )),
        _ => Verdict::Waiting(format!(
            "waits for container {name} to be HEALTHY, until {seconds} s after its start"
        )),
    }
}

/// Whether somebody waits for this container to end or to be healthy, so that its startTimeout counts.
pub fn is_waited_for(spec: &TaskSpec, name: &str) -> bool {
    let waits = |d: &crate::desired::Dependency| d.container == name && d.condition != Condition::Start;
    spec.containers.iter().flat_map(|c| &c.depends_on).any(waits)
}

/// Whether a container may be stopped now: those that depend on it come first.
pub fn may_stop(task: &Task, id: &ContainerId) -> bool {
    let Some(spec) = task.spec.container(id) else {
        return true;
    };
    let depends = |c: &&ContainerSpec| c.depends_on.iter().any(|d| d.container == spec.name);
    task.spec
        .containers
        .iter()
        .filter(depends)
        .all(|c| !task.container(&c.id).is_up())
}
