//! Owns the values of `restartPolicy`. When a container starts again is its node's decision.

use serde_json::Value;

use super::read::{Object, inner, integer};
use crate::problems::Problems;

/// Most exit codes that a policy may ignore.
const IGNORED_EXIT_CODES_MAX: usize = 50;
/// What a process can exit with, or is said to after a signal.
const EXIT_CODES: std::ops::RangeInclusive<i64> = 0..=255;
const PERIOD_SECONDS_MIN: i64 = 60;
const PERIOD_SECONDS_MAX: i64 = 1_800;

pub(super) fn check(path: &str, container: &Object, problems: &mut Problems) {
    let Some(policy) = inner(container, "restartPolicy") else {
        return;
    };
    let path = format!("{path}.restartPolicy");
    if let Some(period) = integer(policy, "restartAttemptPeriod") {
        let path = format!("{path}.restartAttemptPeriod");
        if period < PERIOD_SECONDS_MIN {
            problems.push(
                path,
                format!("{period} is below the minimum of {PERIOD_SECONDS_MIN} s"),
            );
        } else if period > PERIOD_SECONDS_MAX {
            problems.push(
                path,
                format!("{period} is above the maximum of {PERIOD_SECONDS_MAX} s"),
            );
        }
    }
    let codes = policy.get("ignoredExitCodes").and_then(Value::as_array);
    let codes = codes.map_or(&[][..], Vec::as_slice);
    let path = format!("{path}.ignoredExitCodes");
    if codes.len() > IGNORED_EXIT_CODES_MAX {
        let message = format!(
            "{} exit codes, the limit is {IGNORED_EXIT_CODES_MAX}",
            codes.len()
        );
        problems.push(path.as_str(), message);
    }
    for (at, code) in codes.iter().enumerate() {
        if let Some(code) = code.as_i64().filter(|code| !EXIT_CODES.contains(code)) {
            problems.push(
                format!("{path}[{at}]"),
                format!("{code} is not an exit code: expected 0 to 255"),
            );
        }
    }
}
