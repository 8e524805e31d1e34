//! Restart policies: what runs again, what is left of the attempt before, and who survives what.

use std::time::Duration;

use berth_tests::{cluster::Cluster, kernel::is_v2};
use serde_json::{Value, json};

const MEMORY_MIB: u64 = 32;
const LIMIT: Duration = Duration::from_secs(30);

/// Fails each time; says what it finds of the attempt before.
const FAILS: &str = "echo attempt; test -e /mark && echo stale; touch /mark; sleep 0.2; exit 3";

fn policed(task: &mut Value) {
    task["containerDefinitions"][0]["memory"] = json!(MEMORY_MIB);
    task["containerDefinitions"][0]["restartPolicy"] = json!({"enabled": true, "ignoredExitCodes": [42]});
}

/// The attempt that the runtime's id names.
fn attempt(task: &Value) -> u64 {
    let id = task["containers"][0]["runtimeId"].as_str().unwrap_or("-0");
    id.split_once('-').unwrap().1.parse().unwrap()
}

async fn reaches(cluster: &Cluster, task: &str, wanted: u64) -> Value {
    cluster
        .until("the attempt", LIMIT, async || {
            let described = cluster.describe(task).await;
            assert_eq!(described["lastStatus"], "RUNNING", "{described}");
            let runs = described["containers"][0]["lastStatus"] == "RUNNING";
            (attempt(&described) >= wanted && runs).then_some(described)
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_fails_is_started_again_in_the_same_log() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let task = cluster.running(FAILS, policed).await;
    reaches(&cluster, &task, 3).await;
    let lines = cluster.client.logs(&task).await;
    let said = |what: &str| {
        lines
            .iter()
            .filter(|l| l["line"].as_str().unwrap().trim() == what)
            .count()
    };
    assert!(said("attempt") >= 3, "{lines:?}");
    assert_eq!(said("stale"), 0, "an attempt found the files of the one before");
    // The cgroup is the container's, whichever attempt: its limit is there again, and one process tree.
    let described = cluster.describe(&task).await;
    let id = described["containers"][0]["runtimeId"].as_str().unwrap();
    let limit = cluster
        .cgroup("memory", &task)
        .join("c")
        .join(id.split('-').next().unwrap())
        .join(if is_v2() {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        });
    // Between two attempts there is no cgroup, and at the beginning of one it has no limit yet.
    let wanted = (MEMORY_MIB << 20).to_string();
    cluster
        .until("an attempt with its limit", LIMIT, async || {
            let found = std::fs::read_to_string(&limit).ok()?;
            (found.trim() == wanted).then_some(())
        })
        .await;
    let stopped = cluster.stop(&task).await;
    assert_eq!(stopped["stopCode"], "UserInitiated");
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ignored_code_ends_it_and_a_wait_is_explained_and_can_be_stopped() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let definition = cluster.register("exit 42", policed).await;
    let ends = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&ends, "STOPPED").await;
    assert_eq!(stopped["stopCode"], "EssentialContainerExited");
    assert_eq!(stopped["containers"][0]["exitCode"], 42);

    let waits = cluster.running("exit 1", policed).await;
    // From the third wait on it takes 4 s and more.
    reaches_wait(&cluster, &waits, 4).await;
    let stopped = cluster.stop(&waits).await;
    assert_eq!(stopped["stopCode"], "UserInitiated");
    assert_eq!(stopped["containers"][0]["exitCode"], 1);
    cluster.assert_nothing_left(&before).await;
}

/// Until the task says that it waits for its restart, in a late attempt.
async fn reaches_wait(cluster: &Cluster, task: &str, wanted: u64) {
    cluster
        .until("a wait for the restart", LIMIT, async || {
            let why = cluster.client.berth("ExplainTask", json!({ "task": task })).await;
            let waits = why["waitingReason"] == "container main exited with 1 and waits for its restart";
            (waits && why["containers"][0]["restartCount"].as_u64().unwrap() + 2 >= wanted).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_survives_the_agent() {
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    let task = cluster.running("sleep 1; exit 1", policed).await;
    let first = attempt(&reaches(&cluster, &task, 1).await);
    // It ends while nobody looks.
    cluster.kill_agent();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    cluster.start_agent();
    let later = attempt(&reaches(&cluster, &task, first + 1).await);
    assert!(later > first);
    cluster.stop(&task).await;
    cluster.assert_nothing_left(&before).await;
}
