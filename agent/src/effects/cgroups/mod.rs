//! A task's cgroups: `<parent>/<task>/rt` for shim and loggers, without limits; `<parent>/<task>/c` with the task's
//! limits; `<parent>/<task>/c/<container>`, which the runtime makes. Owns the first two, in every hierarchy, and the
//! removal of all three. Never limits a single container first: that is in its OCI spec, and is only kept up here.

mod error;
mod hierarchies;
mod kept;
mod limits;
mod parent;
mod tree;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use berth_agent_core::{
    desired::MemoryCeiling,
    ids::{ContainerId, TaskId},
};

pub use self::{
    error::CgroupError,
    hierarchies::{Hierarchies, Hierarchy},
    kept::{Repair, TaskLimits},
    limits::{CPU_PERIOD_USEC, HostResources, MEMORY_BYTES_MIN},
    parent::check_parent,
};

use super::shims;

use self::{hierarchies::read_small, kept::Kept, limits::Setting};

/// From the last container's deletion to the shim having left `rt`: normally under 50 ms.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);
/// Then its shims are ended: containerd has lost one (`shims`).
const SHIM_PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries to remove.
const REMOVE_PAUSE_MIN: Duration = Duration::from_millis(2);
const REMOVE_PAUSE_MAX: Duration = Duration::from_millis(50);
/// Process ids named in an error.
const PIDS_NAMED_MAX: usize = 16;
/// A `cgroup.procs` is read up to here, bytes: some 150,000 processes.
const PROCS_BYTES_MAX: u64 = 1024 * 1024;
/// Processes and threads of one task, unless the configuration says otherwise: as many as one container may have.
pub const TASK_PIDS_MAX_DEFAULT: u32 = 32_768;
/// Without one of these a task has no limits.
const CONTROLLERS_NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// The cgroups of one instance. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: std::sync::Arc<Hierarchies>,
    parent: String,
    host: HostResources,
    task_pids_max: u32,
    kept: Kept,
}

impl Cgroups {
    /// For the host's own hierarchies. `parent` is the cgroup, in each of them, that holds this instance's tasks: a path
    /// from the root, such as `/berth.slice`.
    ///
    /// # Errors
    /// When `parent` is no such path, no cgroup file system is mounted, or the kernel lacks a controller.
    pub fn new(parent: &str) -> Result<Self, CgroupError> {
        let hierarchies = Hierarchies::detect()?;
        if let Some(missing) = CONTROLLERS_NEEDED
            .into_iter()
            .find(|name| !hierarchies.offers(name))
        {
            return Err(CgroupError::ControllerOff { missing });
        }
        let cgroups = Self::with_hierarchies(hierarchies, parent)?;
        if cgroups.swap_escapes() {
            tracing::warn!(
                "this kernel does not limit swap per cgroup: a task can use swap beyond its memory limit. Boot it with \
                 swapaccount=1, or turn swap off"
            );
        }
        Ok(cgroups)
    }

    /// For the removal of what an instance left: also where this kernel could not limit a task.
    ///
    /// # Errors
    /// When `parent` is no path of a parent, or no cgroup file system is mounted.
    pub fn left_behind(parent: &str) -> Result<Self, CgroupError> {
        Self::with_hierarchies(Hierarchies::detect()?, parent)
    }

    /// How many processes and threads a task may have.
    pub fn task_pids_max(self, task_pids_max: u32) -> Self {
        Self {
            task_pids_max,
            ..self
        }
    }

    /// For hierarchies that are somewhere else.
    ///
    /// # Errors
    /// As [`Cgroups::new`].
    pub fn with_hierarchies(hierarchies: Hierarchies, parent: &str) -> Result<Self, CgroupError> {
        Ok(Self {
            hierarchies: hierarchies.into(),
            parent: check_parent(parent)?,
            host: HostResources::read()?,
            task_pids_max: TASK_PIDS_MAX_DEFAULT,
            kept: Kept::default(),
        })
    }

    /// 1 or 2. Hybrid hosts are 1: the controllers are there.
    pub fn version(&self) -> u8 {
        self.hierarchies.version()
    }

    /// What the host has: the most that a limit can ask for.
    pub fn host(&self) -> HostResources {
        self.host
    }

    fn task_path(&self, task: &TaskId) -> String {
        format!("{}/{task}", self.parent)
    }

    /// The cgroup that holds this instance's tasks.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// For runc's option ShimCgroup. Must exist when the shim starts.
    pub fn rt_path(&self, task: &TaskId) -> String {
        format!("{}/rt", self.task_path(task))
    }

    /// What carries the task's limits.
    pub fn limited_path(&self, task: &TaskId) -> String {
        format!("{}/c", self.task_path(task))
    }

