use berth_proto::node::v1::{DesiredStatus, Heartbeat};
use serde_json::json;

use crate::world::{World, id_of};

#[tokio::test]
async fn a_node_is_described_with_what_it_has_left() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let id = world.run("web").await;
    let body = json!({"containerInstances": [node, "2".repeat(32)], "include": ["TAGS", "CONTAINER_INSTANCE_HEALTH"]});
    let answer = world.ok("DescribeContainerInstances", body.clone()).await;
    assert_eq!(answer["failures"][0]["reason"], "MISSING");
    let found = &answer["containerInstances"][0];
    assert_eq!(
        found["containerInstanceArn"],
        format!("arn:aws:ecs:eu-central-1:123456789012:container-instance/default/{node}")
    );
    assert_eq!(
        (&found["status"], &found["agentConnected"]),
        (&json!("ACTIVE"), &json!(true))
    );
    assert_eq!(
        (&found["pendingTasksCount"], &found["runningTasksCount"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(found["registeredAt"], 1_700_000_000.5);
    assert_eq!(
        found["versionInfo"],
        json!({"agentVersion": "0.1.0", "dockerVersion": "containerd 1.6.20"})
    );
    let values = |field: &str| -> Vec<i64> {
        found[field]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["integerValue"].as_i64().unwrap())
            .collect()
    };
    assert_eq!(values("registeredResources"), [2048, 4096, 0, 0]);
    assert_eq!(values("remainingResources"), [1792, 3584, 0, 0]);
    assert!(
        found["attributes"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "ecs.os-type", "value": "linux"}))
    );
    assert_eq!(found["healthStatus"]["overallStatus"], "INITIALIZING");
    let heartbeat = Heartbeat {
        impairments: vec!["store: no space".into()],
        ..Heartbeat::default()
    };
    world
        .nodes
        .heartbeats
        .lock()
        .unwrap()
        .insert(node.clone(), heartbeat);
    world
        .report(&id, |task| task.last_status = "RUNNING".into())
        .await;
    let found = world.ok("DescribeContainerInstances", body).await["containerInstances"][0].clone();
    assert_eq!(found["healthStatus"]["overallStatus"], "IMPAIRED");
    assert_eq!(found["runningTasksCount"], 1);
}

#[tokio::test]
async fn nodes_are_listed_by_status_and_expression() {
    let (world, first) = World::with_node().await;
    let second = world
        .add_node("default", |node| {
            node.status = "DRAINING".into();
            node.attributes.insert("rack".into(), Some("b".into()));
        })
        .await;
    world
        .add_node("default", |node| node.status = "INACTIVE".into())
        .await;
    for (body, expected) in [
        (json!({}), vec![&first, &second]),
        (json!({"status": "DRAINING"}), vec![&second]),
        (json!({"status": "REGISTERING"}), vec![]),
        (json!({"filter": "attribute:rack == b"}), vec![&second]),
        (
            json!({"filter": "attribute:rack !exists and agentConnected == true"}),
            vec![&first],
        ),
    ] {
        let mut found: Vec<String> = Vec::new();
        for arn in world.ok("ListContainerInstances", body.clone()).await["containerInstanceArns"]
            .as_array()
            .unwrap()
        {
            found.push(id_of(arn.as_str().unwrap()));
        }
        let mut expected: Vec<String> = expected.into_iter().cloned().collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{body}");
    }
    let page = world.ok("ListContainerInstances", json!({"maxResults": 1})).await;
    let rest = json!({"maxResults": 1, "nextToken": page["nextToken"]});
    assert!(
        world
            .ok("ListContainerInstances", rest)
            .await
            .get("nextToken")
            .is_none()
    );
    for (body, start) in [
        (json!({"filter": "rack == b"}), "filter: column"),
        (json!({"status": "SLEEPY"}), "status: 'SLEEPY'"),
    ] {
        let message = world
            .refused("ListContainerInstances", body, "InvalidParameterException")
            .await;
        assert!(message.starts_with(start), "{message}");
    }
}

#[tokio::test]
async fn draining_keeps_tasks_and_keeps_newcomers_away() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let id = world.run("web").await;
    let body = json!({"containerInstances": [node, "3".repeat(32)], "status": "DRAINING"});
    let answer = world.ok("UpdateContainerInstancesState", body).await;
    assert_eq!(answer["containerInstances"][0]["status"], "DRAINING");
    assert_eq!(answer["failures"][0]["reason"], "MISSING");
    assert_eq!(world.task(&id).await.desired_status, "RUNNING");
    let run = json!({"taskDefinition": "web", "networkConfiguration": crate::world::network()});
    assert_eq!(world.ok("RunTask", run.clone()).await["tasks"], json!([]));
    world
        .ok(
            "UpdateContainerInstancesState",
            json!({"containerInstances": [node], "status": "ACTIVE"}),
        )
        .await;
    assert_eq!(world.ok("RunTask", run).await["failures"], json!([]));
    for status in ["REGISTERING", "BOGUS"] {
        let body = json!({"containerInstances": [node], "status": status});
        world
            .refused("UpdateContainerInstancesState", body, "InvalidParameterException")
            .await;
    }
    let many = vec!["4".repeat(32); 11];
    let body = json!({"containerInstances": many, "status": "ACTIVE"});
    world
        .refused("UpdateContainerInstancesState", body, "InvalidParameterException")
        .await;
}

#[tokio::test]
async fn a_node_with_tasks_is_deregistered_by_force_only() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let id = world.run("web").await;
    let body = json!({"containerInstance": node});
    let message = world
        .refused("DeregisterContainerInstance", body, "InvalidParameterException")
        .await;
    assert!(message.starts_with("Found running tasks"), "{message}");
    assert_eq!(world.node(&node).await.status, "ACTIVE");
    let answer = world
        .ok(
            "DeregisterContainerInstance",
            json!({"containerInstance": node, "force": true}),
        )
        .await;
    assert_eq!(answer["containerInstance"]["status"], "INACTIVE");
    let spec = world.desired(&node, &id).await.unwrap();
    assert_eq!(spec.desired_status(), DesiredStatus::Stopped);
    assert_eq!(
        world.task(&id).await.stopped_reason.unwrap(),
        "container instance was deregistered"
    );
    assert_eq!(
        world.ok("ListContainerInstances", json!({})).await["containerInstanceArns"],
        json!([])
    );
    // What it ran is nobody's any more: the cluster can go.
    world.ok("DeleteCluster", json!({"cluster": "default"})).await;
    let body = json!({"containerInstance": "5".repeat(32)});
    world
        .refused("DeregisterContainerInstance", body, "ClusterNotFoundException")
        .await;
}

#[tokio::test]
async fn an_inactive_node_keeps_its_status() {
    let (world, node) = World::with_node().await;
    world
        .ok("DeregisterContainerInstance", json!({"containerInstance": node}))
        .await;
    let body = json!({"containerInstances": [node], "status": "ACTIVE"});
    let answer = world.ok("UpdateContainerInstancesState", body).await;
    assert_eq!(answer["failures"][0]["reason"], "INACTIVE");
    let body = json!({"containerInstance": "5".repeat(32)});
    world
        .refused("DeregisterContainerInstance", body, "InvalidParameterException")
        .await;
}
