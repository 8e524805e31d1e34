//! The task's cgroup directories, made by hand as the agent's cgroups effect makes them, and removed again.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{sys::signal::Signal, unistd::Pid};

const ROOT: &str = "/sys/fs/cgroup";

/// 2 where the unified hierarchy is mounted at the root.
pub fn version() -> u8 {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        2
    } else {
        1
    }
}

/// The root of every hierarchy.
fn hierarchies() -> Vec<PathBuf> {
    if version() == 2 {
        return vec![ROOT.into()];
    }
    fs::read_dir(ROOT)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|p| p.join("cgroup.procs").exists())
        .collect()
}

/// A file of the first hierarchy that has it.
pub fn read(cgroup: &str, file: &str) -> Option<String> {
    hierarchies()
        .iter()
        .find_map(|root| fs::read_to_string(root.join(&cgroup[1..]).join(file)).ok())
        .map(|s| s.trim().to_owned())
}

pub fn make(cgroup: &str) {
    for root in hierarchies() {
        let mut path = root.clone();
        for part in cgroup.split('/').filter(|part| !part.is_empty()) {
            let above = path.clone();
            path.push(part);
            if path.exists() {
                continue;
            }
            fs::create_dir(&path).unwrap();
            // Nothing can join a v1 cpuset without these.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if path.join(file).exists() && version() == 1 {
                    fs::write(path.join(file), fs::read(above.join(file)).unwrap()).unwrap();
                }
            }
        }
    }
}

/// Every process in the cgroup and below, in any hierarchy.
pub fn processes(cgroup: &str) -> Vec<i32> {
    let mut found: Vec<i32> = hierarchies()
        .iter()
        .flat_map(|root| below(&root.join(&cgroup[1..])))
        .flat_map(|dir| {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            text.lines()
                .filter_map(|line| line.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Deepest first.
fn below(directory: &Path) -> Vec<PathBuf> {
    let children = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = children
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .flat_map(|path| below(&path))
        .collect();
    if directory.exists() {
        all.push(directory.to_owned());
    }
    all
}

/// Kills what is inside and removes the directories.
pub fn clear(cgroup: &str) {
    for _ in 0..100 {
        let alive = processes(cgroup);
        for pid in &alive {
            let _ = nix::sys::signal::kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let all: Vec<PathBuf> = hierarchies()
            .iter()
            .flat_map(|root| below(&root.join(&cgroup[1..])))
            .collect();
        if all.iter().filter(|dir| fs::remove_dir(dir).is_err()).count() == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
