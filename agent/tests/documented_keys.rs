//! docs/configuration.md and the packaged file name every key of the agent, with its default, and no other.

#![allow(clippy::unwrap_used)]

#[path = "../../service/tests/documented/mod.rs"]
mod documented;

use std::collections::BTreeMap;

use berth_agent::config::Config;
use serde_json::Value;

/// What has no default; one credential, so that the keys of its kind are seen.
const REQUIRED: [&str; 1] = ["control_plane = 'https://cp:1'"];
const CREDENTIAL: [&str; 3] = ["host = 'h'", "username = 'u'", "password_file = '/p'"];

fn parse(required: &[&str], credential: &[&str]) -> Result<Config, toml::de::Error> {
    let mut text = required.join("\n");
    if !credential.is_empty() {
        text += &format!("\n[[registries.credentials]]\n{}", credential.join("\n"));
    }
    toml::from_str(&text)
}

/// Every key that the serialised settings have, dotted, with its value.
fn flatten(path: &str, value: &Value, keys: &mut BTreeMap<String, Value>) {
    let fields = match value {
        Value::Object(fields) if path.is_empty() || !fields.is_empty() => fields,
        Value::Array(elements) if elements.iter().any(Value::is_object) => {
            keys.insert(path.into(), Value::Array(vec![]));
            return flatten(&format!("{path}[]"), &elements[0], keys);
        }
        leaf => return drop(keys.insert(path.into(), leaf.clone())),
    };
    for (name, value) in fields {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        flatten(&path, value, keys);
    }
}

/// Key and default, as the code has them.
fn in_code() -> BTreeMap<String, String> {
    let config = parse(&REQUIRED, &CREDENTIAL).unwrap();
    let mut keys = BTreeMap::new();
    flatten("", &serde_json::to_value(&config).unwrap(), &mut keys);
    let without = |all: &[&'static str], at: usize| -> Vec<&'static str> {
        all.iter()
            .enumerate()
            .filter(|(i, _)| *i != at)
            .map(|(_, line)| *line)
            .collect()
    };
    let name = |line: &str| line.split(' ').next().unwrap().to_owned();
    let mut required = Vec::new();
    for (at, line) in REQUIRED.iter().enumerate() {
        parse(&without(&REQUIRED, at), &[]).expect_err(line);
        required.push(name(line));
    }
    for (at, line) in CREDENTIAL.iter().enumerate() {
        parse(&REQUIRED, &without(&CREDENTIAL, at)).expect_err(line);
        required.push(format!("registries.credentials[].{}", name(line)));
    }
    let default = |(key, value): (String, Value)| {
        let default = match value {
            _ if required.contains(&key) => "required".into(),
            Value::Null => "none".into(),
            // As people write a list.
            value => value.to_string().replace("\",\"", "\", \""),
        };
        (key, default)
    };
    keys.into_iter().map(default).collect()
}

#[test]
fn every_key_is_documented_with_its_default() {
    assert_eq!(documented::in_page("Agent"), in_code());
}

#[test]
fn the_packaged_file_has_every_key() {
    documented::assert_packaged("agent.toml", &in_code());
}

#[test]
fn the_packaged_file_uncommented_is_the_defaults() {
    let with_required = |text: String| {
        let table: toml::Table = toml::from_str(&text).unwrap();
        let required: toml::Table = toml::from_str(&REQUIRED.join("\n")).unwrap();
        let all: toml::Table = required.into_iter().chain(table).collect();
        serde_json::to_value(all.try_into::<Config>().unwrap()).unwrap()
    };
    assert_eq!(
        with_required(documented::uncommented("agent.toml")),
        with_required(String::new())
    );
}
