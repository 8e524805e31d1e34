//! Owns the `/dev/shm` that containers of a task share: a file system in memory below the run directory, charged to who
//! writes to it. Never mounts into a container: the runtime does.

use std::{
    io,
    path::{Path, PathBuf},
};

use berth_agent_core::ids::TaskId;

use super::volumes::mounts;

/// Below the run directory, which a boot empties.
const DIRECTORY: &str = "shm";

fn root(run_dir: &Path) -> PathBuf {
    run_dir.join(DIRECTORY)
}

/// Of one task.
pub fn path(run_dir: &Path, task: &TaskId) -> PathBuf {
    root(run_dir).join(task.as_str())
}

/// Mounts it, with Docker's options. Idempotent: one that is there keeps its size.
///
/// # Errors
/// The kernel's.
pub fn make(run_dir: &Path, task: &TaskId, bytes: u64) -> io::Result<()> {
    let path = path(run_dir, task);
    std::fs::create_dir_all(&path)?;
    let size = format!("size={bytes}");
    let options = ["nosuid", "noexec", "nodev", "mode=1777", &size];
    mounts::memory(&path, &options.map(str::to_owned))
}

/// Takes it away with what is in it. Idempotent.
///
/// # Errors
/// The kernel's.
pub fn remove(run_dir: &Path, task: &TaskId) -> io::Result<()> {
    let path = path(run_dir, task);
    if !path.exists() {
        return Ok(());
    }
    mounts::unmount_all(&path)?;
    match std::fs::remove_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Those of all tasks: before the run directory is removed. Idempotent.
///
/// # Errors
/// The kernel's.
pub fn remove_all(run_dir: &Path) -> io::Result<()> {
    let root = root(run_dir);
    if !root.exists() {
        return Ok(());
    }
    mounts::unmount_all(&root)?;
    std::fs::remove_dir_all(&root)
}

/// Where all of them are, for the audit.
pub fn directory(run_dir: &Path) -> PathBuf {
    root(run_dir)
}
