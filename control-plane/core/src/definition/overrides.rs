//! Owns what RunTask and StartTask may change of a definition: merges the changes in, and holds the outcome to all that
//! holds for definitions, with the paths of the overrides. Never stores it: a definition stays as it was registered.

use serde_json::{Map, Value, json};

use super::fields::OVERRIDES;
use super::read::{Object, container_path, objects, text};
use super::{DEFINITION_BYTES_MAX, container, examine, roles, shape};
use crate::problems::{Problem, Problems, shown};

/// Longest overrides, as compact JSON.
pub const OVERRIDES_CHARS_MAX: usize = 8192;
/// Of a task, what is taken over as it is.
const TASK_FIELDS: [&str; 5] = [
    "cpu",
    "memory",
    "taskRoleArn",
    "executionRoleArn",
    "ephemeralStorage",
];
/// Of a container, likewise. Its environment is added to.
const CONTAINER_FIELDS: [&str; 6] = [
    "command",
    "environmentFiles",
    "cpu",
    "memory",
    "memoryReservation",
    "resourceRequirements",
];

/// What tasks of one call run.
#[derive(Clone, Debug, PartialEq)]
pub struct Overridden {
    /// The definition with the changes, as if it had been registered so.
    pub definition: Value,
    /// `overrides` as ECS shows it in a task: what was asked for, with every container by name.
    pub echo: Value,
}

/// Merges `overrides` of a RunTask or StartTask request into what [`super::register`] returned.
///
/// # Errors
/// Everything that is wrong with the overrides, and with the definition as it is with them.
pub fn override_definition(definition: &Value, overrides: &Value) -> Result<Overridden, Problems> {
    let mut problems = Problems::default();
    let Some(given) = overrides.as_object() else {
        problems.push("overrides", "expected an object");
        return Err(problems);
    };
    let chars = overrides.to_string().chars().count();
    if chars > OVERRIDES_CHARS_MAX {
        let message = format!("{chars} characters as JSON, the limit is {OVERRIDES_CHARS_MAX}");
        problems.push("overrides", message);
        return Err(problems);
    }
    let mut given = shape::object("overrides", given, OVERRIDES, true, &mut problems);
    given.retain(|name, value| !(roles::FIELDS.contains(&name.as_str()) && *value == json!("")));
    let mut merged = definition.as_object().cloned().unwrap_or_default();
    let places = merge(&mut merged, &given, &mut problems);
    let echo = echo(&merged, &given, &places);
    let merged = Value::Object(merged);
    // A definition that an earlier version took runs as it is, whatever this one would say of it.
    if merged == *definition {
        return problems.or(Overridden {
            definition: merged,
            echo,
        });
    }
    let mut found = Problems::default();
    // What overrides add does not count against the size of a definition.
    let bytes_max = DEFINITION_BYTES_MAX + OVERRIDES_CHARS_MAX * 4;
    let examined = examine(&merged, bytes_max, &mut found);
    for problem in found.iter() {
        problems.add(moved(problem, &given, &places));
    }
    problems.or(Overridden {
        definition: examined.definition,
        echo,
    })
}

/// For each container that is overridden: its place in the definition, and that of its override.
type Places = Vec<(usize, usize)>;

fn merge(definition: &mut Object, given: &Object, problems: &mut Problems) -> Places {
    for name in TASK_FIELDS {
        if let Some(value) = given.get(name) {
            definition.insert(name.to_owned(), value.clone());
        }
    }
    let mut places = Places::new();
    for (at, change) in objects(given, "containerOverrides") {
        let path = format!("overrides.containerOverrides[{at}]");
        let Some(name) = text(change, "name") else {
            continue;
        };
        let found = objects(definition, "containerDefinitions").find(|(_, c)| text(c, "name") == Some(name));
        let Some(place) = found.map(|(place, _)| place) else {
            problems.push(
                format!("{path}.name"),
                format!("no container is named {}", shown(name)),
            );
            continue;
        };
        if let Some((_, first)) = places.iter().find(|(other, _)| *other == place) {
            let message = format!(
                "{} is overridden by containerOverrides[{first}] already",
                shown(name)
            );
            problems.push(format!("{path}.name"), message);
            continue;
        }
        places.push((place, at));
        container::check_environment(&path, change, problems);
        if let Some(container) = container_of(definition, place) {
            merge_container(container, change);
        }
    }
    places
}

fn container_of(definition: &mut Object, place: usize) -> Option<&mut Object> {
    definition
        .get_mut("containerDefinitions")?
        .get_mut(place)?
        .as_object_mut()
}

fn merge_container(container: &mut Object, change: &Object) {
    for name in CONTAINER_FIELDS {
        if let Some(value) = change.get(name) {
            container.insert(name.to_owned(), value.clone());
        }
    }
    // Bad names were reported where they stand.
    let added: Vec<Value> = objects(change, "environment")
        .filter(|(_, variable)| text(variable, "name").is_some_and(|n| !n.is_empty() && !n.contains('=')))
        .map(|(_, variable)| Value::Object(variable.clone()))
        .collect();
    if added.is_empty() {
        return;
    }
    let kept = objects(container, "environment")
        .filter(|(_, variable)| added.iter().all(|new| new.get("name") != variable.get("name")))
        .map(|(_, variable)| Value::Object(variable.clone()));
    let environment = kept.chain(added.iter().cloned()).collect();
    container.insert("environment".to_owned(), environment);
}

/// As ECS shows it.
fn echo(definition: &Object, given: &Object, places: &Places) -> Value {
    let mut echo: Map<String, Value> = given.clone();
    let changes = given.get("containerOverrides");
    let containers = objects(definition, "containerDefinitions").map(|(place, container)| {
        let change = places.iter().find(|(other, _)| *other == place);
        let change = change.and_then(|(_, at)| changes?.get(at)).cloned();
        change.unwrap_or_else(|| json!({"name": container.get("name")}))
    });
    echo.insert("containerOverrides".to_owned(), containers.collect());
    echo.entry("inferenceAcceleratorOverrides")
        .or_insert_with(|| json!([]));
    Value::Object(echo)
}

/// A problem of the merged definition, at the path of the override that brought it about.
fn moved(problem: &Problem, given: &Object, places: &Places) -> Problem {
    let message = problem.message.clone();
    for (place, at) in places {
        if let Some(rest) = problem.path.strip_prefix(&container_path(*place)) {
            let field = rest
                .trim_start_matches('.')
                .split(['.', '['])
                .next()
                .unwrap_or_default();
            let change = given.get("containerOverrides").and_then(|all| all.get(*at));
            if change.is_some_and(|change| change.get(field).is_some()) {
                let path = format!("overrides.containerOverrides[{at}]{rest}");
                return Problem { path, message };
            }
        }
    }
    let field = problem.path.split(['.', '[']).next().unwrap_or_default();
    if field != "containerDefinitions" && given.contains_key(field) {
        let path = format!("overrides.{}", problem.path);
        return Problem { path, message };
    }
    Problem {
        path: "overrides".to_owned(),
        message: problem.to_string(),
    }
}
