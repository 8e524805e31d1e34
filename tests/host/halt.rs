//! What a host's shutdown does to tasks: `berth-agent halt`, which the unit berth-tasks.service runs.

use std::{
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use berth_tests::cluster::{Cluster, binary, container};
use serde_json::{Value, json};

/// Says so when it was asked to stop.
const POLITE: &str = "trap 'sleep 0.3; echo bye; exit 0' TERM; echo up; while true; do sleep 0.1; done";
const STUBBORN: &str = "trap '' TERM; echo up; while true; do sleep 0.1; done";
const AGAIN: (&str, &str) = ("berth.restart-after-reboot", "true");
const LIMIT: Duration = Duration::from_secs(30);

fn halt(cluster: &Cluster, arguments: &[&str]) -> Output {
    Command::new(binary("berth-agent"))
        .args(["halt", "--config"])
        .arg(cluster.agent_config_file())
        .args(arguments)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn task_id(task: &str) -> &str {
    task.rsplit('/').next().unwrap()
}

/// What a container of a task wrote: time and line.
fn log(cluster: &Cluster, task: &str, name: &str) -> Vec<(String, String)> {
    let dir: PathBuf = cluster
        .agent_state_dir()
        .join("logs")
        .join(task_id(task))
        .join(name);
    let mut lines = Vec::new();
    for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        for line in std::fs::read_to_string(file.path()).unwrap_or_default().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line[key].as_str().unwrap_or_default().trim().to_owned();
            lines.push((text("time"), text("log")));
        }
    }
    lines
}

fn time_of(cluster: &Cluster, task: &str, name: &str, wanted: &str) -> Option<String> {
    let lines = log(cluster, task, name);
    let found = lines.into_iter().find(|(_, line)| line == wanted);
    found.map(|(time, _)| time)
}

/// Its shell has set its trap.
async fn up(cluster: &Cluster, task: &str, name: &str) {
    cluster.wait_status(task, "RUNNING").await;
    let said = async || time_of(cluster, task, name, "up").map(drop);
    cluster.until("the container to be up", LIMIT, said).await;
}

