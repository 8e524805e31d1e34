//! Owns the making and removing of cgroup directories. Never follows a link and never goes deeper than its bounds.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    CONTROLLERS_NEEDED,
    error::CgroupError,
    hierarchies::{Hierarchies, Hierarchy, read_small},
};

/// Below a task: `c`, the container, and what a container's own init makes in there.
const DEPTH_MAX: usize = 16;
/// Directories looked at in one cgroup.
const ENTRIES_MAX: usize = 10_000;
/// What a task's cgroups can need on v2. Those the host has are enabled, all the way down. Besides those that limits are made
/// of: usage (`io`), and what a runtime may want (`cpuset`).
const CONTROLLERS_V2: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// Makes `path` (relative to the hierarchies' roots) and everything above it, in every hierarchy that can hold a task's
/// processes. `leaf`: on v2 it will hold processes itself, so it hands no controllers down. Idempotent.
pub(super) fn create(hierarchies: &Hierarchies, path: &str, leaf: bool) -> Result<(), CgroupError> {
    let v2 = hierarchies.version() == 2;
    for hierarchy in hierarchies.all() {
        // Beside v1, the unified hierarchy has no controllers and nothing of ours joins it.
        if hierarchy.unified && !v2 {
            continue;
        }
        create_in(hierarchy, path, leaf)?;
    }
    Ok(())
}

fn create_in(hierarchy: &Hierarchy, path: &str, leaf: bool) -> Result<(), CgroupError> {
    let mut dir = hierarchy.mount.clone();
    if hierarchy.unified {
        enable_controllers(&dir)?;
    }
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    for (index, segment) in segments.iter().enumerate() {
        let parent = dir.clone();
        dir.push(segment);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed("create", &dir)(e)),
            _ => {}
        }
        if hierarchy.unified && !(leaf && index + 1 == segments.len()) {
            enable_controllers(&dir)?;
        }
        if hierarchy
            .controllers
            .iter()
            .any(|controller| controller == "cpuset")
        {
            inherit_cpuset(&parent, &dir)?;
        }
    }
    Ok(())
}

/// Hands every controller that the directory has down to its children. systemd takes controllers away from a slice when
/// it reloads, unless a child has them enabled: so this is repeated at each task start, and every task hands down what it
/// uses itself.
fn enable_controllers(dir: &Path) -> Result<(), CgroupError> {
    let control = dir.join("cgroup.subtree_control");
    let available_file = dir.join("cgroup.controllers");
    let available = read_small(&available_file).map_err(failed("read", &available_file))?;
    let enabled = read_small(&control).map_err(failed("read", &control))?;
    let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    let missing = CONTROLLERS_V2
        .iter()
        .filter(|name| has(&available, name) && !has(&enabled, name));
    let missing: Vec<String> = missing.map(|name| format!("+{name}")).collect();
    if missing.is_empty() || fs::write(&control, missing.join(" ")).is_ok() {
        return Ok(());
    }
    // All or nothing, says the kernel: one that cannot be had must not keep the others away.
    for value in missing {
        match fs::write(&control, &value) {
            Err(source) if CONTROLLERS_NEEDED.contains(&&value[1..]) => {
                let path = control;
                return Err(CgroupError::Write { path, value, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A new v1 cpuset is empty and takes no process: it gets its parent's CPUs and memory nodes.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(name), dir.join(name));
        let own = read_small(&to).map_err(failed("read", &to))?;
        if own.trim().is_empty() {
            let value = read_small(&from).map_err(failed("read", &from))?;
            fs::write(&to, value.trim()).map_err(|source| CgroupError::Write {
                path: to,
                value,
                source,
            })?;
        }
    }
    Ok(())
}

/// Removes `dir` and all cgroups below it, deepest first. Idempotent; false while one of them is in use.
pub(super) fn remove(dir: &Path) -> Result<bool, CgroupError> {
    let mut all = Vec::new();
    walk(dir, 0, &mut all)?;
    let mut clear = true;
    for dir in all.iter().rev() {
        match fs::remove_dir(dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // Busy: processes. Not empty: a child is busy, or was made meanwhile.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => clear = false,
            Err(e) => return Err(failed("remove", dir)(e)),
        }
    }
    Ok(clear)
}

/// The processes in `dir` and below, in no order, some perhaps twice.
pub(super) fn processes(dir: &Path) -> Vec<i32> {
    let mut all = Vec::new();
    // What cannot be read has just gone: it holds no process.
    let _ = walk(dir, 0, &mut all);
    let read = |dir: &PathBuf| super::read_pids(&dir.join("cgroup.procs"));
    all.iter().flat_map(read).collect()
}

/// `dir` and every directory below it, parents first. A missing one is no error: cgroups come and go.
fn walk(dir: &Path, depth: usize, all: &mut Vec<PathBuf>) -> Result<(), CgroupError> {
    let children = subdirectories(dir)?;
    let Some(children) = children else {
        return Ok(());
    };
    all.push(dir.to_owned());
    if depth < DEPTH_MAX {
        for child in children {
            walk(&child, depth + 1, all)?;
        }
    }
    Ok(())
}

/// The cgroups directly below `dir`; None when `dir` does not exist.
pub(super) fn subdirectories(dir: &Path) -> Result<Option<Vec<PathBuf>>, CgroupError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("list", dir)(e)),
    };
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let found = entries.filter_map(Result::ok).filter(is_dir);
    Ok(Some(found.take(ENTRIES_MAX).map(|entry| entry.path()).collect()))
}

pub(super) fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { step, path, source }
}
