//! Berth's own operations.

use berth_control_plane::store::Store;
use berth_proto::node::v1::{Heartbeat, LogLine, NodeUsage, Pressure, TaskUsage, Usage};
use serde_json::{Value, json};

use crate::world::World;

fn line(text: &str, time_ms: i64) -> LogLine {
    LogLine {
        container_name: "web".into(),
        stream: "stdout".into(),
        time_ms,
        data: text.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn the_server_says_what_it_is() {
    let world = World::new().await;
    let info = world.berth("GetServerInfo", json!({})).await.ok();
    assert_eq!(
        (&info["region"], &info["accountId"]),
        (&json!("eu-central-1"), &json!("123456789012"))
    );
    assert!(!info["version"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn logs_come_as_lines_of_json() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let task = world.run("web").await;
    let batches = vec![
        Ok(vec![line("one\n", 1), line("two\n", 2)]),
        Ok(vec![line("\u{fffd}half", 3)]),
    ];
    world.nodes.logs.lock().unwrap().insert(node.clone(), batches);
    let body = json!({"task": task, "container": "web", "follow": true, "tailLines": 5, "sinceMs": 7});
    let answer = world.berth("StreamLogs", body).await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/x-ndjson"))
    );
    let lines: Vec<Value> = answer
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(
        lines[0],
        json!({"container": "web", "stream": "stdout", "timeMs": 1, "line": "one\n"})
    );
    let asked = world.nodes.asked.lock().unwrap()[0].clone();
    assert_eq!(
        (asked.task_id, asked.container_name, asked.follow),
        (task, "web".into(), true)
    );
    assert_eq!((asked.tail_lines, asked.since_ms), (5, 7));
}

#[tokio::test]
async fn a_stream_that_breaks_says_so_in_its_last_line() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let task = world.run("web").await;
    let batches = vec![
        Ok(vec![line("one\n", 1)]),
        Err("the link broke".into()),
        Ok(vec![line("never\n", 2)]),
    ];
    world.nodes.logs.lock().unwrap().insert(node, batches);
    let answer = world.berth("StreamLogs", json!({"task": task})).await;
    assert_eq!(answer.text.lines().count(), 2);
    assert_eq!(
        answer.text.lines().last().unwrap(),
        r#"{"error":"the link broke"}"#
    );
}

#[tokio::test]
async fn logs_of_what_cannot_be_read_are_refused() {
    let (world, _) = World::with_node().await;
    world.register("web").await;
    let task = world.run("web").await;
    let message = world
        .berth("StreamLogs", json!({"task": task}))
        .await
        .refused("ClientException");
    assert!(message.contains("is not connected"), "{message}");
    let body = json!({"task": task, "container": "nope"});
    let message = world
        .berth("StreamLogs", body)
        .await
        .refused("InvalidParameterException");
    assert!(message.contains("it has web, cache"), "{message}");
    world
        .berth("StreamLogs", json!({"task": "0".repeat(32)}))
        .await
        .refused("InvalidParameterException");
    world
        .berth("StreamLogs", json!({"task": task, "odd": 1}))
        .await
        .refused("InvalidParameterException");
}

#[tokio::test]
async fn a_task_is_explained() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let task = world.run("web").await;
    let explain = || async { world.berth("ExplainTask", json!({"task": task})).await.ok() };
    let fresh = explain().await;
    assert!(
        fresh["why"].as_str().unwrap().starts_with("placed on host-"),
        "{fresh}"
    );
    assert_eq!(
        (&fresh["node"], &fresh["nodeConnected"]),
        (&json!(node), &json!(true))
    );
    world
        .report(&task, |task| {
            task.last_status = "PENDING".into();
            task.waiting_reason = Some("12 MiB of 40 MiB of nginx pulled".into());
        })
        .await;
    let pending = explain().await;
    assert!(
        pending["why"].as_str().unwrap().contains("12 MiB of 40 MiB"),
        "{pending}"
    );
    world
        .ok("StopTask", json!({"task": task, "reason": "enough"}))
        .await;
    world
        .report(&task, |task| {
            task.last_status = "STOPPING".into();
            task.stopping_at = Some(1_700_000_000_000);
        })
        .await;
    let stopping = explain().await;
    assert!(
        stopping["why"].as_str().unwrap().contains("(enough)"),
        "{stopping}"
    );
    assert_eq!(
        (&stopping["sinceMs"], &stopping["deadlineMs"]),
        (&json!(1_700_000_000_000_i64), &json!(1_700_000_030_000_i64))
    );
    world.edit_node(&node, |node| node.agent_connected = false).await;
    assert!(explain().await["why"].as_str().unwrap().contains("not connected"));
    world.report_stopped(&task).await;
    let stopped = explain().await;
    assert_eq!(
        (&stopped["why"], &stopped["lastStatus"]),
        (&json!("stopped: enough"), &json!("STOPPED"))
    );
}

#[tokio::test]
async fn usage_is_that_of_the_last_heartbeats() {
    let (world, node) = World::with_node().await;
    let usage = Usage {
        cpu_used_usec: 42,
        memory_used_bytes: 7,
        pressure: Some(Pressure {
            io_stalled_usec: 3,
            ..Pressure::default()
        }),
        ..Usage::default()
    };
    world.register("web").await;
    let task = world.run("web").await;
    let not_its_own = TaskUsage {
        task_id: "b".repeat(32),
        ..TaskUsage::default()
    };
    let heartbeat = Heartbeat {
        sent_at_ms: 99,
        node: Some(NodeUsage {
            memory_used_bytes: 5,
            ..NodeUsage::default()
        }),
        tasks: vec![
            TaskUsage {
                task_id: task.clone(),
                total: Some(usage),
                ..TaskUsage::default()
            },
            not_its_own,
        ],
        impairments: vec![],
    };
    world
        .nodes
        .heartbeats
        .lock()
        .unwrap()
        .insert(node.clone(), heartbeat);
    let silent = world
        .add_node("default", |node| node.agent_connected = false)
        .await;
    let answer = world.berth("GetUsage", json!({})).await.ok();
    let of = |id: &str| {
        answer["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["node"] == id)
            .unwrap()
            .clone()
    };
    assert_eq!(
        (&of(&node)["sentAtMs"], &of(&node)["usage"]["memoryUsedBytes"]),
        (&json!(99), &json!(5))
    );
    assert_eq!(
        (&of(&silent)["sentAtMs"], &of(&silent)["usage"]),
        (&json!(0), &Value::Null)
    );
    assert_eq!(
        answer["tasks"].as_array().unwrap().len(),
        1,
        "a node speaks for its own tasks only"
    );
    assert_eq!(answer["tasks"][0]["task"], task);
    assert_eq!(answer["tasks"][0]["total"]["cpuUsedUsec"], 42);
    assert_eq!(answer["tasks"][0]["total"]["pressure"]["ioStalledUsec"], 3);
    assert_eq!(of(&node)["usage"]["pressure"], Value::Null, "not measured");
    world
        .berth("GetUsage", json!({"cluster": "nope"}))
        .await
        .refused("ClusterNotFoundException");
}

#[tokio::test]
async fn only_what_a_node_holds_back_can_be_confirmed() {
    let (world, node) = World::with_node().await;
    let confirm = |body: serde_json::Value| world.berth("ConfirmDesiredState", body);
    let message = confirm(json!({"containerInstance": node})).await;
    assert!(message.refused("ClientException").contains("holds nothing back"));
    let held = |confirmable| berth_control_plane::nodes::Held {
        reason: "would stop 2 of 2".into(),
        confirmable,
    };
    world.nodes.held.lock().unwrap().insert(node.clone(), held(false));
    let message = confirm(json!({"containerInstance": node})).await;
    assert!(message.refused("ClientException").contains("would stop 2 of 2"));
    world.nodes.held.lock().unwrap().insert(node.clone(), held(true));
    let asked = confirm(json!({"containerInstance": node, "dryRun": true}))
        .await
        .ok();
    assert_eq!(
        (&asked["confirmed"], &asked["reason"]),
        (&json!(false), &json!("would stop 2 of 2"))
    );
    let key = berth_control_plane::model::keys::confirmation(&node);
    assert!(world.store.get(&key).await.unwrap().is_none());
    let done = confirm(json!({"containerInstance": node})).await.ok();
    assert_eq!(done["confirmed"], true);
    assert!(world.store.get(&key).await.unwrap().is_some());
    let nobody = "0".repeat(32);
    confirm(json!({"containerInstance": nobody}))
        .await
        .refused("InvalidParameterException");
}
