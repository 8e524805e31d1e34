//! What goes wrong, said clearly, with nothing half made.

use std::time::Duration;

use berth_tests::cluster::{Cluster, Options};
use serde_json::{Value, json};

async fn fails(cluster: &Cluster, change: impl FnOnce(&mut Value)) -> (String, Value) {
    let definition = cluster.register("sleep 3600", change).await;
    let task = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(stopped["stopCode"], "TaskFailedToStart", "{stopped:#}");
    (stopped["stoppedReason"].as_str().unwrap().to_owned(), stopped)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_programs_that_are_not_there_are_named() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    // Nothing listens on port 1: the registry is down, and no such image was imported.
    let (reason, _) = fails(&cluster, |d| {
        d["containerDefinitions"][0]["image"] = json!("127.0.0.1:1/nothing:here")
    })
    .await;
    assert!(
        reason.starts_with("CannotPullContainerError") && reason.contains("127.0.0.1:1"),
        "{reason}"
    );
    let (reason, stopped) = fails(&cluster, |d| {
        d["containerDefinitions"][0]["command"] = json!(["no-such-program"])
    })
    .await;
    assert!(reason.contains("no-such-program"), "{reason}");
    assert!(
        stopped["containers"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("no-such-program"),
        "{stopped}"
    );
    let (reason, _) = fails(&cluster, |d| {
        d["containerDefinitions"][0]["user"] = json!("nobody-knows")
    })
    .await;
    assert!(reason.contains("nobody-knows"), "{reason}");
    let (reason, _) = fails(&cluster, |d| {
        d["containerDefinitions"][0]["image"] = json!("Upper/Case:tag")
    })
    .await;
    assert!(reason.contains("Upper/Case"), "{reason}");
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_address_a_task_is_refused_at_once() {
    let options = Options {
        task_cidr: "10.92.0.0/29".into(),
        ..Options::default()
    };
    let cluster = Cluster::with(options).await;
    let definition = cluster.register("sleep 3600", |d| d["cpu"] = json!("128")).await;
    for _ in 0..6 {
        cluster.run(&definition).await;
    }
    let answer = cluster.try_run(&definition).await;
    assert_eq!(answer["failures"][0]["reason"], "RESOURCE:ENI", "{answer}");
    assert_eq!(answer["tasks"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_requests_are_refused_with_their_paths() {
    let cluster = Cluster::start().await;
    let refuse = async |body: Value| {
        cluster
            .client
            .call("RegisterTaskDefinition", body)
            .await
            .unwrap_err()
    };
    let refusal = refuse(json!({
        "family": "bad", "networkMode": "awsvpc", "cpuu": "1",
        "containerDefinitions": [{ "name": "a", "image": "x", "memory": 3, "links": ["b"], "essential": "yes" }],
    }))
    .await;
    assert_eq!(refusal.kind, "ClientException");
    for part in [
        "cpuu: unknown field",
        "containerDefinitions[0].memory",
        "containerDefinitions[0].links: not supported yet",
        "essential: expected true or false",
    ] {
        assert!(
            refusal.message.contains(part),
            "{part} is missing in: {}",
            refusal.message
        );
    }
    let definition = cluster.register("sleep 1", |d| d["cpu"] = json!("131072")).await;
    let answer = cluster.try_run(&definition).await;
    assert_eq!(answer["failures"][0]["reason"], "RESOURCE:CPU", "{answer}");
}

/// A file system of its own for the agent's state, small enough to fill.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some("size=12m")).unwrap();
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_new_work_says_so_and_passes() {
    let disk = SmallDisk::new();
    let options = Options {
        agent_state_dir: Some(disk.0.path().join("agent")),
        ..Options::default()
    };
    let cluster = Cluster::with(options).await;
    let running = cluster.running("sleep 3600", |d| d["cpu"] = json!("128")).await;
    let filler = disk.0.path().join("filler");
    let fill = |filler: &std::path::Path| {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(filler)
            .unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    };
    fill(&filler);
    let definition = cluster.register("sleep 3600", |d| d["cpu"] = json!("128")).await;
    // Each needs room in the database; sooner or later, reserve included, there is none.
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(cluster.run(&definition).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        fill(&filler);
    }
    cluster
        .until("the agent to say so", Duration::from_secs(20), async || {
            cluster
                .agent_says()
                .contains("database cannot store")
                .then_some(())
        })
        .await;
    assert_eq!(cluster.describe(&running).await["lastStatus"], "RUNNING");
    std::fs::remove_file(&filler).unwrap();
    for task in &tasks {
        let ends = async || {
            let status = cluster.describe(task).await["lastStatus"].clone();
            (status == "RUNNING" || status == "STOPPED").then_some(())
        };
        cluster
            .until("every task to run or fail", Duration::from_secs(60), ends)
            .await;
    }
    let later = cluster.running("sleep 3600", |d| d["cpu"] = json!("128")).await;
    cluster.stop(&later).await;
}
