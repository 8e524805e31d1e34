//! Owns reading what the first pass let through: absent and refused values read as `None` and are skipped, for
//! they were reported already. Never reports.

use serde_json::{Map, Value};

pub(super) type Object = Map<String, Value>;

pub(super) fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

pub(super) fn integer(object: &Object, name: &str) -> Option<i64> {
    object.get(name).and_then(Value::as_i64)
}

pub(super) fn flag(object: &Object, name: &str) -> bool {
    object.get(name) == Some(&Value::Bool(true))
}

/// The member of that name, if it is an object.
pub(super) fn inner<'a>(object: &'a Object, name: &str) -> Option<&'a Object> {
    object.get(name).and_then(Value::as_object)
}

/// The objects of a list, each with its place.
pub(super) fn objects<'a>(object: &'a Object, name: &str) -> impl Iterator<Item = (usize, &'a Object)> {
    let list = object
        .get(name)
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    list.iter()
        .enumerate()
        .filter_map(|(at, value)| value.as_object().map(|object| (at, object)))
}

/// The texts of a list, each with its place.
pub(super) fn texts<'a>(object: &'a Object, name: &str) -> impl Iterator<Item = (usize, &'a str)> {
    let list = object
        .get(name)
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    list.iter()
        .enumerate()
        .filter_map(|(at, value)| value.as_str().map(|text| (at, text)))
}

/// Whether the task asks for this compatibility.
pub(super) fn requires(task: &Object, compatibility: &str) -> bool {
    texts(task, "requiresCompatibilities").any(|(_, c)| c == compatibility)
}

/// The path of one container.
pub(super) fn container_path(at: usize) -> String {
    format!("containerDefinitions[{at}]")
}
