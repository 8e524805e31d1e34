//! What is accepted, what is refused and how, and what holds for any input.

mod accepted;
mod bounds;
mod environment_files;
mod ephemeral_storage;
mod gpus;
mod health;
mod laws;
mod linux;
mod log;
mod namespaces;
mod near_valid;
mod networking;
mod overrides;
mod refused;
mod table;
mod volumes;

use serde_json::{Value, json};

use super::*;

/// A definition with two containers that is accepted.
fn good() -> Value {
    json!({
        "family": "web",
        "networkMode": "awsvpc",
        "cpu": "512",
        "memory": "1024",
        "containerDefinitions": [
            {
                "name": "nginx",
                "image": "127.0.0.1:5000/nginx:1.22",
                "memory": 256,
                "portMappings": [{"containerPort": 80}],
                "dependsOn": [{"containerName": "redis", "condition": "START"}],
            },
            {"name": "redis", "image": "redis", "cpu": 128},
        ],
    })
}

/// `value` with what the JSON pointer points at replaced; missing members are made.
fn with(mut value: Value, pointer: &str, new: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match value.pointer_mut(parent).unwrap() {
        Value::Array(list) => match name.parse::<usize>() {
            Ok(at) if at < list.len() => list[at] = new,
            _ => list.push(new),
        },
        Value::Object(object) => {
            object.insert(name.to_string(), new);
        }
        other => panic!("{pointer}: {other} has no members"),
    }
    value
}

fn without(mut value: Value, pointer: &str) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    value
        .pointer_mut(parent)
        .unwrap()
        .as_object_mut()
        .unwrap()
        .remove(name);
    value
}

/// The first container's member set to `new`.
fn container(name: &str, new: Value) -> Value {
    with(good(), &format!("/containerDefinitions/0/{name}"), new)
}

fn accepted(input: &Value) -> Registered {
    register(input).unwrap_or_else(|problems| panic!("{input}: {problems}"))
}

fn problems(input: &Value) -> Vec<String> {
    match register(input) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}
