//! Owns the first pass over a definition: names and types of fields, against the table in `fields`. What comes
//! out holds only what is known and of the right type, without nulls and empty lists, so that the second pass
//! looks at values only. Never judges a value beyond its type.

use serde_json::{Map, Value};

use super::fields::{RESPONSE_FIELDS, TASK_DEFINITION};
use super::schema::{Choice, Field, Shape, Support};
use crate::problems::{Problems, child, hint, shown};

/// Most entries of one list or map: what nodes take.
const ENTRIES_MAX: usize = 1_000;

/// The request without nulls, empty lists and fields of the response. Elements of lists that are of a wrong type
/// become null, so that the others keep their place.
pub(super) fn check(input: &Value, problems: &mut Problems) -> Map<String, Value> {
    let Value::Object(input) = input else {
        problems.push("", format!("expected an object, got {}", kind(input)));
        return Map::new();
    };
    let asked = input
        .iter()
        .filter(|(name, _)| !RESPONSE_FIELDS.contains(&name.as_str()));
    let request = asked.map(|(name, value)| (name.clone(), value.clone())).collect();
    object("", &request, TASK_DEFINITION, true, problems)
}

/// One object by its table. `say_refused` is false inside a field that was already reported as not supported.
pub(super) fn object(
    path: &str,
    input: &Map<String, Value>,
    fields: &[Field],
    say_refused: bool,
    problems: &mut Problems,
) -> Map<String, Value> {
    for name in input
        .keys()
        .filter(|name| fields.iter().all(|f| f.name != name.as_str()))
    {
        let hint = hint(name, fields.iter().map(|f| f.name));
        problems.push(child(path, name), format!("unknown field{hint}"));
    }
    let mut output = Map::new();
    for field in fields {
        let path = child(path, field.name);
        match input.get(field.name).filter(|value| !absent(value)) {
            None if field.required => problems.push(path, "required"),
            None => {}
            Some(value) => {
                // `false` asks for what happens anyway: every flag of ECS that we lack is off by default.
                let asks = *value != Value::Bool(false);
                let refusal = field.support.refusal().filter(|_| say_refused && asks);
                let say_inside = say_refused && refusal.is_none();
                if let Some(refusal) = refusal {
                    problems.push(path.as_str(), refusal);
                }
                let value = check_value(&path, value, &field.shape, say_inside, problems);
                output.extend(value.map(|value| (field.name.to_string(), value)));
            }
        }
    }
    output
}

fn absent(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// Whether a list or map has more entries than a node takes.
fn too_many(path: &str, entries: usize, problems: &mut Problems) -> bool {
    let too_many = entries > ENTRIES_MAX;
    if too_many {
        problems.push(path, format!("{entries} entries, the limit is {ENTRIES_MAX}"));
    }
    too_many
}

fn check_value(
    path: &str,
    value: &Value,
    shape: &Shape,
    say_refused: bool,
    problems: &mut Problems,
) -> Option<Value> {
    match (shape, value) {
        (Shape::Flag, Value::Bool(_)) => Some(value.clone()),
        (Shape::Text, Value::String(text)) => no_nul(path, text, problems).then(|| value.clone()),
        (Shape::Choice(choice), Value::String(text)) => {
            choose(path, text, choice, say_refused, problems).then(|| value.clone())
        }
        (Shape::Integer, Value::Number(number)) => {
            let fits = number.as_i64().is_some_and(|n| i32::try_from(n).is_ok());
            if !fits {
                problems.push(path, format!("expected an integer of 32 bits, got {number}"));
            }
            fits.then(|| value.clone())
        }
        (Shape::List(_), Value::Array(values)) if too_many(path, values.len(), problems) => None,
        (Shape::Map, Value::Object(input)) if too_many(path, input.len(), problems) => None,
        (Shape::List(element), Value::Array(values)) => {
            let element = |(at, value): (usize, &Value)| {
                let path = format!("{path}[{at}]");
                check_value(&path, value, element, say_refused, problems).unwrap_or(Value::Null)
            };
            Some(Value::Array(values.iter().enumerate().map(element).collect()))
        }
        (Shape::Object(fields), Value::Object(input)) => {
            Some(Value::Object(object(path, input, fields, say_refused, problems)))
        }
        (Shape::Map, Value::Object(input)) => Some(Value::Object(texts(path, input, problems))),
        (shape, value) => {
            problems.push(path, format!("expected {}, got {}", expected(shape), kind(value)));
            None
        }
    }
}

/// A map of text by text; a null value is an absent entry.
fn texts(path: &str, input: &Map<String, Value>, problems: &mut Problems) -> Map<String, Value> {
    let mut output = Map::new();
    for (name, value) in input.iter().filter(|(_, value)| !value.is_null()) {
        let path = child(path, name);
        if no_nul(&path, name, problems) {
            let value = check_value(&path, value, &Shape::Text, false, problems);
            output.extend(value.map(|value| (name.clone(), value)));
        }
    }
    output
}

/// No process can be given a NUL in an argument, a path or a variable.
fn no_nul(path: &str, text: &str, problems: &mut Problems) -> bool {
    let clean = !text.contains('\0');
    if !clean {
        problems.push(path, "contains a NUL character");
    }
    clean
}

fn choose(path: &str, text: &str, choice: &Choice, say_refused: bool, problems: &mut Problems) -> bool {
    if choice.honoured.contains(&text) {
        return true;
    }
    let refusal = if choice.later.contains(&text) {
        Support::Later(choice.instead).refusal()
    } else if choice.never.contains(&text) {
        Support::Never(choice.instead).refusal()
    } else {
        None
    };
    if let Some(refusal) = refusal {
        if say_refused {
            problems.push(path, format!("{text}: {refusal}"));
        }
        return false;
    }
    let allowed = choice.honoured.join(", ");
    problems.push(path, format!("expected one of {allowed}; got {}", shown(text)));
    false
}

fn expected(shape: &Shape) -> &'static str {
    match shape {
        Shape::Text | Shape::Choice(_) => "a string",
        Shape::Integer => "an integer",
        Shape::Flag => "true or false",
        Shape::List(_) => "an array",
        Shape::Map | Shape::Object(_) => "an object",
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a number with a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
