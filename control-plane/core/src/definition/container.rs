//! Owns the values of one container by itself. What containers say about each other is in `dependencies` and
//! `ports`, and never here, but for names being unique and one of them being essential.

use std::collections::BTreeMap;

use serde_json::Value;

use super::read::{Object, container_path, integer, objects, requires, text};
use super::task_level::{MEMORY_MIB_MIN, check_name};
use super::{environment_files, gpus, health, linux, log, networking, restart, sysctls};
use crate::problems::{Problems, shown};

/// Longest image reference.
const IMAGE_CHARS_MAX: usize = 255;
/// Longest start or stop time-out: a day.
const TIMEOUT_SECONDS_MAX: i64 = 86_400;
/// Longest stop time-out in FARGATE.
const FARGATE_STOP_TIMEOUT_SECONDS_MAX: i64 = 120;
/// Of the limits, unlimited.
const UNLIMITED: i64 = -1;

pub(super) fn check(task: &Object, problems: &mut Problems) {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut containers, mut essential) = (0, false);
    for (at, container) in objects(task, "containerDefinitions") {
        let path = container_path(at);
        containers += 1;
        essential |= container.get("essential") != Some(&Value::Bool(false));
        if let Some(name) = text(container, "name") {
            check_name(&format!("{path}.name"), Some(name), problems);
            match names.get(name) {
                Some(first) => {
                    let message = format!(
                        "{} is the name of {} already",
                        shown(name),
                        container_path(*first)
                    );
                    problems.push(format!("{path}.name"), message);
                }
                None => {
                    names.insert(name, at);
                }
            }
        }
        check_one(task, &path, container, problems);
    }
    if containers > 0 && !essential {
        problems.push("containerDefinitions", "at least one container must be essential");
    }
}

fn check_one(task: &Object, path: &str, container: &Object, problems: &mut Problems) {
    check_image(path, container, problems);
    check_memory(task, path, container, problems);
    check_timeouts(task, path, container, problems);
    restart::check(path, container, problems);
    check_process(path, container, problems);
    check_environment(path, container, problems);
    environment_files::check(path, container, problems);
    check_labels(path, container, problems);
    check_ulimits(path, container, problems);
    linux::check(task, path, container, problems);
    networking::check(task, path, container, problems);
    sysctls::check(task, path, container, problems);
    log::check(path, container, problems);
    health::check(path, container, problems);
    gpus::check(task, path, container, problems);
}

fn check_image(path: &str, container: &Object, problems: &mut Problems) {
    let Some(image) = text(container, "image") else {
        return;
    };
    let known = |b: u8| b.is_ascii_alphanumeric() || b"-_:./#@+".contains(&b);
    if image.is_empty() || image.len() > IMAGE_CHARS_MAX || !image.bytes().all(known) {
        let message = "is not an image reference: 1 to 255 letters, digits and - _ : . / # @ +";
        problems.push(format!("{path}.image"), format!("{} {message}", shown(image)));
    }
}

fn check_memory(task: &Object, path: &str, container: &Object, problems: &mut Problems) {
    let (memory, reservation) = (
        integer(container, "memory"),
        integer(container, "memoryReservation"),
    );
    for (name, value) in [("memory", memory), ("memoryReservation", reservation)] {
        if let Some(value) = value.filter(|value| *value < MEMORY_MIB_MIN) {
            let message = format!("{value} is below the minimum of {MEMORY_MIB_MIN} MiB");
            problems.push(format!("{path}.{name}"), message);
        }
    }
    if let Some((memory, reservation)) = memory.zip(reservation).filter(|(m, r)| m < r) {
        let message = format!("{memory} MiB is less than the memoryReservation of {reservation} MiB");
        problems.push(format!("{path}.memory"), message);
    }
    let refused = |name: &str| problems.has(&format!("{path}.{name}"));
    let sized = memory.is_some() || reservation.is_some() || text(task, "memory").is_some();
    if !sized && !refused("memory") && !refused("memoryReservation") && !problems.has("memory") {
        problems.push(
            format!("{path}.memory"),
            "memory or memoryReservation is required when the task has no memory",
        );
    }
    if let Some(cpu) = integer(container, "cpu").filter(|cpu| *cpu < 0) {
        problems.push(
            format!("{path}.cpu"),
            format!("{cpu} is below the minimum of 0 CPU units"),
        );
    }
}

