//! A control plane that lost its data: wiped, another one, or set back to a backup, under the same address. Nothing that
//! runs is stopped by it, the agent says why, and an operator has a way on.

use std::time::Duration;

use berth_control_plane::backup;
use berth_tests::cluster::Cluster;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
/// Enough for a node to connect, hear a snapshot and act on it, several times over.
const A_WHILE: Duration = Duration::from_secs(4);
const FOREVER: &str = "sleep 3600";

/// Tasks that run, with the first process of each.
async fn running(cluster: &Cluster, count: usize) -> Vec<(String, Vec<i32>)> {
    let mut tasks = Vec::new();
    for _ in 0..count {
        let task = cluster.running(FOREVER, |d| d["cpu"] = json!("128")).await;
        let pids = cluster.pids(&task);
        tasks.push((task, pids));
    }
    tasks
}

fn assert_untouched(cluster: &Cluster, tasks: &[(String, Vec<i32>)]) {
    for (task, pids) in tasks {
        assert!(!pids.is_empty());
        assert_eq!(&cluster.pids(task), pids, "{task}\n{}", cluster.agent_says());
    }
}

async fn says(cluster: &Cluster, text: &str) {
    let said = async || cluster.agent_says().contains(text).then_some(());
    cluster.until(text, LIMIT, said).await;
}

/// What is wrong with the one node, as operators are shown it.
async fn impairments(cluster: &Cluster) -> Vec<String> {
    let usage = cluster.client.berth("GetUsage", json!({})).await;
    let of_node = usage["nodes"][0]["impairments"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    of_node
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_control_plane_stops_nothing() {
    let mut cluster = Cluster::start().await;
    let tasks = running(&cluster, 3).await;
    cluster.stop_control_plane().await;
    // The store is lost; the authority, which nodes believe, is not.
    let state = cluster.control_plane_config().state_dir;
    for name in ["store.db", "store.db-wal", "store.db-shm"] {
        let _ = std::fs::remove_file(state.join(name));
    }
    cluster.start_control_plane().await;
    says(&cluster, "the control plane lost its data or is another one").await;
    cluster.wait_connected(true).await;
    tokio::time::sleep(A_WHILE).await;
    assert_untouched(&cluster, &tasks);
    let shown = impairments(&cluster).await;
    assert!(
        shown.iter().any(|text| text.contains("register --force")),
        "{shown:?}"
    );
    // A restart of the agent forgets nothing of it.
    cluster.kill_agent();
    cluster.start_agent();
    cluster.wait_connected(true).await;
    tokio::time::sleep(A_WHILE).await;
    assert_untouched(&cluster, &tasks);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_control_plane_is_not_even_listened_to() {
    let mut cluster = Cluster::start().await;
    let tasks = running(&cluster, 3).await;
    cluster.stop_control_plane().await;
    let state = cluster.control_plane_config().state_dir;
    let aside = cluster.directory().join("aside");
    std::fs::rename(&state, &aside).unwrap();
    cluster.start_control_plane().await;
    says(&cluster, "certificate").await;
    tokio::time::sleep(A_WHILE).await;
    assert_untouched(&cluster, &tasks);
    // The right one again: all is as it was.
    cluster.stop_control_plane().await;
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(&aside, &state).unwrap();
    cluster.start_control_plane().await;
    cluster.wait_connected(true).await;
    assert_untouched(&cluster, &tasks);
    for (task, _) in &tasks {
        cluster.stop(task).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_control_plane_stops_what_its_backup_does_not_know_only_when_told_to() {
    let mut cluster = Cluster::start().await;
    let known = running(&cluster, 2).await;
    let ends = cluster.running(FOREVER, |d| d["cpu"] = json!("128")).await;
    let file = cluster.directory().join("backup");
    let config = cluster.control_plane_config();
    let (at, to) = (config.clone(), file.clone());
    tokio::task::spawn_blocking(move || backup::create(&at, &to))
        .await
        .unwrap()
        .unwrap();
    // After the backup one ends, and one more is run.
    cluster.stop(&ends).await;
    let unknown = running(&cluster, 1).await;
    cluster.stop_control_plane().await;
    let restored = backup::restore(&config, &file, true).await.unwrap();
    assert!(restored.former.is_some());
    cluster.start_control_plane().await;

    // One of three: held, though it is not many.
    says(
        &cluster,
        "was restored from a backup that does not know 1 of 3 running tasks",
    )
    .await;
    cluster.wait_connected(true).await;
    tokio::time::sleep(A_WHILE).await;
    assert_untouched(&cluster, &known);
    assert_untouched(&cluster, &unknown);
    // What the backup has running and has ended is not run again; the node tells of it anew.
    cluster.wait_status(&ends, "STOPPED").await;
    assert_eq!(cluster.pids(&ends), Vec::<i32>::new());
    let shown = impairments(&cluster).await;
    assert!(
        shown.iter().any(|text| text.contains("berth node confirm")),
        "{shown:?}"
    );

    let nodes = cluster.client.ok("ListContainerInstances", json!({})).await;
    let node = nodes["containerInstanceArns"][0].clone();
    let asked = json!({"containerInstance": node, "dryRun": true});
    let asked = cluster.client.berth("ConfirmDesiredState", asked).await;
    assert_eq!(asked["confirmed"], false);
    assert_untouched(&cluster, &unknown);
    cluster
        .client
        .berth("ConfirmDesiredState", json!({"containerInstance": node}))
        .await;
    let gone = async || cluster.pids(&unknown[0].0).is_empty().then_some(());
    cluster.until("the unknown task to be stopped", LIMIT, gone).await;
    assert_untouched(&cluster, &known);
    let free = async || impairments(&cluster).await.is_empty().then_some(());
    cluster.until("the node to follow again", LIMIT, free).await;
    let next = cluster.running(FOREVER, |d| d["cpu"] = json!("128")).await;
    cluster.stop(&next).await;
    for (task, _) in &known {
        assert_eq!(cluster.describe(task).await["lastStatus"], "RUNNING");
        cluster.stop(task).await;
    }
}
