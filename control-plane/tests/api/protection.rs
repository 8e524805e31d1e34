//! GetTaskProtection and UpdateTaskProtection.

use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn a_task_of_no_service_cannot_be_protected() {
    let (world, _) = World::with_node().await;
    world.register("web").await;
    let id = world.run("web").await;
    let missing = "0".repeat(32);
    let named = json!({"cluster": "default", "tasks": [id, missing]});
    let mut update = named.clone();
    update["protectionEnabled"] = json!(true);
    update["expiresInMinutes"] = json!(2880);
    for (operation, body) in [("GetTaskProtection", named), ("UpdateTaskProtection", update)] {
        let answer = world.ok(operation, body).await;
        assert_eq!(answer["protectedTasks"], json!([]), "{operation}");
        let [not_valid, not_there] = &answer["failures"].as_array().unwrap()[..] else {
            panic!("{answer}");
        };
        assert_eq!(not_valid["reason"], "TASK_NOT_VALID");
        assert!(
            not_valid["arn"]
                .as_str()
                .unwrap()
                .ends_with(&format!(":task/default/{id}"))
        );
        assert_eq!(not_there["reason"], "MISSING");
    }
    let none = world.ok("GetTaskProtection", json!({"cluster": "default"})).await;
    assert_eq!(none, json!({"protectedTasks": [], "failures": []}));
}

#[tokio::test]
async fn what_is_asked_for_has_bounds() {
    let (world, _) = World::with_node().await;
    let task = || json!(["0".repeat(32)]);
    let update = |fields: serde_json::Value| {
        let mut body = json!({"cluster": "default", "tasks": task(), "protectionEnabled": true});
        body.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        body
    };
    let invalid = "InvalidParameterException";
    for (body, code) in [
        (update(json!({"expiresInMinutes": 0})), invalid),
        (update(json!({"expiresInMinutes": 2881})), invalid),
        (update(json!({"protectionEnabled": null})), invalid),
        (update(json!({"protectionEnabled": "yes"})), invalid),
        (update(json!({"tasks": []})), invalid),
        (update(json!({"tasks": vec!["0".repeat(32); 11]})), invalid),
        (update(json!({"cluster": "nope"})), "ClusterNotFoundException"),
    ] {
        world.refused("UpdateTaskProtection", body, code).await;
    }
    for (body, code) in [
        (json!({"tasks": task()}), invalid),
        (
            json!({"cluster": "default", "tasks": vec!["0".repeat(32); 101]}),
            invalid,
        ),
    ] {
        world.refused("GetTaskProtection", body, code).await;
    }
}
