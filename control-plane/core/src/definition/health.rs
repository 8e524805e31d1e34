//! Owns the values of `healthCheck`. Never fills in a default: `echo` does.

use super::read::{Object, inner, integer, texts};
use crate::problems::{Problems, shown};

/// ECS's bounds, in seconds but for the retries.
const BOUNDS: [(&str, i64, i64, &str); 4] = [
    ("interval", 5, 300, " s"),
    ("timeout", 2, 60, " s"),
    ("retries", 1, 10, ""),
    ("startPeriod", 0, 300, " s"),
];

pub(super) fn check(path: &str, container: &Object, problems: &mut Problems) {
    let Some(check) = inner(container, "healthCheck") else {
        return;
    };
    let path = format!("{path}.healthCheck");
    for (name, least, most, unit) in BOUNDS {
        let message = match integer(check, name) {
            Some(value) if value < least => format!("{value} is below the minimum of {least}{unit}"),
            Some(value) if value > most => format!("{value} is above the maximum of {most}{unit}"),
            _ => continue,
        };
        problems.push(format!("{path}.{name}"), message);
    }
    check_command(&format!("{path}.command"), check, problems);
}

fn check_command(path: &str, check: &Object, problems: &mut Problems) {
    let command: Vec<(usize, &str)> = texts(check, "command").collect();
    match command.as_slice() {
        [] => {}
        [(0, "NONE"), ..] => {
            let message = "NONE: leave healthCheck out; an image's own health check is not used anyway";
            problems.push(path, message);
        }
        [(0, "CMD" | "CMD-SHELL"), (1, ""), ..] => {
            problems.push(format!("{path}[1]"), "is empty");
        }
        // More elements, some of another type, were reported already.
        [(0, "CMD" | "CMD-SHELL"), ..] if list_len(check) > 1 => {}
        [(0, kind @ ("CMD" | "CMD-SHELL")), ..] => {
            problems.push(path, format!("has no command after {kind}"));
        }
        [(0, other), ..] => {
            let message = format!("begins with {}: expected CMD or CMD-SHELL", shown(other));
            problems.push(path, message);
        }
        [..] => {}
    }
}

fn list_len(check: &Object) -> usize {
    check
        .get("command")
        .and_then(serde_json::Value::as_array)
        .map_or(0, Vec::len)
}
