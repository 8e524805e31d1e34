use serde_json::json;

use crate::world::{World, awsvpc, host};

#[tokio::test]
async fn a_definition_is_registered_described_and_deregistered() {
    let world = World::new().await;
    let mut request = awsvpc("web");
    request["tags"] = json!([{"key": "team", "value": "a"}]);
    let registered = world.ok("RegisterTaskDefinition", request).await;
    let first = &registered["taskDefinition"];
    assert_eq!(
        first["taskDefinitionArn"],
        "arn:aws:ecs:eu-central-1:123456789012:task-definition/web:1"
    );
    assert_eq!(
        (&first["revision"], &first["status"]),
        (&json!(1), &json!("ACTIVE"))
    );
    assert_eq!(first["registeredBy"], "arn:aws:iam::123456789012:user/AKIDTESTS");
    assert!(first["registeredAt"].is_f64());
    assert_eq!(first["compatibilities"], json!(["EC2", "FARGATE"]));
    assert_eq!(first["containerDefinitions"][0]["cpu"], 0);
    assert_eq!(
        first["containerDefinitions"][0]["portMappings"][0]["hostPort"],
        80
    );
    assert!(first.get("tags").is_none());
    assert_eq!(registered["tags"], json!([{"key": "team", "value": "a"}]));
    world.register("web").await;
    for (reference, revision) in [
        ("web", 2),
        ("web:1", 1),
        ("arn:aws:ecs:eu-central-1:123456789012:task-definition/web:2", 2),
    ] {
        let body = json!({"taskDefinition": reference, "include": ["TAGS"]});
        let described = world.ok("DescribeTaskDefinition", body).await;
        assert_eq!(described["taskDefinition"]["revision"], revision);
        assert!(described["tags"].is_array());
    }
    let gone = world
        .ok("DeregisterTaskDefinition", json!({"taskDefinition": "web:2"}))
        .await;
    assert_eq!(gone["taskDefinition"]["status"], "INACTIVE");
    assert!(gone["taskDefinition"]["deregisteredAt"].is_f64());
    // The family now means the revision before; the gone one can still be looked at.
    let latest = world
        .ok("DescribeTaskDefinition", json!({"taskDefinition": "web"}))
        .await;
    assert_eq!(latest["taskDefinition"]["revision"], 1);
    let gone = world
        .ok("DescribeTaskDefinition", json!({"taskDefinition": "web:2"}))
        .await;
    assert_eq!(gone["taskDefinition"]["status"], "INACTIVE");
    // Revisions are not used twice.
    assert!(world.register("web").await.ends_with("web:3"));
}

#[tokio::test]
async fn unknown_definitions_are_client_errors() {
    let world = World::new().await;
    for reference in ["nope", "nope:1"] {
        let body = json!({"taskDefinition": reference});
        let message = world
            .refused("DescribeTaskDefinition", body, "ClientException")
            .await;
        assert_eq!(message, "Unable to describe task definition.");
    }
    world
        .refused(
            "DeregisterTaskDefinition",
            json!({"taskDefinition": "nope:1"}),
            "ClientException",
        )
        .await;
    world.register("web").await;
    let body = json!({"taskDefinition": "web"});
    world
        .refused("DeregisterTaskDefinition", body, "InvalidParameterException")
        .await;
}

#[tokio::test]
async fn bad_definitions_are_refused_with_the_path() {
    let world = World::new().await;
    let mut unknown = awsvpc("web");
    unknown["containerDefinitions"][0]["healthcheck"] = json!({});
    let mut mistyped = awsvpc("web");
    mistyped["containerDefinitions"][1]["memory"] = json!("128");
    let mut bad_enum = awsvpc("web");
    bad_enum["networkMode"] = json!("warp");
    for (body, path) in [
        (unknown, "containerDefinitions[0].healthcheck"),
        (mistyped, "containerDefinitions[1].memory"),
        (bad_enum, "networkMode"),
        (json!({"family": "web"}), "containerDefinitions"),
    ] {
        let message = world
            .refused("RegisterTaskDefinition", body, "ClientException")
            .await;
        assert!(message.contains(path), "{message}");
    }
    assert_eq!(
        world.ok("ListTaskDefinitions", json!({"status": "ACTIVE"})).await["taskDefinitionArns"],
        json!([])
    );
}

#[tokio::test]
async fn definitions_and_families_are_listed() {
    let world = World::new().await;
    for family in ["api", "api", "api-2", "web", "web"] {
        world.register_as(host(family, 8080)).await;
    }
    world
        .ok("DeregisterTaskDefinition", json!({"taskDefinition": "web:1"}))
        .await;
    world
        .ok("DeregisterTaskDefinition", json!({"taskDefinition": "api-2:1"}))
        .await;
    let names = |answer: serde_json::Value, field: &str| -> Vec<String> {
        let list = answer[field].as_array().unwrap().clone();
        list.iter()
            .map(|arn| arn.as_str().unwrap().rsplit('/').next().unwrap().to_owned())
            .collect()
    };
    for (body, expected) in [
        (json!({"familyPrefix": "api"}), vec!["api:1", "api:2"]),
        (
            json!({"familyPrefix": "api", "sort": "DESC"}),
            vec!["api:2", "api:1"],
        ),
        (
            json!({"status": "INACTIVE", "familyPrefix": "web"}),
            vec!["web:1"],
        ),
        (json!({"status": "DELETE_IN_PROGRESS"}), vec![]),
    ] {
        assert_eq!(
            names(world.ok("ListTaskDefinitions", body).await, "taskDefinitionArns"),
            expected
        );
    }
    for sort in ["ASC", "DESC"] {
        let (mut seen, mut body) = (Vec::new(), json!({"maxResults": 2, "sort": sort}));
        loop {
            let page = world.ok("ListTaskDefinitions", body.clone()).await;
            seen.extend(names(page.clone(), "taskDefinitionArns"));
            body["nextToken"] = page["nextToken"].clone();
            if body["nextToken"].is_null() {
                break;
            }
        }
        seen.sort();
        assert_eq!(seen, ["api:1", "api:2", "web:2"], "{sort}");
    }
    for (body, expected) in [
        (json!({}), vec!["api", "api-2", "web"]),
        (json!({"status": "ACTIVE"}), vec!["api", "web"]),
        (json!({"status": "INACTIVE"}), vec!["api-2"]),
        (json!({"familyPrefix": "api"}), vec!["api", "api-2"]),
        (json!({"maxResults": 1}), vec!["api"]),
    ] {
        assert_eq!(
            names(world.ok("ListTaskDefinitionFamilies", body).await, "families"),
            expected
        );
    }
    world
        .refused(
            "ListTaskDefinitions",
            json!({"sort": "UP"}),
            "InvalidParameterException",
        )
        .await;
}

#[tokio::test]
async fn two_registrations_at_once_get_two_revisions() {
    let world = World::new().await;
    let calls = (0..8).map(|_| world.register("web"));
    let mut arns = futures_util::future::join_all(calls).await;
    arns.sort();
    arns.dedup();
    assert_eq!(arns.len(), 8);
}
