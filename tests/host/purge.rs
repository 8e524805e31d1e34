//! The end of an instance on a host: `berth-agent purge`.

use std::process::{Command, Output};

use berth_tests::cluster::{Cluster, binary};
use serde_json::json;

const STUBBORN: &str = "trap '' TERM; while true; do sleep 0.1; done";
const POLITE: &str = "trap 'exit 0' TERM; while true; do sleep 0.1; done";

fn purge(cluster: &Cluster, arguments: &[&str]) -> Output {
    Command::new(binary("berth-agent"))
        .args(["purge", "--config"])
        .arg(cluster.agent_config_file())
        .args(arguments)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{out}{err}")
}

/// Of this instance; what others have on the host is none of it.
fn left(cluster: &Cluster) -> Vec<String> {
    let mut left: Vec<String> = cluster
        .listing()
        .into_iter()
        .filter(|line| {
            line.contains(&cluster.instance)
                || ["container ", "task ", "snapshot ", "lease "]
                    .iter()
                    .any(|kind| line.starts_with(kind))
        })
        .collect();
    for directory in [cluster.run_dir(), cluster.agent_state_dir()] {
        left.extend(directory.exists().then(|| directory.display().to_string()));
    }
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_ends_all_tasks_and_leaves_nothing() {
    let mut cluster = Cluster::start().await;
    for script in [STUBBORN, POLITE] {
        cluster.running(script, |d| d["cpu"] = json!("128")).await;
    }
    let running = purge(&cluster, &["--yes"]);
    assert_eq!(running.status.code(), Some(1));
    assert!(said(&running).contains("stop it first"), "{}", said(&running));

    cluster.kill_agent();
    let unasked = purge(&cluster, &[]);
    assert_eq!(unasked.status.code(), Some(2), "{}", said(&unasked));
    assert!(!left(&cluster).is_empty());

    let purged = purge(&cluster, &["--yes"]);
    assert_eq!(purged.status.code(), Some(0), "{}", said(&purged));
    assert_eq!(left(&cluster), Vec::<String>::new());
    let namespaces = cluster.containerd.list("default", &["namespaces", "ls", "-q"]);
    assert!(!namespaces.contains(&cluster.instance), "{namespaces:?}");

    let again = purge(&cluster, &["--yes"]);
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_containerd_tasks_are_ended_by_their_cgroups() {
    let mut cluster = Cluster::start().await;
    cluster.running(POLITE, |_| {}).await;
    cluster.kill_agent();
    cluster.containerd.kill();
    let refused = purge(&cluster, &["--yes"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains("--without-containerd"),
        "{}",
        said(&refused)
    );

    let purged = purge(&cluster, &["--yes", "--without-containerd"]);
    assert_eq!(purged.status.code(), Some(0), "{}", said(&purged));
    // What containerd keeps on its disk stays until it is back.
    cluster.containerd.restart();
    let of_records = |line: &String| {
        ["container ", "snapshot ", "lease "]
            .iter()
            .any(|kind| line.starts_with(kind))
    };
    let mut left = left(&cluster);
    left.retain(|line| !of_records(line));
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_said_and_the_rest_is_removed() {
    let mut cluster = Cluster::start().await;
    let task = cluster.running(POLITE, |_| {}).await;
    cluster.kill_agent();
    // Without nft, links and namespaces go all the same; the table may be there.
    let blind = Command::new(binary("berth-agent"))
        .args(["purge", "--yes", "--config"])
        .arg(cluster.agent_config_file())
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(blind.status.code(), Some(1), "{}", said(&blind));
    assert!(said(&blind).contains("install nftables"), "{}", said(&blind));
    assert_eq!(cluster.pids(&task), Vec::<i32>::new());
    assert!(
        cluster.agent_state_dir().exists(),
        "a repetition needs what is in it"
    );
    let of_kernel = |line: &String| !line.contains("nft") && !line.starts_with('/');
    let mut kept = left(&cluster);
    kept.retain(of_kernel);
    assert_eq!(kept, Vec::<String>::new());

    let purged = purge(&cluster, &["--yes"]);
    assert_eq!(purged.status.code(), Some(0), "{}", said(&purged));
    assert_eq!(left(&cluster), Vec::<String>::new());
    // Where no agent ran in this boot, neither nft nor cgroups are needed.
    let nothing = Command::new("unshare")
        .args(["--mount", "sh", "-c"])
        .arg("umount --recursive --lazy /sys/fs/cgroup && PATH=/nonexistent exec \"$0\" purge --yes --config \"$1\"")
        .arg(binary("berth-agent"))
        .arg(cluster.agent_config_file())
        .output()
        .unwrap();
    assert_eq!(nothing.status.code(), Some(0), "{}", said(&nothing));
    for line in ["not looked at: cgroups: ", "not looked at: nftables table: "] {
        assert!(said(&nothing).contains(line), "{}", said(&nothing));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_containerd_is_away_the_rest_is_removed_and_a_repetition_ends_it() {
    let mut cluster = Cluster::start().await;
    let task = cluster.running(POLITE, |_| {}).await;
    cluster.kill_agent();
    cluster.containerd.kill();
    let refused = purge(&cluster, &["--yes"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).contains("could not be looked at"),
        "{}",
        said(&refused)
    );
    assert_eq!(cluster.pids(&task), Vec::<i32>::new());
    cluster.containerd.restart();
    let purged = purge(&cluster, &["--yes"]);
    assert_eq!(purged.status.code(), Some(0), "{}", said(&purged));
    assert_eq!(left(&cluster), Vec::<String>::new());
}
