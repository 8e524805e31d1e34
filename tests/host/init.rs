//! berth-init in real containers: what it gives them, and that it is not in the way of anything else.

use std::time::Duration;

use berth_tests::cluster::{Cluster, build_init, container};
use serde_json::{Value, json};

use crate::fields::look;

/// What reads standard input for a second: it is killed while it waits, or has read the end.
const READ: &str = "timeout -s KILL 1 cat; echo reads $?; readlink /proc/self/fd/0; ls /sbin/berth-init";

#[tokio::test(flavor = "multi_thread")]
async fn an_interactive_container_reads_and_waits() {
    build_init();
    let cluster = Cluster::start().await;
    let interactive = json!({"interactive": true});
    let bare = json!({
        "interactive": true, "user": "1000:1000", "readonlyRootFilesystem": true,
        "dockerSecurityOptions": ["no-new-privileges"], "linuxParameters": {"capabilities": {"drop": ["ALL"]}},
    });
    let terminal = json!({"interactive": true, "pseudoTerminal": true});
    let (task, seen) = look(
        &cluster,
        |_| {},
        &[
            ("with", READ, interactive),
            ("bare", READ, bare),
            ("terminal", READ, terminal),
            ("without", READ, json!({})),
        ],
    )
    .await;
    let says = |name: &str, what: &str| seen[name].lines.iter().any(|line| line.starts_with(what));
    for name in ["with", "bare"] {
        assert!(says(name, "reads 137"), "{name}: {:?}", seen[name].lines);
        assert!(says(name, "pipe:"), "{name}: {:?}", seen[name].lines);
        // It became the container's own program.
        assert_eq!(
            seen[name].proc("cmdline"),
            seen["without"].proc("cmdline"),
            "{name}"
        );
        assert_eq!(
            std::fs::read_dir(format!("/proc/{}/fd", seen[name].pid))
                .unwrap()
                .count(),
            3
        );
    }
    assert!(says("terminal", "reads 137"), "{:?}", seen["terminal"].lines);
    assert!(
        says("without", "reads 0") && says("without", "/dev/null"),
        "{:?}",
        seen["without"].lines
    );
    for name in ["terminal", "without"] {
        assert!(!says(name, "/sbin/berth-init"), "{name}: {:?}", seen[name].lines);
    }
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_input_stays_open_when_the_agent_is_killed_and_nothing_stays_of_it() {
    build_init();
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    let set = |d: &mut Value| d["containerDefinitions"][0]["interactive"] = json!(true);
    let task = cluster
        .running("echo begins; cat; echo the end was read", set)
        .await;
    let pids = cluster.pids(&task);
    cluster.kill_agent();
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.start_agent();
    cluster.wait_connected(true).await;
    let lines = cluster.client.logs(&task).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(cluster.pids(&task), pids);
    cluster.stop(&task).await;
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_told_in_the_log() {
    build_init();
    let cluster = Cluster::start().await;
    let definition = cluster
        .register("", |d| {
            let mut one = container("app", "");
            (one["interactive"], one["command"]) = (json!(true), json!(["no-such-program"]));
            d["containerDefinitions"] = json!([one]);
        })
        .await;
    let task = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(stopped["containers"][0]["exitCode"], 127);
    let said = cluster.client.logs(&task).await;
    let line = said[0]["line"].as_str().unwrap();
    assert!(
        line.contains("cannot execute no-such-program: No such file"),
        "{line}"
    );
}
