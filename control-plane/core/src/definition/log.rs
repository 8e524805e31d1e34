//! Owns the values of `logConfiguration`, and which drivers do not exist yet. Never writes a log.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::log_attributes::{self, Named};
use super::read::{Object, container_path, inner, objects, text};
use super::sizes::parse_bytes;
use crate::problems::{Problems, child, hint, shown};

/// Least size of one log file, as nodes have it: smaller ones would rotate at every line.
const LOG_BYTES_MIN: u64 = 4096;
/// Largest size of one log file: 1 TiB.
const LOG_BYTES_MAX: u64 = 1 << 40;
/// Most log files of one container.
const LOG_FILES_MAX: u64 = 1_000;
const OPTIONS: &[&str] = &[
    "max-size",
    "max-file",
    "mode",
    "max-buffer-size",
    "labels",
    "labels-regex",
    "tag",
    "compress",
    "env",
    "env-regex",
];
/// Those of a driver that keeps nothing: ECS has them for every driver.
const OPTIONS_OF_NONE: &[&str] = &["mode", "max-buffer-size"];
/// Largest buffer of one container: it is memory of the node, used while its disk does not keep up.
const BUFFER_BYTES_MAX: u64 = 256 << 20;
const BLOCKING: &str = "blocking";
const NON_BLOCKING: &str = "non-blocking";
/// What a container without a `logConfiguration` has.
pub(crate) const JSON_FILE: &str = "json-file";
/// Discards all output.
pub(crate) const NONE: &str = "none";
/// Drivers that ship output elsewhere, and the attribute by which ECS asks for each. None exists yet.
const ABSENT_DRIVERS: &[(&str, &str)] = &[
    ("awslogs", "com.amazonaws.ecs.capability.logging-driver.awslogs"),
    ("fluentd", "com.amazonaws.ecs.capability.logging-driver.fluentd"),
    ("gelf", "com.amazonaws.ecs.capability.logging-driver.gelf"),
    ("journald", "com.amazonaws.ecs.capability.logging-driver.journald"),
    ("splunk", "com.amazonaws.ecs.capability.logging-driver.splunk"),
    ("syslog", "com.amazonaws.ecs.capability.logging-driver.syslog"),
];
const JSON_FILE_CAPABILITY: &str = "com.amazonaws.ecs.capability.logging-driver.json-file";
const NONE_CAPABILITY: &str = "com.amazonaws.ecs.capability.logging-driver.none";
const AWSLOGS_BY_EXECUTION_ROLE: &str = "ecs.capability.execution-role-awslogs";

/// What becomes of a container whose log driver does not exist yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnsupportedLogDriver {
    /// Its output is kept on its node, as with json-file, and its tasks say so.
    #[default]
    JsonFile,
    /// Its definition is refused.
    Refuse,
}

/// Whether a driver that ECS has does not exist here yet.
pub(crate) fn is_absent(driver: &str) -> bool {
    ABSENT_DRIVERS.iter().any(|(name, _)| *name == driver)
}

/// What is said of such a driver where it is refused.
pub(crate) fn refusal(driver: &str) -> String {
    format!(
        "{driver}: not supported yet, and the control plane's unsupported_log_driver is \"refuse\"; use json-file"
    )
}

/// Where such drivers are refused.
pub(super) fn refuse_absent(task: &Object, problems: &mut Problems) {
    for (at, container) in objects(task, "containerDefinitions") {
        let driver = inner(container, "logConfiguration").and_then(|log| text(log, "logDriver"));
        if let Some(driver) = driver.filter(|driver| is_absent(driver)) {
            let path = format!("{}.logConfiguration.logDriver", container_path(at));
            problems.push(path, refusal(driver));
        }
    }
}

