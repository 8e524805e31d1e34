//! Owns the values of `portMappings`. Whether a node's ports are free is placement's question, never this one's.

use std::collections::BTreeMap;

use super::read::{Object, container_path, integer, objects, text};
use crate::problems::{Problems, shown};

/// Most port mappings of a task: what a container instance can reserve in ECS.
const PORT_MAPPINGS_MAX: usize = 100;
/// Most ports of a task, each of a range counted: the node makes a rule's element of each.
const PORTS_MAX: i64 = 1_000;
/// Longest name of a port mapping.
const PORT_NAME_CHARS_MAX: usize = 64;

pub(super) fn check(task: &Object, problems: &mut Problems) {
    let mode = network_mode(task);
    let mut taken: Vec<Taken> = Vec::new();
    let mut ports = 0;
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut count = 0;
    for (at, container) in objects(task, "containerDefinitions") {
        for (port_at, mapping) in objects(container, "portMappings") {
            let path = format!("{}.portMappings[{port_at}]", container_path(at));
            count += 1;
            check_one(mode, &path, mapping, problems);
            for own in occupied(mode, at, mapping, &path) {
                if own.side == Side::Container {
                    ports += own.last - own.first + 1;
                }
                if let Some(other) = taken.iter().find(|other| own.collides(other)) {
                    let message = format!("{own} is taken by {} already", other.path);
                    problems.push(format!("{path}.{}", own.field), message);
                }
                taken.push(own);
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
    if ports > PORTS_MAX && count <= PORT_MAPPINGS_MAX {
        let message = format!("{ports} ports in all, the limit is {PORTS_MAX}");
        problems.push("containerDefinitions", message);
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
    check_range(mode, path, mapping, problems);
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
    if let Some(port) = host_port.filter(|port| !(0..=65_535).contains(port)) {
        problems.push(
            format!("{path}.hostPort"),
            format!("{port} is not a port: expected 0, for any, to 65535"),
        );
    }
    // Only where the host's port is the container's own.
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

fn check_range(mode: &str, path: &str, mapping: &Object, problems: &mut Problems) {
    let Some(range) = text(mapping, "containerPortRange") else {
        return;
    };
    let path = format!("{path}.containerPortRange");
    if mode == "host" {
        problems.push(path.as_str(), "ECS has it in bridge and awsvpc, not in host");
    }
    for name in ["containerPort", "hostPort"] {
        if mapping.contains_key(name) {
            problems.push(path.as_str(), format!("leave {name} out: the range says it"));
        }
    }
    if port_range(range).is_none() {
        let message = format!("{} is not a range: FIRST-LAST, of 1 to 65535", shown(range));
        problems.push(path, message);
    }
}

/// The first and the last port of a `containerPortRange`.
pub(crate) fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-')?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return None;
    }
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (0 < first && first < last).then_some((first, last))
}

/// As ECS has it where none is given.
fn network_mode(task: &Object) -> &str {
    text(task, "networkMode").unwrap_or("bridge")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Container,
    Host,
}

/// Ports that two mappings cannot both have.
#[derive(Debug)]
struct Taken {
    side: Side,
    /// None: all of the task share them.
    container: Option<usize>,
    first: i64,
    last: i64,
    protocol: String,
    field: &'static str,
    path: String,
}

impl Taken {
    fn collides(&self, other: &Self) -> bool {
        (self.side, self.container, &self.protocol) == (other.side, other.container, &other.protocol)
            && self.first <= other.last
            && other.first <= self.last
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = match self.side {
            Side::Container => "",
            Side::Host => "host port ",
        };
        match self.first == self.last {
            true => write!(f, "{side}{}/{}", self.first, self.protocol),
            false => write!(f, "{side}{}-{}/{}", self.first, self.last, self.protocol),
        }
    }
}

/// What a mapping has for itself: in bridge mode ports of its container, which may lead there from several of the host's, and
/// those of the host; else ports of the task.
fn occupied(mode: &str, container: usize, mapping: &Object, path: &str) -> Vec<Taken> {
    let bridge = mode == "bridge";
    let taken = |side, field, first, last| Taken {
        side,
        container: (bridge && side == Side::Container).then_some(container),
        first,
        last,
        protocol: text(mapping, "protocol").unwrap_or("tcp").to_owned(),
        field,
        path: path.to_owned(),
    };
    let range = text(mapping, "containerPortRange").and_then(port_range);
    let inside = match (range, integer(mapping, "containerPort")) {
        (Some((first, last)), _) => Some(("containerPortRange", first.into(), last.into())),
        (None, Some(port)) => Some(("containerPort", port, port)),
        (None, None) => None,
    };
    let outside = integer(mapping, "hostPort").filter(|port| bridge && *port != 0);
    let outside = outside.map(|port| taken(Side::Host, "hostPort", port, port));
    // The same port of a container may be mapped to several of the host's.
    let inside = inside
        .filter(|_| !(bridge && outside.is_some()))
        .map(|(field, first, last)| taken(Side::Container, field, first, last));
    inside.into_iter().chain(outside).collect()
}

fn is_port_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=PORT_NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(known) && !name.starts_with('-')
}
