//! docs/configuration.md and the packaged file name every key of the agent, with its default, and no other.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

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
            value => value.to_string(),
        };
        (key, default)
    };
    keys.into_iter().map(default).collect()
}

/// Key and default, as the page's table has them.
fn in_page(section: &str) -> BTreeMap<String, String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, rest) = page
        .split_once(&format!("\n## {section}\n"))
        .expect("the section");
    let section = rest.split("\n## ").next().unwrap();
    let (_, table) = section
        .split_once("\n| key | type | default |")
        .expect("the table of keys");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        (cells[1].to_owned(), cells[3].to_owned())
    })
    .collect()
}

#[test]
fn every_key_is_documented_with_its_default() {
    assert_eq!(in_page("Agent"), in_code());
}

/// The packaged file: keys at their defaults (`#key = value`) with the value, and examples (`# key = value`). Those below
/// `# [[table]]` are keys of its entries.
fn in_file(name: &str) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let path = format!("{}/../packaging/config/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let (mut defaults, mut examples, mut table) = (BTreeMap::new(), BTreeSet::new(), String::new());
    let is_key = |key: &str| {
        !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b"_.0123456789".contains(&b))
    };
    for line in text.lines() {
        if let Some(inner) = line.strip_prefix("# [[").and_then(|line| line.strip_suffix("]]")) {
            table = format!("{inner}[].");
        }
        let Some((key, value)) = line.split_once(" = ") else {
            continue;
        };
        if let Some(key) = key.strip_prefix("# ").filter(|key| is_key(key)) {
            examples.insert(format!("{table}{key}"));
        } else if let Some(key) = key.strip_prefix('#').filter(|key| is_key(key)) {
            defaults.insert(key.to_owned(), value.to_owned());
        }
    }
    (defaults, examples)
}

/// The packaged file with every setting uncommented, examples left out.
fn uncommented(name: &str) -> String {
    let path = format!("{}/../packaging/config/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => format!("{setting}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn the_packaged_file_has_every_key() {
    let (defaults, examples) = in_file("agent.toml");
    for (key, default) in in_code() {
        if matches!(default.as_str(), "required" | "none") {
            assert!(
                examples.contains(&key),
                "# {key} = … is missing in packaging/config/agent.toml"
            );
        } else {
            assert_eq!(
                defaults.get(&key),
                Some(&default),
                "{key} in packaging/config/agent.toml"
            );
        }
    }
    let known = in_code();
    for key in defaults.keys().chain(&examples) {
        assert!(
            known.contains_key(key),
            "{key} in packaging/config/agent.toml is no key"
        );
    }
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
        with_required(uncommented("agent.toml")),
        with_required(String::new())
    );
}
