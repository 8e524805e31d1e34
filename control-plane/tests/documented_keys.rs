//! docs/configuration.md and the packaged file name every key of the control plane, with its default, and no other.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use berth_control_plane::config::{Config, ConfigError};

const KEY: &str = "[[keys]]\naccess_key_id = 'AKIDEXAMPLE00001'\nsecret_access_key = 's'\n";

fn load(text: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::load(file.path())
}

/// The names in "x is not a setting: known are `a`, `b`": what the parser itself takes here.
fn expected(text: &str) -> Vec<String> {
    let message = load(text).unwrap_err().to_string();
    let (_, names) = message.split_once("known are ").expect("what is known");
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Key and default, as the code has them.
fn in_code() -> BTreeMap<String, String> {
    let of_key = expected("[[keys]]\nnone_such = 1")
        .into_iter()
        .map(|name| format!("keys[].{name}"));
    let names = expected("none_such = 1").into_iter().chain(of_key);
    // Every field by name: a new one does not compile without a line here.
    let Config {
        state_dir,
        run_dir,
        metrics_listen: _,
        api_listen,
        api_tls: _,
        node_listen,
        node_names,
        node_advertise,
        node_certificate_lifetime,
        region,
        account_id,
        keys: _,
        node_silence,
        heartbeat_interval,
        stopped_task_retention,
    } = load(KEY).unwrap();
    assert_eq!(node_advertise, None);
    let defaults = BTreeMap::from([
        ("state_dir", format!("{state_dir:?}")),
        ("run_dir", format!("{run_dir:?}")),
        ("metrics_listen", "none".into()),
        ("api_listen", format!("\"{api_listen}\"")),
        ("node_listen", format!("\"{node_listen}\"")),
        ("node_names", format!("{node_names:?}")),
        ("node_advertise", "none".to_owned()),
        (
            "node_certificate_lifetime_seconds",
            node_certificate_lifetime.as_secs().to_string(),
        ),
        ("region", format!("{region:?}")),
        ("account_id", format!("{account_id:?}")),
        ("api_tls_certificate", "none".to_owned()),
        ("api_tls_key", "none".to_owned()),
        ("keys", "[]".to_owned()),
        ("node_silence_seconds", node_silence.as_secs().to_string()),
        (
            "heartbeat_interval_seconds",
            heartbeat_interval.as_secs().to_string(),
        ),
        (
            "stopped_task_retention_seconds",
            stopped_task_retention.as_secs().to_string(),
        ),
    ]);
    names
        .map(|name| {
            let default = defaults.get(name.as_str()).cloned();
            (name, default.unwrap_or_else(|| "required".into()))
        })
        .collect()
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
    assert_eq!(in_page("Control plane"), in_code());
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
    let (defaults, examples) = in_file("control-plane.toml");
    let known = in_code();
    for (key, default) in &known {
        if matches!(default.as_str(), "required" | "none") {
            assert!(
                examples.contains(key),
                "# {key} = … is missing in packaging/config/control-plane.toml"
            );
        } else {
            assert_eq!(
                defaults.get(key),
                Some(default),
                "{key} in packaging/config/control-plane.toml"
            );
        }
    }
    for key in defaults.keys().chain(&examples) {
        assert!(
            known.contains_key(key),
            "{key} in packaging/config/control-plane.toml is no key"
        );
    }
}

#[test]
fn the_packaged_file_uncommented_is_the_defaults() {
    let text = uncommented("control-plane.toml");
    assert_eq!(
        format!("{:?}", load(&text).unwrap()),
        format!("{:?}", load("").unwrap())
    );
}
