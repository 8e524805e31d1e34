//! Owns the cgroups' part: what is in them, when containerd cannot say, and their removal.

use std::{collections::BTreeSet, path::Path, time::Instant};

use anyhow::Context as _;
use berth_agent_core::ids::TaskId;
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Left, POLL, STOP_GRACE, Settings};
use crate::effects::cgroups::Cgroups;

/// Below containerd's state directory, wherever that is: what shims mount, in a directory for each namespace.
const SHIMS: &str = "io.containerd.runtime.v2.task";
/// containerd's state directory unless it is told otherwise.
const CONTAINERD: &str = "/run/containerd";

fn tasks(cgroups: &Cgroups) -> anyhow::Result<Vec<TaskId>> {
    Ok(cgroups
        .list()?
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect())
}

/// The stop signal, a grace, SIGKILL; then the shims and loggers, and what they had mounted.
pub(super) async fn end_processes(settings: &Settings, left: &mut Left) {
    left.note("processes", end_below(&settings.cgroup_parent()).await);
    left.note("mounts", unmount(&settings.instance));
}

async fn end_below(parent: &str) -> anyhow::Result<()> {
    let cgroups = Cgroups::new(parent)?;
    let tasks = tasks(&cgroups)?;
    let of_containers = |task: &TaskId| {
        let rt = cgroups.rt_processes(task);
        let mut pids = cgroups.processes(task);
        pids.retain(|pid| u32::try_from(*pid).is_ok_and(|pid| !rt.contains(&pid)));
        pids
    };
    for pid in tasks.iter().flat_map(of_containers) {
        signal(pid, Signal::SIGTERM)?;
    }
    let began = Instant::now();
    while began.elapsed() < STOP_GRACE && tasks.iter().any(|task| !of_containers(task).is_empty()) {
        tokio::time::sleep(POLL).await;
    }
    for pid in tasks.iter().flat_map(of_containers) {
        signal(pid, Signal::SIGKILL)?;
    }
    for pid in tasks.iter().flat_map(|task| cgroups.processes(task)) {
        signal(pid, Signal::SIGKILL)?;
    }
    Ok(())
}

fn signal(pid: i32, signal: Signal) -> anyhow::Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("send {signal} to process {pid}")),
    }
}

/// The roots of containers, and then the directories of their shims.
fn unmount(instance: &str) -> anyhow::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(Path::new);
    let below = Path::new(SHIMS).join(instance);
    let mut bundles = BTreeSet::from([Path::new(CONTAINERD).join(&below)]);
    // The last mounted may be inside an earlier one.
    for point in points.collect::<Vec<_>>().into_iter().rev() {
        if let Some(bundle) = point.ancestors().find(|ancestor| ancestor.ends_with(&below)) {
            umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", point.display()))?;
            bundles.insert(bundle.to_owned());
        }
    }
    bundles
        .iter()
        .try_for_each(|bundle| super::remove_directory(bundle))
}

/// Every task's, and the parent.
pub(super) async fn remove(settings: &Settings, left: &mut Left) {
    left.note("cgroups", remove_below(&settings.cgroup_parent()).await);
}

async fn remove_below(parent: &str) -> anyhow::Result<()> {
    let cgroups = Cgroups::new(parent)?;
    for task in tasks(&cgroups)? {
        cgroups.remove_task(&task).await?;
    }
    cgroups.remove_parent()?;
    Ok(())
}
