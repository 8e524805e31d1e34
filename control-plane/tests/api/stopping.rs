//! StopTask, DescribeTasks and ListTasks.

use berth_proto::node::v1::DesiredStatus;
use serde_json::json;

use crate::world::{World, host, id_of};

#[tokio::test]
async fn a_stop_is_wanted_everywhere_in_one_go() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let id = world.run("web").await;
    let answer = world
        .ok("StopTask", json!({"task": id, "reason": "enough"}))
        .await;
    let task = &answer["task"];
    assert_eq!(
        (&task["desiredStatus"], &task["lastStatus"]),
        (&json!("STOPPED"), &json!("PROVISIONING"))
    );
    assert_eq!(
        (&task["stopCode"], &task["stoppedReason"]),
        (&json!("UserInitiated"), &json!("enough"))
    );
    assert_eq!(task["version"], 2);
    let spec = world.desired(&node, &id).await.unwrap();
    assert_eq!(
        (spec.desired_status(), spec.stop_reason.as_str()),
        (DesiredStatus::Stopped, "enough")
    );
    assert!(world.allocation(&node, &id).await.unwrap().stopping);
    // Again: the first reason stays, nothing changes.
    let again = world.ok("StopTask", json!({"task": id, "reason": "more"})).await;
    assert_eq!(again, answer);
    world.report_stopped(&id).await;
    let stopped = world.ok("StopTask", json!({"task": id})).await;
    assert_eq!(stopped["task"]["lastStatus"], "STOPPED");
    assert_eq!(stopped["task"]["attachments"][0]["status"], "DELETED");
    assert_eq!(world.node(&node).await.allocations.len(), 0);
}

#[tokio::test]
async fn stops_of_what_is_not_there_are_refused() {
    let (world, _) = World::with_node().await;
    for (body, code) in [
        (json!({"task": "0".repeat(32)}), "InvalidParameterException"),
        (json!({"task": "not-an-id"}), "InvalidParameterException"),
        (json!({}), "InvalidParameterException"),
        (
            json!({"task": "0".repeat(32), "cluster": "nope"}),
            "ClusterNotFoundException",
        ),
        (
            json!({"task": "0".repeat(32), "reason": "x".repeat(2000)}),
            "InvalidParameterException",
        ),
    ] {
        world.refused("StopTask", body, code).await;
    }
}

#[tokio::test]
async fn a_running_task_shows_its_address_and_a_stopped_one_its_end() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let id = world.run("web").await;
    world
        .report(&id, |task| {
            task.last_status = "RUNNING".into();
            task.started_at = Some(1_700_000_001_250);
            task.ipv4_address = Some("10.128.0.5".into());
            task.mac_address = Some("02:00:0a:80:00:05".into());
            task.containers[0].last_status = "RUNNING".into();
            task.containers[0].runtime_id = Some("berth-1".into());
        })
        .await;
    let body = json!({"tasks": [id, "1".repeat(32)], "include": ["TAGS"]});
    let answer = world.ok("DescribeTasks", body).await;
    let task = &answer["tasks"][0];
    assert_eq!(task["startedAt"], 1_700_000_001.25);
    let details = task["attachments"][0]["details"].as_array().unwrap().clone();
    let detail = |name: &str| details.iter().find(|one| one["name"] == name).unwrap()["value"].clone();
    assert_eq!(detail("subnetId"), "subnet-default");
    assert_eq!(detail("macAddress"), "02:00:0a:80:00:05");
    assert_eq!(detail("privateIPv4Address"), "10.128.0.5");
    // What the resolver of tasks answers.
    assert_eq!(detail("privateDnsName"), format!("{id}.default.berth"));
    assert_eq!(detail("networkInterfaceId").as_str().unwrap().len(), 21);
    let attachment = &task["attachments"][0]["id"];
    assert_eq!(task["attachments"][0]["status"], "ATTACHED");
    let interface = json!([{"attachmentId": attachment, "privateIpv4Address": "10.128.0.5"}]);
    assert_eq!(task["containers"][0]["networkInterfaces"], interface);
    assert_eq!(task["containers"][0]["runtimeId"], "berth-1");
    assert_eq!(
        answer["failures"],
        json!([{
            "arn": format!("arn:aws:ecs:eu-central-1:123456789012:task/default/{}", "1".repeat(32)), "reason": "MISSING",
        }])
    );
    world.edit_node(&node, |node| node.agent_connected = false).await;
    world
        .report(&id, |task| {
            task.containers[0].exit_code = Some(137);
            task.containers[0].reason = Some("OutOfMemoryError: killed".into());
        })
        .await;
    let task = world.ok("DescribeTasks", json!({"tasks": [id]})).await["tasks"][0].clone();
    assert_eq!(
        (&task["connectivity"], &task["lastStatus"]),
        (&json!("DISCONNECTED"), &json!("RUNNING"))
    );
    assert_eq!(task["containers"][0]["exitCode"], 137);
}

