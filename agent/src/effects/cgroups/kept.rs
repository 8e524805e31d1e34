//! Owns what tasks' limits should be, and brings them back where they are not: a service manager that reloads, or a person,
//! may have changed them. Never makes a cgroup that is gone, and never limits what it was not told of.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use berth_agent_core::{
    desired::{Limits, MemoryCeiling},
    ids::{ContainerId, TaskId},
    oci::PIDS_MAX_DEFAULT,
};

use super::{
    Cgroups,
    error::CgroupError,
    hierarchies::read_small,
    limits::{self, Setting},
    tree,
};

/// What a task may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskLimits {
    /// Of all its containers together.
    pub ceilings: Limits,
    /// Swap beyond its ceiling of memory, bytes.
    pub swap_bytes: u64,
    /// Its weight against other tasks, in CPU units. Zero is the least.
    pub cpu_shares: u32,
}

impl From<&Limits> for TaskLimits {
    /// A task weighs what it may use.
    fn from(ceilings: &Limits) -> Self {
        Self {
            ceilings: *ceilings,
            swap_bytes: 0,
            cpu_shares: ceilings.cpu_units,
        }
    }
}

/// A value that was not what it was set to, and is again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    pub file: PathBuf,
    pub found: String,
    pub wanted: String,
}

/// What is known of every task that has cgroups. Shared by all clones.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    tasks: Arc<Mutex<BTreeMap<TaskId, KeptTask>>>,
    repairs: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct KeptTask {
    limits: TaskLimits,
    /// Those that run, and their own ceilings of memory.
    containers: BTreeMap<ContainerId, MemoryCeiling>,
    /// Files whose change was logged.
    told: BTreeSet<PathBuf>,
}

impl Kept {
    fn tasks(&self) -> MutexGuard<'_, BTreeMap<TaskId, KeptTask>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, task: &TaskId, limits: TaskLimits) {
        self.tasks().entry(task.clone()).or_default().limits = limits;
    }

    pub(super) fn forget(&self, task: &TaskId) {
        self.tasks().remove(task);
    }
}

impl Cgroups {
    /// Answers from now on for the limits of a task whose cgroups an earlier run of the agent made.
    pub fn keep(&self, task: &TaskId, limits: impl Into<TaskLimits>) {
        self.kept.put(task, limits.into());
    }

    /// Answers from now on for a container that runs, too; `memory` is its own ceiling.
    pub fn keep_container(&self, task: &TaskId, container: &ContainerId, memory: MemoryCeiling) {
        if let Some(kept) = self.kept.tasks().get_mut(task) {
            kept.containers.insert(container.clone(), memory);
        }
    }

    /// Its cgroup is about to go.
    pub fn forget_container(&self, task: &TaskId, container: &ContainerId) {
        if let Some(kept) = self.kept.tasks().get_mut(task) {
            kept.containers.remove(container);
        }
    }

    /// How many values had to be brought back since the agent started.
    pub fn repairs(&self) -> u64 {
        self.kept.repairs.load(Relaxed)
    }

    /// Brings back what was changed of every task; how many values that were. Blocks for some 50 µs per task.
    pub fn reassert_all(&self) -> usize {
        let tasks: Vec<TaskId> = self.kept.tasks().keys().cloned().collect();
        tasks.iter().map(|task| self.reassert(task)).sum()
    }

    /// Brings back what was changed of one task's limits, and of its containers'; how many values that were. One that is not
    /// known, or whose cgroup is gone, has none.
    pub fn reassert(&self, task: &TaskId) -> usize {
        // Held throughout: removal forgets the task first, so that nothing is made again behind its back.
        let mut tasks = self.kept.tasks();
        let Some(kept) = tasks.get_mut(task) else {
            return 0;
        };
        let mut repairs = Vec::new();
        if let Err(error) = self.repair(task, kept, &mut repairs) {
            tracing::warn!(%task, error = %crate::sys::Chain(&error), "cannot bring back the task's limits");
        }
        self.kept.repairs.fetch_add(repairs.len() as u64, Relaxed);
        for Repair { file, found, wanted } in &repairs {
            if kept.told.insert(file.clone()) {
                tracing::warn!(%task, file = %file.display(), %found, %wanted, "somebody changed a limit; it is set again. Said once");
            }
        }
        repairs.len()
    }

    fn repair(&self, task: &TaskId, kept: &KeptTask, repairs: &mut Vec<Repair>) -> Result<(), CgroupError> {
        let limited = self.limited_path(task);
        let there = self
            .directory("memory", &limited)
            .is_some_and(|dir| std::fs::exists(dir).unwrap_or(false));
        if !there {
            return Ok(());
        }
        // Controllers that were taken away took the limits' files along.
        tree::create(&self.hierarchies, &limited, false)?;
        for setting in self.settings(task, &kept.limits) {
            self.repair_one(&setting, repairs)?;
        }
        for (container, memory) in &kept.containers {
            let path = self.container_path(task, container);
            for (controller, setting) in [
                ("memory", Setting::Memory(*memory)),
                ("pids", Setting::Pids(PIDS_MAX_DEFAULT.unsigned_abs())),
            ] {
                if let Some(dir) = self.directory(controller, &path) {
                    self.repair_one(&(dir, setting), repairs)?;
                }
            }
        }
        Ok(())
    }

    /// A file that is not there is a controller that this host lacks, or a container that has just gone.
    fn repair_one(
        &self,
        (dir, setting): &(PathBuf, Setting),
        repairs: &mut Vec<Repair>,
    ) -> Result<(), CgroupError> {
        let before = repairs.len();
        for (name, wanted) in setting.files(self.version() == 2) {
            let file = dir.join(name);
            let Ok(found) = read_small(&file) else {
                continue;
            };
            if !wanted.is(found.trim()) {
                repairs.push(Repair {
                    file,
                    found: found.trim().to_owned(),
                    wanted: wanted.to_string(),
                });
            }
        }
        if repairs.len() > before {
            limits::set(dir, self.version() == 2, setting)?;
        }
        Ok(())
    }
}
