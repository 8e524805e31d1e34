//! Owns the values of `dependsOn`, and those of `volumesFrom`, which waits for a start too: that they name containers, and
//! that they have an order. Never starts anything.

use std::collections::BTreeMap;

use serde_json::Value;

use super::CONTAINERS_MAX;
use super::read::{Object, container_path, objects, text};
use crate::problems::{Problems, hint, shown};

pub(super) fn check(task: &Object, problems: &mut Problems) {
    let named = |(at, c)| text(c, "name").map(|name| (name, (at, c)));
    let containers: BTreeMap<&str, (usize, &Object)> = objects(task, "containerDefinitions")
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .filter_map(named)
        .collect();
    let mut graph: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut by_volumes: Vec<(&str, &str)> = Vec::new();
    for (at, container) in objects(task, "containerDefinitions") {
        let name = text(container, "name").unwrap_or_default();
        for (dependency_at, dependency) in objects(container, "dependsOn") {
            let path = format!("{}.dependsOn[{dependency_at}]", container_path(at));
            let Some(target) = text(dependency, "containerName") else {
                continue;
            };
            if target == name {
                problems.push(
                    format!("{path}.containerName"),
                    "a container cannot depend on itself",
                );
            } else if let Some((_, on)) = containers.get(target) {
                graph.entry(name).or_default().push(target);
                check_condition(&path, target, on, text(dependency, "condition"), problems);
            } else {
                let hint = hint(target, containers.keys().copied());
                let message = format!("no container is named {}{hint}", shown(target));
                problems.push(format!("{path}.containerName"), message);
            }
        }
        let path = format!("{}.volumesFrom", container_path(at));
        for (from_at, source) in sources(&path, name, container, problems) {
            if containers.contains_key(source) {
                graph.entry(name).or_default().push(source);
                by_volumes.push((name, source));
                continue;
            }
            let hint = hint(source, containers.keys().copied());
            let message = format!("no container is named {}{hint}", shown(source));
            problems.push(format!("{path}[{from_at}].sourceContainer"), message);
        }
    }
    // More containers were refused already, and the walk below goes as deep as there are containers.
    if graph.len() > CONTAINERS_MAX {
        return;
    }
    for cycle in cycles(&graph) {
        let at = cycle
            .first()
            .and_then(|name| containers.get(name))
            .map_or(0, |(at, _)| *at);
        let names = cycle.join(" -> ");
        let has = |pair: &[&str]| by_volumes.contains(&(pair[0], pair[1]));
        if cycle.windows(2).any(has) {
            let message = format!("it waits for its source to start, and that waits for it: {names}");
            problems.push(format!("{}.volumesFrom", container_path(at)), message);
        } else {
            let message = format!("the dependencies form a cycle: {names}");
            problems.push(format!("{}.dependsOn", container_path(at)), message);
        }
    }
}

/// The other containers whose volumes this one takes, each once.
fn sources<'a>(
    path: &str,
    name: &str,
    container: &'a Object,
    problems: &mut Problems,
) -> Vec<(usize, &'a str)> {
    let mut sources: Vec<(usize, &str)> = Vec::new();
    for (at, from) in objects(container, "volumesFrom") {
        let path = format!("{path}[{at}].sourceContainer");
        match text(from, "sourceContainer") {
            Some(source) if source == name => problems.push(path, "a container has its own volumes anyway"),
            Some(source) if sources.iter().any(|(_, other)| *other == source) => {
                problems.push(path, format!("{} is there twice", shown(source)));
            }
            Some(source) => sources.push((at, source)),
            None => {}
        }
    }
    sources
}

/// The end of an essential container is the end of its task: nobody could go on after it.
fn check_condition(path: &str, target: &str, on: &Object, condition: Option<&str>, problems: &mut Problems) {
    let essential = on.get("essential") != Some(&Value::Bool(false));
    if let (true, Some(condition @ ("COMPLETE" | "SUCCESS"))) = (essential, condition) {
        let message = format!(
            "{condition} cannot be waited for: {} is essential and its end ends the task",
            shown(target)
        );
        problems.push(format!("{path}.condition"), message);
    }
    if condition == Some("HEALTHY") && !on.contains_key("healthCheck") {
        let message = format!(
            "HEALTHY cannot be waited for: {} has no healthCheck",
            shown(target)
        );
        problems.push(format!("{path}.condition"), message);
    }
}

/// The cycles a depth-first walk closes, each as its names with the first one again at the end.
fn cycles<'a>(graph: &BTreeMap<&'a str, Vec<&'a str>>) -> Vec<Vec<&'a str>> {
    let mut found = Vec::new();
    let mut done = Vec::new();
    for name in graph.keys() {
        walk(graph, name, &mut Vec::new(), &mut done, &mut found);
    }
    found
}

/// `way` is the names from the start of the walk to here. At most [`CONTAINERS_MAX`] deep.
fn walk<'a>(
    graph: &BTreeMap<&'a str, Vec<&'a str>>,
    name: &'a str,
    way: &mut Vec<&'a str>,
    done: &mut Vec<&'a str>,
    found: &mut Vec<Vec<&'a str>>,
) {
    if let Some(at) = way.iter().position(|n| *n == name) {
        let cycle = way[at..].iter().copied().chain([name]).collect();
        // A container may be named twice, with two conditions.
        if !found.contains(&cycle) {
            found.push(cycle);
        }
        return;
    }
    if done.contains(&name) {
        return;
    }
    way.push(name);
    for next in graph.get(name).into_iter().flatten() {
        walk(graph, next, way, done, found);
    }
    way.pop();
    done.push(name);
}
