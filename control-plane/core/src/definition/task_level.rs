//! Owns the values of the task itself: family, network mode, size, placement constraints. Never looks inside a
//! container but to add up sizes.

use serde_json::{Value, json};

use super::CONTAINERS_MAX;
use super::read::{Object, container_path, integer, objects, requires, text};
use super::sizes::{self, MEMORY_MIB_MAX, NoSuchSize, TASK_CPU_UNITS_MAX, TASK_CPU_UNITS_MIN};
use crate::arn::is_name;
use crate::expression::Expression;
use crate::problems::{Problems, shown};

/// Least memory of a container, and so of a task: below it runc cannot start.
pub(super) const MEMORY_MIB_MIN: i64 = 6;
/// Most placement constraints of a definition.
pub const PLACEMENT_CONSTRAINTS_MAX: usize = 10;

pub(super) fn check(task: &mut Object, problems: &mut Problems) {
    check_name("family", text(task, "family"), problems);
    check_network_mode(task, problems);
    check_size(task, problems);
    check_sums(task, problems);
    check_placement(task, problems);
    let containers = task
        .get("containerDefinitions")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    if containers > CONTAINERS_MAX {
        problems.push(
            "containerDefinitions",
            format!("{containers} containers, the limit is {CONTAINERS_MAX}"),
        );
    }
}

pub(super) fn check_name(path: &str, name: Option<&str>, problems: &mut Problems) {
    if let Some(name) = name.filter(|name| !is_name(name)) {
        problems.push(
            path,
            format!("{} is not a name: 1 to 255 of A-Z a-z 0-9 - _", shown(name)),
        );
    }
}

fn check_network_mode(task: &Object, problems: &mut Problems) {
    const PATH: &str = "networkMode";
    match text(task, PATH) {
        None if requires(task, "FARGATE") && !problems.has(PATH) => {
            problems.push(
                PATH,
                "FARGATE needs awsvpc, and where none is given ECS has bridge",
            );
        }
        Some(mode) if mode != "awsvpc" && requires(task, "FARGATE") => {
            problems.push(PATH, format!("FARGATE needs awsvpc, got {mode}"));
        }
        _ => {}
    }
}

/// Checks the task's cpu and memory and replaces them by plain integers.
fn check_size(task: &mut Object, problems: &mut Problems) {
    let cpu = read_size(
        task,
        "cpu",
        sizes::parse_cpu_units,
        "CPU units, or vCPUs as in \"1 vCPU\"",
        problems,
    );
    let memory = read_size(
        task,
        "memory",
        sizes::parse_memory_mib,
        "MiB, or GB as in \"2 GB\"",
        problems,
    );
    if requires(task, "FARGATE") {
        for (path, value) in [("cpu", cpu), ("memory", memory)] {
            if value.is_none() && !problems.has(path) {
                problems.push(path, "required by FARGATE");
            }
        }
        match cpu
            .zip(memory)
            .map(|(cpu, memory)| sizes::check_fargate(cpu, memory))
        {
            Some(Err(NoSuchSize::Cpu(message))) => problems.push("cpu", message),
            Some(Err(NoSuchSize::Memory(message))) => problems.push("memory", message),
            _ => {}
        }
        return;
    }
    within(
        "cpu",
        cpu,
        TASK_CPU_UNITS_MIN,
        TASK_CPU_UNITS_MAX,
        "CPU units",
        problems,
    );
    within(
        "memory",
        memory,
        MEMORY_MIB_MIN as u64,
        MEMORY_MIB_MAX,
        "MiB",
        problems,
    );
}

fn read_size(
    task: &mut Object,
    name: &str,
    parse: fn(&str) -> Option<u64>,
    spelling: &str,
    problems: &mut Problems,
) -> Option<u64> {
    let given = text(task, name)?;
    let Some(value) = parse(given) else {
        problems.push(
            name,
            format!("{} is not a size: expected {spelling}", shown(given)),
        );
        return None;
    };
    task.insert(name.into(), json!(value.to_string()));
    Some(value)
}

fn within(path: &str, value: Option<u64>, least: u64, most: u64, unit: &str, problems: &mut Problems) {
    match value {
        Some(value) if value < least => {
            problems.push(path, format!("{value} is below the minimum of {least} {unit}"));
        }
        Some(value) if value > most => {
            problems.push(path, format!("{value} is above the maximum of {most} {unit}"));
        }
        _ => {}
    }
}

/// The containers must fit their task: each container's `memory`, what all of them reserve, and their cpu.
fn check_sums(task: &Object, problems: &mut Problems) {
    let number = |name| text(task, name).and_then(|t| t.parse::<i64>().ok());
    let containers = || objects(task, "containerDefinitions");
    if let Some(limit) = number("memory") {
        for (at, container) in containers() {
            if let Some(memory) = integer(container, "memory").filter(|m| *m > limit) {
                let path = format!("{}.memory", container_path(at));
                problems.push(path, format!("{memory} MiB is more than the task's {limit} MiB"));
            }
        }
        let reserved = |c: &Object| {
            integer(c, "memoryReservation")
                .or(integer(c, "memory"))
                .unwrap_or(0)
        };
        let sum: i64 = containers().map(|(_, c)| reserved(c)).sum();
        // One container that is too large alone was named above.
        if sum > limit && containers().all(|(_, c)| reserved(c) <= limit) {
            problems.push(
                "memory",
                format!("the containers reserve {sum} MiB together, the task has {limit} MiB"),
            );
        }
    }
    if let Some(limit) = number("cpu") {
        let sum: i64 = containers().filter_map(|(_, c)| integer(c, "cpu")).sum();
        if sum > limit {
            problems.push(
                "cpu",
                format!("the containers have {sum} CPU units together, the task has {limit}"),
            );
        }
    }
}

fn check_placement(task: &Object, problems: &mut Problems) {
    let count = objects(task, "placementConstraints").count();
    if count > PLACEMENT_CONSTRAINTS_MAX {
        let message = format!("{count} constraints, the limit is {PLACEMENT_CONSTRAINTS_MAX}");
        problems.push("placementConstraints", message);
    }
    for (at, constraint) in objects(task, "placementConstraints") {
        let path = format!("placementConstraints[{at}].expression");
        match text(constraint, "expression") {
            Some(expression) => {
                if let Err(error) = Expression::parse(expression) {
                    problems.push(path, error.to_string());
                }
            }
            None if !problems.has(&path) => problems.push(path, "required by memberOf"),
            None => {}
        }
    }
}
