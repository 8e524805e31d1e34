//! `ephemeralStorage`: a bound of what a task writes where the node's file system can keep one, and a warning where it cannot.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use berth_tests::cluster::{Cluster, Options, container};
use serde_json::{Value, json};

/// What an ECS definition asks for at least.
const GIB: u32 = 21;

/// A sparse file, as an ext4 file system with project quotas, mounted; gone with this.
struct Disk {
    place: PathBuf,
    /// The kernel keeps the quotas: it was built with them.
    enforced: bool,
}

fn shell(script: &str) -> bool {
    Command::new("sh")
        .args(["-c", script])
        .status()
        .unwrap()
        .success()
}

impl Disk {
    fn mount(directory: &Path) -> Self {
        let (image, place) = (directory.join("disk.img"), directory.join("disk"));
        std::fs::create_dir(&place).unwrap();
        let (file, at) = (image.display(), place.display());
        let made = format!(
            "truncate -s 60G {file} && mkfs.ext4 -q -F -O quota,project -E lazy_itable_init=1,lazy_journal_init=1 \
             -J size=8 -m 0 {file}"
        );
        assert!(shell(&made), "mkfs.ext4");
        let enforced = shell(&format!("mount -o loop,prjquota {file} {at} 2>/dev/null"));
        if !enforced {
            // This kernel cannot even mount it so: the same without quotas.
            let plain = format!("mkfs.ext4 -q -F -J size=8 -m 0 {file} && mount -o loop {file} {at}");
            assert!(shell(&plain), "mount");
        }
        // Debian's kernel, which the virtual machines have, can.
        assert!(enforced || std::env::var_os("BERTH_TESTS_EMULATED").is_none());
        Self { place, enforced }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        shell(&format!("umount -l {}", self.place.display()));
    }
}

fn warnings(described: &Value) -> Vec<String> {
    let attributes = described["attributes"].as_array().unwrap();
    let warnings = attributes.iter().filter(|one| one["name"] == "berth.warning");
    warnings
        .map(|one| one["value"].as_str().unwrap().to_owned())
        .collect()
}

/// One container with a volume, which writes to its layer and to the volume, and says what came of it.
fn definition(d: &mut Value, script: &str) {
    d["networkMode"] = json!("none");
    d["ephemeralStorage"] = json!({"sizeInGiB": GIB});
    d["volumes"] = json!([{"name": "data"}]);
    d["containerDefinitions"] = json!([container(
        "main",
        &format!("({script}) 2>&1; echo the-end; sleep 3600")
    )]);
    d["containerDefinitions"][0]["mountPoints"] = json!([{"sourceVolume": "data", "containerPath": "/data"}]);
}

async fn said(cluster: &Cluster, task: &str) -> Vec<String> {
    let limit = std::time::Duration::from_secs(30);
    cluster
        .until("all to be said", limit, async || {
            let logs = cluster.client.logs(task).await;
            let lines: Vec<String> = logs
                .iter()
                .map(|l| l["line"].as_str().unwrap().trim().to_owned())
                .collect();
            lines.iter().any(|line| line == "the-end").then_some(lines)
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_writes_no_more_than_it_may_where_the_file_system_can_keep_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(dir.path());
    let cluster = Cluster::alone_with(Options {
        directory: Some(disk.place.clone()),
        ..Options::default()
    })
    .await;
    let before = cluster.listing();
    // Blocks that are reserved count, without being written; what is refused keeps what it got until then.
    let greedy = "fallocate -l 12G /layer && echo layer; fallocate -l 12G /data/more || echo refused; rm -f /data/more; \
                  fallocate -l 1G /data/some && echo some";
    let task = cluster.running("", |d| definition(d, greedy)).await;
    let described = cluster.describe(&task).await;
    assert_eq!(described["ephemeralStorage"], json!({"sizeInGiB": GIB}));
    let lines = said(&cluster, &task).await;
    let has = |lines: &[String], what: &str| lines.iter().any(|line| line == what);
    assert!(has(&lines, "layer") && has(&lines, "some"), "{lines:?}");
    if disk.enforced {
        assert!(has(&lines, "refused"), "{lines:?}");
        assert!(warnings(&described).is_empty(), "{described}");
        // Another task has its own.
        let modest = "fallocate -l 15G /data/mine && echo mine";
        let other = cluster.running("", |d| definition(d, modest)).await;
        assert!(has(&said(&cluster, &other).await, "mine"));
        cluster.stop(&other).await;
    } else {
        let warnings = warnings(&described);
        for place in ["in the containers' own layers", "in the task's volumes"] {
            let says = format!(
                "ephemeralStorage is not enforced {place}: {}",
                disk.place.display()
            );
            assert!(
                warnings
                    .iter()
                    .any(|one| one.starts_with(&says) && one.contains("prjquota")),
                "{warnings:?}"
            );
        }
    }
    cluster.stop(&task).await;
    cluster.assert_nothing_left(&before).await;
    let records = std::fs::read_dir(cluster.agent_state_dir().join("quotas"));
    assert_eq!(records.map_or(0, Iterator::count), 0);
    drop(cluster);
}
