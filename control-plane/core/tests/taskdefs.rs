//! Definitions that people published register and come back as they were, but for the documented defaults; or are
//! refused for reasons that `expected.tsv` beside them lists.
//!
//! `UPDATE_EXPECTED=1 cargo test -p berth-control-plane-core --test taskdefs` writes the list anew: what changes in it
//! is to be read.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_control_plane_core::definition::register;
use serde_json::{Map, Value, json};

/// What a definition gets that does not say it, as docs/task-definitions.md has it.
const TASK_DEFAULTS: &[&str] = &["volumes", "placementConstraints"];
const CONTAINER_DEFAULTS: &[&str] = &[
    "portMappings",
    "environment",
    "mountPoints",
    "volumesFrom",
    "systemControls",
];
const HEALTH_CHECK_DEFAULTS: &[(&str, i64)] = &[("interval", 30), ("timeout", 5), ("retries", 3)];
/// What follows from the rest.
const DERIVED: &[&str] = &["compatibilities", "requiresAttributes"];
/// What only an answer of DescribeTaskDefinition has.
const OF_ANOTHER_REVISION: &[&str] = &[
    "taskDefinitionArn",
    "revision",
    "status",
    "registeredAt",
    "registeredBy",
];

fn directory() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/clients/taskdefs"
    ))
}

fn files() -> BTreeMap<String, Value> {
    let paths = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            (name, serde_json::from_str(&text).unwrap())
        })
        .collect()
}

#[test]
fn the_index_names_every_file_with_its_source_and_licence() {
    let index = std::fs::read_to_string(directory().join("index.tsv")).unwrap();
    let rows: Vec<Vec<&str>> = index
        .lines()
        .skip(1)
        .map(|line| line.split('\t').collect())
        .collect();
    assert!(
        rows.iter()
            .all(|row| row.len() == 5 && row.iter().all(|cell| !cell.is_empty()))
    );
    let mut named: Vec<String> = rows.iter().map(|row| row[0].to_owned()).collect();
    named.sort();
    assert_eq!(named, Vec::from_iter(files().into_keys()));
}

#[test]
fn every_file_registers_or_is_refused_as_expected() {
    let mut said = String::from("file\tproblem\n");
    for (name, definition) in files() {
        if let Err(problems) = register(&definition) {
            said.extend(problems.iter().map(|problem| format!("{name}\t{problem}\n")));
        }
    }
    let path = directory().join("expected.tsv");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, &said).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    let difference: Vec<String> = said
        .lines()
        .filter(|line| !expected.lines().any(|other| other == *line))
        .map(|line| format!("new:  {line}"))
        .chain(
            expected
                .lines()
                .filter(|line| !said.lines().any(|other| other == *line))
                .map(|line| format!("gone: {line}")),
        )
        .collect();
    assert!(difference.is_empty(), "{}", difference.join("\n"));
    assert_eq!(said, expected);
}

#[test]
fn what_registers_comes_back_unchanged_but_for_the_defaults() {
    let accepted = files().into_iter().filter_map(|(name, definition)| {
        let registered = register(&definition).ok()?;
        Some((name, definition, registered))
    });
    let mut count = 0;
    for (name, definition, registered) in accepted {
        count += 1;
        let mut given = plain(definition);
        given.as_object_mut().unwrap().remove("tags");
        fill(given.as_object_mut().unwrap());
        let mut echo = registered.definition.clone();
        for derived in DERIVED {
            echo.as_object_mut().unwrap().remove(*derived);
        }
        assert_eq!(echo, given, "{name}");
        let again = register(&registered.definition).unwrap_or_else(|problems| panic!("{name}: {problems}"));
        assert_eq!(again.definition, registered.definition, "{name}");
    }
    assert!(count >= 10, "only {count} register");
}

/// Without what says nothing, and without what says something of another revision.
fn plain(definition: Value) -> Value {
    let Value::Object(mut fields) = without_absent(definition) else {
        panic!("not an object")
    };
    for name in DERIVED.iter().chain(OF_ANOTHER_REVISION) {
        fields.remove(*name);
    }
    for role in ["taskRoleArn", "executionRoleArn"] {
        if fields.get(role) == Some(&json!("")) {
            fields.remove(role);
        }
    }
    Value::Object(fields)
}

fn without_absent(value: Value) -> Value {
    let absent = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !absent(value))
            .map(|(name, value)| (name, without_absent(value)))
            .collect(),
        Value::Array(values) => values.into_iter().map(without_absent).collect(),
        other => other,
    }
}

fn fill(task: &mut Map<String, Value>) {
    for name in TASK_DEFAULTS {
        task.entry(*name).or_insert_with(|| json!([]));
    }
    let bridge = matches!(
        task.get("networkMode").and_then(Value::as_str),
        None | Some("bridge")
    );
    for container in task["containerDefinitions"].as_array_mut().unwrap() {
        let container = container.as_object_mut().unwrap();
        container.entry("cpu").or_insert_with(|| json!(0));
        container.entry("essential").or_insert_with(|| json!(true));
        for name in CONTAINER_DEFAULTS {
            container.entry(*name).or_insert_with(|| json!([]));
        }
        for port in container["portMappings"].as_array_mut().unwrap() {
            let port = port.as_object_mut().unwrap();
            port.entry("protocol").or_insert_with(|| json!("tcp"));
            let container_port = port["containerPort"].clone();
            // In bridge mode it is the node's to choose.
            let host_port = if bridge { json!(0) } else { container_port };
            port.entry("hostPort").or_insert(host_port);
        }
        if let Some(Value::Object(check)) = container.get_mut("healthCheck") {
            for (name, value) in HEALTH_CHECK_DEFAULTS {
                check.entry(*name).or_insert_with(|| json!(value));
            }
        }
    }
}
