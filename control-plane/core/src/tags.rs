//! Owns what tags may be, for every operation that takes them. Never stores them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::problems::{Problems, shown};

/// Tag of a task that is to start again after its host restarted: `true` or `false`.
pub const RESTART_AFTER_REBOOT: &str = "berth.restart-after-reboot";
/// Tag of a task that names the runtime of its containers; see [`is_runtime_name`].
pub const RUNTIME: &str = "berth.runtime";
/// What a node is told when it starts a task, and what cannot change afterwards.
pub const DECIDED_AT_START: [&str; 2] = [RESTART_AFTER_REBOOT, RUNTIME];
/// Longest name of a runtime, in bytes.
pub const RUNTIME_NAME_BYTES_MAX: usize = 32;
/// Most tags of one resource.
pub const TAGS_MAX: usize = 50;
/// Longest key, in characters.
pub const KEY_CHARS_MAX: usize = 128;
/// Longest value, in characters.
pub const VALUE_CHARS_MAX: usize = 256;

/// The tags of a request: a list of `{key, value}`, absent and null meaning none.
///
/// # Errors
/// Everything that is wrong with them, with paths below `path` (`tags`).
pub fn parse(path: &str, input: Option<&Value>) -> Result<BTreeMap<String, String>, Problems> {
    let mut problems = Problems::default();
    if let Some(input) = input.filter(|input| !input.is_null()) {
        check_shape(path, input, &mut problems);
    }
    let tags = check(path, input, &mut problems);
    problems.or(tags)
}

/// Whether a node can offer a runtime under this name: `runc`, `crun`, `runsc` …
pub fn is_runtime_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    (1..=RUNTIME_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain)
}

fn check_shape(path: &str, input: &Value, problems: &mut Problems) {
    let Some(list) = input.as_array() else {
        problems.push(path, "expected an array");
        return;
    };
    for (at, tag) in list.iter().enumerate() {
        let Some(tag) = tag.as_object() else {
            problems.push(format!("{path}[{at}]"), "expected an object");
            continue;
        };
        for (name, value) in tag {
            if name != "key" && name != "value" {
                problems.push(
                    crate::problems::child(&format!("{path}[{at}]"), name),
                    "unknown field",
                );
            } else if !value.is_string() && !value.is_null() {
                problems.push(format!("{path}[{at}].{name}"), "expected a string");
            }
        }
        if tag.get("key").is_none_or(Value::is_null) {
            problems.push(format!("{path}[{at}].key"), "required");
        }
    }
}

/// Checks the values; what is of the wrong type was reported before and is skipped.
pub(crate) fn check(path: &str, input: Option<&Value>, problems: &mut Problems) -> BTreeMap<String, String> {
    let list = input.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if list.len() > TAGS_MAX {
        problems.push(path, format!("{} tags, the limit is {TAGS_MAX}", list.len()));
    }
    let mut tags = BTreeMap::new();
    for (at, tag) in list.iter().enumerate() {
        let value = tag.get("value").and_then(Value::as_str).unwrap_or_default();
        let Some(key) = tag.get("key").and_then(Value::as_str) else {
            continue;
        };
        if let Some(message) = wrong_key(key) {
            problems.push(format!("{path}[{at}].key"), message);
        }
        if value.chars().count() > VALUE_CHARS_MAX || !value.chars().all(is_tag_char) {
            let message = "is not a tag value: at most 256 letters, digits, spaces and _ . : / = + - @";
            problems.push(
                format!("{path}[{at}].value"),
                format!("{} {message}", shown(value)),
            );
        }
        if tags.insert(key.to_string(), value.to_string()).is_some() {
            problems.push(
                format!("{path}[{at}].key"),
                format!("{} is given twice", shown(key)),
            );
        }
    }
    tags
}

fn wrong_key(key: &str) -> Option<String> {
    let chars = key.chars().count();
    if !(1..=KEY_CHARS_MAX).contains(&chars) || !key.chars().all(is_tag_char) {
        let message = "is not a tag key: 1 to 128 letters, digits, spaces and _ . : / = + - @";
        return Some(format!("{} {message}", shown(key)));
    }
    let reserved = key
        .get(..4)
        .is_some_and(|start| start.eq_ignore_ascii_case("aws:"));
    reserved.then(|| format!("{} starts with aws:, which is reserved", shown(key)))
}

/// ECS's pattern: letters, numbers and separators of any script, and `_ . : / = + - @`.
fn is_tag_char(c: char) -> bool {
    c.is_alphanumeric() || (c.is_whitespace() && !c.is_control()) || "_.:/=+-@".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tags_are_a_list_of_key_and_value() {
        let tags = parse(
            "tags",
            Some(&json!([{"key": "team", "value": "shop"}, {"key": "käse"}])),
        )
        .unwrap();
        assert_eq!(tags.get("team").map(String::as_str), Some("shop"));
        assert_eq!(tags.get("käse").map(String::as_str), Some(""));
        assert!(parse("tags", None).unwrap().is_empty());
        assert!(parse("tags", Some(&Value::Null)).unwrap().is_empty());
    }

    #[test]
    fn names_of_runtimes_are_short_and_plain() {
        for name in ["runc", "kata-fc", "my_runsc.2", &"x".repeat(32)] {
            assert!(is_runtime_name(name), "{name}");
        }
        for name in ["", "RunC", "a b", "../runc", &"x".repeat(33)] {
            assert!(!is_runtime_name(name), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_with_tags() {
        let long = "x".repeat(129);
        for (input, says) in [
            (json!({}), "tags: expected an array"),
            (json!(["a"]), "tags[0]: expected an object"),
            (json!([{"value": "x"}]), "tags[0].key: required"),
            (json!([{"key": 1}]), "tags[0].key: expected a string"),
            (
                json!([{"key": "a", "colour": "b"}]),
                "tags[0].colour: unknown field",
            ),
            (json!([{"key": ""}]), "tags[0].key: \"\" is not a tag key"),
            (json!([{"key": long}]), "is not a tag key"),
            (json!([{"key": "a\tb"}]), "is not a tag key"),
            (
                json!([{"key": "a", "value": "<"}]),
                "tags[0].value: \"<\" is not a tag value",
            ),
            (
                json!([{"key": "AWS:x"}]),
                "tags[0].key: \"AWS:x\" starts with aws:, which is reserved",
            ),
            (
                json!([{"key": "a"}, {"key": "a"}]),
                "tags[1].key: \"a\" is given twice",
            ),
            (
                json!((0..51).map(|n| json!({"key": n.to_string()})).collect::<Vec<_>>()),
                "tags: 51 tags, the limit is 50",
            ),
        ] {
            let problems = parse("tags", Some(&input)).unwrap_err().to_string();
            assert!(problems.contains(says), "{input}: {problems}");
        }
    }
}
