//! Whose processes and whose IPC a container has: as it sees them, and as the kernel has them.

use berth_tests::cluster::Cluster;
use serde_json::json;

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
