//! Health checks on real containers: what a probe is, what it says, and that nothing of it is left.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use berth_tests::cluster::{Cluster, container};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

/// A container that runs `script` and is checked by `check`, every 5 s and unhealthy at the first failure.
fn checked(name: &str, script: &str, check: &str) -> Value {
    let mut one = container(name, script);
    one["healthCheck"] = json!({"command": ["CMD-SHELL", check], "interval": 5, "timeout": 2, "retries": 1});
    one
}

async fn start(cluster: &Cluster, containers: &[Value]) -> String {
    let definition = cluster
        .register("", |d| d["containerDefinitions"] = json!(containers))
        .await;
    cluster.run(&definition).await
}

/// Waits until the first container is that.
async fn until_health(cluster: &Cluster, task: &str, wanted: &str) -> Value {
    let what = format!("health {wanted}");
    cluster
        .until(&what, LIMIT, async || {
            let described = cluster.describe(task).await;
            (described["containers"][0]["healthStatus"] == wanted).then_some(described)
        })
        .await
}

/// What the control plane knows of the health of the first container.
async fn health(cluster: &Cluster, task: &str) -> Value {
    let answer = cluster.client.berth("ExplainTask", json!({"task": task})).await;
    answer["containers"][0]["health"].clone()
}

/// What the agent knows of it: of the latest probe.
fn latest(cluster: &Cluster) -> Value {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(cluster.run_dir().join("agent.sock")).unwrap();
    write!(stream, "GET /v1/tasks HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    body["Tasks"][0]["Containers"][0]["Health"].clone()
}

/// Processes of the task whose arguments contain `word`.
fn processes(cluster: &Cluster, task: &str, word: &str) -> Vec<i32> {
    let has = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(word))
    };
    cluster.pids(task).into_iter().filter(has).collect()
}

/// Pipes of probes in the run directory.
fn pipes(cluster: &Cluster) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    walk(&cluster.run_dir().join("tasks"), &mut found);
    found
}

