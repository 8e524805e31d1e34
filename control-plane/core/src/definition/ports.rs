//! Owns the values of `portMappings`. Whether a node's ports are free is placement's question, never this one's.

use std::collections::BTreeMap;

use super::read::{Object, container_path, integer, objects, text};
use crate::problems::{Problems, shown};

/// Most port mappings of a task: what a container instance can reserve in ECS.
const PORT_MAPPINGS_MAX: usize = 100;
/// Longest name of a port mapping.
const PORT_NAME_CHARS_MAX: usize = 64;

pub(super) fn check(task: &Object, problems: &mut Problems) {
    let mode = text(task, "networkMode").unwrap_or_default();
    let mut taken: BTreeMap<(i64, &str), String> = BTreeMap::new();
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut count = 0;
    for (at, container) in objects(task, "containerDefinitions") {
        for (port_at, mapping) in objects(container, "portMappings") {
            let path = format!("{}.portMappings[{port_at}]", container_path(at));
            count += 1;
            check_one(mode, &path, mapping, problems);
            let key = integer(mapping, "containerPort")
                .map(|port| (port, text(mapping, "protocol").unwrap_or("tcp")));
            if let Some((port, protocol)) = key {
                if let Some(first) = taken.get(&(port, protocol)) {
                    let message = format!("{port}/{protocol} is taken by {first} already");
                    problems.push(format!("{path}.containerPort"), message);
                }
                taken.entry((port, protocol)).or_insert_with(|| path.clone());
            }
            if let Some(name) = text(mapping, "name") {
                if let Some(first) = names.get(name) {
                    problems.push(
                        format!("{path}.name"),
                        format!("{} is the name of {first} already", shown(name)),
                    );
                }
                names.entry(name).or_insert(path);
            }
        }
    }
    if count > PORT_MAPPINGS_MAX {
        let message = format!("{count} port mappings in all, the limit is {PORT_MAPPINGS_MAX}");
        problems.push("containerDefinitions", message);
    }
}

fn check_one(mode: &str, path: &str, mapping: &Object, problems: &mut Problems) {
    if mode == "none" {
        problems.push(path, "networkMode none has no ports");
        return;
    }
    let (container_port, host_port) = (integer(mapping, "containerPort"), integer(mapping, "hostPort"));
    if container_port.is_none()
        && !problems.has(&format!("{path}.containerPort"))
        && !mapping.contains_key("containerPortRange")
    {
        problems.push(format!("{path}.containerPort"), "required");
    }
    if let Some(port) = container_port.filter(|port| !(1..=65_535).contains(port)) {
        problems.push(
            format!("{path}.containerPort"),
            format!("{port} is not a port: expected 1 to 65535"),
        );
    }
    // Only where the host's port is the container's own: in any other mode this task is refused already.
    let differ = container_port.zip(host_port).filter(|(c, h)| c != h);
    if let (Some((container_port, host_port)), "awsvpc" | "host") = (differ, mode) {
        let message = format!(
            "{host_port} must be absent or equal to the containerPort {container_port} in mode {mode}"
        );
        problems.push(format!("{path}.hostPort"), message);
    }
    if let Some(name) = text(mapping, "name").filter(|name| !is_port_name(name)) {
        let message = format!(
            "{} is not a port name: 1 to 64 of a-z 0-9 - _, not - first",
            shown(name)
        );
        problems.push(format!("{path}.name"), message);
    }
}

fn is_port_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=PORT_NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(known) && !name.starts_with('-')
}
