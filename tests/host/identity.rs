//! Who is let in, and who is not: real agents, a real control plane, real tokens and certificates.

use std::{process::Output, time::Duration};

use berth_tests::cluster::{Cluster, Options};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

async fn joined(certificates: Duration) -> Cluster {
    Cluster::with(Options {
        joins: Some(certificates),
        ..Options::default()
    })
    .await
}

/// What `register --json` said, and its exit code.
fn answer(output: &Output) -> (Option<i32>, Value) {
    let said = String::from_utf8_lossy(&output.stdout);
    let json = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), json)
}

/// Waits until the agent's log has `text`.
async fn says(cluster: &Cluster, text: &str) {
    cluster
        .until(text, LIMIT, async || {
            cluster.agent_says().contains(text).then_some(())
        })
        .await;
}

fn links(cluster: &Cluster) -> usize {
    cluster.agent_says().matches("link is up").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_wrong_expired_or_used_up_and_a_wrong_hash_are_refused() {
    let cluster = joined(DAY).await;
    let dir = tempfile::tempdir().unwrap();
    let host = |n: u32| dir.path().join(n.to_string());
    let refused = |invitation: &Value, n: u32, code: i32, word: &str| {
        let (exit, said) = answer(&cluster.join(invitation, &host(n), &[]));
        assert_eq!(exit, Some(code), "{said}");
        assert!(said["error"].as_str().unwrap().contains(word), "{word}: {said}");
        assert!(!host(n).join("identity").exists(), "nothing half joined");
    };

    let good = cluster
        .invite(json!({ "attributes": [{ "name": "rack", "value": "7" }] }))
        .await;
    let mut wrong = good.clone();
    wrong["token"] = {
        let token = good["token"].as_str().unwrap();
        let (rest, last) = token.split_at(token.len() - 2);
        let other = if last == "AA" { "BA" } else { "AA" };
        format!("{rest}{other}").into()
    };
    refused(&wrong, 1, 3, "no such join token");
    let mut hash = good.clone();
    hash["caHash"] = format!("sha256:{}", "0".repeat(64)).into();
    refused(&hash, 2, 4, "is not the one of sha256:000");

    // Neither of these was a use of the token.
    let (exit, said) = answer(&cluster.join(&good, &host(3), &["--attribute", "zone=b"]));
    assert_eq!((exit, &said["status"]), (Some(0), &json!("registered")), "{said}");
    let (exit, again) = answer(&cluster.join(&good, &host(3), &[]));
    assert_eq!((exit, &again["status"]), (Some(0), &json!("already-registered")));
    assert_eq!(again["nodeId"], said["nodeId"]);
    refused(&good, 4, 3, "is used up");

    let short = cluster.invite(json!({ "ttlSeconds": 10 })).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    refused(&short, 5, 3, "expired at");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_refused_and_the_first_agent_does_not_notice() {
    let cluster = joined(DAY).await;
    let task = cluster.running("sleep 3600", |_| {}).await;
    let clone = cluster.clone_of_agent();
    cluster
        .until("the clone to be refused", LIMIT, async || {
            clone
                .says()
                .contains("another agent uses this node's identity")
                .then_some(())
        })
        .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let tries = clone.says().matches("link is down").count();
    assert_eq!(tries, 1, "it says so once: {}", clone.says());
    assert!(!clone.says().contains("link is up"));
    assert_eq!(links(&cluster), 1, "{}", cluster.agent_says());
    assert_eq!(cluster.describe(&task).await["lastStatus"], "RUNNING");
    assert_eq!(cluster.describe(&task).await["connectivity"], "CONNECTED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_shut_out_keeps_its_tasks_and_may_join_anew() {
    let mut cluster = joined(DAY).await;
    let task = cluster.running("sleep 3600", |_| {}).await;
    let pids = cluster.pids(&task);
    let node =
        cluster.client.ok("ListContainerInstances", json!({})).await["containerInstanceArns"][0].clone();
    let body = json!({ "containerInstance": node, "reason": "stolen" });
    cluster.client.berth("RevokeNode", body).await;
    says(&cluster, "identity was revoked").await;
    says(&cluster, "berth-agent register --force").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.pids(&task), pids, "nobody can say that it should stop");

    let invitation = cluster.invite(json!({})).await;
    let (exit, _) = answer(&cluster.join(&invitation, &cluster.agent_state_dir(), &["--force"]));
    assert_eq!(exit, Some(0));
    cluster.stop_agent();
    let before = links(&cluster);
    cluster.start_agent();
    let up = async || (links(&cluster) > before).then_some(());
    cluster.until("the new node's link", LIMIT, up).await;
    let ended = async || cluster.pids(&task).is_empty().then_some(());
    cluster.until("the old node's task to end", LIMIT, ended).await;
    let next = cluster.running("sleep 3600", |_| {}).await;
    cluster.stop(&next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_without_dropping_link_or_tasks() {
    let cluster = joined(Duration::from_secs(20)).await;
    let task = cluster.running("sleep 3600", |_| {}).await;
    let pids = cluster.pids(&task);
    let certificate = cluster.agent_state_dir().join("identity/node.pem");
    let first = std::fs::read(&certificate).unwrap();
    let renewals =
        async || (cluster.agent_says().matches("certificate is renewed").count() >= 2).then_some(());
    cluster.until("two renewals", LIMIT, renewals).await;
    // The certificate that the link began with has ended meanwhile.
    assert_ne!(std::fs::read(&certificate).unwrap(), first);
    assert_eq!(links(&cluster), 1, "{}", cluster.agent_says());
    assert_eq!(cluster.pids(&task), pids);
    let described = cluster.describe(&task).await;
    assert_eq!(
        (&described["lastStatus"], &described["connectivity"]),
        (&json!("RUNNING"), &json!("CONNECTED"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_certificate_expired_keeps_its_tasks_and_says_what_to_do() {
    let mut cluster = joined(Duration::from_secs(15)).await;
    let task = cluster.running("sleep 3600", |_| {}).await;
    let pids = cluster.pids(&task);
    cluster.stop_control_plane().await;
    says(&cluster, "certificate expired at").await;
    cluster.start_control_plane().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(links(&cluster), 1, "{}", cluster.agent_says());
    assert!(cluster.agent_says().contains("berth-agent register --force"));
    assert_eq!(cluster.pids(&task), pids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_not_joined_says_so_and_is_not_restarted_for_it() {
    let mut cluster = joined(DAY).await;
    cluster.stop_agent();
    let identity = cluster.agent_state_dir().join("identity");
    std::fs::rename(&identity, identity.with_extension("aside")).unwrap();
    cluster.start_agent();
    assert_eq!(cluster.agent_ends().await, Some(78));
    assert!(cluster.agent_says().contains("this host has not joined"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_replaced_in_three_steps_without_dropping_link_or_tasks() {
    let cluster = joined(DAY).await;
    let task = cluster.running("sleep 3600", |_| {}).await;
    let pids = cluster.pids(&task);
    let authorities = || {
        let path = cluster.agent_state_dir().join("identity/authority.pem");
        let pem = std::fs::read_to_string(path).unwrap();
        pem.matches("BEGIN CERTIFICATE").count()
    };
    let step = async |step: &str| {
        cluster
            .client
            .berth("RotateAuthority", json!({ "step": step }))
            .await
    };
    let old = cluster.invite(json!({})).await;
    assert_eq!(authorities(), 1);

    step("BEGIN").await;
    let both = async || (authorities() == 2).then_some(());
    cluster.until("both to be believed", LIMIT, both).await;

    step("ACTIVATE").await;
    let renewed = async || {
        let status = cluster.client.berth("DescribeAuthority", json!({})).await;
        (status["nodesWithOldCertificatesCount"] == 0).then_some(())
    };
    cluster
        .until("a certificate of the new one", LIMIT, renewed)
        .await;
    // A command that was printed before is still good.
    let host = tempfile::tempdir().unwrap();
    let (exit, said) = answer(&cluster.join(&old, &host.path().join("old"), &[]));
    assert_eq!(exit, Some(0), "{said}");

    step("FINISH").await;
    let one = async || (authorities() == 1).then_some(());
    cluster.until("the old one to be forgotten", LIMIT, one).await;
    let new = cluster.invite(json!({})).await;
    assert_ne!(new["caHash"], old["caHash"]);
    let mut forgotten = new.clone();
    forgotten["caHash"] = old["caHash"].clone();
    let (exit, _) = answer(&cluster.join(&forgotten, &host.path().join("late"), &[]));
    assert_eq!(exit, Some(4));
    let (exit, said) = answer(&cluster.join(&new, &host.path().join("new"), &[]));
    assert_eq!(exit, Some(0), "{said}");

    assert_eq!(links(&cluster), 1, "{}", cluster.agent_says());
    assert_eq!(cluster.pids(&task), pids);
    let mut cluster = cluster;
    cluster.stop_control_plane().await;
    cluster.start_control_plane().await;
    let again = async || (links(&cluster) == 2).then_some(());
    cluster.until("a link by the new one alone", LIMIT, again).await;
    assert_eq!(cluster.pids(&task), pids);
}