    /// For `cgroupsPath` of a container's OCI spec.
    pub fn container_path(&self, task: &TaskId, container: &ContainerId) -> String {
        format!("{}/{container}", self.limited_path(task))
    }

    /// The directory in which a cgroup has the files of a controller. None: the host has no such controller.
    pub fn directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        Some(join(self.hierarchies.of(controller)?, path))
    }

    /// Ends every process of a container by its cgroup, which nothing that confines them can keep away: cgroup v2, Linux 5.14.
    /// False: this host cannot, or there is no such cgroup.
    pub fn kill_container(&self, task: &TaskId, container: &ContainerId) -> bool {
        let directory = self.directory("memory", &self.container_path(task, container));
        let file = directory.map(|directory| directory.join("cgroup.kill"));
        // Never made: on v1 there is no such file.
        file.is_some_and(|file| file.exists() && fs::write(file, "1").is_ok())
    }

    /// Makes a task's cgroups and sets its limits, again if they are there. Blocks for about 1 ms.
    ///
    /// # Errors
    /// Limits that this host cannot honour are refused before anything is made.
    pub fn create_task(&self, task: &TaskId, limits: impl Into<TaskLimits>) -> Result<(), CgroupError> {
        let limits = limits.into();
        self.host.check(&limits.ceilings)?;
        // First: the shim joins only those hierarchies in which it exists.
        tree::create(&self.hierarchies, &self.rt_path(task), true)?;
        let limited = self.limited_path(task);
        tree::create(&self.hierarchies, &limited, false)?;
        for (dir, setting) in self.settings(task, &limits) {
            if self.has(&dir, &setting) {
                limits::set(&dir, self.version() == 2, &setting)?;
            } else if setting.limits() {
                return Err(CgroupError::ControllerMissing {
                    controller: setting.controller(),
                    path: dir,
                });
            }
        }
        self.kept.put(task, limits);
        Ok(())
    }

    /// Everything that a task's own cgroups are given, and where.
    fn settings(&self, task: &TaskId, limits: &TaskLimits) -> Vec<(PathBuf, Setting)> {
        let (whole, limited) = (self.task_path(task), self.limited_path(task));
        let ceilings = &limits.ceilings;
        let wanted = [
            // Tasks compete where they are siblings.
            (&whole, Setting::CpuWeight(limits.cpu_shares)),
            (&limited, Setting::Cpu(ceilings.cpu_units)),
            (
                &limited,
                Setting::Memory(MemoryCeiling {
                    bytes: ceilings.memory_bytes,
                    swap_bytes: limits.swap_bytes,
                }),
            ),
            (&limited, Setting::Pids(self.task_pids_max.into())),
        ];
        let place = |(path, setting): (&String, Setting)| {
            // A controller without a hierarchy: the directory is said to be missing.
            let dir = self.directory(setting.controller(), path);
            (dir.unwrap_or_else(|| path.into()), setting)
        };
        wanted.into_iter().map(place).collect()
    }

    /// On v2, the controller's files are there only where it is enabled.
    fn has(&self, dir: &Path, setting: &Setting) -> bool {
        let files = setting.files(self.version() == 2);
        let first = files.first().map(|(name, _)| dir.join(name));
        first.is_some_and(|file| fs::exists(file).unwrap_or(false))
    }

    /// The host has swap, and no way to keep a task from it.
    fn swap_escapes(&self) -> bool {
        let has_swap = fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1);
        let limited = match self.version() {
            // Where the sum is not counted, a limited cgroup's swappiness is zero.
            1 => true,
            _ => self.hierarchies.all().iter().any(|h| {
                let children = tree::subdirectories(&h.mount).ok().flatten();
                let mut children = children.into_iter().flatten();
                // The root has no such file; where there is no child yet, it cannot be told.
                children.next().is_none_or(|first| {
                    std::iter::once(first)
                        .chain(children)
                        .any(|child| fs::exists(child.join("memory.swap.max")).unwrap_or(false))
                })
            }),
        };
        has_swap && !limited
    }

    /// Removes a task's cgroups in every hierarchy, once the shim has left, or was made to. Idempotent. Its containers are
    /// deleted.
    ///
    /// # Errors
    /// [`CgroupError::ProcessesRemain`] at the deadline, with their ids.
    pub async fn remove_task(&self, task: &TaskId) -> Result<(), CgroupError> {
        self.kept.forget(task);
        let start = Instant::now();
        let (mut pause, mut patient) = (REMOVE_PAUSE_MIN, true);
        loop {
            let (cgroups, id) = (self.clone(), task.clone());
            let attempt = tokio::task::spawn_blocking(move || cgroups.try_remove(&id));
            let attempt = attempt.await;
            if attempt.map_err(|_| CgroupError::Interrupted { task: task.clone() })?? {
                return Ok(());
            }
            if start.elapsed() > REMOVE_DEADLINE {
                let mut pids = self.processes(task);
                pids.truncate(PIDS_NAMED_MAX);
                return Err(CgroupError::ProcessesRemain {
                    task: task.clone(),
                    pids,
                    waited: REMOVE_DEADLINE,
                });
            }
            if patient && start.elapsed() > SHIM_PATIENCE {
                patient = false;
                let lost = self
                    .processes(task)
                    .into_iter()
                    .filter(|&pid| shims::is_shim(pid));
                // Not its loggers, which still have something to write if they are there.
                for pid in lost {
                    // Whether it worked is seen in the next round.
                    let _ = tokio::task::spawn_blocking(move || shims::end(pid)).await;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REMOVE_PAUSE_MAX);
        }
    }

    /// Goes through all hierarchies even when one is busy; true when none of the task is left.
    fn try_remove(&self, task: &TaskId) -> Result<bool, CgroupError> {
        let path = self.task_path(task);
        let mut clear = true;
        for hierarchy in self.hierarchies.all() {
            clear &= tree::remove(&join(&hierarchy.mount, &path))?;
        }
        Ok(clear)
    }

    /// Processes that the kernel killed in this container for want of memory, since its cgroup was made: the victim's
    /// own counter. Zero when the cgroup is gone.
    pub fn oom_kills(&self, task: &TaskId, container: &ContainerId) -> u64 {
        let file = match self.version() {
            1 => "memory.oom_control",
            _ => "memory.events.local",
        };
        let dir = self.directory("memory", &self.container_path(task, container));
        let content = dir.and_then(|dir| read_small(&dir.join(file)).ok());
        content.and_then(|text| flat_key(&text, "oom_kill")).unwrap_or(0)
    }

    /// Names of the directories below the parent in any hierarchy, ordered: tasks, and whatever else is there.
    ///
    /// # Errors
    /// When a hierarchy cannot be listed; never a partial list.
    pub fn list(&self) -> Result<Vec<String>, CgroupError> {
        let mut names = BTreeSet::new();
        for hierarchy in self.hierarchies.all() {
            let dirs = tree::subdirectories(&join(&hierarchy.mount, &self.parent))?;
            for dir in dirs.into_iter().flatten() {
                names.extend(dir.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        Ok(names.into_iter().collect())
    }

    /// The ids of all processes in the task's cgroups, shim and loggers included, ordered.
    pub fn processes(&self, task: &TaskId) -> Vec<i32> {
        let path = self.task_path(task);
        let all = self.hierarchies.all().iter();
        let pids: BTreeSet<i32> = all
            .flat_map(|h| tree::processes(&join(&h.mount, &path)))
            .collect();
        pids.into_iter().collect()
    }

    /// Shim and loggers of the task, ordered.
    pub fn rt_processes(&self, task: &TaskId) -> Vec<u32> {
        let path = self.rt_path(task);
        let all = self.hierarchies.all().iter();
        let pids: BTreeSet<i32> = all
            .flat_map(|h| tree::processes(&join(&h.mount, &path)))
            .collect();
        pids.into_iter()
            .filter_map(|pid| u32::try_from(pid).ok())
            .collect()
    }

    /// Moves a process beside the task's shim, in every hierarchy.
    ///
    /// # Errors
    /// When the kernel refuses: the process or the cgroup is gone.
    pub fn move_to_rt(&self, task: &TaskId, pid: u32) -> Result<(), CgroupError> {
        let path = self.rt_path(task);
        for hierarchy in self.hierarchies.all() {
            let procs = join(&hierarchy.mount, &path).join("cgroup.procs");
            fs::write(&procs, pid.to_string()).map_err(tree::failed("write", &procs))?;
        }
        Ok(())
    }

    /// Removes the parent in every hierarchy, on a private agent's way out. Idempotent.
    ///
    /// # Errors
    /// When there is still something in it.
    pub fn remove_parent(&self) -> Result<(), CgroupError> {
        for hierarchy in self.hierarchies.all() {
            let dir = join(&hierarchy.mount, &self.parent);
            match fs::remove_dir(&dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(tree::failed("remove", &dir)(e)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn join(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// The value of a line `key value`.
fn flat_key(text: &str, key: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value)
}

/// A `cgroup.procs`; one that is gone holds nobody. 0 is a process of another pid namespace: not ours to name.
fn read_pids(path: &Path) -> Vec<i32> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(PROCS_BYTES_MAX).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    text.lines()
        .filter_map(|line| line.parse().ok())
        .filter(|&pid| pid > 0)
        .collect()
}
