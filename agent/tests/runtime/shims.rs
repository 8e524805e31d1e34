//! Shims that containerd has lost. They are real ones, lost on purpose.

use std::{
    fs,
    process::{Command, Stdio},
};

use berth_agent_core::{effect::StartContainer, event::ObservedState, ids::runtime_id, oci};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use serde_json::json;

use crate::host::{Host, eventually, unique_id};

/// As containerd starts one, and then, its call cut off, takes away what it was given: nobody ever reads its log, which it waits
/// for. Its process id.
async fn lose_a_shim(host: &Host, request: &StartContainer) -> i32 {
    lose(host, request, &["containerd-shim-runc-v2"]).await
}

async fn lose(host: &Host, request: &StartContainer, program: &[&str]) -> i32 {
    let id = runtime_id(&request.spec.id, request.attempt);
    let bundle = host.directory.path().join("bundle").join(&id);
    fs::create_dir_all(&bundle).unwrap();
    mkfifo(&bundle.join("log"), Mode::S_IRWXU).unwrap();
    let spec = json!({ "annotations": { oci::SHIM_GROUP: request.task.as_str() } });
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let socket = host.directory.path().join("containerd.sock");
    let started = Command::new(program[0])
        .args(&program[1..])
        .args(["-namespace", &host.config.namespace, "-id", &id, "-address"])
        .arg(&socket)
        .arg("start")
        .current_dir(&bundle)
        .env("TTRPC_ADDRESS", format!("{}.ttrpc", socket.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(started.status.success(), "{started:?}");
    let pid = eventually("the shim waits for a reader of its log", async || {
        let is_log = |link: &std::path::PathBuf| link.ends_with("log");
        shims(&id).into_iter().find(|pid| {
            let open = fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten()
                .flatten();
            open.filter_map(|entry| fs::read_link(entry.path()).ok())
                .any(|link| is_log(&link))
        })
    })
    .await;
    fs::remove_dir_all(&bundle).unwrap();
    pid
}

/// Those that were started for a container.
fn shims(id: &str) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_its = |pid: &i32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("containerd-shim") && line.split('\0').any(|word| word == id)
    };
    pids.filter(is_its).collect()
}

fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_cut_off_does_not_keep_the_next_one_waiting() {
    let host = Host::start().await;
    let request = host.request("echo here");
    let id = runtime_id(&request.spec.id, request.attempt);
    host.ctr(&["snapshots", "prepare", &id, &request.image.chain_id]);
    let lost = lose_a_shim(&host, &request).await;
    assert_eq!(host.output(&request).await, "here\n");
    assert!(!lives(lost));
    assert_eq!(host.leftovers(&request), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_leaves_no_shim_of_a_start_that_was_cut_off() {
    let host = Host::start().await;
    let request = host.request("true");
    let lost = lose_a_shim(&host, &request).await;
    host.remove(&request).await;
    assert!(!lives(lost));
}

/// A container may have processes that look like a shim from outside.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_see_the_hosts_files_is_no_shim() {
    let host = Host::start().await;
    let request = host.request("true");
    let elsewhere = ["unshare", "--mount", "containerd-shim-runc-v2"];
    let stranger = lose(&host, &request, &elsewhere).await;
    host.remove(&request).await;
    let spared = lives(stranger);
    kill(Pid::from_raw(stranger), Signal::SIGKILL).unwrap();
    assert!(spared);
}

/// Containers of a task share a shim: it is not lost because the one that it was started for is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_serves_another_container_stays() {
    let host = Host::start().await;
    let first = host.request("sleep 1000");
    host.started(&first).await;
    let mut second = first.clone();
    second.spec.id = unique_id().parse().unwrap();
    second.spec.name = "side".into();
    let other = host.started(&second).await;
    host.remove(&first).await;
    // As a repetition that finds nothing any more.
    host.remove(&first).await;
    assert_eq!(shims(&runtime_id(&first.spec.id, first.attempt)).len(), 1);
    assert_eq!(
        host.state(&second).await,
        Some(ObservedState::Running { pid: other.pid })
    );
    host.remove(&second).await;
}
