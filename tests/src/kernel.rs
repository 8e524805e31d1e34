//! Owns what the kernel says of a task's cgroups, on cgroup v1 and v2 alike. Asks the kernel's files, never the agent.

use std::path::PathBuf;

use crate::cluster::Cluster;

/// A limit, as the kernel enforces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Bytes.
    Memory,
    /// Bytes of swap, beyond memory.
    Swap,
    /// Microseconds of CPU time in 100 ms.
    CpuQuota,
    /// v1's shares; v2's weight, 1 to 10000.
    CpuWeight,
    /// Processes and threads.
    Pids,
}

/// Whether this host has cgroup v2.
pub fn is_v2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

impl Cluster {
    /// A limit of the cgroup `below` the task's (`""`, `"c"`, `"c/<container id>"`). None: there is none.
    pub fn limit(&self, task: &str, below: &str, limit: Limit) -> Option<u64> {
        let number = |controller: &str, file: &str| -> Option<u64> {
            let path = self.cgroup(controller, task).join(below).join(file);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let first = text.split_whitespace().next().unwrap();
            // v1 writes -1, or its largest number.
            first.parse().ok().filter(|n| *n < u64::MAX / 4)
        };
        match (limit, is_v2()) {
            (Limit::Memory, false) => number("memory", "memory.limit_in_bytes"),
            (Limit::Memory, true) => number("memory", "memory.max"),
            (Limit::Swap, true) => number("memory", "memory.swap.max"),
            (Limit::Swap, false) => {
                let with_swap = self
                    .cgroup("memory", task)
                    .join(below)
                    .join("memory.memsw.limit_in_bytes");
                if with_swap.exists() {
                    let sum = number("memory", "memory.memsw.limit_in_bytes")?;
                    return Some(sum - self.limit(task, below, Limit::Memory)?);
                }
                // Nothing of it is swapped out.
                number("memory", "memory.swappiness").filter(|swappiness| *swappiness == 0)
            }
            (Limit::CpuQuota, false) => number("cpu", "cpu.cfs_quota_us"),
            (Limit::CpuQuota, true) => number("cpu", "cpu.max"),
            (Limit::CpuWeight, false) => number("cpu", "cpu.shares"),
            (Limit::CpuWeight, true) => number("cpu", "cpu.weight"),
            (Limit::Pids, _) => number("pids", "pids.max"),
        }
    }

    /// Takes a task's memory limit away, as somebody might who does not know whose it is.
    pub fn take_memory_limit_away(&self, task: &str) {
        let dir = self.cgroup("memory", task).join("c");
        let files: [(&str, &str); 2] = if is_v2() {
            [("memory.max", "max"), ("memory.swap.max", "max")]
        } else {
            [
                ("memory.memsw.limit_in_bytes", "-1"),
                ("memory.limit_in_bytes", "-1"),
            ]
        };
        for (file, none) in files {
            let path: PathBuf = dir.join(file);
            if path.exists() {
                std::fs::write(path, none).unwrap();
            }
        }
    }

    /// Processes and threads of all containers of the task.
    pub fn pids_in_use(&self, task: &str) -> u64 {
        let path = self.cgroup("pids", task).join("c/pids.current");
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }
}
