//! docs/configuration.md and the packaged file name every key of the control plane, with its default, and no other.

#![allow(clippy::unwrap_used)]

#[path = "../../service/tests/documented/mod.rs"]
mod documented;

use std::collections::BTreeMap;

use berth_control_plane::config::{Config, ConfigError};
use berth_control_plane_core::definition::UnsupportedLogDriver;

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
        unsupported_log_driver,
    } = load(KEY).unwrap();
    assert_eq!(node_advertise, None);
    assert_eq!(unsupported_log_driver, UnsupportedLogDriver::JsonFile);
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
        ("unsupported_log_driver", "\"json-file\"".to_owned()),
    ]);
    names
        .map(|name| {
            let default = defaults.get(name.as_str()).cloned();
            (name, default.unwrap_or_else(|| "required".into()))
        })
        .collect()
}

#[test]
fn every_key_is_documented_with_its_default() {
    assert_eq!(documented::in_page("Control plane"), in_code());
}

#[test]
fn the_packaged_file_has_every_key() {
    documented::assert_packaged("control-plane.toml", &in_code());
}

#[test]
fn the_packaged_file_uncommented_is_the_defaults() {
    let text = documented::uncommented("control-plane.toml");
    assert_eq!(
        format!("{:?}", load(&text).unwrap()),
        format!("{:?}", load("").unwrap())
    );
}
