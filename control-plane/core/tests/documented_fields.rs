//! docs/task-definitions.md says of every field of ECS whether it is honoured, and says it truly.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use berth_control_plane_core::definition::register;
use serde_json::json;

/// ECS's own model of a definition, one field to a line.
const MODEL: &str = include_str!("../src/definition/tests/shapes.txt");
const CONTAINERS: &str = "containerDefinitions";

/// Field by path, with what the page says of it: whether it is honoured.
fn in_page() -> BTreeMap<String, bool> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/task-definitions.md");
    let page = std::fs::read_to_string(path).unwrap();
    let mut fields = BTreeMap::new();
    for (title, below) in [("Task", String::new()), ("Container", format!("{CONTAINERS}[]."))] {
        let (_, section) = page.split_once(&format!("\n## {title}\n")).expect(title);
        let section = section.split("\n## ").next().unwrap();
        for row in section.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let honoured = match cells[2] {
                "yes" => true,
                "refused" => {
                    assert!(!cells[3].is_empty(), "{row}: refused, and not why");
                    false
                }
                other => panic!("{row}: {other:?} is neither yes nor refused"),
            };
            let path = format!("{below}{}", cells[1].trim_matches('`'));
            assert!(
                fields.insert(path.clone(), honoured).is_none(),
                "{path} is there twice"
            );
        }
    }
    fields
}

/// What becomes of a definition in which the field at `path` has a value of a type that no field of ECS has.
fn is_honoured(path: &str) -> bool {
    let mut definition = json!({
        "family": "f", "networkMode": "awsvpc", "containerDefinitions": [{"name": "c", "image": "i", "memory": 64}],
    });
    let mut place = &mut definition;
    for step in path.split('.') {
        let (name, is_list) = step.strip_suffix("[]").map_or((step, false), |name| (name, true));
        place = &mut place[name];
        if is_list {
            if place.is_null() {
                *place = json!([{}]);
            }
            place = &mut place[0];
        }
    }
    *place = json!(1.5);
    let problems = register(&definition).expect_err(path);
    let at = path.replace("[]", "[0]");
    let said = problems.iter().find(|p| p.path == at);
    let said = said.unwrap_or_else(|| panic!("{path}: {problems:?}"));
    assert!(!said.message.contains("unknown"), "{path}: {said}");
    !said.message.contains("not supported")
}

/// The fields of the model, down to those that are refused as a whole.
fn in_model(honoured: &BTreeMap<String, bool>) -> Vec<String> {
    let mut found = Vec::new();
    for line in MODEL.lines().filter(|line| !line.trim().is_empty()) {
        let (name, shape) = line.split_once(" : ").expect("name : shape");
        let name = name.trim_end_matches('!').to_owned();
        walk(name, shape.trim(), honoured, &mut found);
    }
    found.sort();
    found
}

fn walk(path: String, shape: &str, honoured: &BTreeMap<String, bool>, found: &mut Vec<String>) {
    found.push(path.clone());
    let (prefix, fields) = match (shape.strip_prefix("[{"), shape.strip_prefix('{')) {
        (Some(rest), _) => (format!("{path}[]."), rest.strip_suffix("}]")),
        (None, Some(rest)) => (format!("{path}."), rest.strip_suffix('}')),
        _ => return,
    };
    if honoured.get(&path) != Some(&true) {
        return;
    }
    for field in split(fields.expect("a closing brace")) {
        let (name, shape) = field.split_once(':').expect("name:shape");
        walk(
            format!("{prefix}{}", name.trim_end_matches('!')),
            shape,
            honoured,
            found,
        );
    }
}

/// `a:str, b:{c:int, d:[str]}` at its outermost commas.
fn split(fields: &str) -> Vec<&str> {
    let (mut depth, mut start, mut all) = (0, 0, Vec::new());
    for (at, c) in fields.char_indices() {
        match c {
            '{' | '[' | '<' => depth += 1,
            '}' | ']' | '>' => depth -= 1,
            ',' if depth == 0 => {
                all.push(fields[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    all.push(fields[start..].trim());
    all
}

#[test]
fn every_field_of_ecs_is_in_the_page_and_no_other() {
    let page = in_page();
    let documented: Vec<String> = page.keys().cloned().collect();
    assert_eq!(documented, in_model(&page));
}

#[test]
fn the_page_says_truly_what_is_honoured() {
    for (path, honoured) in in_page() {
        assert_eq!(is_honoured(&path), honoured, "{path}");
    }
}
