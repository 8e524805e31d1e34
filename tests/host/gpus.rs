//! GPUs: devices of CDI that the node finds, each one container's alone.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use berth_tests::cluster::{Cluster, Options, container};
use serde_json::{Value, json};

use crate::fields::look;

/// The agent looks at its directories every 5 s.
const SEEN_WITHIN: Duration = Duration::from_secs(30);

fn device(name: &str, place: &str, host: &str) -> Value {
    json!({"name": name, "containerEdits": {
        "deviceNodes": [{"path": place, "hostPath": host}], "env": [format!("GPU={name}")],
    }})
}

/// Two devices that stand for GPUs, what both need, and a name for both of them.
fn specification(dir: &Path) {
    std::fs::write(dir.join("library.txt"), "driver\n").unwrap();
    let hook = format!("cat >/dev/null; echo $STAGE >> {}", dir.join("hooks").display());
    let both = json!({"name": "all", "containerEdits": {"deviceNodes": [
        {"path": "/dev/gpu0", "hostPath": "/dev/fuse"}, {"path": "/dev/gpu1", "hostPath": "/dev/loop-control"},
    ]}});
    let spec = json!({
        "cdiVersion": "0.6.0", "kind": "test.berth/gpu",
        "containerEdits": {
            "env": ["OVER=device"],
            "mounts": [{"hostPath": dir.join("library.txt"), "containerPath": "/opt/gpu/library.txt", "options": ["ro", "bind"]}],
            "hooks": [{
                "hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", hook], "env": ["STAGE=created"],
            }],
            "additionalGids": [4242],
        },
        "devices": [device("0", "/dev/gpu0", "/dev/fuse"), device("1", "/dev/gpu1", "/dev/loop-control"), both],
    });
    std::fs::write(dir.join("test.json"), spec.to_string()).unwrap();
}

