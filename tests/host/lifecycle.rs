//! A task from its definition to its end, as the operator and the kernel see it.

use std::{io::Read as _, net::TcpStream, time::Duration};

use berth_tests::cluster::{Cluster, container};
use serde_json::{Value, json};

const SLEEP: &str = "trap 'exit 0' TERM; sleep 3600 & wait";

fn address(task: &Value) -> String {
    task["containers"][0]["networkInterfaces"][0]["privateIpv4Address"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_is_reachable_and_leaves_nothing() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let task = cluster
        .running(
            "echo hello from $FROM_IMAGE; while true; do echo answer | nc -l -p 8080; done",
            |d| {
                d["containerDefinitions"][0]["portMappings"] = json!([{ "containerPort": 8080 }]);
            },
        )
        .await;
    let described = cluster.describe(&task).await;
    let mut answer = String::new();
    let target = format!("{}:8080", address(&described)).parse().unwrap();
    // RUNNING is said of the process; it may not have come to listen yet.
    let listens = async || TcpStream::connect_timeout(&target, Duration::from_secs(5)).ok();
    let mut stream = cluster
        .until("the task to listen", Duration::from_secs(10), listens)
        .await;
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer\n");
    assert!(
        cluster.listing().difference(&before).count() > 10,
        "the listing sees what a task makes"
    );

    let lines = cluster.client.logs(&task).await;
    assert_eq!(
        lines[0]["line"].as_str().map(str::trim_end),
        Some("hello from yes"),
        "{lines:?}"
    );

    let stopped = cluster.stop(&task).await;
    assert_eq!(stopped["stopCode"], "UserInitiated");
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_tasks_in_every_mode_leaves_nothing() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let mut tasks = Vec::new();
    for mode in ["awsvpc", "host", "none"] {
        let definition = cluster
            .register(SLEEP, |d| {
                d["networkMode"] = json!(mode);
                d["cpu"] = json!("128");
            })
            .await;
        for _ in 0..4 {
            tasks.push(cluster.run(&definition).await);
        }
    }
    // Some are stopped on their way up.
    for task in &tasks[..3] {
        cluster.client.ok("StopTask", json!({ "task": task })).await;
    }
    for task in &tasks[3..] {
        cluster.wait_status(task, "RUNNING").await;
        cluster.client.ok("StopTask", json!({ "task": task })).await;
    }
    for task in &tasks {
        cluster.wait_status(task, "STOPPED").await;
    }
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_task_meet_on_loopback_and_start_in_order() {
    let cluster = Cluster::start().await;
    let task = cluster
        .running(
            "for i in 1 2 3 4 5; do nc 127.0.0.1 9000 && break; sleep 0.2; done; sleep 3600",
            |d| {
                let mut server = container("server", "while true; do echo from-server | nc -l -p 9000; done");
                server["dependsOn"] = json!([{ "containerName": "init", "condition": "SUCCESS" }]);
                let mut init = container("init", "sleep 0.5; echo init-done");
                init["essential"] = json!(false);
                let containers = d["containerDefinitions"].as_array_mut().unwrap();
                containers[0]["dependsOn"] = json!([{ "containerName": "server", "condition": "START" }]);
                containers.extend([server, init]);
            },
        )
        .await;
    let heard = cluster
        .until("the server's answer", Duration::from_secs(10), async || {
            let lines = cluster.client.logs(&task).await;
            let of = |name: &str| {
                lines
                    .iter()
                    .position(|l| l["container"] == name && l["line"] != "")
            };
            of("init").zip(of("main")).map(|places| (places, lines.clone()))
        })
        .await;
    let ((init, main), lines) = heard;
    assert_eq!(
        lines[main]["line"].as_str().map(str::trim_end),
        Some("from-server")
    );
    assert!(init < main, "init ran before: {lines:?}");
    let described = cluster.describe(&task).await;
    let containers = described["containers"].as_array().unwrap();
    let init = containers.iter().find(|c| c["name"] == "init").unwrap();
    assert_eq!(
        (&init["lastStatus"], &init["exitCode"]),
        (&json!("STOPPED"), &json!(0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_that_is_honoured_reaches_the_container() {
    let cluster = Cluster::start().await;
    let script = "id -u; id -g; pwd; echo $GREETING; ulimit -n; grep CapEff /proc/self/status; \
                  grep Seccomp: /proc/self/status; touch /file || echo read-only; hostname; exit 7";
    let definition = cluster
        .register(script, |d| {
            let c = &mut d["containerDefinitions"][0];
            c["user"] = json!("web");
            c["workingDirectory"] = json!("/www");
            c["environment"] = json!([{ "name": "GREETING", "value": "hi there" }]);
            c["ulimits"] = json!([{ "name": "nofile", "softLimit": 123, "hardLimit": 456 }]);
            c["readonlyRootFilesystem"] = json!(true);
            c["entryPoint"] = json!(["sh", "-c"]);
            c["command"] = json!([script]);
            c["dockerLabels"] = json!({ "team": "blue" });
        })
        .await;
    let task = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(stopped["stopCode"], "EssentialContainerExited");
    assert_eq!(stopped["stoppedReason"], "Essential container in task exited");
    assert_eq!(stopped["containers"][0]["exitCode"], 7);
    let lines: Vec<_> = cluster.client.logs(&task).await;
    let out: Vec<_> = lines
        .iter()
        .filter(|l| l["stream"] == "stdout")
        .map(|l| l["line"].as_str().unwrap().trim())
        .collect();
    assert_eq!(out[..5], ["1000", "1000", "/www", "hi there", "123"]);
    assert!(
        out[5].ends_with("0000000000000000"),
        "no capability without root: {}",
        out[5]
    );
    assert_eq!(out[6].split_whitespace().last(), Some("2"), "seccomp filters");
    assert_eq!(out[7], "read-only");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ignores_its_stop_signal_is_killed_after_its_stop_timeout() {
    let cluster = Cluster::start().await;
    let task = cluster
        .running("trap '' TERM; while true; do sleep 1; done", |_| {})
        .await;
    let begun = std::time::Instant::now();
    let stopped = cluster.stop(&task).await;
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "stopTimeout was {:?}",
        begun.elapsed()
    );
    assert_eq!(stopped["containers"][0]["exitCode"], 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_task_starts_when_what_it_waits_for_is_released() {
    let cluster = Cluster::start().await;
    let on_port = |d: &mut Value| {
        d["networkMode"] = json!("host");
        d["containerDefinitions"][0]["portMappings"] = json!([{ "containerPort": 18_477 }]);
        d["containerDefinitions"][0]["stopTimeout"] = json!(3);
    };
    // Ignores SIGTERM, so that it holds the port for the whole stop timeout.
    let first = cluster
        .running("trap '' TERM; while true; do sleep 1; done", on_port)
        .await;
    let definition = cluster.describe(&first).await["taskDefinitionArn"]
        .as_str()
        .unwrap()
        .to_owned();
    let refused = cluster.try_run(&definition).await;
    assert_eq!(refused["failures"][0]["reason"], "RESOURCE:PORTS", "{refused}");
    let big = cluster
        .register(SLEEP, |d| {
            d["networkMode"] = json!("none");
            d["cpu"] = json!((std::thread::available_parallelism().unwrap().get() * 1024).to_string());
        })
        .await;
    cluster.client.ok("StopTask", json!({ "task": first })).await;
    // The control plane frees CPU with the stop; the node holds the newcomer until its own accounts agree.
    let task = cluster.run(&big).await;
    let why = cluster
        .until("a reason", Duration::from_secs(2), async || {
            let body = json!({ "cluster": "default", "task": task });
            let answer = cluster
                .client
                .send("BerthV1.ExplainTask", body)
                .await
                .text()
                .await
                .unwrap();
            answer.contains("RESOURCE:CPU").then_some(answer)
        })
        .await;
    assert!(
        why.contains(first.rsplit('/').next().unwrap()),
        "names who holds it: {why}"
    );
    cluster.wait_status(&task, "RUNNING").await;
    cluster.stop(&task).await;
}
