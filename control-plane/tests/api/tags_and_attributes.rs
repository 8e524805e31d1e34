use serde_json::{Value, json};

use crate::world::World;

const ARN: &str = "arn:aws:ecs:eu-central-1:123456789012";

#[tokio::test]
async fn every_kind_of_resource_can_be_tagged() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let task = world.run("web").await;
    for resource in [
        "cluster/default".to_owned(),
        format!("container-instance/default/{node}"),
        "task-definition/web:1".to_owned(),
        format!("task/default/{task}"),
    ] {
        let arn = format!("{ARN}:{resource}");
        let tags = json!([{"key": "a", "value": "1"}, {"key": "b", "value": ""}]);
        assert_eq!(
            world
                .ok("TagResource", json!({"resourceArn": arn, "tags": tags}))
                .await,
            json!({})
        );
        let tags = json!([{"key": "a", "value": "2"}]);
        world
            .ok("TagResource", json!({"resourceArn": arn, "tags": tags}))
            .await;
        let listed = world.ok("ListTagsForResource", json!({"resourceArn": arn})).await;
        assert_eq!(
            listed["tags"],
            json!([{"key": "a", "value": "2"}, {"key": "b", "value": ""}])
        );
        world
            .ok(
                "UntagResource",
                json!({"resourceArn": arn, "tagKeys": ["a", "nope"]}),
            )
            .await;
        let listed = world.ok("ListTagsForResource", json!({"resourceArn": arn})).await;
        assert_eq!(listed["tags"], json!([{"key": "b", "value": ""}]));
    }
    let described = world
        .ok("DescribeTasks", json!({"tasks": [task], "include": ["TAGS"]}))
        .await;
    assert_eq!(described["tasks"][0]["tags"], json!([{"key": "b", "value": ""}]));
}

#[tokio::test]
async fn bad_tags_and_targets_are_refused() {
    let (world, _) = World::with_node().await;
    let cluster = format!("{ARN}:cluster/default");
    let many: Vec<Value> = (0..51)
        .map(|index| json!({"key": format!("k{index}"), "value": ""}))
        .collect();
    for (arn, tags, code) in [
        (
            cluster.clone(),
            json!([{"key": "aws:x", "value": ""}]),
            "InvalidParameterException",
        ),
        (
            cluster.clone(),
            json!([{"value": "x"}]),
            "InvalidParameterException",
        ),
        (
            cluster.clone(),
            json!([{"key": "k".repeat(129)}]),
            "InvalidParameterException",
        ),
        (
            cluster.clone(),
            json!([{"key": "semi;colon"}]),
            "InvalidParameterException",
        ),
        (
            cluster.clone(),
            json!([{"key": "twice"}, {"key": "twice"}]),
            "InvalidParameterException",
        ),
        (cluster.clone(), json!(many), "InvalidParameterException"),
        (
            format!("{ARN}:cluster/nope"),
            json!([]),
            "ClusterNotFoundException",
        ),
        (
            format!("{ARN}:task/default/{}", "0".repeat(32)),
            json!([]),
            "InvalidParameterException",
        ),
        ("default".to_owned(), json!([]), "InvalidParameterException"),
        (
            "arn:aws:ecs:us-east-1:123456789012:cluster/default".to_owned(),
            json!([]),
            "InvalidParameterException",
        ),
    ] {
        world
            .refused("TagResource", json!({"resourceArn": arn, "tags": tags}), code)
            .await;
    }
    world
        .ok("TagResource", json!({"resourceArn": cluster, "tags": many[..50]}))
        .await;
    let body = json!({"resourceArn": cluster, "tags": [{"key": "one-more"}]});
    world.refused("TagResource", body, "LimitExceededException").await;
}

#[tokio::test]
async fn attributes_are_put_listed_and_deleted() {
    let (world, node) = World::with_node().await;
    let other = world.add_node("default", |_| {}).await;
    let arn = format!("{ARN}:container-instance/default/{node}");
    let attributes = json!([
        {"name": "rack", "value": "b", "targetId": arn},
        {"name": "gpu", "targetId": other, "targetType": "container-instance"},
    ]);
    let put = world.ok("PutAttributes", json!({"attributes": attributes})).await;
    let rack = json!({"name": "rack", "value": "b", "targetType": "container-instance", "targetId": arn});
    assert_eq!(put["attributes"][0], rack);
    assert!(put["attributes"][1].get("value").is_none());
    let list = |more: Value| {
        let mut body = json!({"targetType": "container-instance"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let found = world
        .ok(
            "ListAttributes",
            list(json!({"attributeName": "rack", "attributeValue": "b"})),
        )
        .await;
    assert_eq!(found["attributes"], json!([rack]));
    let found = world
        .ok("ListAttributes", list(json!({"attributeName": "ecs.os-type"})))
        .await;
    assert_eq!(found["attributes"].as_array().unwrap().len(), 2);
    let (mut seen, mut body) = (0, list(json!({"maxResults": 2})));
    loop {
        let page = world.ok("ListAttributes", body.clone()).await;
        seen += page["attributes"].as_array().unwrap().len();
        body["nextToken"] = page["nextToken"].clone();
        if body["nextToken"].is_null() {
            break;
        }
    }
    // Each node: ecs.os-type and berth.hostname; and the two that were put.
    assert_eq!(seen, 6);
    let delete = |value: Option<&str>| {
        let mut one = json!({"name": "rack", "targetId": arn});
        if let Some(value) = value {
            one["value"] = value.into();
        }
        json!({"attributes": [one]})
    };
    world.ok("DeleteAttributes", delete(Some("c"))).await;
    assert_eq!(world.node(&node).await.attributes.len(), 1);
    world.ok("DeleteAttributes", delete(None)).await;
    assert_eq!(world.node(&node).await.attributes.len(), 0);
}

#[tokio::test]
async fn bad_attributes_are_refused_and_nothing_is_half_put() {
    let (world, node) = World::with_node().await;
    let one = |name: &str, value: &str, target: &str| {
        json!({"attributes": [
            {"name": "first", "value": "1", "targetId": node, "targetType": "container-instance"},
            {"name": name, "value": value, "targetId": target, "targetType": "container-instance"},
        ]})
    };
    for (body, code) in [
        (one("ecs.os-type", "x", &node), "InvalidParameterException"),
        (one("no spaces", "x", &node), "InvalidParameterException"),
        (one("a", " x", &node), "InvalidParameterException"),
        (one("a", "", &node), "InvalidParameterException"),
        (one("a", "x", &"0".repeat(32)), "TargetNotFoundException"),
        (one("a", "x", "not-an-id"), "InvalidParameterException"),
        (
            json!({"attributes": [{"name": "a", "targetId": node}]}),
            "InvalidParameterException",
        ),
        (json!({"attributes": []}), "InvalidParameterException"),
        (
            json!({"attributes": [{"name": "a", "targetId": node, "odd": 1}]}),
            "InvalidParameterException",
        ),
    ] {
        world.refused("PutAttributes", body, code).await;
    }
    assert_eq!(world.node(&node).await.attributes.len(), 0);
    let ten: Vec<Value> = (0..10)
        .map(|index| json!({"name": format!("a{index}"), "targetId": node, "targetType": "container-instance"}))
        .collect();
    world.ok("PutAttributes", json!({"attributes": ten})).await;
    world
        .refused(
            "PutAttributes",
            one("b", "x", &node),
            "AttributeLimitExceededException",
        )
        .await;
    assert_eq!(world.node(&node).await.attributes.len(), 10);
    world
        .refused("ListAttributes", json!({}), "InvalidParameterException")
        .await;
}
