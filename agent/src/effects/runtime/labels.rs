//! Owns the labels on everything made in containerd. Their keys never change: a newer agent must find what an older
//! one made.

use std::{collections::HashMap, time::Duration};

use berth_agent_core::{
    effect::StartContainer,
    ids::{Attempt, ContainerId, TaskId},
};

pub const INSTANCE: &str = "berth.run/instance";
pub const TASK: &str = "berth.run/task";
pub const CONTAINER: &str = "berth.run/container";
pub const ATTEMPT: &str = "berth.run/attempt";
/// The container's name in its definition.
pub const NAME: &str = "berth.run/name";
/// A number: what `SignalKind::Stop` sends.
pub const STOP_SIGNAL: &str = "berth.run/stop-signal";
/// Milliseconds from the stop signal to SIGKILL.
pub const STOP_TIMEOUT: &str = "berth.run/stop-timeout";
/// Names of the containers that stop after this one, with spaces between.
pub const DEPENDS_ON: &str = "berth.run/depends-on";
pub const TASK_ARN: &str = "berth.run/task-arn";
pub const CLUSTER: &str = "berth.run/cluster";
/// `family:revision`.
pub const DEFINITION: &str = "berth.run/task-definition";
/// Keeps a snapshot from containerd's collector until its record refers to it.
pub const GC_ROOT: &str = "containerd.io/gc.root";

/// containerd's limit on a label's key and value together, bytes.
const LABEL_BYTES_MAX: usize = 4096;
/// Labels with these prefixes mean something to us and to containerd.
const RESERVED: [&str; 2] = ["berth.run/", "containerd.io/"];

/// Of a container that an earlier version made, without the label: what ECS gives one whose definition says nothing.
const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// How a container is to be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The container's name in its definition.
    pub name: String,
    /// From its stop signal to SIGKILL.
    pub timeout: Duration,
    /// Names of those in its task that stop after it.
    pub before: Vec<String>,
}

/// On a snapshot: whose it is.
pub(super) fn identity(instance: &str, request: &StartContainer) -> HashMap<String, String> {
    let labels = [
        (INSTANCE, instance.to_owned()),
        (TASK, request.task.to_string()),
        (CONTAINER, request.spec.id.to_string()),
        (ATTEMPT, request.attempt.0.to_string()),
    ];
    labels
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// On a record: whose it is, what people call it, and the definition's own labels as far as containerd takes them.
pub(super) fn record(instance: &str, request: &StartContainer, stop_signal: u32) -> HashMap<String, String> {
    let own = request.spec.labels.iter().filter(|(key, value)| {
        !RESERVED.iter().any(|prefix| key.starts_with(prefix)) && key.len() + value.len() <= LABEL_BYTES_MAX
    });
    let mut labels: HashMap<String, String> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    labels.extend(identity(instance, request));
    let more = [
        (NAME, request.spec.name.clone()),
        (STOP_SIGNAL, stop_signal.to_string()),
        (STOP_TIMEOUT, request.spec.stop_timeout_ms.to_string()),
        (TASK_ARN, request.task_arn.clone()),
        (CLUSTER, request.cluster.clone()),
        (DEFINITION, format!("{}:{}", request.family, request.revision)),
    ];
    labels.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
    let names: Vec<&str> = request
        .spec
        .depends_on
        .iter()
        .map(|d| d.container.as_str())
        .collect();
    let names = names.join(" ");
    // Without it all of the task's stop at once; a record that containerd refuses could not even start.
    if !names.is_empty() && DEPENDS_ON.len() + names.len() <= LABEL_BYTES_MAX {
        labels.insert(DEPENDS_ON.to_owned(), names);
    }
    labels
}

/// What a record says of its container's end.
pub(super) fn ending(labels: &HashMap<String, String>) -> Ending {
    let get = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
    let timeout = get(STOP_TIMEOUT).parse().map(Duration::from_millis);
    Ending {
        name: get(NAME).to_owned(),
        timeout: timeout.unwrap_or(STOP_TIMEOUT_DEFAULT),
        before: get(DEPENDS_ON).split_whitespace().map(str::to_owned).collect(),
    }
}

/// Whose it is, if it is this instance's.
pub(super) fn parse(
    instance: &str,
    labels: &HashMap<String, String>,
) -> Option<(TaskId, ContainerId, Attempt)> {
    let get = |key: &str| labels.get(key).map(String::as_str);
    (get(INSTANCE)? == instance).then_some(())?;
    Some((
        get(TASK)?.parse().ok()?,
        get(CONTAINER)?.parse().ok()?,
        Attempt(get(ATTEMPT)?.parse().ok()?),
    ))
}