fn check_timeouts(task: &Object, path: &str, container: &Object, problems: &mut Problems) {
    let stop_max = match requires(task, "FARGATE") {
        true => FARGATE_STOP_TIMEOUT_SECONDS_MAX,
        false => TIMEOUT_SECONDS_MAX,
    };
    for (name, most) in [("startTimeout", TIMEOUT_SECONDS_MAX), ("stopTimeout", stop_max)] {
        let message = match integer(container, name) {
            Some(value) if value < 1 => format!("{value} is below the minimum of 1 s"),
            Some(value) if value > most => format!("{value} is above the maximum of {most} s"),
            _ => continue,
        };
        problems.push(format!("{path}.{name}"), message);
    }
}

fn check_process(path: &str, container: &Object, problems: &mut Problems) {
    if let Some(directory) = text(container, "workingDirectory").filter(|d| !d.starts_with('/')) {
        let message = format!("{} is not an absolute path", shown(directory));
        problems.push(format!("{path}.workingDirectory"), message);
    }
    if let Some(user) = text(container, "user").filter(|user| !is_user(user)) {
        let message = format!(
            "{} is not a user: expected user, user:group, uid or uid:gid",
            shown(user)
        );
        problems.push(format!("{path}.user"), message);
    }
}

fn is_user(user: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.chars().any(|c| c.is_whitespace() || c.is_control());
    match user.split_once(':') {
        Some((user, group)) => part(user) && part(group) && !group.contains(':'),
        None => part(user),
    }
}

pub(super) fn check_environment(path: &str, container: &Object, problems: &mut Problems) {
    for (at, variable) in objects(container, "environment") {
        let path = || format!("{path}.environment[{at}].name");
        match text(variable, "name") {
            Some("") => problems.push(path(), "is empty"),
            Some(name) if name.contains('=') => problems.push(path(), format!("{} contains =", shown(name))),
            _ => {}
        }
    }
}

/// containerd keeps a label of at most so many bytes, name and value together.
const LABEL_BYTES_MAX: usize = 4096;
/// The node finds its containers by labels of these names.
const LABEL_PREFIXES_RESERVED: [&str; 2] = ["berth.run/", "containerd.io/"];

fn check_labels(path: &str, container: &Object, problems: &mut Problems) {
    let labels = container.get("dockerLabels").and_then(Value::as_object);
    for (name, value) in labels.into_iter().flatten() {
        let at = || format!("{path}.dockerLabels.{name}");
        if name.is_empty() {
            problems.push(format!("{path}.dockerLabels"), "a label without a name");
        }
        let bytes = name.len() + value.as_str().map_or(0, str::len);
        if bytes > LABEL_BYTES_MAX {
            problems.push(
                at(),
                format!("{bytes} bytes of name and value are over containerd's {LABEL_BYTES_MAX}"),
            );
        }
        if LABEL_PREFIXES_RESERVED
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            problems.push(
                at(),
                "names beginning with berth.run/ and containerd.io/ are the node's own",
            );
        }
    }
}

fn check_ulimits(path: &str, container: &Object, problems: &mut Problems) {
    let mut names = Vec::new();
    for (at, ulimit) in objects(container, "ulimits") {
        let path = format!("{path}.ulimits[{at}]");
        let (soft, hard) = (integer(ulimit, "softLimit"), integer(ulimit, "hardLimit"));
        for (name, value) in [("softLimit", soft), ("hardLimit", hard)] {
            if let Some(value) = value.filter(|value| *value < UNLIMITED) {
                problems.push(
                    format!("{path}.{name}"),
                    format!("{value} is below the minimum of -1, unlimited"),
                );
            }
        }
        let above = |soft: i64, hard: i64| hard != UNLIMITED && (soft == UNLIMITED || soft > hard);
        if let Some((soft, hard)) = soft.zip(hard).filter(|(soft, hard)| above(*soft, *hard)) {
            problems.push(
                format!("{path}.softLimit"),
                format!("{soft} is above the hardLimit of {hard}"),
            );
        }
        if let Some(name) = text(ulimit, "name") {
            if names.contains(&name) {
                problems.push(format!("{path}.name"), format!("{name} is set twice"));
            }
            names.push(name);
        }
    }
}
