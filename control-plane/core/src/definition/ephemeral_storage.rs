//! Owns the values of `ephemeralStorage`. Whether a node can bound what is written is the node's to say.

use super::read::{Object, inner, integer};
use crate::problems::Problems;

/// GiB, as in ECS.
const SIZE_GIB_MIN: i64 = 21;
const SIZE_GIB_MAX: i64 = 200;

pub(super) fn check(task: &Object, problems: &mut Problems) {
    let size = inner(task, "ephemeralStorage").and_then(|storage| integer(storage, "sizeInGiB"));
    let message = match size {
        Some(size) if size < SIZE_GIB_MIN => format!("{size} is below the minimum of {SIZE_GIB_MIN} GiB"),
        Some(size) if size > SIZE_GIB_MAX => format!("{size} is above the maximum of {SIZE_GIB_MAX} GiB"),
        _ => return,
    };
    problems.push("ephemeralStorage.sizeInGiB", message);
}
