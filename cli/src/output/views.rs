//! Owns which columns tasks and nodes have.

use super::Table;
use crate::api::{ContainerInstance, JoinToken, Task};
use crate::duration;
use crate::ids;

/// Characters of a reason in a table that is not wide: `berth why` has all of it.
const REASON_SHOWN_MAX: usize = 60;
/// Marks a task that has warnings.
const WARNED: char = '!';

/// Tasks, newest first. `now_ms` dates them.
pub fn tasks(tasks: &[Task], wide: bool, now_ms: i64) -> Table {
    let mut header = vec![
        "TASK",
        "DEFINITION",
        "STATUS",
        "HEALTH",
        "ADDRESS",
        "CONTAINERS",
        "AGE",
    ];
    if wide {
        header.extend(["CPU", "MEMORY", "NODE", "GROUP"]);
    }
    header.push("REASON");
    let mut table = Table::new(&header);
    for task in newest_first(tasks) {
        let id = if wide { task.id() } else { ids::short(task.id()) };
        let mut row = vec![
            id.into(),
            task.definition().into(),
            status(task),
            health(task).into(),
            task.address().unwrap_or("-").into(),
            containers(task),
            age(task.created_at, now_ms),
        ];
        if wide {
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
            row.extend([
                or_dash(&task.cpu),
                or_dash(&task.memory),
                task.node_id().into(),
                or_dash(&task.group),
            ]);
        }
        let reason = task.stopped_reason.clone().unwrap_or_default();
        row.push(if wide { reason } else { shortened(&reason) });
        table.row(row);
    }
    table
}

/// What people should know of these tasks: a line each, in the order of the table. Empty if there is nothing.
pub fn warnings(tasks: &[Task]) -> String {
    let mut lines = String::new();
    for task in newest_first(tasks) {
        for warning in task.warnings() {
            let warning = warning.replace(char::is_control, " ");
            lines += &format!("{WARNED} {}: {warning}\n", ids::short(task.id()));
        }
    }
    lines
}

fn newest_first(tasks: &[Task]) -> Vec<&Task> {
    let mut sorted: Vec<&Task> = tasks.iter().collect();
    sorted.sort_by(|a, b| {
        b.created_at
            .unwrap_or(0.0)
            .total_cmp(&a.created_at.unwrap_or(0.0))
    });
    sorted
}

pub fn nodes(nodes: &[ContainerInstance], wide: bool, now_ms: i64) -> Table {
    let mut header = vec!["NODE", "STATUS", "AGENT", "TASKS", "CPU FREE", "MIB FREE", "AGE"];
    if wide {
        header.extend(["VERSION", "RUNTIME", "ARCHITECTURE"]);
    }
    let mut table = Table::new(&header);
    for node in nodes {
        let id = if wide { node.id() } else { ids::short(node.id()) };
        let mut row = vec![
            id.into(),
            node.status.clone(),
            if node.agent_connected {
                "connected"
            } else {
                "silent"
            }
            .into(),
            (node.running_tasks_count + node.pending_tasks_count).to_string(),
            node.free_of("CPU"),
            node.free_of("MEMORY"),
            age(node.registered_at, now_ms),
        ];
        if wide {
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
            row.extend([
                or_dash(&node.version_info.agent_version),
                or_dash(&node.version_info.docker_version),
                node.attribute("ecs.cpu-architecture").into(),
            ]);
        }
        table.row(row);
    }
    table
}

/// Join tokens, in the order given. `now_ms` dates them.
pub fn join_tokens(tokens: &[JoinToken], now_ms: i64) -> Table {
    let mut table = Table::new(&[
        "TOKEN",
        "CLUSTER",
        "USES LEFT",
        "EXPIRES",
        "AGE",
        "BY",
        "ATTRIBUTES",
    ]);
    for token in tokens {
        let left_seconds = (token.expires_at_ms() - now_ms) as f64 / 1000.0;
        let expires = match duration::short(left_seconds) {
            _ if left_seconds <= 0.0 => "expired".to_owned(),
            left => format!("in {left}"),
        };
        let attributes: Vec<String> = token
            .attributes
            .iter()
            .map(|one| match &one.value {
                Some(value) => format!("{}={value}", one.name),
                None => one.name.clone(),
            })
            .collect();
        table.row(vec![
            token.token_id.clone(),
            token.cluster.clone(),
            format!("{}/{}", token.uses_left, token.uses),
            expires,
            age(token.created_at, now_ms),
            token.created_by.clone(),
            attributes.join(" "),
        ]);
    }
    table
}

fn shortened(reason: &str) -> String {
    match reason.char_indices().nth(REASON_SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.into(),
    }
}

