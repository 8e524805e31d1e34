//! Revoking nodes, and replacing their authority.

use serde_json::json;

use crate::world::World;

#[tokio::test]
async fn a_revoked_node_takes_its_tasks_out_of_the_count() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let task = world.run("web").await;
    world
        .report(&task, |task| task.last_status = "RUNNING".into())
        .await;
    let body = json!({"containerInstance": node, "reason": "stolen"});
    let answer = world.berth("RevokeNode", body).await.ok();
    assert_eq!(
        (&answer["node"], &answer["reason"]),
        (&json!(node), &json!("stolen"))
    );
    assert_eq!(answer["revokedBy"], crate::client::KEY);
    assert_eq!(answer["tasks"].as_array().unwrap().len(), 1);
    assert_eq!(world.node(&node).await.status, "INACTIVE");
    // What became of it nobody knows: the last known state stays, and nobody wants it any more.
    let known = world.task(&task).await;
    assert_eq!(
        (known.last_status.as_str(), known.desired_status.as_str()),
        ("RUNNING", "STOPPED")
    );
    let reason = known.stopped_reason.unwrap();
    assert!(
        reason.contains("revoked (stolen)") && reason.contains("not known"),
        "{reason}"
    );
    let stored = world.stored("/revocations/").await;
    assert!(stored.contains(&node) && stored.contains("stolen"), "{stored}");
    // The first reason is the reason.
    let again = json!({"containerInstance": node, "reason": "other"});
    assert_eq!(world.berth("RevokeNode", again).await.ok()["reason"], "stolen");
    world.ok("DeleteCluster", json!({"cluster": "default"})).await;
}

#[tokio::test]
async fn a_revocation_names_a_node_that_is_there() {
    let (world, node) = World::with_node().await;
    for body in [
        json!({}),
        json!({"containerInstance": "5".repeat(32)}),
        json!({"containerInstance": node, "reason": "a\nb"}),
        json!({"containerInstance": node, "reason": "x".repeat(300)}),
    ] {
        world
            .berth("RevokeNode", body)
            .await
            .refused("InvalidParameterException");
    }
    assert_eq!(world.node(&node).await.status, "ACTIVE");
}

#[tokio::test]
async fn deregistering_revokes_at_once_where_nothing_runs_and_later_where_something_does() {
    let (world, node) = World::with_node().await;
    let idle = world
        .add_node("default", |node| node.status = "DRAINING".into())
        .await;
    world.register("web").await;
    world.run("web").await;
    for (node, force) in [(&idle, false), (&node, true)] {
        let body = json!({"containerInstance": node, "force": force});
        world.ok("DeregisterContainerInstance", body).await;
    }
    let stored = world.stored("/revocations/").await;
    assert!(
        stored.contains(&idle) && stored.contains("deregistered"),
        "{stored}"
    );
    assert!(
        !stored.contains(&node),
        "it is let in to stop its task; the link revokes it then"
    );
}

#[tokio::test]
async fn an_authority_is_replaced_step_by_step_and_no_node_is_locked_out_by_mistake() {
    let (world, node) = World::with_node().await;
    let describe = async || world.berth("DescribeAuthority", json!({})).await.ok();
    let rotate = async |step: &str| world.berth("RotateAuthority", json!({"step": step})).await;
    let first = describe().await;
    assert_eq!(
        (&first["phase"], &first["next"]),
        (&json!("STEADY"), &json!(null))
    );
    rotate("ACTIVATE").await.refused("ClientException");
    rotate("FINISH").await.refused("ClientException");
    rotate("SIDEWAYS").await.refused("InvalidParameterException");
    let begun = rotate("BEGIN").await.ok();
    assert_eq!(
        (&begun["phase"], &begun["active"]),
        (&json!("BEGUN"), &first["active"])
    );
    rotate("BEGIN").await.refused("ClientException");
    let hash = world.nodes.authorities.trusted().active().fingerprint();
    world.identity(&node, &hash).await;
    let activated = rotate("ACTIVATE").await.ok();
    assert_eq!(
        (&activated["active"], &activated["previous"]),
        (&begun["next"], &first["active"])
    );
    assert_eq!(activated["nodesWithOldCertificates"], json!([node]));
    let new = world.nodes.authorities.trusted().active().fingerprint();
    world.pending_identity(&node, &hash, &new).await;
    let refused = rotate("FINISH").await.refused("ClientException");
    assert!(
        refused.contains(&node) && refused.contains("renewed"),
        "{refused}"
    );
    let hash = world.nodes.authorities.trusted().active().fingerprint();
    world.identity(&node, &hash).await;
    let finished = rotate("FINISH").await.ok();
    assert_eq!(
        (&finished["phase"], &finished["active"]),
        (&json!("STEADY"), &begun["next"])
    );
    assert_eq!(finished["previous"], json!(null));
}

#[tokio::test]
async fn the_end_of_a_rotation_can_be_forced() {
    let (world, node) = World::with_node().await;
    let hash = world.nodes.authorities.trusted().active().fingerprint();
    world.identity(&node, &hash).await;
    for step in ["BEGIN", "ACTIVATE"] {
        world.berth("RotateAuthority", json!({"step": step})).await.ok();
    }
    let forced = json!({"step": "FINISH", "force": true});
    let answer = world.berth("RotateAuthority", forced).await.ok();
    assert_eq!(answer["nodesWithOldCertificatesCount"], 1);
}