async fn ids(cluster: &Cluster, field: &str) -> Vec<String> {
    let nodes = cluster.client.ok("ListContainerInstances", json!({})).await;
    let body = json!({"containerInstances": nodes["containerInstanceArns"]});
    let described = cluster.client.ok("DescribeContainerInstances", body).await;
    let all = described["containerInstances"][0][field].as_array().unwrap();
    let gpus = all.iter().find(|one| one["name"] == "GPU");
    gpus.map(|gpus| serde_json::from_value(gpus["stringSetValue"].clone()).unwrap())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_is_one_tasks_alone_with_all_that_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    specification(dir.path());
    let mut cluster = Cluster::alone_with(Options {
        agent_config: format!(
            "gpus.cdi_dirs = [{:?}]\ngpus.kinds = [\"test.berth/gpu\"]\n",
            dir.path()
        ),
        ..Options::default()
    })
    .await;
    let before = cluster.listing();
    assert_eq!(
        ids(&cluster, "registeredResources").await,
        ["test.berth/gpu=0", "test.berth/gpu=1"]
    );
    let script = "echo GPU=$GPU OVER=$OVER; cat /opt/gpu/library.txt; touch /opt/gpu/library.txt || echo readonly; \
                  id -G | tr ' ' '\n' | grep 4242; ls /dev; for d in 0 1; do (exec 3</dev/gpu$d) && echo opens-$d; done";
    let asks = json!({
        "resourceRequirements": [{"type": "GPU", "value": "1"}], "environment": [{"name": "OVER", "value": "own"}],
    });
    let (mut tasks, mut given) = (Vec::new(), BTreeSet::new());
    for _ in 0..2 {
        let containers = [
            ("with", script, asks.clone()),
            ("without", "ls /dev; echo GPU=$GPU", json!({})),
        ];
        let (task, seen) = look(&cluster, |d| d["networkMode"] = json!("none"), &containers).await;
        let described = cluster.describe(&task).await;
        let containers = described["containers"].as_array().unwrap();
        let with = containers.iter().find(|c| c["name"] == "with").unwrap();
        let id = with["gpuIds"][0].as_str().unwrap().to_owned();
        let n = id.strip_prefix("test.berth/gpu=").unwrap().to_owned();
        let other = if n == "0" { "1" } else { "0" };
        let lines = &seen["with"].lines;
        let said = |what: &str| lines.iter().any(|line| line == what);
        for what in [
            &format!("GPU={n} OVER=device"),
            "driver",
            "readonly",
            "4242",
            &format!("gpu{n}"),
            &format!("opens-{n}"),
        ] {
            assert!(said(what), "{what}: {lines:?}");
        }
        assert!(
            !said(&format!("gpu{other}")) && !said(&format!("opens-{other}")),
            "{lines:?}"
        );
        let without = &seen["without"].lines;
        assert!(
            without.contains(&"GPU=".to_owned()) && !without.iter().any(|line| line.starts_with("gpu")),
            "{without:?}"
        );
        given.insert(id);
        tasks.push(task);
    }
    assert_eq!(given.len(), 2, "{given:?}");
    let hooks = std::fs::read_to_string(dir.path().join("hooks")).unwrap();
    assert_eq!(hooks, "created\ncreated\n");

    // A third gets none, also when agent and control plane have begun anew.
    let third = cluster
        .register("sleep 3600", |d| {
            d["networkMode"] = json!("none");
            d["containerDefinitions"][0]["resourceRequirements"] = json!([{"type": "GPU", "value": "1"}]);
        })
        .await;
    assert_eq!(
        cluster.try_run(&third).await["failures"][0]["reason"],
        "RESOURCE:GPU"
    );
    cluster.kill_agent();
    cluster.stop_control_plane().await;
    cluster.start_control_plane().await;
    cluster.start_agent();
    cluster.wait_connected(true).await;
    assert_eq!(
        cluster.try_run(&third).await["failures"][0]["reason"],
        "RESOURCE:GPU"
    );
    assert!(ids(&cluster, "remainingResources").await.is_empty());
    cluster.stop(&tasks[0]).await;
    let free = ids(&cluster, "remainingResources").await;
    assert_eq!(free.len(), 1);
    let again = cluster.run(&third).await;
    let described = cluster.wait_status(&again, "RUNNING").await;
    assert_eq!(described["containers"][0]["gpuIds"], json!(free));
    for task in [&tasks[1], &again] {
        cluster.stop(task).await;
    }
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_come_and_go_while_the_agent_runs() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::with(Options {
        agent_config: format!(
            "gpus.cdi_dirs = [{:?}]\ngpus.kinds = [\"test.berth/gpu\"]\n",
            dir.path()
        ),
        ..Options::default()
    })
    .await;
    assert!(ids(&cluster, "registeredResources").await.is_empty());
    // As a driver's service writes it.
    let file = dir.path().join("late.yaml");
    std::fs::write(
        &file,
        "---\ncdiVersion: 0.5.0\nkind: test.berth/gpu\ndevices:\n- name: \"7\"\n  containerEdits:\n    deviceNodes:\n    \
         - path: /dev/gpu7\n      hostPath: /dev/fuse\n",
    )
    .unwrap();
    cluster
        .until("the GPU to be there", SEEN_WITHIN, async || {
            (ids(&cluster, "registeredResources").await == ["test.berth/gpu=7"]).then_some(())
        })
        .await;
    let definition = cluster
        .register("test -c /dev/gpu7 && sleep 3600", |d| {
            d["networkMode"] = json!("none");
            d["containerDefinitions"] = json!([container("main", "test -c /dev/gpu7 && sleep 3600")]);
            d["containerDefinitions"][0]["resourceRequirements"] = json!([{"type": "GPU", "value": "1"}]);
        })
        .await;
    let task = cluster.run(&definition).await;
    cluster.wait_status(&task, "RUNNING").await;
    cluster.stop(&task).await;
    // It is gone before the control plane hears of it: the start says so.
    std::fs::remove_file(&file).unwrap();
    let removed = Instant::now();
    let answer = cluster.try_run(&definition).await;
    if let Some(task) = answer["tasks"][0]["taskArn"].as_str() {
        let stopped = cluster.wait_status(task, "STOPPED").await;
        let reason = stopped["containers"][0]["reason"].as_str().unwrap_or_default();
        assert!(
            reason.starts_with("CannotStartContainerError: GPUs of ")
                && reason
                    .contains("GPU test.berth/gpu=7 is not in the CDI specifications of this node any more"),
            "{stopped}"
        );
    } else {
        assert!(removed.elapsed() > Duration::from_secs(1), "{answer}");
    }
    cluster
        .until("the GPU to be gone", SEEN_WITHIN, async || {
            ids(&cluster, "registeredResources")
                .await
                .is_empty()
                .then_some(())
        })
        .await;
    let refused = cluster.try_run(&definition).await;
    assert_eq!(refused["failures"][0]["reason"], "RESOURCE:GPU", "{refused}");
}
