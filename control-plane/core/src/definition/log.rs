//! Owns the values of `logConfiguration`. Never writes a log.

use serde_json::Value;

use super::read::{Object, text};
use super::sizes::parse_bytes;
use crate::problems::{Problems, child, hint, shown};

/// Least size of one log file, as nodes have it: smaller ones would rotate at every line.
const LOG_BYTES_MIN: u64 = 4096;
/// Largest size of one log file: 1 TiB.
const LOG_BYTES_MAX: u64 = 1 << 40;
/// Most log files of one container.
const LOG_FILES_MAX: u64 = 1_000;
/// Options that Docker's json-file driver has and Berth has not yet.
const OPTIONS_LATER: &[&str] = &[
    "compress",
    "env",
    "env-regex",
    "labels",
    "labels-regex",
    "mode",
    "max-buffer-size",
    "tag",
];
const OPTIONS: &[&str] = &["max-size", "max-file"];

pub(super) fn check(path: &str, container: &Object, problems: &mut Problems) {
    let Some(configuration) = container.get("logConfiguration").and_then(Value::as_object) else {
        return;
    };
    // The options of a driver that is refused as a whole need no judgement of their own.
    if text(configuration, "logDriver") != Some("json-file") {
        return;
    }
    let options = configuration.get("options").and_then(Value::as_object);
    for (name, value) in options.into_iter().flatten() {
        let path = child(&format!("{path}.logConfiguration.options"), name);
        let value = value.as_str().unwrap_or_default();
        match name.as_str() {
            "max-size" => check_size(&path, value, problems),
            "max-file" => check_files(&path, value, problems),
            later if OPTIONS_LATER.contains(&later) => problems.push(path, "not supported yet"),
            unknown => {
                let hint = hint(unknown, OPTIONS.iter().chain(OPTIONS_LATER).copied());
                problems.push(path, format!("unknown option of json-file{hint}"));
            }
        }
    }
}

fn check_size(path: &str, value: &str, problems: &mut Problems) {
    match parse_bytes(value) {
        None => problems.push(
            path,
            format!("{} is not a size: expected bytes, 64k, 10m or 1g", shown(value)),
        ),
        Some(bytes) if bytes < LOG_BYTES_MIN => {
            problems.push(
                path,
                format!("{value} is below the minimum of {LOG_BYTES_MIN} bytes"),
            );
        }
        Some(bytes) if bytes > LOG_BYTES_MAX => {
            problems.push(
                path,
                format!("{value} is above the maximum of {LOG_BYTES_MAX} bytes"),
            );
        }
        Some(_) => {}
    }
}

fn check_files(path: &str, value: &str, problems: &mut Problems) {
    let digits = value.bytes().all(|b| b.is_ascii_digit());
    match value.parse::<u64>() {
        Ok(files) if digits && (1..=LOG_FILES_MAX).contains(&files) => {}
        _ => problems.push(
            path,
            format!("{} is not a number from 1 to {LOG_FILES_MAX}", shown(value)),
        ),
    }
}
