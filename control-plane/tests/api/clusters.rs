use serde_json::json;

use crate::world::{World, awsvpc, network};

#[tokio::test]
async fn a_cluster_is_made_once_described_and_deleted() {
    let world = World::new().await;
    let cluster = world
        .ok("CreateCluster", json!({"tags": [{"key": "team", "value": "a"}]}))
        .await["cluster"]
        .clone();
    assert_eq!(cluster["clusterName"], "default");
    assert_eq!(
        cluster["clusterArn"],
        "arn:aws:ecs:eu-central-1:123456789012:cluster/default"
    );
    assert_eq!(cluster["status"], "ACTIVE");
    assert_eq!(
        cluster["settings"],
        json!([{"name": "containerInsights", "value": "disabled"}])
    );
    // Again: the same cluster, with the tags it was made with.
    let again = world.ok("CreateCluster", json!({"clusterName": "default"})).await;
    assert_eq!(again["cluster"], cluster);
    let described = world
        .ok("DescribeClusters", json!({"clusters": ["default", "nope"]}))
        .await;
    assert_eq!(described["clusters"][0]["tags"], json!([]));
    assert_eq!(described["failures"][0]["reason"], "MISSING");
    assert_eq!(
        described["failures"][0]["arn"],
        "arn:aws:ecs:eu-central-1:123456789012:cluster/nope"
    );
    let with = json!({"clusters": [cluster["clusterArn"]], "include": ["TAGS", "STATISTICS"]});
    let with = world.ok("DescribeClusters", with).await;
    assert_eq!(
        with["clusters"][0]["tags"],
        json!([{"key": "team", "value": "a"}])
    );
    assert!(with["clusters"][0]["statistics"].as_array().unwrap().len() >= 4);
    let deleted = world.ok("DeleteCluster", json!({"cluster": "default"})).await;
    assert_eq!(deleted["cluster"]["status"], "INACTIVE");
    assert_eq!(
        world.ok("ListClusters", json!({})).await["clusterArns"],
        json!([])
    );
    world
        .refused("ListTasks", json!({}), "ClusterNotFoundException")
        .await;
    let fresh = world.ok("CreateCluster", json!({})).await;
    assert_eq!(fresh["cluster"]["tags"], json!([]));
}

#[tokio::test]
async fn a_cluster_that_is_used_is_not_deleted() {
    let (world, node) = World::with_node().await;
    let body = json!({"cluster": "default"});
    world
        .refused(
            "DeleteCluster",
            body.clone(),
            "ClusterContainsContainerInstancesException",
        )
        .await;
    world.register_as(awsvpc("web")).await;
    world.run("web").await;
    let counts = world.ok("DescribeClusters", json!({})).await["clusters"][0].clone();
    assert_eq!(counts["registeredContainerInstancesCount"], 1);
    assert_eq!(
        (&counts["pendingTasksCount"], &counts["runningTasksCount"]),
        (&json!(1), &json!(0))
    );
    world
        .edit_node(&node, |node| node.status = "DRAINING".into())
        .await;
    world
        .refused(
            "DeleteCluster",
            body,
            "ClusterContainsContainerInstancesException",
        )
        .await;
    world
        .refused(
            "DeleteCluster",
            json!({"cluster": "nope"}),
            "ClusterNotFoundException",
        )
        .await;
}

#[tokio::test]
async fn clusters_are_listed_in_pages() {
    let world = World::new().await;
    for index in 0..7 {
        world
            .ok("CreateCluster", json!({"clusterName": format!("c{index}")}))
            .await;
    }
    let (mut seen, mut body) = (Vec::new(), json!({"maxResults": 3}));
    for size in [3, 3, 1] {
        let page = world.ok("ListClusters", body.clone()).await;
        assert_eq!(page["clusterArns"].as_array().unwrap().len(), size);
        seen.extend(page["clusterArns"].as_array().unwrap().clone());
        body["nextToken"] = page["nextToken"].clone();
    }
    assert!(body["nextToken"].is_null());
    seen.dedup();
    assert_eq!(seen.len(), 7);
    for (field, value) in [
        ("maxResults", json!(0)),
        ("maxResults", json!(101)),
        ("nextToken", json!("bogus")),
    ] {
        let message = world
            .refused("ListClusters", json!({field: value}), "InvalidParameterException")
            .await;
        assert!(message.starts_with(field), "{message}");
    }
}

#[tokio::test]
async fn bad_requests_say_what_and_where() {
    let world = World::new().await;
    for (operation, body, start) in [
        (
            "CreateCluster",
            json!({"clusterName": "no spaces"}),
            "clusterName: must be",
        ),
        (
            "CreateCluster",
            json!({"clusterName": 7}),
            "clusterName: must be a string, not a number",
        ),
        ("CreateCluster", json!({"bogus": 1}), "bogus: unknown field"),
        (
            "CreateCluster",
            json!({"capacityProviders": ["x"]}),
            "capacityProviders: not supported yet",
        ),
        (
            "CreateCluster",
            json!({"settings": [{"name": "x"}]}),
            "settings[0].name: 'x' is not a valid value",
        ),
        (
            "CreateCluster",
            json!({"tags": [{"key": "aws:x"}]}),
            "tags[0].key: \"aws:x\" starts with aws:",
        ),
        (
            "CreateCluster",
            json!({"tags": [{"key": "a", "odd": 1}]}),
            "tags[0].odd: unknown field",
        ),
        (
            "DescribeClusters",
            json!({"include": ["TAGS", "BOGUS"]}),
            "include[1]: 'BOGUS' is not a valid value",
        ),
        (
            "DescribeClusters",
            json!({"clusters": ["arn:aws:ecs:eu-central-1:999999999999:cluster/x"]}),
            "arn:aws",
        ),
        ("DeleteCluster", json!({}), "cluster: is required"),
    ] {
        let message = world.refused(operation, body, "InvalidParameterException").await;
        assert!(message.starts_with(start), "{message}");
    }
    assert_eq!(
        world.ok("ListClusters", json!({})).await["clusterArns"],
        json!([])
    );
}

#[tokio::test]
async fn null_counts_as_absent() {
    let world = World::new().await;
    let body =
        json!({"clusterName": null, "tags": null, "settings": null, "configuration": null, "unknown": null});
    assert_eq!(
        world.ok("CreateCluster", body).await["cluster"]["clusterName"],
        "default"
    );
    world.register("web").await;
    world.add_node("default", |_| {}).await;
    let body =
        json!({"taskDefinition": "web", "overrides": null, "count": null, "networkConfiguration": network()});
    assert_eq!(
        world.ok("RunTask", body).await["tasks"].as_array().unwrap().len(),
        1
    );
}
