//! A runtime per task: the tag chooses among those that work on the node, and the others are not offered.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use berth_tests::cluster::{Cluster, Options, build_init};
use serde_json::{Value, json};

const END: &str = "the-end";
const SCRIPT: &str = "cat /proc/version; echo the-end; sleep 3600";

/// A program that notes its arguments in `NAME.log` and goes on with a runtime.
fn wrapper(directory: &Path, name: &str, goes_on: &str) -> String {
    let path = directory.join(name);
    let text = format!("#!/bin/sh\necho \"$@\" >> {}.log\n{goes_on}\n", path.display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// A node with crun, gVisor, and a runtime that fails.
async fn cluster(directory: &Path) -> Cluster {
    // crun 1.8.1 refuses hosts with both versions of cgroups; gVisor of that age mistakes every network namespace of newer
    // kernels for the host's own.
    let crun =
        "exec unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec crun \"$@\"' crun \"$@\"";
    let runtimes = [
        ("crun", wrapper(directory, "crun", crun)),
        (
            "runsc",
            wrapper(
                directory,
                "runsc",
                "exec runsc --platform=ptrace --network=none \"$@\"",
            ),
        ),
        ("broken", "/bin/false".to_owned()),
        ("missing", "/nonexistent/runtime".to_owned()),
    ];
    let lines = runtimes.map(|(name, binary)| format!("runtimes.{name}.binary = {binary:?}\n"));
    Cluster::with(Options {
        agent_config: lines.concat(),
        ..Options::default()
    })
    .await
}

async fn run_on(cluster: &Cluster, definition: &str, runtime: &str) -> Value {
    cluster
        .run_tagged(definition, &[("berth.runtime", runtime)])
        .await
}

/// What the kernel inside calls itself, once the task said it.
async fn version_inside(cluster: &Cluster, task: &str) -> String {
    let said = async || {
        let lines = cluster.client.try_logs(task).await.ok()?;
        let lines: Vec<String> = lines
            .iter()
            .map(|l| l["line"].as_str().unwrap().trim().to_owned())
            .collect();
        lines.iter().any(|line| line == END).then(|| lines[0].clone())
    };
    cluster.until("its kernel", Duration::from_secs(60), said).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_task_runs_in_the_runtime_it_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = cluster(dir.path()).await;
    let definition = cluster.register(SCRIPT, |_| {}).await;
    let mut tasks = Vec::new();
    for runtime in ["runc", "crun", "runsc"] {
        let answer = run_on(&cluster, &definition, runtime).await;
        let task = answer["tasks"][0]["taskArn"].as_str();
        tasks.push(task.unwrap_or_else(|| panic!("{answer:#}")).to_owned());
    }
    let host = fs::read_to_string("/proc/version").unwrap();
    for (task, own_kernel) in tasks.iter().zip([false, false, true]) {
        cluster.wait_status(task, "RUNNING").await;
        let inside = version_inside(&cluster, task).await;
        assert_eq!(inside != host.trim(), own_kernel, "{inside}");
    }
    let calls = |runtime: &str| fs::read_to_string(dir.path().join(format!("{runtime}.log"))).unwrap();
    let mut ids = Vec::new();
    for task in &tasks {
        let described = cluster.describe(task).await;
        ids.push(
            described["containers"][0]["runtimeId"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    let made = |runtime: &str, id: &str| {
        calls(runtime)
            .lines()
            .any(|l| l.contains(" create ") && l.ends_with(id))
    };
    let by = ids.iter().map(|id| (made("crun", id), made("runsc", id)));
    assert_eq!(
        by.collect::<Vec<_>>(),
        [(false, false), (true, false), (false, true)]
    );

    // An agent that comes back ends them by the runtime that has them.
    cluster.kill_agent();
    cluster.start_agent();
    cluster.wait_connected(true).await;
    for task in &tasks {
        assert_eq!(cluster.describe(task).await["lastStatus"], "RUNNING");
        assert!(!cluster.pids(task).is_empty());
        cluster.stop(task).await;
        assert_eq!(cluster.pids(task), Vec::<i32>::new());
    }
    for (runtime, id) in ["crun", "runsc"].iter().zip(&ids[1..]) {
        let calls = calls(runtime);
        let deleted = calls.lines().any(|l| l.contains(" delete ") && l.ends_with(id));
        assert!(deleted, "{runtime}: {calls}");
    }
    let left = cluster
        .containerd
        .list(&cluster.instance, &["containers", "ls", "-q"]);
    assert_eq!(left, Vec::<String>::new(), "of tasks and probes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_does_not_work_here_is_not_offered() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path()).await;
    let definition = cluster.register(SCRIPT, |_| {}).await;
    for runtime in ["broken", "missing", "unheard-of"] {
        let answer = run_on(&cluster, &definition, runtime).await;
        let failure = &answer["failures"][0];
        assert_eq!(failure["reason"], "ATTRIBUTE", "{answer:#}");
        let detail = failure["detail"].as_str().unwrap();
        let words = format!("does not offer the runtime {runtime}, but crun, runc, runsc");
        assert!(detail.contains(&words), "{detail}");
    }
    let said = cluster.agent_says();
    for runtime in ["broken", "missing"] {
        let told = said
            .lines()
            .any(|l| l.contains("is not offered") && l.contains(runtime));
        assert!(told, "{runtime}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containers_share_is_had_with_crun_and_refused_where_it_cannot_be() {
    build_init();
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path()).await;
    let script = "tr '\\0' ' ' < /proc/1/cmdline; echo; echo the-end; sleep 3600";
    let definition = cluster
        .register(script, |d| {
            (d["pidMode"], d["ipcMode"]) = (json!("task"), json!("task"));
            let first = &mut d["containerDefinitions"][0];
            first["linuxParameters"] = json!({"initProcessEnabled": true});
            first["interactive"] = json!(true);
        })
        .await;
    let task = |answer: &Value| answer["tasks"][0]["taskArn"].as_str().unwrap().to_owned();
    let crun = task(&run_on(&cluster, &definition, "crun").await);
    cluster.wait_status(&crun, "RUNNING").await;
    assert_eq!(version_inside(&cluster, &crun).await, "/sbin/berth-init --hold");
    cluster.stop(&crun).await;
    let runsc = task(&run_on(&cluster, &definition, "runsc").await);
    let stopped = cluster.wait_status(&runsc, "STOPPED").await;
    let reason = stopped["stoppedReason"].as_str().unwrap();
    assert!(reason.contains("need runc or crun"), "{reason}");
    let left = cluster
        .containerd
        .list(&cluster.instance, &["containers", "ls", "-q"]);
    assert_eq!(left, Vec::<String>::new());
}
