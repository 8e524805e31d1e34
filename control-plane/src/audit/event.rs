//! Owns what one line of the audit log says. Never decides what is worth a line.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::Millis;

/// Longest text of one field; the rest is cut, so that a line stays a line.
const TEXT_CHARS_MAX: usize = 512;
/// Most values of one target that is a list.
const LIST_MAX: usize = 16;
/// All targets of one event, as they are written: with the rest, a line is at most some 4 KiB.
const TARGETS_BYTES_MAX: usize = 3 << 10;
/// Stands for what was left out.
const CUT: char = '…';

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// About to be tried; another line says how it ended.
    Started,
    Done,
    /// Not done, by a rule; `code` is the API's or gRPC's name for it.
    Refused {
        code: String,
    },
    /// Perhaps done: it broke on the way.
    Failed {
        code: String,
    },
    /// Nobody waited for the end, or the control plane died before it.
    Unknown,
}

impl Outcome {
    pub fn refused(code: impl Into<String>) -> Self {
        Self::Refused { code: code.into() }
    }

    pub fn failed(code: impl Into<String>) -> Self {
        Self::Failed { code: code.into() }
    }
}

/// Who did what to what. Texts are cut to a bound; give names and ids, never contents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// An access key's id; `node/ID`; `join-token/ID`; `operator` for a command on the host itself; `unauthenticated`.
    pub actor: String,
    /// As the API names it, `RunTask`; for nodes as the protocol does, `Register`.
    pub operation: String,
    /// Address without port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<IpAddr>,
    /// The right the actor has: `admin`, `read-only`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub role: Option<String>,
    /// What it concerned, by kind: `cluster`, `task`, `node` …; strings, or lists of strings.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub targets: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_id: Option<String>,
    /// How many alike this line stands for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
}

impl Event {
    pub fn new(actor: impl Into<String>, operation: impl Into<String>) -> Self {
        Self {
            actor: cut(actor.into()),
            operation: cut(operation.into()),
            from: None,
            role: None,
            targets: BTreeMap::new(),
            request_id: None,
            count: None,
        }
    }

    pub fn from(mut self, address: Option<IpAddr>) -> Self {
        self.from = address.map(|address| address.to_canonical());
        self
    }

    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.role = Some(role.into());
        self
    }

    pub fn target(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.add_target(name, value.into());
        self
    }

    pub fn request(mut self, request_id: &str) -> Self {
        self.request_id = Some(request_id.to_owned());
        self
    }

    /// Takes strings and lists of strings; anything else is not a name and is left out. What is too long is cut, and what
    /// finds no room any more left out.
    pub(super) fn add_target(&mut self, name: &str, value: Value) {
        self.targets.remove(name);
        let used: usize = self
            .targets
            .iter()
            .map(|(name, value)| name.len() + written_bytes(value) + PUNCTUATION_BYTES)
            .sum();
        let mut room = TARGETS_BYTES_MAX.saturating_sub(used + name.len() + PUNCTUATION_BYTES);
        if room <= PUNCTUATION_BYTES {
            return;
        }
        let value = match value {
            Value::String(text) => Value::String(fit(text, &mut room)),
            Value::Array(list) => {
                let names = list.into_iter().filter_map(|one| match one {
                    Value::String(text) => Some(text),
                    _ => None,
                });
                let mut fitting = Vec::new();
                for text in names {
                    if fitting.len() == LIST_MAX || room <= PUNCTUATION_BYTES {
                        fitting.push(CUT.to_string().into());
                        break;
                    }
                    room -= PUNCTUATION_BYTES;
                    fitting.push(Value::String(fit(text, &mut room)));
                }
                Value::Array(fitting)
            }
            _ => return,
        };
        self.targets.insert(name.to_owned(), value);
    }
}

/// Quotes, commas and the like around one value.
const PUNCTUATION_BYTES: usize = 6;

fn written_bytes(value: &Value) -> usize {
    value.to_string().len()
}

/// As much of a text as there is room for, in bytes as they are written.
fn fit(text: String, room: &mut usize) -> String {
    let mut fitting = String::new();
    for (chars, char) in text.chars().enumerate() {
        let bytes = match char {
            '"' | '\\' => 2,
            // \u001f
            '\0'..='\u{1f}' => 6,
            _ => char.len_utf8(),
        };
        if chars == TEXT_CHARS_MAX || bytes > *room {
            fitting.push(CUT);
            break;
        }
        *room -= bytes;
        fitting.push(char);
    }
    fitting
}

fn cut(text: String) -> String {
    fit(text, &mut { usize::MAX })
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    /// Rises by one with every line, across files.
    pub sequence: u64,
    pub time_ms: Millis,
    /// The same for people, RFC 3339.
    pub time: String,
    #[serde(flatten)]
    pub outcome: Outcome,
    #[serde(flatten)]
    pub event: Event,
    /// The line whose outcome this is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub of: Option<u64>,
}