/// The last status, that it may be old, and that there is a warning.
fn status(task: &Task) -> String {
    let disconnected = task.connectivity.as_deref() == Some("DISCONNECTED") && !task.is_stopped();
    let suffix = if disconnected { " (node silent)" } else { "" };
    let warned = task.warnings().next().map(|_| format!(" {WARNED}"));
    format!("{}{suffix}{}", task.last_status, warned.unwrap_or_default())
}

/// What its essential containers' health checks say, while it runs.
fn health(task: &Task) -> &str {
    let known = task.health_status.as_deref();
    known
        .filter(|status| *status != "UNKNOWN" && !task.is_stopped())
        .unwrap_or("-")
}

/// `running/all`.
fn containers(task: &Task) -> String {
    let running = task
        .containers
        .iter()
        .filter(|container| container.last_status == "RUNNING")
        .count();
    format!("{running}/{}", task.containers.len())
}

fn age(since_seconds: Option<f64>, now_ms: i64) -> String {
    since_seconds.map_or_else(
        || "-".into(),
        |since| duration::short(now_ms as f64 / 1000.0 - since),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task(id: &str, created: f64, status: &str) -> Task {
        serde_json::from_value(json!({
            "taskArn": format!("arn:aws:ecs:r:0:task/default/{id}"), "createdAt": created, "lastStatus": status,
            "taskDefinitionArn": "arn:aws:ecs:r:0:task-definition/web:3", "connectivity": "DISCONNECTED",
            "healthStatus": "UNHEALTHY",
            "containers": [{"name": "a", "lastStatus": "RUNNING"}, {"name": "b", "lastStatus": "PENDING"}],
        }))
        .unwrap()
    }

    #[test]
    fn tasks_are_listed_newest_first() {
        let list = [
            task(&"0a".repeat(16), 100.0, "STOPPED"),
            task(&"0b".repeat(16), 200.0, "RUNNING"),
        ];
        assert_eq!(
            tasks(&list, false, 260_000).to_string(),
            "TASK          DEFINITION  STATUS                 HEALTH     ADDRESS  CONTAINERS  AGE  REASON\n\
             0b0b0b0b0b0b  web:3       RUNNING (node silent)  UNHEALTHY  -        1/2         60s\n\
             0a0a0a0a0a0a  web:3       STOPPED                -          -        1/2         2m\n"
        );
        assert!(tasks(&list, true, 0).to_string().contains(&"0a".repeat(16)));
    }

    #[test]
    fn warnings_are_marked_and_told_below() {
        let mut warned = task(&"0b".repeat(16), 200.0, "RUNNING");
        let attribute =
            |name: &str, value: &str| serde_json::from_value(json!({"name": name, "value": value}));
        warned.attributes = vec![
            attribute("ecs.cpu-architecture", "amd64").unwrap(),
            attribute("berth.warning", "kept\non the node").unwrap(),
            attribute("berth.warning", "no quota").unwrap(),
        ];
        let list = [task(&"0a".repeat(16), 100.0, "STOPPED"), warned];
        let table = tasks(&list, false, 260_000).to_string();
        assert!(
            table.contains("  RUNNING (node silent) !  ") && table.contains("  STOPPED  "),
            "{table}"
        );
        assert_eq!(
            warnings(&list),
            "! 0b0b0b0b0b0b: kept on the node\n! 0b0b0b0b0b0b: no quota\n"
        );
        assert_eq!(warnings(&list[..1]), "");
    }

    #[test]
    fn tokens_say_how_often_and_how_long() {
        let token = |expires: f64| -> JoinToken {
            serde_json::from_value(json!({
                "tokenId": "0a", "cluster": "edge", "uses": 3, "usesLeft": 2, "createdAt": 0.0, "expiresAt": expires,
                "createdBy": "AK", "attributes": [{"name": "rack", "value": "7"}, {"name": "gpu"}],
            }))
            .unwrap()
        };
        let text = join_tokens(&[token(605.0), token(4.0)], 5_000).to_string();
        assert!(text.contains("0a     edge     2/3        in 10m"), "{text}");
        assert!(text.contains("expired") && text.contains("rack=7 gpu"), "{text}");
    }

    #[test]
    fn nodes_say_what_is_free() {
        let node: ContainerInstance = serde_json::from_value(json!({
            "containerInstanceArn": "arn:aws:ecs:r:0:container-instance/default/0a", "status": "ACTIVE",
            "agentConnected": true, "registeredAt": 0.0, "runningTasksCount": 1,
            "registeredResources": [{"name": "CPU", "integerValue": 2048}, {"name": "MEMORY", "integerValue": 1000}],
            "remainingResources": [{"name": "CPU", "integerValue": 1792}, {"name": "MEMORY", "integerValue": 488}],
        }))
        .unwrap();
        let text = nodes(&[node], false, 5_000).to_string();
        assert!(
            text.ends_with("0a    ACTIVE  connected  1      1792/2048  488/1000  5s\n"),
            "{text}"
        );
    }
}
