//! What tasks are after their host rebooted: those that are tagged for it run again, the others are said to be stopped.

use std::time::Duration;

use berth_tests::cluster::Cluster;
use serde_json::json;

const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done";
const AGAIN: (&str, &str) = ("berth.restart-after-reboot", "true");

#[tokio::test(flavor = "multi_thread")]
async fn tagged_tasks_run_again_without_a_control_plane_and_the_others_are_stopped() {
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    let definition = cluster.register(COUNTER, |d| d["cpu"] = json!("128")).await;
    let answer = cluster.run_tagged(&definition, &[AGAIN]).await;
    let again = answer["tasks"][0]["taskArn"].as_str().unwrap().to_owned();
    let ends = cluster.run(&definition).await;
    let ran = cluster.wait_status(&again, "RUNNING").await;
    cluster.wait_status(&ends, "RUNNING").await;
    // It wrote something.
    let lines = async |at_least| {
        let enough = async || {
            let lines = cluster.client.try_logs(&again).await.ok()?;
            (lines.len() >= at_least).then_some(lines.len())
        };
        cluster.until("its lines", Duration::from_secs(20), enough).await
    };
    let written = lines(5).await;

    cluster.stop_control_plane().await;
    cluster.power_off_and_boot();
    assert_eq!(cluster.pids(&again), Vec::<i32>::new());
    cluster.start_agent();
    cluster
        .until(
            "the tagged task to run again, and only it",
            Duration::from_secs(30),
            async || (!cluster.pids(&again).is_empty()).then_some(()),
        )
        .await;
    assert_eq!(cluster.pids(&ends), Vec::<i32>::new());

    cluster.start_control_plane().await;
    let stopped = cluster.wait_status(&ends, "STOPPED").await;
    assert_eq!(stopped["stoppedReason"], "host restarted", "{stopped:#}");
    assert_eq!(
        stopped["stopCode"], "EssentialContainerExited",
        "ECS has no nearer code"
    );
    assert!(
        stopped["containers"][0]
            .get("exitCode")
            .is_none_or(|code| code.is_null())
    );
    let runs = cluster.wait_status(&again, "RUNNING").await;
    let (first, second) = (ran["startedAt"].as_f64(), runs["startedAt"].as_f64());
    assert!(second > first, "{first:?} {second:?}");
    assert_eq!(
        (&ran["attachments"], &ran["containers"][0]["networkInterfaces"]),
        (&runs["attachments"], &runs["containers"][0]["networkInterfaces"]),
        "the same address"
    );
    let runtime_id = |described: &serde_json::Value| {
        let id = described["containers"][0]["runtimeId"].as_str().unwrap();
        id.rsplit('-').next().unwrap().to_owned()
    };
    assert_eq!((runtime_id(&ran), runtime_id(&runs)), ("1".into(), "2".into()));
    let of_task = cluster
        .containerd
        .list(&cluster.instance, &["containers", "ls", "-q"]);
    assert_eq!(of_task.len(), 1, "{of_task:?}");
    let grown = cluster
        .until(
            "more lines in the same log",
            Duration::from_secs(20),
            async || {
                let lines = cluster.client.try_logs(&again).await.ok()?;
                (lines.len() > written + 5).then_some(lines)
            },
        )
        .await;
    let begins = grown
        .iter()
        .filter(|line| line["line"].as_str().unwrap().trim() == "line 1");
    assert_eq!(begins.count(), 2, "both runs are in one log");
    cluster.stop(&again).await;
    cluster.assert_nothing_left(&before).await;
}
