//! Owns the values of `volumes` and `mountPoints`: what a volume is, that it has a name, and where it is mounted. Whose
//! volumes `volumesFrom` takes is in `dependencies`. Never knows what a node's disk holds.

use std::collections::BTreeMap;

use serde_json::Value;

use super::local_volume;
use super::read::{Object, container_path, inner, objects, requires, text};
use super::task_level::check_name;
use crate::problems::{Problems, hint, shown};

/// Longest path: the kernel's PATH_MAX, without its end.
const PATH_BYTES_MAX: usize = 4095;
/// What a volume can be; each is one of them, or none, which is an empty host.
const KINDS: [&str; 6] = [
    "host",
    "dockerVolumeConfiguration",
    "efsVolumeConfiguration",
    "s3filesVolumeConfiguration",
    "fsxWindowsFileServerVolumeConfiguration",
    "configuredAtLaunch",
];
/// Below `/proc`, what runtimes let be mounted over (runc): all else there is the kernel's.
const IN_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

pub(super) fn check(task: &Object, problems: &mut Problems) {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, volume) in objects(task, "volumes") {
        let path = format!("volumes[{at}]");
        if let Some(name) = text(volume, "name") {
            check_name(&format!("{path}.name"), Some(name), problems);
            if let Some(first) = names.get(name) {
                let message = format!("{} is the name of volumes[{first}] already", shown(name));
                problems.push(format!("{path}.name"), message);
            } else {
                names.insert(name, at);
            }
        }
        check_kind(task, &path, volume, problems);
    }
    for (at, container) in objects(task, "containerDefinitions") {
        check_mount_points(&container_path(at), container, &names, problems);
    }
}

fn check_kind(task: &Object, path: &str, volume: &Object, problems: &mut Problems) {
    let is_given =
        |kind: &&&str| volume.contains_key(**kind) && volume.get(**kind) != Some(&Value::Bool(false));
    let kinds: Vec<&str> = KINDS.iter().filter(is_given).copied().collect();
    if let [first, second, ..] = kinds[..] {
        problems.push(path, format!("has {first} and {second}: a volume is one of them"));
    }
    if let Some(source) = source_path(volume)
        && let Err(message) = check_path(source)
    {
        problems.push(format!("{path}.host.sourcePath"), message);
    }
    if let Some(docker) = inner(volume, "dockerVolumeConfiguration") {
        local_volume::check(&format!("{path}.dockerVolumeConfiguration"), docker, problems);
    }
    if requires(task, "FARGATE")
        && let Some(beyond) = beyond_fargate(volume)
    {
        problems.push(format!("{path}.{beyond}"), "FARGATE does not have it");
    }
}

/// The path on the host. ECS takes the empty one for none.
fn source_path(volume: &Object) -> Option<&str> {
    inner(volume, "host")
        .and_then(|host| text(host, "sourcePath"))
        .filter(|path| !path.is_empty())
}

/// Whether a volume is of a kind that FARGATE does not have.
pub(super) fn is_beyond_fargate(task: &Object) -> bool {
    objects(task, "volumes").any(|(_, volume)| beyond_fargate(volume).is_some())
}

fn beyond_fargate(volume: &Object) -> Option<&'static str> {
    if source_path(volume).is_some() {
        return Some("host.sourcePath");
    }
    let docker = "dockerVolumeConfiguration";
    volume.contains_key(docker).then_some(docker)
}

fn check_mount_points(
    path: &str,
    container: &Object,
    volumes: &BTreeMap<&str, usize>,
    problems: &mut Problems,
) {
    let mut places: Vec<(String, String)> = Vec::new();
    let parameters = inner(container, "linuxParameters");
    for (at, tmpfs) in parameters.into_iter().flat_map(|p| objects(p, "tmpfs")) {
        if let Some(place) = text(tmpfs, "containerPath") {
            places.push((normal(place), format!("linuxParameters.tmpfs[{at}]")));
        }
    }
    for (at, mount) in objects(container, "mountPoints") {
        let own = format!("mountPoints[{at}]");
        if let Some(volume) = text(mount, "sourceVolume").filter(|name| !volumes.contains_key(name)) {
            let hint = hint(volume, volumes.keys().copied());
            let message = format!("no volume is named {}{hint}", shown(volume));
            problems.push(format!("{path}.{own}.sourceVolume"), message);
        }
        let Some(place) = text(mount, "containerPath") else {
            continue;
        };
        let path = format!("{path}.{own}.containerPath");
        if let Err(message) = check_place(place) {
            problems.push(path, message);
            continue;
        }
        let place = normal(place);
        match places.iter().find(|(other, _)| *other == place) {
            Some((_, first)) => problems.push(path, format!("{} is where {first} is", shown(&place))),
            None => places.push((place, own)),
        }
    }
}

fn check_place(place: &str) -> Result<(), String> {
    check_path(place)?;
    let place = normal(place);
    if place == "/" {
        return Err("/ is the image's".into());
    }
    let of_kernel = place == "/proc" || place.starts_with("/proc/");
    if of_kernel && !IN_PROC.contains(&place.as_str()) {
        return Err(format!("{} is the kernel's", shown(&place)));
    }
    Ok(())
}

/// A path that is whole by itself, of the host or in a container.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(format!("{} is not an absolute path without ..", shown(path)));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(format!(
            "{} bytes, the limit of a path is {PATH_BYTES_MAX}",
            path.len()
        ));
    }
    Ok(())
}

/// An absolute path as the kernel reads it: without repeated slashes, `.` and a slash at the end.
pub(crate) fn normal(path: &str) -> String {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    format!("/{}", parts.join("/"))
}
