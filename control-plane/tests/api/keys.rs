use berth_control_plane::store::Store;
use serde_json::{Value, json};

use crate::{
    client::{Answer, Call, KEY},
    world::World,
};

/// A key made through the API: id and secret.
async fn create(world: &World, name: &str, role: &str) -> (String, String) {
    let answer = world
        .berth("CreateApiKey", json!({"name": name, "role": role}))
        .await
        .ok();
    assert_eq!(answer["apiKey"]["role"], role);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (
        text(&answer["apiKey"]["accessKeyId"]),
        text(&answer["secretAccessKey"]),
    )
}

async fn call(world: &World, (id, secret): &(String, String), target: &str, body: Value) -> Answer {
    let call = Call {
        key: id.clone(),
        secret: secret.clone(),
        ..Call::new(target, body.to_string())
    };
    call.send(world.address).await
}

const LIST: &str = "AmazonEC2ContainerServiceV20141113.ListClusters";
const CREATE: &str = "AmazonEC2ContainerServiceV20141113.CreateCluster";

async fn events(world: &World) -> Vec<Value> {
    let answer = world.berth("ListAuditEvents", json!({})).await.ok();
    answer["auditEvents"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_key_works_from_its_making_to_its_end() {
    let world = World::new().await;
    let key = create(&world, "ci@example.org", "admin").await;
    call(&world, &key, CREATE, json!({})).await.ok();
    let listed = world.berth("ListApiKeys", json!({})).await;
    assert!(!listed.text.contains(&key.1), "no secret is listed");
    let listed = listed.ok();
    let keys = listed["apiKeys"].as_array().unwrap();
    let of = |id: &str| keys.iter().find(|one| one["accessKeyId"] == id).unwrap();
    assert_eq!(of(KEY)["source"], "configuration");
    assert_eq!(
        (&of(&key.0)["name"], &of(&key.0)["createdBy"]),
        (&json!("ci@example.org"), &json!(KEY))
    );
    assert!(of(&key.0)["lastUsedAt"].as_f64().unwrap() > 1.7e9);
    world
        .berth("DeleteApiKey", json!({"accessKeyId": key.0}))
        .await
        .ok();
    call(&world, &key, LIST, json!({}))
        .await
        .refused("UnrecognizedClientException");
    world
        .berth("DeleteApiKey", json!({"accessKeyId": key.0}))
        .await
        .refused("ResourceNotFoundException");
    assert!(
        world
            .store
            .range("/api-key", None, 10)
            .await
            .unwrap()
            .entries
            .is_empty(),
        "nothing is left of it"
    );
}

#[tokio::test]
async fn a_read_only_key_changes_nothing() {
    let world = World::new().await;
    let key = create(&world, "dashboard", "read-only").await;
    call(&world, &key, LIST, json!({})).await.ok();
    call(&world, &key, "BerthV1.ListApiKeys", json!({})).await.ok();
    let answer = call(&world, &key, CREATE, json!({"clusterName": "x"})).await;
    let message = answer.refused("AccessDeniedException");
    assert_eq!(answer.status, 400);
    let expected = format!(
        "User: arn:aws:iam::123456789012:user/{} is not authorized to perform: ecs:CreateCluster",
        key.0
    );
    assert!(message.starts_with(&expected), "{message}");
    let escalate = json!({"name": "x", "role": "admin"});
    call(&world, &key, "BerthV1.CreateApiKey", escalate)
        .await
        .refused("AccessDeniedException");
    assert_eq!(
        world.ok("ListClusters", json!({})).await["clusterArns"],
        json!([])
    );
}

#[tokio::test]
async fn nobody_locks_themselves_out_by_mistake() {
    let world = World::new().await;
    let key = create(&world, "one", "admin").await;
    let message = call(
        &world,
        &key,
        "BerthV1.DeleteApiKey",
        json!({"accessKeyId": key.0}),
    )
    .await;
    assert!(
        message
            .refused("ClientException")
            .contains("signs this very call")
    );
    let message = world.berth("DeleteApiKey", json!({"accessKeyId": KEY})).await;
    assert!(
        message
            .refused("ClientException")
            .contains("in the control plane's configuration")
    );
    let body = json!({"accessKeyId": key.0, "force": true});
    call(&world, &key, "BerthV1.DeleteApiKey", body).await.ok();
}

#[tokio::test]
async fn the_last_admin_key_is_only_deleted_by_force() {
    // A world whose only admin is in the store.
    let world = World::new().await;
    let (one, two) = (
        create(&world, "one", "admin").await,
        create(&world, "two", "admin").await,
    );
    let reader = create(&world, "reader", "read-only").await;
    let world = world.without_configured_keys();
    call(
        &world,
        &one,
        "BerthV1.DeleteApiKey",
        json!({"accessKeyId": two.0}),
    )
    .await
    .ok();
    let body = json!({"accessKeyId": one.0});
    call(&world, &reader, "BerthV1.DeleteApiKey", body.clone())
        .await
        .refused("AccessDeniedException");
    call(&world, &one, "BerthV1.DeleteApiKey", body)
        .await
        .refused("ClientException");
    call(
        &world,
        &one,
        "BerthV1.DeleteApiKey",
        json!({"accessKeyId": reader.0}),
    )
    .await
    .ok();
    call(
        &world,
        &one,
        "BerthV1.DeleteApiKey",
        json!({"accessKeyId": one.0, "force": true}),
    )
    .await
    .ok();
}

#[tokio::test]
async fn what_makes_no_key_is_refused() {
    let world = World::new().await;
    for body in [
        json!({"role": "admin"}),
        json!({"name": "x"}),
        json!({"name": "x", "role": "root"}),
        json!({"name": "a b", "role": "admin"}),
        json!({"name": "x".repeat(65), "role": "admin"}),
        json!({"name": "x", "role": "admin", "secret": "mine"}),
    ] {
        world
            .berth("CreateApiKey", body)
            .await
            .refused("InvalidParameterException");
    }
}

#[tokio::test]
async fn every_change_is_in_the_log_and_no_secret_is() {
    let world = World::with_node().await.0;
    let key = create(&world, "ci", "admin").await;
    let mut definition = crate::world::awsvpc("web");
    definition["containerDefinitions"][0]["environment"] = json!([{"name": "PASSWORD", "value": "hunter2"}]);
    world.register_as(definition).await;
    let task = world.run("web").await;
    world
        .refused("StopTask", json!({"task": "nope"}), "InvalidParameterException")
        .await;
    Call::new(CREATE, "{")
        .send(world.address)
        .await
        .refused("SerializationException");
    let wrong = Call {
        secret: "guess".into(),
        ..Call::new(LIST, "{}")
    };
    wrong
        .send(world.address)
        .await
        .refused("InvalidSignatureException");
    let events = events(&world).await;
    let seen: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event["operation"].as_str().unwrap(),
                event["outcome"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("Authenticate", "refused"),
            ("CreateCluster", "refused"),
            ("StopTask", "refused"),
            ("RunTask", "done"),
            ("RegisterTaskDefinition", "done"),
            ("CreateApiKey", "done"),
            ("CreateCluster", "done"),
        ]
    );
    assert_eq!(events[0]["targets"], json!({"accessKeyId": KEY}));
    assert_eq!(
        (&events[2]["code"], &events[2]["targets"]["task"]),
        (&json!("InvalidParameterException"), &json!("nope"))
    );
    let run = &events[3];
    assert!(
        run["targets"]["taskArns"][0].as_str().unwrap().ends_with(&task),
        "{run}"
    );
    assert_eq!(
        (&run["actor"], &run["role"], &run["from"]),
        (&json!(KEY), &json!("admin"), &json!("127.0.0.1"))
    );
    assert_eq!(run["requestId"].as_str().map(str::len), Some(36));
    assert_eq!(events[5]["targets"]["accessKeyId"], key.0.as_str());
    let text = json!(events).to_string();
    for secret in ["hunter2", &key.1, "guess"] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn a_read_only_key_cannot_fill_the_log() {
    let world = World::new().await;
    let key = create(&world, "dashboard", "read-only").await;
    for number in 0..20 {
        let body = json!({"clusterName": format!("x{number}")});
        call(&world, &key, CREATE, body)
            .await
            .refused("AccessDeniedException");
    }
    let events = events(&world).await;
    let refused: Vec<_> = events
        .iter()
        .filter(|event| event["actor"] == key.0.as_str())
        .collect();
    assert_eq!(refused.len(), 1, "the rest is one line a minute: {events:?}");
    assert_eq!(
        (
            &refused[0]["targets"]["clusterName"],
            &refused[0]["role"],
            &refused[0]["code"]
        ),
        (&json!("x0"), &json!("read-only"), &json!("AccessDeniedException"))
    );
}

#[tokio::test]
async fn attributes_are_named_in_the_log_without_their_values() {
    let (world, node) = World::with_node().await;
    let put = json!({"attributes": [
        {"name": "rack", "value": "hunter2", "targetType": "container-instance", "targetId": node},
        {"name": "disk", "targetType": "container-instance", "targetId": node},
    ]});
    world.ok("PutAttributes", put).await;
    let delete =
        json!({"attributes": [{"name": "rack", "targetType": "container-instance", "targetId": node}]});
    world.ok("DeleteAttributes", delete).await;
    let events = events(&world).await;
    assert_eq!(
        events[1]["targets"],
        json!({"attributes": ["rack", "disk"], "targetIds": [node]})
    );
    assert_eq!(
        events[0]["targets"],
        json!({"attributes": ["rack"], "targetIds": [node]})
    );
    assert!(!json!(events).to_string().contains("hunter2"));
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_changes_and_no_reads() {
    let world = World::new().await.with_audit("/dev/full");
    let answer = world.call("CreateCluster", json!({})).await;
    assert_eq!(answer.status, 503);
    assert!(answer.refused("ServerException").contains("audit log"));
    assert_eq!(
        world.ok("ListClusters", json!({})).await["clusterArns"],
        json!([])
    );
}

#[tokio::test]
async fn the_log_is_listed_in_pages() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.ok("CreateCluster", json!({"clusterName": name})).await;
    }
    let first = world
        .berth("ListAuditEvents", json!({"maxResults": 2}))
        .await
        .ok();
    let rest = json!({"maxResults": 2, "nextToken": first["nextToken"]});
    let rest = world.berth("ListAuditEvents", rest).await.ok();
    let names = |page: &Value| -> Vec<String> {
        let events = page["auditEvents"].as_array().unwrap().iter();
        events
            .map(|event| event["targets"]["clusterName"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        (names(&first), names(&rest)),
        (vec!["c".into(), "b".into()], vec!["a".into()])
    );
    assert_eq!(rest["nextToken"], Value::Null);
    for body in [
        json!({"nextToken": "x"}),
        json!({"sinceMs": "yesterday"}),
        json!({"operation": "x"}),
    ] {
        world
            .berth("ListAuditEvents", body)
            .await
            .refused("InvalidParameterException");
    }
}
