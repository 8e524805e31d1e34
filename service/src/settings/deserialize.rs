//! Owns the step from the merged tree to the daemon's type, and the errors of that step. Never prints a secret.

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::{
    Origin, SettingsError, Sources,
    tree::{Content, Node, Step, child, dotted, pattern},
};

/// Longest value in an error, characters.
const VALUE_CHARS_MAX: usize = 80;

/// What went wrong, and where.
struct Failure {
    path: Vec<Step>,
    message: String,
}

/// Builds the type. A value from the environment or `--set` that reads as something else than the string that is
/// wanted is taken as it was written.
pub(super) fn deserialize<T: DeserializeOwned>(
    tree: &mut Node,
    sources: &Sources,
) -> Result<T, SettingsError> {
    let mut before: Option<Failure> = None;
    loop {
        let failure = match serde_path_to_error::deserialize(tree.to_value()) {
            Ok(value) => return Ok(value),
            Err(error) => Failure {
                path: path(error.path()),
                message: error.inner().message().to_owned(),
            },
        };
        // As text it was wrong as well: the first complaint is the better one.
        if let Some(first) = before.take_if(|first| first.path == failure.path) {
            return Err(explain(tree, first, sources));
        }
        if !take_as_text(tree, &failure.path) {
            return Err(explain(tree, failure, sources));
        }
        before = Some(failure);
    }
}

fn take_as_text(tree: &mut Node, path: &[Step]) -> bool {
    let Some(Node {
        content: Content::Scalar { value, raw },
        ..
    }) = tree.at_mut(path)
    else {
        return false;
    };
    let Some(text) = raw.take() else { return false };
    *value = toml::Value::String(text);
    true
}

fn path(path: &serde_path_to_error::Path) -> Vec<Step> {
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(step).collect()
}

fn explain(tree: &Node, failure: Failure, sources: &Sources) -> SettingsError {
    let Failure { path, message } = failure;
    let message = message.trim_end().replace('\n', ", ");
    let (node, exact) = tree.nearest(&path);
    let origin = node.origin.clone();
    let key = dotted(&path);
    if let Some(name) = named(&message, "missing field `") {
        return SettingsError::Missing {
            key: child(&key, name),
            hint: hint(&key, &origin, name, sources),
        };
    }
    if let Some(name) = named(&message, "unknown field `") {
        // The path may end at the key or at its table.
        let key = match path.last() {
            Some(Step::Key(last)) if exact && last == name => key.clone(),
            _ => child(&key, name),
        };
        let origin = tree.origin(&key).unwrap_or(origin);
        let known = message.split_once("`, ").map_or("", |(_, known)| known);
        let problem = known
            .replace("expected one of ", "known are ")
            .replace("expected ", "known are ");
        return SettingsError::Unknown { key, origin, problem };
    }
    if secret(&key, sources.secrets) {
        return SettingsError::Invalid {
            key,
            origin,
            value: String::new(),
            problem: "not of the kind that is wanted here; it is not shown, being secret".into(),
        };
    }
    let key = if key.is_empty() {
        "the configuration".into()
    } else {
        key
    };
    let value = match &node.content {
        Content::Scalar { value, .. } if exact => shown(value, &message),
        _ => String::new(),
    };
    SettingsError::Invalid {
        key,
        origin,
        value,
        problem: message,
    }
}

/// The name in a message of serde's, such as "unknown field `x`, …".
fn named<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    message.strip_prefix(start)?.split('`').next()
}

fn hint(table: &str, origin: &Origin, name: &str, sources: &Sources) -> String {
    if !table.is_empty() {
        return format!("{table} at {origin} needs it");
    }
    format!(
        "write it in {}, or set the environment variable {}__{}",
        sources.file.display(),
        sources.environment_prefix,
        name.to_uppercase()
    )
}

fn shown(value: &toml::Value, message: &str) -> String {
    let text = value.to_string();
    if message.contains(text.trim_matches('"')) {
        return String::new();
    }
    let cut: String = text.chars().take(VALUE_CHARS_MAX).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!(" = {cut}{more}")
}

/// The value is secret, or may hold one: a secret given in the place of its table.
fn secret(key: &str, secrets: &[&str]) -> bool {
    let key = pattern(key);
    secrets.iter().any(|secret| {
        secret
            .strip_prefix(&*key)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}