fn walk(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            walk(&entry.path(), found);
        } else if entry.file_name() == "probe" {
            found.insert(entry.path().display().to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_is_as_the_containers_own_process_and_what_it_says_is_kept() {
    let cluster = Cluster::start().await;
    let mut one = checked(
        "main",
        "sleep 3600",
        "echo $(id -u):$(id -g) $MINE $FROM_IMAGE $(pwd); grep CapBnd /proc/self/status; \
         grep -c . /proc/self/mountinfo; echo to stderr >&2; head -c 10000 /dev/zero | tr '\\0' x",
    );
    let fields = json!({
        "user": "web", "workingDirectory": "/www", "environment": [{"name": "MINE", "value": "of-mine"}],
        "linuxParameters": {"capabilities": {"drop": ["ALL"]}}, "pseudoTerminal": true,
    });
    one.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    let task = start(&cluster, &[one]).await;
    let described = until_health(&cluster, &task, "HEALTHY").await;
    assert_eq!(described["healthStatus"], "HEALTHY");
    let health = latest(&cluster);
    assert_eq!(
        (&health["status"], &health["exitCode"]),
        (&json!("HEALTHY"), &json!(0))
    );
    let output = health["output"].as_str().unwrap();
    assert!(output.contains("1000:1000 of-mine yes /www\n"), "{output}");
    assert!(output.contains("CapBnd:\t0000000000000000\n"), "{output}");
    assert!(output.contains("to stderr\n"), "{output}");
    assert!(
        output.len() <= 4096 && output.ends_with("xx…"),
        "{} bytes",
        output.len()
    );
    let told = self::health(&cluster, &task).await;
    assert_eq!(told["status"], "HEALTHY");
    let told = told["output"].as_str().unwrap();
    assert!(told.contains("1000:1000 of-mine yes /www\n"), "{told}");
    // Between two probes nothing of one is there.
    cluster
        .until("the pipe to be gone", LIMIT, async || {
            pipes(&cluster).is_empty().then_some(())
        })
        .await;
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_comes_and_goes_with_what_is_found() {
    let cluster = Cluster::start().await;
    let mut one = checked(
        "main",
        "sleep 3600",
        "test -f /tmp/good || { echo nothing there; exit 3; }",
    );
    one["healthCheck"]["retries"] = json!(2);
    one["healthCheck"]["startPeriod"] = json!(7);
    let begun = Instant::now();
    let task = start(&cluster, &[one]).await;
    let described = until_health(&cluster, &task, "UNHEALTHY").await;
    // The first failure that counts comes with the end of the start period, the second one interval later.
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(12), "{took:?}");
    assert_eq!(
        (&described["healthStatus"], &described["lastStatus"]),
        (&json!("UNHEALTHY"), &json!("RUNNING")),
        "nobody stops it"
    );
    let told = health(&cluster, &task).await;
    assert_eq!(
        (&told["exitCode"], &told["output"]),
        (&json!(3), &json!("nothing there\n"))
    );
    let id = described["containers"][0]["runtimeId"].as_str().unwrap();
    let args = ["tasks", "exec", "--exec-id", "mend", id, "touch", "/tmp/good"];
    cluster.containerd.list(&cluster.instance, &args);
    let described = until_health(&cluster, &task, "HEALTHY").await;
    assert_eq!(described["healthStatus"], "HEALTHY");
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_a_failed_check() {
    let cluster = Cluster::start().await;
    let mut one = checked("main", "sleep 3600", "");
    one["healthCheck"]["command"] = json!(["CMD", "no-such-program", "x"]);
    let task = start(&cluster, &[one]).await;
    until_health(&cluster, &task, "UNHEALTHY").await;
    let told = health(&cluster, &task).await;
    assert_eq!(told["exitCode"], Value::Null);
    assert_eq!(
        told["output"],
        "exec: \"no-such-program\": executable file not found in $PATH"
    );
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_probe_is_killed_with_all_it_started_and_nothing_else_is() {
    let cluster = Cluster::start().await;
    // One child whose parent has ended, one that has left the session, and the probe itself.
    let hang = "echo before; (sleep 7771 &) ; setsid sleep 7772 & sleep 7773";
    let task = start(&cluster, &[checked("main", "sleep 8881 & sleep 8882", hang)]).await;
    cluster.wait_status(&task, "RUNNING").await;
    let hung = async || Some(processes(&cluster, &task, "777")).filter(|found| found.len() >= 3);
    cluster.until("a probe to hang", LIMIT, hung).await;
    until_health(&cluster, &task, "UNHEALTHY").await;
    let told = health(&cluster, &task).await;
    assert_eq!(told["exitCode"], Value::Null);
    assert_eq!(told["output"], "killed after its timeout of 2 s: before\n");
    // The next one is up to 5 s away: what is there now is what was not killed.
    assert_eq!(processes(&cluster, &task, "777"), Vec::<i32>::new());
    assert!(processes(&cluster, &task, "888").len() >= 2);
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dependent_starts_when_it_is_healthy_and_says_what_it_waits_for() {
    let cluster = Cluster::start().await;
    let main = checked("main", "sleep 4; touch /tmp/up; sleep 3600", "test -f /tmp/up");
    let mut side = container("side", "sleep 3600");
    side["dependsOn"] = json!([{"containerName": "main", "condition": "HEALTHY"}]);
    let task = start(&cluster, &[main, side]).await;
    let why = cluster
        .until("the wait to be told", LIMIT, async || {
            let answer = cluster.client.berth("ExplainTask", json!({"task": task})).await;
            answer["waitingReason"]
                .as_str()
                .filter(|why| why.contains("HEALTHY"))
                .map(str::to_owned)
        })
        .await;
    assert_eq!(
        why,
        "container side waits for container main to be HEALTHY, until 180 s after its start"
    );
    assert_eq!(cluster.describe(&task).await["lastStatus"], "PENDING");
    let described = cluster.wait_status(&task, "RUNNING").await;
    assert_eq!(described["containers"][0]["healthStatus"], "HEALTHY");
    assert_eq!(described["containers"][1]["healthStatus"], "UNKNOWN");
    assert_eq!(described["healthStatus"], "HEALTHY");
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_what_never_is_healthy_gives_up_at_the_start_timeout() {
    let cluster = Cluster::start().await;
    let mut main = checked("main", "sleep 3600", "exit 1");
    main["startTimeout"] = json!(8);
    let mut side = container("side", "sleep 3600");
    side["dependsOn"] = json!([{"containerName": "main", "condition": "HEALTHY"}]);
    let task = start(&cluster, &[main, side]).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(
        stopped["stoppedReason"],
        "dependency main was not HEALTHY within its startTimeout of 8 s"
    );
    assert_eq!(stopped["containers"][1]["exitCode"], 143);
    assert_eq!(stopped["stopCode"], "TaskFailedToStart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_no_probe_and_nothing_of_one_is_left() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let mut one = checked(
        "main",
        "trap 'exit 0' TERM; while true; do sleep 0.1; done",
        "sleep 7774",
    );
    one["healthCheck"]["timeout"] = json!(60);
    let task = start(&cluster, &[one]).await;
    let hung = async || Some(processes(&cluster, &task, "7774")).filter(|found| !found.is_empty());
    cluster.until("a probe to hang", LIMIT, hung).await;
    assert_eq!(pipes(&cluster).len(), 1);
    let begun = Instant::now();
    cluster.stop(&task).await;
    let took = begun.elapsed();
    assert!(
        took < berth_tests::emulated(Duration::from_secs(5)),
        "took {took:?}"
    );
    let stopped = cluster.describe(&task).await;
    assert_eq!(
        stopped["containers"][0]["exitCode"], 0,
        "it was told, and ended by itself"
    );
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_in_a_probe_leaves_nothing_and_goes_on() {
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    let mut one = checked(
        "main",
        "sleep 3600",
        "test -f /tmp/good && exit 0; touch /tmp/good; sleep 7775",
    );
    one["healthCheck"]["timeout"] = json!(60);
    let task = start(&cluster, &[one]).await;
    let hung = async || Some(processes(&cluster, &task, "7775")).filter(|found| !found.is_empty());
    let hanging = cluster.until("a probe to hang", LIMIT, hung).await;
    cluster.kill_agent();
    assert_eq!(
        processes(&cluster, &task, "7775"),
        hanging,
        "it goes on without its agent"
    );
    cluster.start_agent();
    // The next probe finds it, ends it, and says what it finds itself.
    until_health(&cluster, &task, "HEALTHY").await;
    assert_eq!(processes(&cluster, &task, "7775"), Vec::<i32>::new());
    let said = cluster.agent_says();
    assert!(!said.contains("nobody answers for"), "{said}");

    // Killed in a probe, and the task is to stop when it comes back.
    let mut other = checked("main", "sleep 3600", "sleep 7776");
    other["healthCheck"]["timeout"] = json!(60);
    other["memory"] = json!(32);
    cluster.stop(&task).await;
    let task = start(&cluster, &[other]).await;
    let hung = async || Some(processes(&cluster, &task, "7776")).filter(|found| !found.is_empty());
    cluster.until("another probe to hang", LIMIT, hung).await;
    cluster.kill_agent();
    cluster.client.ok("StopTask", json!({ "task": task })).await;
    cluster.start_agent();
    cluster.wait_status(&task, "STOPPED").await;
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_outlives_the_agent_and_a_hung_probe_does_not_hold_up_its_end() {
    let mut cluster = Cluster::start().await;
    let mut one = checked(
        "main",
        "sleep 3600",
        "test -f /tmp/was && sleep 7777; touch /tmp/was",
    );
    one["healthCheck"]["timeout"] = json!(60);
    let task = start(&cluster, &[one]).await;
    until_health(&cluster, &task, "HEALTHY").await;
    let hung = async || Some(processes(&cluster, &task, "7777")).filter(|found| !found.is_empty());
    cluster.until("the second probe to hang", LIMIT, hung).await;
    let begun = Instant::now();
    assert_eq!(cluster.stop_agent(), Some(0));
    let took = begun.elapsed();
    assert!(
        took < berth_tests::emulated(Duration::from_secs(5)),
        "took {took:?}"
    );
    assert_eq!(
        processes(&cluster, &task, "7777"),
        Vec::<i32>::new(),
        "it took its probe along"
    );
    cluster.start_agent();
    cluster.wait_connected(true).await;
    assert_eq!(cluster.describe(&task).await["healthStatus"], "HEALTHY");
    cluster.stop(&task).await;
}