#[tokio::test]
async fn host_mode_shows_bindings_of_what_runs() {
    let (world, _) = World::with_node().await;
    world.register_as(host("edge", 8080)).await;
    let answer = world.ok("RunTask", json!({"taskDefinition": "edge"})).await;
    assert_eq!(answer["tasks"][0]["containers"][0]["networkBindings"], json!([]));
    let id = id_of(answer["tasks"][0]["taskArn"].as_str().unwrap());
    world
        .report(&id, |task| task.containers[0].last_status = "RUNNING".into())
        .await;
    let task = world.ok("DescribeTasks", json!({"tasks": [id]})).await["tasks"][0].clone();
    let binding = json!([{"bindIP": "0.0.0.0", "containerPort": 8080, "hostPort": 8080, "protocol": "tcp"}]);
    assert_eq!(task["containers"][0]["networkBindings"], binding);
}

#[tokio::test]
async fn tasks_are_listed_by_every_filter_and_in_pages() {
    let (world, first) = World::with_node().await;
    world.register("web").await;
    world.register_as(host("edge", 8080)).await;
    let mut web = Vec::new();
    for _ in 0..5 {
        web.push(world.run("web").await);
    }
    let second = world.add_node("default", |_| {}).await;
    let body = json!({"taskDefinition": "edge", "containerInstances": [second], "startedBy": "cron"});
    let edge = world.ok("StartTask", body).await;
    let edge = id_of(edge["tasks"][0]["taskArn"].as_str().unwrap());
    world.ok("StopTask", json!({"task": web[0]})).await;
    for (body, expected) in [
        (json!({}), 5),
        (json!({"desiredStatus": "STOPPED"}), 1),
        (json!({"desiredStatus": "PENDING"}), 0),
        (json!({"family": "web"}), 4),
        (json!({"startedBy": "cron"}), 1),
        (json!({"containerInstance": first}), 4),
        (json!({"containerInstance": second, "family": "web"}), 0),
        (json!({"launchType": "EC2"}), 5),
        (json!({"launchType": "FARGATE"}), 0),
    ] {
        let arns = world.ok("ListTasks", body.clone()).await["taskArns"]
            .as_array()
            .unwrap()
            .len();
        assert_eq!(arns, expected, "{body}");
    }
    let (mut seen, mut body) = (Vec::new(), json!({"maxResults": 2}));
    loop {
        let page = world.ok("ListTasks", body.clone()).await;
        seen.extend(
            page["taskArns"]
                .as_array()
                .unwrap()
                .iter()
                .map(|arn| id_of(arn.as_str().unwrap())),
        );
        body["nextToken"] = page["nextToken"].clone();
        if body["nextToken"].is_null() {
            break;
        }
    }
    seen.sort();
    let mut expected: Vec<String> = web[1..].iter().cloned().chain([edge]).collect();
    expected.sort();
    assert_eq!(seen, expected);
    world
        .refused(
            "ListTasks",
            json!({"desiredStatus": "BOGUS"}),
            "InvalidParameterException",
        )
        .await;
    world
        .refused(
            "ListTasks",
            json!({"serviceName": "x"}),
            "ServiceNotFoundException",
        )
        .await;
}
