//! The table of fields against the API model itself.

use std::collections::BTreeSet;

use super::super::fields::TASK_DEFINITION;
use super::super::schema::{Choice, Field, Shape};

/// RegisterTaskDefinitionRequest of the ECS API model: one line per field, `!` for required.
const MODEL: &str = include_str!("shapes.txt");

/// What ECS refuses to be without although its model does not say so: (in the model, in the table).
const REQUIRED_BESIDES: &[(&str, &str)] = &[
    (
        "[{name:str, image:str, repository",
        "[{name!:str, image!:str, repository",
    ),
    ("environment:[{name:str", "environment:[{name!:str"),
    // No driver of the model, but of ECS's agent and of its documentation.
    ("logDriver!:(json-file|", "logDriver!:(json-file|none|"),
    (
        "placementConstraints : [{type:",
        "placementConstraints : [{type!:",
    ),
    ("tags : [{key:", "tags : [{key!:"),
    ("volumes : [{name:", "volumes : [{name!:"),
    (
        "mountPoints:[{sourceVolume:str, containerPath:",
        "mountPoints:[{sourceVolume!:str, containerPath!:",
    ),
    (
        "volumesFrom:[{sourceContainer:",
        "volumesFrom:[{sourceContainer!:",
    ),
];

fn render(shape: &Shape) -> String {
    match shape {
        Shape::Text => "str".into(),
        Shape::Integer => "int".into(),
        Shape::Flag => "bool".into(),
        Shape::Map => "map<str,str>".into(),
        Shape::List(element) => format!("[{}]", render(element)),
        Shape::Choice(choice) => {
            let Choice {
                honoured,
                later,
                never,
                ..
            } = choice;
            assert!(
                later.is_empty() && never.is_empty() || !choice.instead.is_empty(),
                "{honoured:?}"
            );
            let all: BTreeSet<&str> = honoured.iter().chain(*later).chain(*never).copied().collect();
            format!("({})", Vec::from_iter(all).join("|"))
        }
        Shape::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|f| format!("{}:{}", name(f), render(&f.shape)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

fn name(field: &Field) -> String {
    format!("{}{}", field.name, if field.required { "!" } else { "" })
}

/// The alternatives of every `(a|b)` in alphabetical order.
fn sort_choices(line: &str) -> String {
    let mut parts = line.split('(');
    let mut sorted = parts.next().unwrap().to_string();
    for part in parts {
        let (choices, rest) = part.split_once(')').unwrap();
        let choices: BTreeSet<&str> = choices.split('|').collect();
        sorted += &format!("({}){rest}", Vec::from_iter(choices).join("|"));
    }
    sorted
}

#[test]
fn the_table_has_every_field_of_the_model_and_no_other() {
    let model = REQUIRED_BESIDES
        .iter()
        .fold(MODEL.to_string(), |text, (model, table)| {
            assert!(text.contains(model), "{model}");
            text.replace(model, table)
        });
    let model: Vec<String> = model.lines().map(sort_choices).collect();
    let table: Vec<String> = TASK_DEFINITION
        .iter()
        .map(|f| format!("{} : {}", name(f), render(&f.shape)))
        .collect();
    assert_eq!(table, model);
}