/// Processes of all of the instance's tasks, shims and loggers too.
fn processes(cluster: &Cluster) -> String {
    let script = format!(
        "find /sys/fs/cgroup/*/{0}.slice /sys/fs/cgroup/{0}.slice -name cgroup.procs 2>/dev/null | xargs -r cat",
        cluster.instance
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn records(cluster: &Cluster) -> Vec<String> {
    let mut ids = cluster
        .containerd
        .list(&cluster.instance, &["containers", "ls", "-q"]);
    ids.sort_unstable();
    ids
}

/// A task that starts again after a boot, and one that does not; both are up.
async fn both_kinds(cluster: &Cluster) -> (String, String) {
    let definition = cluster.register(POLITE, |d| d["cpu"] = json!("128")).await;
    let again = cluster.run_tagged(&definition, &[AGAIN]).await;
    let again = again["tasks"][0]["taskArn"].as_str().unwrap().to_owned();
    let ends = cluster.run(&definition).await;
    for task in [&again, &ends] {
        up(cluster, task, "main").await;
    }
    (again, ends)
}

async fn assert_as_after_a_boot(cluster: &Cluster, again: &str, ends: &str) {
    let stopped = cluster.wait_status(ends, "STOPPED").await;
    assert_eq!(stopped["stoppedReason"], "host restarted", "{stopped:#}");
    let second = async || {
        let described = cluster.describe(again).await;
        let id = described["containers"][0]["runtimeId"].as_str()?.to_owned();
        (described["lastStatus"] == "RUNNING" && id.ends_with("-2")).then_some(())
    };
    cluster.until("the tagged task's second run", LIMIT, second).await;
    assert_eq!(cluster.pids(ends), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_tasks_in_order_and_the_boot_finds_what_a_boot_finds() {
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    let (again, ends) = both_kinds(&cluster).await;
    let pair = cluster
        .register("", |d| {
            let mut app = container("app", POLITE);
            app["dependsOn"] = json!([{ "containerName": "database", "condition": "START" }]);
            d["containerDefinitions"] = json!([app, container("database", POLITE)]);
        })
        .await;
    let pair = cluster.run(&pair).await;
    up(&cluster, &pair, "app").await;
    up(&cluster, &pair, "database").await;
    let stubborn = cluster.running(STUBBORN, |d| d["cpu"] = json!("128")).await;
    up(&cluster, &stubborn, "main").await;

    let running = halt(&cluster, &["--yes"]);
    assert_eq!(running.status.code(), Some(1));
    assert!(said(&running).contains("stop it first"), "{}", said(&running));
    assert_eq!(cluster.stop_agent(), Some(0));
    let unasked = halt(&cluster, &[]);
    assert_eq!(unasked.status.code(), Some(2), "{}", said(&unasked));
    assert!(!cluster.pids(&ends).is_empty());

    let database = cluster.agent_state_dir().join("agent.db");
    let (stored, recorded) = (std::fs::read(&database).unwrap(), records(&cluster));
    let begun = Instant::now();
    let halted = halt(&cluster, &["--yes"]);
    assert_eq!(halted.status.code(), Some(0), "{}", said(&halted));
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert_eq!(processes(&cluster), "", "shims and loggers have left, too");
    assert_eq!(records(&cluster), recorded);
    assert_eq!(std::fs::read(&database).unwrap(), stored);

    for (task, name) in [
        (&again, "main"),
        (&ends, "main"),
        (&pair, "app"),
        (&pair, "database"),
    ] {
        assert!(
            time_of(&cluster, task, name, "bye").is_some(),
            "{name}: {}",
            said(&halted)
        );
    }
    let last = |name| time_of(&cluster, &pair, name, "bye").unwrap();
    assert!(
        last("app") < last("database"),
        "what depends on another ends first"
    );
    for task in [&again, &ends, &pair, &stubborn] {
        let lines: Vec<String> = said(&halted)
            .lines()
            .filter(|line| line.contains(task_id(task)))
            .map(str::to_owned)
            .collect();
        assert_eq!(lines.len(), 1, "one line for each: {lines:?}");
        assert_eq!(
            lines[0].contains("killed=\"main\""),
            *task == stubborn,
            "{lines:?}"
        );
    }

    cluster.power_off_and_boot();
    cluster.start_agent();
    assert_as_after_a_boot(&cluster, &again, &ends).await;
    for task in [&pair, &stubborn] {
        let stopped = cluster.wait_status(task, "STOPPED").await;
        assert_eq!(stopped["stoppedReason"], "host restarted", "{stopped:#}");
    }
    cluster.stop(&again).await;
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_after_a_halt_without_a_boot_takes_it_for_one() {
    let mut cluster = Cluster::start().await;
    let (again, ends) = both_kinds(&cluster).await;
    assert_eq!(cluster.stop_agent(), Some(0));
    let halted = halt(&cluster, &["--yes"]);
    assert_eq!(halted.status.code(), Some(0), "{}", said(&halted));
    assert_eq!(processes(&cluster), "");
    cluster.start_agent();
    assert_as_after_a_boot(&cluster, &again, &ends).await;
    // Once: the next start finds it running.
    let first = cluster.pids(&again)[0];
    cluster.kill_agent();
    cluster.start_agent();
    cluster.wait_connected(true).await;
    assert_eq!(cluster.pids(&again)[0], first);
    cluster.stop(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_containerd_tasks_are_ended_by_their_cgroups_and_their_last_words_are_kept() {
    let mut cluster = Cluster::start().await;
    let polite = cluster.running(POLITE, |_| {}).await;
    up(&cluster, &polite, "main").await;
    let stubborn = cluster.running(STUBBORN, |_| {}).await;
    up(&cluster, &stubborn, "main").await;
    cluster.kill_agent();
    cluster.containerd.kill();
    let halted = halt(&cluster, &["--yes", "--within", "3"]);
    assert_eq!(halted.status.code(), Some(0), "{}", said(&halted));
    assert_eq!(processes(&cluster), "");
    assert!(
        time_of(&cluster, &polite, "main", "bye").is_some(),
        "{}",
        said(&halted)
    );
    for task in [&polite, &stubborn] {
        assert!(said(&halted).contains(task_id(task)), "{}", said(&halted));
    }
    cluster.containerd.restart();
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_below_an_earlier_cgroup_parent_are_ended_as_well() {
    let mut cluster = Cluster::start().await;
    let task = cluster.running(POLITE, |_| {}).await;
    up(&cluster, &task, "main").await;
    assert_eq!(cluster.stop_agent(), Some(0));
    let file = cluster.agent_config_file();
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        format!("cgroup_parent = \"/{}x.slice\"\n{config}", cluster.instance),
    )
    .unwrap();
    let halted = halt(&cluster, &["--yes"]);
    assert_eq!(halted.status.code(), Some(0), "{}", said(&halted));
    assert_eq!(cluster.pids(&task), Vec::<i32>::new());
    assert!(
        time_of(&cluster, &task, "main", "bye").is_some(),
        "{}",
        said(&halted)
    );
    assert!(cluster.run_dir().join("halted").is_file());
    let again = halt(&cluster, &["--yes"]);
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    assert!(!said(&again).contains("ended"), "{}", said(&again));
}