pub(super) fn check(path: &str, container: &Object, problems: &mut Problems) {
    let Some(configuration) = container.get("logConfiguration").and_then(Value::as_object) else {
        return;
    };
    // The options of a driver that is refused as a whole need no judgement of their own.
    let Some(driver) = text(configuration, "logDriver") else {
        return;
    };
    let absent = is_absent(driver);
    let options = configuration.get("options").and_then(Value::as_object);
    for (name, value) in options.into_iter().flatten() {
        let path = child(&format!("{path}.logConfiguration.options"), name);
        let value = value.as_str().unwrap_or_default();
        match name.as_str() {
            kept if driver == NONE && OPTIONS.contains(&kept) && !OPTIONS_OF_NONE.contains(&kept) => {
                problems.push(path, "log driver none keeps nothing: leave it out, or use json-file");
            }
            "max-size" => check_size(&path, value, LOG_BYTES_MIN..=LOG_BYTES_MAX, problems),
            "mode" if [BLOCKING, NON_BLOCKING].contains(&value) => {}
            "mode" => problems.push(
                path,
                format!("expected one of {BLOCKING}, {NON_BLOCKING}; got {}", shown(value)),
            ),
            "max-buffer-size" if options.is_some_and(is_blocking) => {
                problems.push(
                    path,
                    format!("mode {BLOCKING} has no buffer: leave one of the two out"),
                );
            }
            "max-buffer-size" => check_size(&path, value, 1..=BUFFER_BYTES_MAX, problems),
            "max-file" => check_files(&path, value, problems),
            // They are for the driver, which does not exist: the task's warning says so.
            _ if absent => {}
            // Judged with the labels that they choose.
            "labels" => {}
            "labels-regex" => {
                if let Err(problem) = log_attributes::regex(value) {
                    problems.push(path, problem);
                }
            }
            "tag" => {
                let any = Named { id: "", name: "", image: "" };
                if let Err(problem) = log_attributes::tag(value, any) {
                    problems.push(path, problem);
                }
            }
            "compress" if value == "false" => {}
            "compress" => problems.push(
                path,
                "not supported: rotated files stay as they are, for those who read them; choose a smaller max-size or \
                 max-file",
            ),
            "env" | "env-regex" => problems.push(
                path,
                "not supported: it would write parts of the environment, which may be secret, into every line; use \
                 labels",
            ),
            unknown => {
                let hint = hint(unknown, OPTIONS.iter().copied());
                problems.push(path, format!("unknown option of {driver}{hint}"));
            }
        }
    }
    if driver == JSON_FILE {
        check_labels(
            &format!("{path}.logConfiguration.options"),
            container,
            options,
            problems,
        );
    }
}

fn check_labels(path: &str, container: &Object, options: Option<&Object>, problems: &mut Problems) {
    let texts = |object: Option<&Object>| -> BTreeMap<String, String> {
        let entries = object.into_iter().flatten();
        let texts = entries.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        texts.collect()
    };
    let mut options = texts(options);
    // A bad one was told already.
    if options
        .get("labels-regex")
        .is_some_and(|pattern| log_attributes::regex(pattern).is_err())
    {
        options.remove("labels-regex");
    }
    let labels = texts(inner(container, "dockerLabels"));
    if let Err(problem) = log_attributes::of_labels(&options, &labels) {
        problems.push(path, problem);
    }
}

/// What ECS derives from a task's log drivers, in the order of the table.
pub(super) fn required_attributes(task: &Object) -> Vec<&'static str> {
    let drivers = || {
        let configured = objects(task, "containerDefinitions").filter_map(|(_, c)| c.get("logConfiguration"));
        configured.filter_map(|log| log.get("logDriver")?.as_str())
    };
    let known = [(JSON_FILE, JSON_FILE_CAPABILITY), (NONE, NONE_CAPABILITY)];
    let all = known.iter().chain(ABSENT_DRIVERS);
    let mut attributes: Vec<_> = all
        .filter(|(name, _)| drivers().any(|driver| driver == *name))
        .map(|(_, attribute)| *attribute)
        .collect();
    if task.contains_key("executionRoleArn") && drivers().any(|driver| driver == "awslogs") {
        attributes.push(AWSLOGS_BY_EXECUTION_ROLE);
    }
    attributes
}

/// Whether the container is to wait for a disk that does not keep up.
fn is_blocking(options: &Object) -> bool {
    text(options, "mode") == Some(BLOCKING)
}

fn check_size(path: &str, value: &str, allowed: RangeInclusive<u64>, problems: &mut Problems) {
    match parse_bytes(value) {
        None => problems.push(
            path,
            format!("{} is not a size: expected bytes, 64k, 10m or 1g", shown(value)),
        ),
        Some(bytes) if bytes < *allowed.start() => {
            problems.push(
                path,
                format!("{value} is below the minimum of {} bytes", allowed.start()),
            );
        }
        Some(bytes) if bytes > *allowed.end() => {
            problems.push(
                path,
                format!("{value} is above the maximum of {} bytes", allowed.end()),
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
