//! Owns the values of `resourceRequirements`. Which GPUs a container gets is placement's decision.

use super::read::{Object, objects, requires, text};
use crate::problems::{Problems, shown};

/// More than one host has: what nodes take.
const GPUS_MAX: u32 = 64;
/// Of the types that ECS knows, the one that is honoured.
const GPU: &str = "GPU";

pub(super) fn check(task: &Object, path: &str, container: &Object, problems: &mut Problems) {
    let mut first = None;
    for (at, requirement) in objects(container, "resourceRequirements") {
        let path = format!("{path}.resourceRequirements[{at}]");
        if text(requirement, "type") != Some(GPU) {
            continue;
        }
        match first {
            None => first = Some(at),
            Some(first) => problems.push(
                format!("{path}.type"),
                format!("{GPU} is required by resourceRequirements[{first}] already"),
            ),
        }
        match text(requirement, "value").map(count) {
            None if !problems.has(&format!("{path}.value")) => {
                problems.push(format!("{path}.value"), "required");
            }
            Some(Err(message)) => problems.push(format!("{path}.value"), message),
            None | Some(Ok(_)) => {}
        }
    }
    if first.is_some() && requires(task, "FARGATE") {
        problems.push(
            format!("{path}.resourceRequirements"),
            "FARGATE has no GPUs; leave FARGATE out of requiresCompatibilities",
        );
    }
}

/// How many GPUs a `value` asks for.
pub(crate) fn count(value: &str) -> Result<u32, String> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    match value.parse::<u32>() {
        Ok(count) if digits && (1..=GPUS_MAX).contains(&count) => Ok(count),
        _ => Err(format!(
            "{} is not a number of GPUs: expected 1 to {GPUS_MAX}",
            shown(value)
        )),
    }
}

/// Whether it has what AWS gives no task of FARGATE.
pub(super) fn is_beyond_fargate(task: &Object) -> bool {
    let asks = |container: &Object| {
        objects(container, "resourceRequirements").any(|(_, r)| text(r, "type") == Some(GPU))
    };
    objects(task, "containerDefinitions").any(|(_, container)| asks(container))
}
