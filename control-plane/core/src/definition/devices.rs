//! Owns the values of `linuxParameters.devices`. Never knows which devices a node has.

use super::read::{Object, objects, text};
use crate::problems::{Problems, shown};

/// Devices of one container: what nodes take.
const DEVICES_MAX: usize = 100;
/// Longest path, bytes: Linux's PATH_MAX without its NUL.
const PATH_BYTES_MAX: usize = 4095;

/// `path` is that of `linuxParameters`.
pub(super) fn check(path: &str, parameters: &Object, problems: &mut Problems) {
    let mut places: Vec<String> = Vec::new();
    for (at, device) in objects(parameters, "devices") {
        let path = format!("{path}.devices[{at}]");
        for name in ["hostPath", "containerPath"] {
            if let Some(Err(message)) = text(device, name).map(check_path) {
                problems.push(format!("{path}.{name}"), message);
            }
        }
        let Some(place) = text(device, "containerPath").or(text(device, "hostPath")) else {
            continue;
        };
        let parts: Vec<&str> = parts(place).collect();
        let name = match device.contains_key("containerPath") {
            true => "containerPath",
            false => "hostPath",
        };
        if matches!(parts.first(), Some(&("proc" | "sys"))) {
            problems.push(
                format!("{path}.{name}"),
                format!("{} is the kernel's", shown(place)),
            );
        }
        let place = parts.join("/");
        if places.contains(&place) {
            problems.push(
                format!("{path}.{name}"),
                format!("{} is there twice", shown(&format!("/{place}"))),
            );
        }
        places.push(place);
    }
    if places.len() > DEVICES_MAX {
        let message = format!("{} entries, the limit is {DEVICES_MAX}", places.len());
        problems.push(format!("{path}.devices"), message);
    }
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

fn check_path(path: &str) -> Result<(), String> {
    if path.len() > PATH_BYTES_MAX {
        return Err(format!("{} bytes, the limit is {PATH_BYTES_MAX}", path.len()));
    }
    if !path.starts_with('/') || path.contains('\0') || parts(path).any(|part| part == "..") {
        return Err(format!("{} is not an absolute path without ..", shown(path)));
    }
    match parts(path).next() {
        Some(_) => Ok(()),
        None => Err("/ is no device".into()),
    }
}
