//! Whose processes and whose IPC a container has: as it sees them, and as the kernel has them.

use std::time::Duration;

use berth_tests::cluster::{Cluster, binary, build_init, container};
use serde_json::{Value, json};

use crate::fields::{Seen, look};

/// The namespace of a process on the host, as the kernel names it.
fn namespace(pid: i32, kind: &str) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    link.to_string_lossy().into_owned()
}

fn has(seen: &Seen, what: &str) -> bool {
    seen.lines.iter().any(|line| line == what)
}

const SCRIPT: &str = "echo pid $$; ls /dev/shm >/dev/null && echo shm; (echo x > /dev/shm/berth-$NAME) && echo writes; \
                      grep -c ' /dev/shm ' /proc/mounts; readlink /proc/1/ns/pid | grep -q . && echo sees-one";

#[tokio::test(flavor = "multi_thread")]
async fn without_modes_each_container_is_alone() {
    let cluster = Cluster::start().await;
    let (_, seen) = look(
        &cluster,
        |_| {},
        &[("a", SCRIPT, json!({})), ("b", SCRIPT, json!({}))],
    )
    .await;
    for kind in ["pid", "ipc"] {
        let all = [
            namespace(seen["a"].pid, kind),
            namespace(seen["b"].pid, kind),
            namespace(std::process::id().cast_signed(), kind),
        ];
        assert!(
            all[0] != all[1] && all[0] != all[2] && all[1] != all[2],
            "{kind}: {all:?}"
        );
    }
    assert!(
        has(&seen["a"], "pid 1") && has(&seen["b"], "shm"),
        "{:?}",
        seen["a"].lines
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn host_modes_are_the_hosts_and_nothing_stays_of_them() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let name = format!("berth-{}", cluster.instance);
    let environment = json!({"environment": [{"name": "NAME", "value": cluster.instance}]});
    // A child that left its session must end with its container, whose first process is not pid 1.
    let script = format!("{SCRIPT}; (setsid sleep 7654321 &)");
    let (task, seen) = look(
        &cluster,
        |d| (d["pidMode"], d["ipcMode"]) = (json!("host"), json!("host")),
        &[("a", &script, environment)],
    )
    .await;
    let own = std::process::id().cast_signed();
    for kind in ["pid", "ipc"] {
        assert_eq!(namespace(seen["a"].pid, kind), namespace(own, kind), "{kind}");
    }
    let a = &seen["a"];
    assert!(
        has(a, &format!("pid {}", a.said("pid"))) && !has(a, "pid 1") && has(a, "writes"),
        "{:?}",
        a.lines
    );
    let shared = std::path::Path::new("/dev/shm").join(&name);
    assert!(shared.exists(), "the container wrote into the host's /dev/shm");
    std::fs::remove_file(shared).unwrap();
    assert!(cluster.pids(&task).len() >= 2, "{:?}", cluster.pids(&task));
    cluster.stop(&task).await;
    assert_eq!(cluster.pids(&task), Vec::<i32>::new());
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_does_not_outlive_its_container_among_the_hosts_processes() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let task = cluster
        .running("(setsid sleep 7654322 &) ; sleep 1; exit 3", |d| {
            d["pidMode"] = json!("host")
        })
        .await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(stopped["containers"][0]["exitCode"], 3);
    assert_eq!(cluster.pids(&task), Vec::<i32>::new());
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_ipc_mode_none_there_is_no_shared_memory() {
    let cluster = Cluster::start().await;
    let (_, seen) = look(
        &cluster,
        |d| d["ipcMode"] = json!("none"),
        &[("a", SCRIPT, json!({})), ("b", SCRIPT, json!({}))],
    )
    .await;
    let all = [namespace(seen["a"].pid, "ipc"), namespace(seen["b"].pid, "ipc")];
    assert!(
        all[0] != all[1] && all[0] != namespace(std::process::id().cast_signed(), "ipc"),
        "{all:?}"
    );
    for one in seen.values() {
        assert!(has(one, "0") && !has(one, "shm"), "{:?}", one.lines);
        assert!(
            !one.proc("mountinfo").contains(" /dev/shm "),
            "{}",
            one.proc("mountinfo")
        );
    }
}

/// The process that holds a task's shared namespaces.
fn holder(cluster: &Cluster, task: &str) -> i32 {
    let procs = cluster.cgroup("memory", task).join("c/pause/cgroup.procs");
    let pids = std::fs::read_to_string(procs).unwrap();
    pids.trim().parse().unwrap()
}

fn sharing(d: &mut Value) {
    (d["pidMode"], d["ipcMode"]) = (json!("task"), json!("task"));
}

/// Says what it finds of the other one's, once it is there.
const MAKES: &str = "echo made > /dev/shm/of-a; echo pid $$; \
                     (sh -c 'sleep 0.2 & echo $! > /dev/shm/orphan'); sleep 1; \
                     test -e /proc/$(cat /dev/shm/orphan) && echo remains || echo reaped";
const FINDS: &str = "until test -e /dev/shm/of-a; do sleep 0.1; done; echo found $(cat /dev/shm/of-a); \
                     echo first $(tr '\\0' ' ' < /proc/1/cmdline); grep -l '7654[3]' /proc/[0-9]*/cmdline | wc -l; \
                     df -m /dev/shm | tail -1 | tr -s ' ' | cut -d ' ' -f 2; ls -A /proc/1/root >/dev/null 2>&1 || echo no-root";

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_task_share_processes_and_ipc_and_nobody_else_does() {
    build_init();
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    let makes = format!("(sleep 76543 &); {MAKES}; ls -A /proc/1/root >/dev/null 2>&1 || echo no-root");
    let sized = json!({"linuxParameters": {"sharedMemorySize": 8}});
    let bare = json!({
        "user": "1000:1000", "readonlyRootFilesystem": true, "linuxParameters": {"initProcessEnabled": true},
    });
    let (task, seen) = look(&cluster, sharing, &[("a", &makes, sized), ("b", FINDS, bare)]).await;
    let (other, elsewhere) = look(
        &cluster,
        |d| {
            sharing(d);
            d["cpu"] = json!("128");
        },
        &[("c", "ls /dev/shm; echo empty-above", json!({}))],
    )
    .await;
    assert_eq!(
        elsewhere["c"].lines[0], "empty-above",
        "{:?}",
        elsewhere["c"].lines
    );
    for kind in ["pid", "ipc"] {
        let [a, b] = ["a", "b"].map(|name| namespace(seen[name].pid, kind));
        assert_eq!(a, b, "{kind}");
        assert_ne!(a, namespace(elsewhere["c"].pid, kind));
        assert_ne!(a, namespace(std::process::id().cast_signed(), kind));
        assert_eq!(a, namespace(holder(&cluster, &task), kind));
    }
    assert_ne!(
        namespace(seen["a"].pid, "net"),
        namespace(holder(&cluster, &task), "net")
    );
    assert_ne!(namespace(seen["a"].pid, "mnt"), namespace(seen["b"].pid, "mnt"));
    let b = &seen["b"].lines;
    assert!(
        has(&seen["b"], "found made") && has(&seen["b"], "first /sbin/berth-init --hold"),
        "{b:?}"
    );
    assert!(
        b.contains(&"8".to_owned()) && b.contains(&"no-root".to_owned()),
        "{b:?}"
    );
    assert!(!b.contains(&"0".to_owned()), "the other's process is seen: {b:?}");
    assert!(
        has(&seen["a"], "reaped") && !has(&seen["a"], "pid 1"),
        "{:?}",
        seen["a"].lines
    );
    assert!(
        has(&seen["a"], "no-root"),
        "root of a container is nobody to the holder: {:?}",
        seen["a"].lines
    );

    // A System V segment of one is the other's.
    let segments = |name: &str, seen: &Seen| {
        let inside = |command: &[&str]| {
            let mut all = vec!["--target".to_owned(), seen.pid.to_string(), "--ipc".to_owned()];
            all.extend(command.iter().map(|word| (*word).to_owned()));
            let output = std::process::Command::new("nsenter").args(all).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        if name == "a" {
            inside(&["ipcmk", "-M", "4096"]);
        }
        inside(&["cat", "/proc/sysvipc/shm"]).lines().count() - 1
    };
    let counts = [("a", &seen["a"]), ("b", &seen["b"]), ("c", &elsewhere["c"])];
    assert_eq!(counts.map(|(name, one)| segments(name, one)), [1, 1, 0]);

    // Neither the agent's end nor its return is seen by what is shared.
    let held = holder(&cluster, &task);
    cluster.kill_agent();
    cluster.start_agent();
    cluster.wait_connected(true).await;
    assert_eq!(holder(&cluster, &task), held);
    cluster.stop(&other).await;
    let stopped = cluster.stop(&task).await;
    assert_eq!(stopped["stopCode"], "UserInitiated");
    assert_eq!(cluster.pids(&task), Vec::<i32>::new());
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_holder_dies_ends_and_says_why() {
    build_init();
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    for (pid, ipc) in [("task", "task"), ("host", "task")] {
        let task = cluster
            .running("sleep 3600", |d| {
                (d["pidMode"], d["ipcMode"]) = (json!(pid), json!(ipc));
                let policy = json!({"enabled": true, "restartAttemptPeriod": 60});
                d["containerDefinitions"][0]["restartPolicy"] = policy;
                let mut more = container("more", "sleep 3600");
                more["essential"] = json!(false);
                d["containerDefinitions"].as_array_mut().unwrap().push(more);
            })
            .await;
        let held = holder(&cluster, &task).to_string();
        let killed = std::process::Command::new("kill").args(["-KILL", &held]).status();
        assert!(killed.unwrap().success());
        let stopped = cluster.wait_status(&task, "STOPPED").await;
        let reason = stopped["stoppedReason"].as_str().unwrap();
        assert!(reason.contains("holds the namespaces"), "{reason}");
    }
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_is_there_once_whatever_moment_the_agent_dies() {
    build_init();
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    let definition = cluster.register("sleep 3600", sharing).await;
    for round in 0..5_u64 {
        let task = cluster.run(&definition).await;
        tokio::time::sleep(Duration::from_millis(30 * round)).await;
        cluster.kill_agent();
        cluster.start_agent();
        cluster.wait_status(&task, "RUNNING").await;
        assert!(holder(&cluster, &task) > 1);
        cluster.client.ok("StopTask", json!({ "task": task })).await;
        tokio::time::sleep(Duration::from_millis(20 * round)).await;
        cluster.kill_agent();
        cluster.start_agent();
        cluster.wait_status(&task, "STOPPED").await;
    }
    cluster.assert_nothing_left(&before).await;
}

/// Says whether what a container of the boot before left is there, and leaves something.
const MARKS: &str = "test -e /dev/shm/mark && echo stale || echo fresh; echo x > /dev/shm/mark; trap 'exit 0' TERM; \
                     while true; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared_is_new_after_a_boot_and_after_a_halt_and_is_purged() {
    build_init();
    let mut cluster = Cluster::start().await;
    let definition = cluster.register(MARKS, sharing).await;
    let answer = cluster
        .run_tagged(&definition, &[("berth.restart-after-reboot", "true")])
        .await;
    let task = answer["tasks"][0]["taskArn"].as_str().unwrap().to_owned();
    let runs = async |cluster: &Cluster, times: usize| {
        let said = async || {
            let lines = cluster.client.try_logs(&task).await.ok()?;
            (lines.len() == times).then_some(lines)
        };
        let lines = cluster.until("another run", Duration::from_secs(30), said).await;
        assert!(
            lines
                .iter()
                .all(|l| l["line"].as_str().unwrap().trim() == "fresh"),
            "{lines:?}"
        );
        cluster.wait_status(&task, "RUNNING").await;
        assert!(holder(cluster, &task) > 1);
    };
    runs(&cluster, 1).await;
    cluster.power_off_and_boot();
    cluster.start_agent();
    runs(&cluster, 2).await;

    let agent = |cluster: &Cluster, command: &str| {
        let output = std::process::Command::new(binary("berth-agent"))
            .args([command, "--yes", "--config"])
            .arg(cluster.agent_config_file())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    cluster.stop_agent();
    let begun = std::time::Instant::now();
    agent(&cluster, "halt");
    let took = begun.elapsed();
    assert!(
        took < berth_tests::emulated(Duration::from_secs(8)),
        "nothing is waited for: {took:?}"
    );
    assert_eq!(cluster.pids(&task), Vec::<i32>::new());
    cluster.start_agent();
    runs(&cluster, 3).await;

    cluster.kill_agent();
    agent(&cluster, "purge");
    assert_eq!(cluster.pids(&task), Vec::<i32>::new());
    assert!(!cluster.run_dir().exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&cluster.instance), "{mounts}");
}
