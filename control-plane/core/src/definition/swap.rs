//! Owns the values of `linuxParameters.maxSwap` and `swappiness`. Never knows whether a node has swap, or counts it.

use super::read::{Object, integer};
use crate::problems::Problems;

/// The kernel's range, and ECS's.
const SWAPPINESS_MAX: i64 = 100;

/// `path` is that of the container.
pub(super) fn check(path: &str, container: &Object, parameters: &Object, problems: &mut Problems) {
    let at = |name: &str| format!("{path}.linuxParameters.{name}");
    let max_swap = integer(parameters, "maxSwap");
    if let Some(value) = max_swap.filter(|value| *value < 0) {
        problems.push(
            at("maxSwap"),
            format!("{value} is below the minimum of 0 MiB, no swap"),
        );
    }
    if max_swap.is_some() && !container.contains_key("memory") {
        problems.push(
            at("maxSwap"),
            "needs the container's memory, which it is swap beyond",
        );
    }
    let Some(swappiness) = integer(parameters, "swappiness") else {
        return;
    };
    if !(0..=SWAPPINESS_MAX).contains(&swappiness) {
        problems.push(
            at("swappiness"),
            format!("{swappiness} is not 0 to {SWAPPINESS_MAX}"),
        );
    }
    if !parameters.contains_key("maxSwap") {
        problems.push(
            at("swappiness"),
            "has an effect only with maxSwap: give both, or neither",
        );
    }
}
