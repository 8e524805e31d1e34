//! Owns the values of `systemControls`: only kernel parameters that are a container's own. Never knows which of them a
//! node's kernel has, or which values it takes.

use super::read::{Object, objects, text};
use crate::problems::{Problems, shown};

/// Of the IPC namespace, besides `fs.mqueue.*`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];
/// More than any parameter takes.
const VALUE_BYTES_MAX: usize = 1024;

pub(super) fn check(task: &Object, path: &str, container: &Object, problems: &mut Problems) {
    let mut names = Vec::new();
    for (at, control) in objects(container, "systemControls") {
        let path = |name: &str| format!("{path}.systemControls[{at}].{name}");
        for name in ["namespace", "value"] {
            if text(control, name).is_none() && !problems.has(&path(name)) {
                problems.push(path(name), "required");
            }
        }
        if let Some(name) = text(control, "namespace") {
            if let Err(message) = check_name(task, name) {
                problems.push(path("namespace"), message);
            } else if names.contains(&name) {
                problems.push(path("namespace"), format!("{name} is set twice"));
            }
            names.push(name);
        }
        let plain = |c: char| c == '\t' || !c.is_control();
        let fits = |value: &&str| (1..=VALUE_BYTES_MAX).contains(&value.len()) && value.chars().all(plain);
        if text(control, "value").is_some_and(|value| !fits(&value)) {
            let message = format!("expected 1 to {VALUE_BYTES_MAX} bytes without control characters");
            problems.push(path("value"), message);
        }
    }
}

/// Whether it is of the IPC namespace.
pub(super) fn is_ipc(name: &str) -> bool {
    IPC.contains(&name) || below(name, "fs.mqueue.")
}

fn below(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty())
}

fn check_name(task: &Object, name: &str) -> Result<(), String> {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    if !name.split('.').all(part) {
        return Err(format!(
            "{} is not a kernel parameter: expected a name with dots, as in net.core.somaxconn",
            shown(name)
        ));
    }
    if below(name, "net.") {
        return match text(task, "networkMode") {
            Some("host") => Err(format!(
                "{name} would change the node's network: use awsvpc, or set it on the node"
            )),
            _ => Ok(()),
        };
    }
    if is_ipc(name) {
        return Ok(());
    }
    Err(format!(
        "{} is not a container's own and would change the node for all: set it on the node; expected net.*, \
         fs.mqueue.* or one of {}",
        shown(name),
        IPC.join(", ")
    ))
}
