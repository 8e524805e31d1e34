//! What tasks survive: the agent's end, the control plane's, containerd's.

use std::{
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use berth_tests::cluster::{Cluster, container};
use serde_json::json;

const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.01; done";

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_finds_its_tasks_again_untouched() {
    let mut cluster = Cluster::start().await;
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(cluster.running(COUNTER, |d| d["cpu"] = json!("128")).await);
    }
    let before: Vec<_> = tasks.iter().map(|task| first_process(&cluster, task)).collect();
    cluster.kill_agent();
    cluster.wait_connected(false).await;
    let described = cluster.describe(&tasks[0]).await;
    assert_eq!(
        (&described["connectivity"], &described["lastStatus"]),
        (&json!("DISCONNECTED"), &json!("RUNNING"))
    );
    let begun = Instant::now();
    cluster.start_agent();
    cluster.wait_connected(true).await;
    let took = begun.elapsed();
    assert!(
        took < berth_tests::emulated(Duration::from_secs(2)),
        "took {took:?} to come back"
    );
    let after: Vec<_> = tasks.iter().map(|task| first_process(&cluster, task)).collect();
    assert_eq!(before, after, "same processes");
    for task in &tasks {
        assert_eq!(cluster.describe(task).await["lastStatus"], "RUNNING");
        lines_are_complete(&cluster, task).await;
        cluster.stop(task).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_while_the_agent_is_away_is_reported_when_it_is_back() {
    let mut cluster = Cluster::start().await;
    let task = cluster.running("sleep 2; exit 5", |_| {}).await;
    cluster.kill_agent();
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.start_agent();
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(stopped["containers"][0]["exitCode"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_leaves_tasks_running_and_a_stop_meanwhile_is_done_later() {
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    let task = cluster.running(COUNTER, |_| {}).await;
    let pids = first_process(&cluster, &task);
    assert_eq!(cluster.stop_agent(), Some(0));
    assert_eq!(first_process(&cluster, &task), pids);
    cluster.client.ok("StopTask", json!({ "task": task })).await;
    cluster.start_agent();
    cluster.wait_status(&task, "STOPPED").await;
    // The agent's own directories and table stay; they were there before.
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_control_plane_tasks_go_on_and_reports_are_kept() {
    let mut cluster = Cluster::start().await;
    let stays = cluster.running(COUNTER, |d| d["cpu"] = json!("128")).await;
    let ends = cluster
        .running("sleep 2; exit 3", |d| d["cpu"] = json!("128"))
        .await;
    let pids = first_process(&cluster, &stays);
    cluster.stop_control_plane().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.start_control_plane().await;
    let stopped = cluster.wait_status(&ends, "STOPPED").await;
    assert_eq!(stopped["containers"][0]["exitCode"], 3);
    cluster.wait_connected(true).await;
    assert_eq!(cluster.describe(&stays).await["lastStatus"], "RUNNING");
    assert_eq!(first_process(&cluster, &stays), pids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_containerd_costs_no_task() {
    let mut cluster = Cluster::start().await;
    let task = cluster.running(COUNTER, |_| {}).await;
    let pids = first_process(&cluster, &task);
    cluster.containerd.kill_and_restart();
    let later = cluster.running("sleep 3600", |_| {}).await;
    assert_eq!(first_process(&cluster, &task), pids);
    lines_are_complete(&cluster, &task).await;
    cluster.stop(&task).await;
    cluster.stop(&later).await;
}

/// containerd now and then forgets to tell a shim to go. The stand-in is a process with a shim's name where shims are.
#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_containerd_leaves_behind_keeps_no_task_from_ending() {
    let cluster = Cluster::start().await;
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("containerd-shim-left-behind");
    std::fs::copy("/bin/sleep", &program).unwrap();
    let task = cluster.running("sleep 3600", |_| {}).await;
    let mut shim = std::process::Command::new(&program).arg("300").spawn().unwrap();
    for cgroup in cluster.cgroups(&format!("{task}/rt")) {
        std::fs::write(cgroup.join("cgroup.procs"), shim.id().to_string()).unwrap();
    }
    cluster.stop(&task).await;
    let ended = shim.try_wait().unwrap();
    assert!(
        ended.is_some_and(|status| status.signal() == Some(9)),
        "{ended:?}"
    );
    assert!(
        cluster
            .agent_says()
            .contains("ended a shim that containerd had lost")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_moment_the_agent_dies_nothing_is_left_and_nothing_runs_twice() {
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    let definition = cluster
        .register("echo started; sleep 3600", |d| d["cpu"] = json!("128"))
        .await;
    for round in 0..8u64 {
        let task = cluster.run(&definition).await;
        tokio::time::sleep(Duration::from_millis(15 * round)).await;
        cluster.kill_agent();
        cluster.start_agent();
        cluster.wait_status(&task, "RUNNING").await;
        // A `runc create` that was cut off says so in the log; only the process says that it started.
        let said = async || {
            let mut lines = cluster.client.try_logs(&task).await.ok()?;
            lines.retain(|line| line["line"].as_str().is_some_and(|text| text.trim() == "started"));
            Some(lines).filter(|lines| !lines.is_empty())
        };
        let started = cluster.until("its line", Duration::from_secs(5), said).await;
        assert_eq!(started.len(), 1, "one start, one line: {started:?}");
        cluster.client.ok("StopTask", json!({ "task": task })).await;
        tokio::time::sleep(Duration::from_millis(20 * round)).await;
        cluster.kill_agent();
        cluster.start_agent();
        cluster.wait_status(&task, "STOPPED").await;
    }
    cluster.assert_nothing_left(&before).await;
}

async fn lose_the_database(cluster: &mut Cluster) {
    cluster.kill_agent();
    cluster.wait_connected(false).await;
    for name in ["agent.db", "agent.db-wal", "agent.db-shm"] {
        let _ = std::fs::remove_file(cluster.agent_state_dir().join(name));
    }
    cluster.start_agent();
    cluster.wait_connected(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_an_agent_takes_up_what_runs() {
    let mut cluster = Cluster::start().await;
    let task = cluster.running(COUNTER, |d| d["cpu"] = json!("128")).await;
    let (before, first) = (cluster.describe(&task).await, first_process(&cluster, &task));
    lose_the_database(&mut cluster).await;
    // A task that comes later has another address.
    let next = cluster.running("sleep 3600", |d| d["cpu"] = json!("128")).await;
    let after = cluster.describe(&task).await;
    assert_eq!(first_process(&cluster, &task), first, "{}", cluster.agent_says());
    for field in ["lastStatus", "startedAt", "attachments"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_eq!(
        after["containers"][0]["runtimeId"],
        before["containers"][0]["runtimeId"]
    );
    assert_ne!(
        cluster.describe(&next).await["attachments"][0]["details"],
        after["attachments"][0]["details"]
    );
    lines_are_complete(&cluster, &task).await;
    // It is stored now: a restart is one as any other.
    cluster.kill_agent();
    cluster.start_agent();
    cluster.wait_connected(true).await;
    assert_eq!(first_process(&cluster, &task), first);
    for task in [&task, &next] {
        cluster.stop(task).await;
        assert_eq!(cluster.pids(task), Vec::<i32>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_an_agent_ends_what_it_cannot_tell_before_it_says_stopped() {
    let mut cluster = Cluster::start().await;
    // Whether the one that nobody waits for has run, and is gone, nothing says.
    let task = cluster
        .running("sleep 3600", |d| {
            let mut done = container("done", "exit 0");
            done["essential"] = json!(false);
            d["containerDefinitions"].as_array_mut().unwrap().push(done);
        })
        .await;
    let ended = async || {
        let left = cluster
            .containerd
            .list(&cluster.instance, &["containers", "ls", "-q"]);
        (left.len() == 1).then_some(())
    };
    cluster
        .until("the other one to be gone", Duration::from_secs(20), ended)
        .await;
    lose_the_database(&mut cluster).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(cluster.pids(&task), Vec::<i32>::new());
    let reason = stopped["stoppedReason"].as_str().unwrap();
    assert!(reason.contains("lost its record"), "{reason}");
}

/// The oldest process of the task: the container's own, not the script's children.
fn first_process(cluster: &Cluster, task: &str) -> i32 {
    *cluster.pids(task).first().expect("the task has a process")
}

async fn lines_are_complete(cluster: &Cluster, task: &str) {
    let lines = cluster.client.logs(task).await;
    let numbers: Vec<u64> = lines
        .iter()
        .map(|line| {
            line["line"]
                .as_str()
                .unwrap()
                .trim()
                .strip_prefix("line ")
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    assert!(numbers.len() > 10, "{numbers:?}");
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected, "no line is lost, none is repeated");
}
