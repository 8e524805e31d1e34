//! Owns the cgroups' part: what is in them, when containerd cannot say, and their removal.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use berth_agent_core::ids::TaskId;
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Outcome, POLL, STOP_GRACE};
use crate::{
    effects::{
        cgroups::{CgroupError, Cgroups},
        shims::is_shim,
    },
    place::Place,
    sys::Chain,
};

/// Below containerd's state directory, wherever that is: what shims mount, in a directory for each namespace.
const SHIMS: &str = "io.containerd.runtime.v2.task";
/// containerd's state directory unless it is told otherwise.
const CONTAINERD: &str = "/run/containerd";
/// For loggers to write what is left in their pipes.
const LOGGERS_LIMIT: Duration = Duration::from_secs(2);

/// By their directories.
pub(crate) fn tasks(cgroups: &Cgroups) -> anyhow::Result<Vec<TaskId>> {
    Ok(cgroups
        .list()?
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect())
}

/// The instance's cgroups; `None` where no cgroup file system is mounted, which `outcome` is told.
pub(super) fn open(place: &Place, outcome: &mut Outcome) -> Option<Cgroups> {
    match Cgroups::left_behind(&place.cgroup_parent()) {
        Ok(cgroups) => return Some(cgroups),
        Err(error @ CgroupError::NotMounted) => {
            let advice = format!("{}: mount cgroups, or reboot, and repeat this", Chain(&error));
            outcome.unseen(place, "cgroups", &advice);
        }
        Err(error) => outcome.note("cgroups", Err(error.into())),
    }
    None
}

/// The stop signal, a grace, SIGKILL; then the shims and loggers, and what they had mounted.
pub(super) async fn end_processes(place: &Place, outcome: &mut Outcome) {
    if let Some(cgroups) = open(place, outcome) {
        outcome.note("processes", end_below(&cgroups, STOP_GRACE).await.map(drop));
    }
    outcome.note("mounts", unmount(&place.instance));
}

/// Ends what is in the tasks' cgroups: SIGTERM for the containers' processes and SIGKILL after `grace`; then the shims, and
/// the loggers once they have written what containers said. The tasks that had processes.
///
/// # Errors
/// The cgroups cannot be listed, or a process cannot be signalled. Ends without having waited for the last of them.
pub(crate) async fn end_below(cgroups: &Cgroups, grace: Duration) -> anyhow::Result<Vec<TaskId>> {
    let mut tasks = tasks(cgroups)?;
    tasks.retain(|task| !cgroups.processes(task).is_empty());
    let of_containers = |task: &TaskId| {
        let rt = cgroups.rt_processes(task);
        let mut pids = cgroups.processes(task);
        pids.retain(|pid| u32::try_from(*pid).is_ok_and(|pid| !rt.contains(&pid)));
        pids
    };
    for pid in tasks.iter().flat_map(of_containers) {
        signal(pid, Signal::SIGTERM)?;
    }
    wait_while(grace, || tasks.iter().any(|task| !of_containers(task).is_empty())).await;
    for pid in tasks.iter().flat_map(of_containers) {
        signal(pid, Signal::SIGKILL)?;
    }
    let all = || tasks.iter().flat_map(|task| cgroups.processes(task));
    // A logger ends by itself once nobody has its pipes any more.
    for pid in all().filter(|pid| is_shim(*pid)) {
        signal(pid, Signal::SIGKILL)?;
    }
    wait_while(LOGGERS_LIMIT, || all().next().is_some()).await;
    for pid in all() {
        signal(pid, Signal::SIGKILL)?;
    }
    Ok(tasks)
}

async fn wait_while(limit: Duration, goes_on: impl Fn() -> bool) {
    let began = Instant::now();
    while began.elapsed() < limit && goes_on() {
        tokio::time::sleep(POLL).await;
    }
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
pub(super) async fn remove(cgroups: &Cgroups) -> anyhow::Result<()> {
    for task in tasks(cgroups)? {
        cgroups.remove_task(&task).await?;
    }
    cgroups.remove_parent()?;
    Ok(())
}
