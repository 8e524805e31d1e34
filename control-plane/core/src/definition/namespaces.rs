//! Owns the values of `pidMode` and `ipcMode`, and what cannot be had beside them.

use super::read::{Object, container_path, inner, objects, requires, text};
use super::sysctls;
use crate::problems::Problems;

pub(super) fn check(task: &Object, problems: &mut Problems) {
    if requires(task, "FARGATE") {
        if let Some(mode) = text(task, "pidMode").filter(|mode| *mode != "task") {
            problems.push("pidMode", format!("FARGATE has only task, got {mode}"));
        }
        if task.contains_key("ipcMode") {
            problems.push("ipcMode", "FARGATE does not have it");
        }
    }
    let Some(mode) = text(task, "ipcMode") else {
        return;
    };
    for (at, container) in objects(task, "containerDefinitions") {
        let path = container_path(at);
        let sized = inner(container, "linuxParameters").is_some_and(|l| l.contains_key("sharedMemorySize"));
        let shared = match mode {
            "host" => Some("is the node's with ipcMode host: leave it out"),
            "none" => Some("there is no /dev/shm with ipcMode none: leave it out"),
            _ => None,
        };
        if let Some(message) = shared.filter(|_| sized) {
            problems.push(format!("{path}.linuxParameters.sharedMemorySize"), message);
        }
        for (at, control) in objects(container, "systemControls") {
            if let Some(name) =
                text(control, "namespace").filter(|name| mode == "host" && sysctls::is_ipc(name))
            {
                problems.push(
                    format!("{path}.systemControls[{at}].namespace"),
                    format!("{name} would change the node with ipcMode host: set it on the node"),
                );
            }
        }
    }
}

/// Whether the task asks for what FARGATE does not have.
pub(super) fn is_beyond_fargate(task: &Object) -> bool {
    text(task, "pidMode").is_some_and(|mode| mode != "task") || task.contains_key("ipcMode")
}
