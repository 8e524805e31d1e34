//! Owns what can go wrong with a task's cgroups, and whether trying again may help.

use std::{io, path::PathBuf, time::Duration};

use berth_agent_core::ids::TaskId;

use crate::effects::network::Retry;

/// Why something about cgroups could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cgroup parent {parent:?} {problem}")]
    Parent { parent: String, problem: &'static str },
    #[error("no cgroup file system is mounted")]
    NotMounted,
    #[error(
        "this kernel does not offer the cgroup controller {missing}, without which tasks cannot be limited: boot it with \
         cgroup_enable={missing} (and without cgroup_disable={missing}) on its command line"
    )]
    ControllerOff { missing: &'static str },
    #[error("controller {controller} is not available in {}", path.display())]
    ControllerMissing { controller: &'static str, path: PathBuf },
    #[error("memory limit of {asked} bytes is more than this host has: {available} bytes")]
    MemoryAboveHost { asked: u64, available: u64 },
    #[error("memory limit of {asked} bytes is less than any process needs: at least {least} bytes")]
    MemoryBelowLeast { asked: u64, least: u64 },
    #[error("CPU limit of {asked} units is more than this host has: {available} units")]
    CpuAboveHost { asked: u32, available: u32 },
    #[error("{step} {}", path.display())]
    Io {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("write {value:?} to {}", path.display())]
    Write {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error("processes {pids:?} of task {task} remain after {waited:?}")]
    ProcessesRemain {
        task: TaskId,
        /// The first few.
        pids: Vec<i32>,
        waited: Duration,
    },
    #[error("the blocking operation on task {task} was interrupted")]
    Interrupted { task: TaskId },
}

impl CgroupError {
    /// Exhaustive on purpose: a new variant must choose.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Parent { .. }
            | Self::NotMounted
            | Self::ControllerOff { .. }
            | Self::ControllerMissing { .. }
            | Self::MemoryAboveHost { .. }
            | Self::MemoryBelowLeast { .. }
            | Self::CpuAboveHost { .. } => Retry::Never,
            Self::Io { .. }
            | Self::Write { .. }
            | Self::ProcessesRemain { .. }
            | Self::Interrupted { .. } => Retry::Backoff,
        }
    }
}
