//! Owns the usage files of one cgroup, v1 and v2. Never asks the runtime: its API costs a round trip through the shim.

use super::{
    Usage,
    kept::{Buffer, KeptFile},
    parse,
    pressure::PressureFiles,
};
use crate::effects::cgroups::Cgroups;

/// The files of one cgroup. None: the host has no such controller, or the figure is not wanted here.
#[derive(Debug)]
pub(super) struct CgroupFiles {
    v2: bool,
    /// v1 `cpuacct.usage`, ns; v2 has it in `cpu.stat`.
    cpu_usage: Option<KeptFile>,
    cpu_stat: Option<KeptFile>,
    memory_used: Option<KeptFile>,
    memory_stat: Option<KeptFile>,
    memory_limit: Option<KeptFile>,
    oom: Option<KeptFile>,
    pids: Option<KeptFile>,
    io: Option<KeptFile>,
    /// v2 only.
    pressure: Option<PressureFiles>,
}

impl CgroupFiles {
    /// Descriptors that [`CgroupFiles::workload`] keeps, at most.
    pub(super) const WORKLOAD_DESCRIPTORS: usize = 8 + PressureFiles::DESCRIPTORS;
    /// Descriptors that [`CgroupFiles::overhead`] keeps, at most.
    pub(super) const OVERHEAD_DESCRIPTORS: usize = 4;

    /// All figures of a cgroup that runs a workload. `keep`: with descriptors that stay open.
    pub(super) fn workload(cgroups: &Cgroups, path: &str, keep: bool) -> Self {
        let file = |controller: &str, v1: &str, v2: &str| {
            let name = if cgroups.version() == 2 { v2 } else { v1 };
            cgroups
                .directory(controller, path)
                .map(|dir| KeptFile::new(dir.join(name), keep))
        };
        Self {
            cpu_stat: file("cpu", "cpu.stat", "cpu.stat"),
            memory_limit: file("memory", "memory.limit_in_bytes", "memory.max"),
            oom: file("memory", "memory.oom_control", "memory.events.local"),
            pressure: (cgroups.version() == 2)
                .then(|| cgroups.directory("cpu", path))
                .flatten()
                .map(|dir| PressureFiles::of_cgroup(&dir, keep)),
            io: file("blkio", "blkio.throttle.io_service_bytes_recursive", "io.stat"),
            ..Self::overhead(cgroups, path, keep)
        }
    }

    /// CPU, memory and processes, for shim and loggers: they have no limits, so there is nothing to throttle or kill,
    /// and every kept file costs the kernel some memory.
    pub(super) fn overhead(cgroups: &Cgroups, path: &str, keep: bool) -> Self {
        let v2 = cgroups.version() == 2;
        let file = |controller: &str, v1: &str, v2_name: &str| {
            let name = if v2 { v2_name } else { v1 };
            cgroups
                .directory(controller, path)
                .map(|dir| KeptFile::new(dir.join(name), keep))
        };
        Self {
            v2,
            cpu_usage: (!v2).then(|| file("cpuacct", "cpuacct.usage", "")).flatten(),
            cpu_stat: v2.then(|| file("cpu", "", "cpu.stat")).flatten(),
            memory_used: file("memory", "memory.usage_in_bytes", "memory.current"),
            memory_stat: file("memory", "memory.stat", "memory.stat"),
            memory_limit: None,
            oom: None,
            pids: file("pids", "pids.current", "pids.current"),
            io: None,
            pressure: None,
        }
    }

    /// What the kernel says now; zeros for a cgroup that is not there.
    pub(super) fn read(&mut self, buffer: &mut Buffer) -> Usage {
        let pressure = self.pressure.as_mut().and_then(|files| files.read(buffer));
        let mut figure = |file: &mut Option<KeptFile>, parse: &dyn Fn(&str) -> u64| {
            file.as_mut().and_then(|file| file.read(buffer)).map_or(0, parse)
        };
        let inactive_key = if self.v2 {
            "inactive_file"
        } else {
            "total_inactive_file"
        };
        let inactive = figure(&mut self.memory_stat, &|text| parse::flat(text, inactive_key));
        let memory = figure(&mut self.memory_used, &parse::number);
        let mut usage = Usage {
            pressure,
            memory_used_bytes: memory.saturating_sub(inactive),
            memory_limit_bytes: figure(&mut self.memory_limit, &parse::number),
            oom_kills: figure(&mut self.oom, &|text| parse::flat(text, "oom_kill")),
            pids: figure(&mut self.pids, &parse::number),
            ..Usage::default()
        };
        if !self.v2 {
            usage.cpu_used_usec = figure(&mut self.cpu_usage, &parse::number) / 1000;
        }
        if let Some(stat) = self.cpu_stat.as_mut().and_then(|file| file.read(buffer)) {
            if self.v2 {
                usage.cpu_used_usec = parse::flat(stat, "usage_usec");
                usage.cpu_throttled_usec = parse::flat(stat, "throttled_usec");
            } else {
                usage.cpu_throttled_usec = parse::flat(stat, "throttled_time") / 1000;
            }
        }
        if let Some(io) = self.io.as_mut().and_then(|file| file.read(buffer)) {
            (usage.io_read_bytes, usage.io_write_bytes) = parse::io_bytes(io);
        }
        usage
    }
}
