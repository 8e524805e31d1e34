//! Join tokens.

use serde_json::{Value, json};

use crate::world::World;

async fn listed(world: &World) -> Vec<Value> {
    let answer = world.berth("ListJoinTokens", json!({})).await.ok();
    answer["joinTokens"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_token_is_shown_once_with_all_that_a_host_needs() {
    let world = World::new().await;
    let body = json!({"ttlSeconds": 600, "uses": 3, "attributes": [{"name": "rack", "value": "7"}, {"name": "gpu"}]});
    let made = world.berth("CreateJoinToken", body).await.ok();
    let token = made["token"].as_str().unwrap();
    let id = made["joinToken"]["tokenId"].as_str().unwrap();
    assert!(token.starts_with(&format!("berth1.{id}.")), "{token}");
    assert_eq!(made["controlPlane"], "https://cp.example.org:8781");
    assert_eq!(made["warnings"], json!([]));
    let hash = world.nodes.authorities.trusted().active().fingerprint();
    assert_eq!(made["caHash"], format!("sha256:{hash}"));
    let all = listed(&world).await;
    assert_eq!(all.len(), 1);
    assert_eq!(
        (&all[0]["uses"], &all[0]["usesLeft"], &all[0]["cluster"]),
        (&json!(3), &json!(3), &json!("default"))
    );
    assert_eq!(
        all[0]["attributes"],
        json!([{"name": "gpu"}, {"name": "rack", "value": "7"}])
    );
    assert_eq!(all[0]["createdBy"], crate::client::KEY);
    let seconds = all[0]["expiresAt"].as_f64().unwrap() - all[0]["createdAt"].as_f64().unwrap();
    assert!((seconds - 600.0).abs() < 0.01, "{seconds}");
    let secret = token.rsplit('.').next().unwrap();
    assert!(!all[0].to_string().contains(secret));
    let stored = world.stored("/join-tokens/").await;
    assert!(
        stored.contains("secret_sha256") && !stored.contains(secret),
        "only the hash is stored"
    );
}

#[tokio::test]
async fn a_loopback_name_is_warned_of() {
    let world = World::new().await;
    *world.nodes.advertised.lock().unwrap() = "127.0.0.1:8781".into();
    let made = world.berth("CreateJoinToken", json!({})).await.ok();
    assert!(
        made["warnings"][0].as_str().unwrap().contains("node_advertise"),
        "{made}"
    );
}

#[tokio::test]
async fn a_deleted_token_is_gone() {
    let world = World::new().await;
    let made = world.berth("CreateJoinToken", json!({})).await.ok();
    let id = &made["joinToken"]["tokenId"];
    world.berth("DeleteJoinToken", json!({"tokenId": id})).await.ok();
    assert_eq!(listed(&world).await, Vec::<Value>::new());
    world
        .berth("DeleteJoinToken", json!({"tokenId": id}))
        .await
        .refused("TargetNotFoundException");
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let world = World::new().await;
    for (body, start) in [
        (json!({"ttlSeconds": 1}), "ttlSeconds"),
        (json!({"uses": 0}), "uses"),
        (json!({"uses": 1_001}), "uses"),
        (
            json!({"attributes": [{"name": "ecs.os-type", "value": "x"}]}),
            "attributes[0].name",
        ),
        (json!({"attributes": [{"name": "berth.x"}]}), "attributes[0].name"),
        (
            json!({"attributes": [{"name": "a", "value": "é"}]}),
            "attributes[0].value",
        ),
        (
            json!({"attributes": [{"name": "a"}, {"name": "a"}]}),
            "attributes[1].name",
        ),
        (json!({"odd": 1}), "odd"),
    ] {
        let message = world
            .berth("CreateJoinToken", body.clone())
            .await
            .refused("InvalidParameterException");
        assert!(message.starts_with(start), "{body}: {message}");
    }
    world
        .berth("CreateJoinToken", json!({"cluster": "mistyped"}))
        .await
        .refused("ClusterNotFoundException");
    world
        .berth("DeleteJoinToken", json!({"tokenId": "../x"}))
        .await
        .refused("InvalidParameterException");
    assert_eq!(listed(&world).await, Vec::<Value>::new());
}
