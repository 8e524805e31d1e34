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

/// Leaves an orphan that ends, and says what became of it; then waits for a signal.
const ORPHAN: &str = "(sh -c 'sleep 0.2 & echo $! > /tmp/pid'); sleep 1; pid=$(cat /tmp/pid); \
                      test -e /proc/$pid && echo remains || echo reaped; trap 'echo term; exit 42' TERM; \
                      echo first is $(tr '\\0' ' ' < /proc/1/cmdline); echo ready; while true; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread")]
async fn an_init_process_reaps_passes_signals_on_and_ends_as_its_program() {
    build_init();
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let init = json!({"initProcessEnabled": true});
    let with = |name: &str, parameters: Value, more: Value| {
        let mut one = container(name, ORPHAN);
        one["linuxParameters"] = parameters;
        one.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        one
    };
    let mut bare = with(
        "bare",
        json!({"initProcessEnabled": true, "capabilities": {"drop": ["ALL"]}, "tmpfs": [{"containerPath": "/tmp", "size": 1}]}),
        json!({
            "user": "1000:1000", "readonlyRootFilesystem": true, "dockerSecurityOptions": ["no-new-privileges"],
            // What a health check executes is beside it.
            "healthCheck": {"command": ["CMD-SHELL", "test $PPID != 1"], "interval": 5, "timeout": 2},
        }),
    );
    bare["linuxParameters"]["tmpfs"][0]["mountOptions"] = json!(["mode=1777"]);
    let terminal = json!({"pseudoTerminal": true, "interactive": true});
    let task = cluster
        .running("", |d| {
            d["containerDefinitions"] = json!([
                with("with", init.clone(), json!({"interactive": true})),
                bare,
                with("terminal", init, terminal),
                with("without", json!({}), json!({})),
            ]);
        })
        .await;
    let ready = async || {
        let lines = cluster.client.logs(&task).await;
        let ready = lines
            .iter()
            .filter(|l| l["line"].as_str().unwrap().trim() == "ready");
        (ready.count() == 4).then_some(lines)
    };
    let lines = cluster
        .until("all to be ready", Duration::from_secs(20), ready)
        .await;
    let said = |name: &str, what: &str| {
        let mut own = lines.iter().filter(|l| l["container"] == name);
        own.any(|l| l["line"].as_str().unwrap().starts_with(what))
    };
    for name in ["with", "bare", "terminal"] {
        assert!(said(name, "first is /sbin/berth-init "), "{name}: {lines:#?}");
        assert!(said(name, "reaped"), "{name}: {lines:#?}");
    }
    assert!(said("without", "first is sh -c "), "{lines:#?}");
    let healthy = async || {
        let described = cluster.describe(&task).await;
        let all = described["containers"].as_array().unwrap();
        all.iter().any(|c| c["healthStatus"] == "HEALTHY").then_some(())
    };
    cluster
        .until("the check to be passed", Duration::from_secs(20), healthy)
        .await;
    let stopped = cluster.stop(&task).await;
    for one in stopped["containers"].as_array().unwrap() {
        assert_eq!(one["exitCode"], 42, "{one}");
    }
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_ends_its_program_is_in_its_exit_code() {
    build_init();
    let cluster = Cluster::start().await;
    let definition = cluster
        .register("kill -SEGV $$; sleep 10", |d| {
            d["containerDefinitions"][0]["linuxParameters"] = json!({"initProcessEnabled": true});
        })
        .await;
    let task = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(stopped["containers"][0]["exitCode"], 139);
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
