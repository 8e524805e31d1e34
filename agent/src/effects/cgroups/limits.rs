//! Owns the translation of limits into cgroup files, and the check that a host can honour them. Writes CPU and memory
//! through the `cgroups-rs` controllers.
//!
//! | | v1 | v2 |
//! |---|---|---|
//! | CPU ceiling | `cpu.cfs_quota_us` of 100 ms | `cpu.max` |
//! | CPU weight | `cpu.shares` | `cpu.weight`, converted as runc does |
//! | memory ceiling | `memory.limit_in_bytes` | `memory.max` |
//! | swap beyond it, none unless asked for | `memory.memsw.limit_in_bytes` the sum, or swappiness 0 | `memory.swap.max` |
//! | processes | `pids.max` | `pids.max` |
//!
//! `memory.high` is never set: it makes a process wait where ECS promises that it may use what is free, or is killed at the
//! ceiling. A container's reservation is v2's `memory.low`, as runc and Docker have it: when the task is short of memory,
//! those above their reservation give first, as with v1's soft limit.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
};

use berth_agent_core::desired::{Limits, MemoryCeiling};
use cgroups_rs::fs::{cpu::CpuController, memory::MemController};

use super::{error::CgroupError, hierarchies::read_small};

/// Length of a CPU accounting period, µs: the kernel's default, and what runc and docker use.
pub const CPU_PERIOD_USEC: u64 = 100_000;
/// The kernel takes no quota below this, µs.
const CPU_QUOTA_USEC_MIN: u64 = 1_000;
/// CPU units of one core.
const CPU_UNITS_PER_CORE: u32 = 1024;
/// Below this, bytes, not even a shell starts; ECS refuses less than 4 MiB as well.
pub const MEMORY_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// "No limit", as both versions of cgroups-rs' controllers take it.
const NO_LIMIT: i64 = -1;
/// CPU units of the smallest task that ECS has on Linux.
const TASK_SHARES_MIN: u64 = 128;
/// The kernel's largest.
const SHARES_MAX: u64 = 262_144;

/// What the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostResources {
    pub cpu_units: u32,
    pub memory_bytes: u64,
}

impl HostResources {
    /// Cores that are online and memory that the kernel manages.
    pub(super) fn read() -> Result<Self, CgroupError> {
        const ONLINE: &str = "/sys/devices/system/cpu/online";
        const MEMINFO: &str = "/proc/meminfo";
        let read = |path: &'static str| {
            read_small(Path::new(path)).map_err(|source| CgroupError::Io {
                step: "read",
                path: path.into(),
                source,
            })
        };
        let malformed = |path: &'static str| CgroupError::Io {
            step: "understand",
            path: path.into(),
            source: io::ErrorKind::InvalidData.into(),
        };
        let cores = count_cpus(&read(ONLINE)?).ok_or_else(|| malformed(ONLINE))?;
        let memory_bytes = memory_total(&read(MEMINFO)?).ok_or_else(|| malformed(MEMINFO))?;
        Ok(Self {
            cpu_units: cores.saturating_mul(CPU_UNITS_PER_CORE),
            memory_bytes,
        })
    }

    /// Refuses limits that mean nothing on this host.
    pub(super) fn check(&self, limits: &Limits) -> Result<(), CgroupError> {
        let Limits {
            cpu_units,
            memory_bytes,
        } = *limits;
        if cpu_units > self.cpu_units {
            return Err(CgroupError::CpuAboveHost {
                asked: cpu_units,
                available: self.cpu_units,
            });
        }
        if memory_bytes > self.memory_bytes {
            return Err(CgroupError::MemoryAboveHost {
                asked: memory_bytes,
                available: self.memory_bytes,
            });
        }
        if memory_bytes != 0 && memory_bytes < MEMORY_BYTES_MIN {
            return Err(CgroupError::MemoryBelowLeast {
                asked: memory_bytes,
                least: MEMORY_BYTES_MIN,
            });
        }
        Ok(())
    }
}

/// `0-3,8` is five.
fn count_cpus(list: &str) -> Option<u32> {
    list.trim().split(',').try_fold(0u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// The quota for one period, µs.
fn quota_usec(cpu_units: u32) -> i64 {
    if cpu_units == 0 {
        return NO_LIMIT;
    }
    let quota = u64::from(cpu_units) * CPU_PERIOD_USEC / u64::from(CPU_UNITS_PER_CORE);
    quota.max(CPU_QUOTA_USEC_MIN).cast_signed()
}

/// One thing that a cgroup is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// Ceiling in CPU units; zero is none.
    Cpu(u32),
    /// Weight against siblings in CPU units.
    CpuWeight(u32),
    /// Ceiling, and how far swap extends it.
    Memory(MemoryCeiling),
    /// Processes and threads.
    Pids(u64),
}

/// What a file should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Text(String),
    /// Rounded down to a page by the kernel; None: no limit, which v1 writes as its largest number.
    Bytes(Option<u64>),
}

impl Wanted {
    pub(super) fn is(&self, found: &str) -> bool {
        /// v1's largest number is 2⁶³ − 1, rounded down to a page of up to 64 KiB.
        const NO_LIMIT_LEAST: u64 = i64::MAX as u64 - 0xffff;
        /// The largest page of a Linux that Berth runs on, bytes.
        const PAGE_BYTES_MAX: u64 = 64 * 1024;
        match self {
            Self::Text(text) => found == text,
            Self::Bytes(wanted) => {
                let found = found.parse::<u64>().ok().filter(|bytes| *bytes < NO_LIMIT_LEAST);
                match (wanted, found) {
                    (Some(wanted), Some(found)) => found <= *wanted && wanted - found < PAGE_BYTES_MAX,
                    (wanted, found) => wanted.is_none() && found.is_none(),
                }
            }
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Bytes(Some(bytes)) => write!(f, "{bytes}"),
            Self::Bytes(None) => f.write_str("max"),
        }
    }
}

impl Setting {
    pub(super) fn controller(self) -> &'static str {
        match self {
            Self::Cpu(_) | Self::CpuWeight(_) => "cpu",
            Self::Memory(_) => "memory",
            Self::Pids(_) => "pids",
        }
    }

    /// Somebody asked for it: a host that cannot do it must not run the task.
    pub(super) fn limits(self) -> bool {
        match self {
            Self::Cpu(units) => units != 0,
            Self::Memory(memory) => memory.bytes != 0,
            // The agent does not start where the kernel lacks these.
            Self::CpuWeight(_) | Self::Pids(_) => false,
        }
    }

    /// The files that say it, the first one always; swap's only where the kernel counts it.
    pub(super) fn files(self, v2: bool) -> Vec<(&'static str, Wanted)> {
        let text = |value: &dyn ToString| Wanted::Text(value.to_string());
        match (self, v2) {
            (Self::Cpu(units), false) => vec![
                ("cpu.cfs_quota_us", text(&quota_usec(units))),
                ("cpu.cfs_period_us", text(&CPU_PERIOD_USEC)),
            ],
            (Self::Cpu(units), true) => {
                let quota = match quota_usec(units) {
                    NO_LIMIT => "max".to_owned(),
                    quota => quota.to_string(),
                };
                vec![("cpu.max", text(&format!("{quota} {CPU_PERIOD_USEC}")))]
            }
            (Self::CpuWeight(units), false) => vec![("cpu.shares", text(&shares(units)))],
            (Self::CpuWeight(units), true) => vec![("cpu.weight", text(&weight(shares(units))))],
            (Self::Memory(MemoryCeiling { bytes, swap_bytes }), v2) => {
                let wanted = |number: u64| Wanted::Bytes(Some(number).filter(|_| bytes != 0));
                if v2 && bytes == 0 {
                    // What it may swap is said elsewhere: by its task, or by the specification of its container.
                    vec![("memory.max", wanted(bytes))]
                } else if v2 {
                    vec![
                        ("memory.max", wanted(bytes)),
                        ("memory.swap.max", wanted(swap_bytes)),
                    ]
                } else {
                    let with_swap = wanted(bytes.saturating_add(swap_bytes));
                    vec![
                        ("memory.limit_in_bytes", wanted(bytes)),
                        ("memory.memsw.limit_in_bytes", with_swap),
                    ]
                }
            }
            (Self::Pids(max), _) => vec![("pids.max", text(&max))],
        }
    }
}

/// A task's weight in v1's shares. Its shim and loggers share it, so even the least has what ECS's smallest task has: a
/// start or a stop must not hang on a busy host.
fn shares(cpu_units: u32) -> u64 {
    u64::from(cpu_units).clamp(TASK_SHARES_MIN, SHARES_MAX)
}

/// As runc converts v1's shares, 2 to 262144, to v2's weight, 1 to 10000.
fn weight(shares: u64) -> u64 {
    1 + (shares - 2) * 9_999 / 262_142
}

/// Writes one setting.
pub(super) fn set(dir: &Path, v2: bool, setting: &Setting) -> Result<(), CgroupError> {
    match *setting {
        Setting::Cpu(cpu_units) => set_cpu(dir, v2, cpu_units),
        Setting::Memory(memory) => set_memory(dir, v2, memory),
        Setting::CpuWeight(_) | Setting::Pids(_) => {
            for (name, wanted) in setting.files(v2) {
                let (path, value) = (dir.join(name), wanted.to_string());
                fs::write(&path, &value).map_err(|source| CgroupError::Write { path, value, source })?;
            }
            Ok(())
        }
    }
}

/// Writes the CPU ceiling; zero units take it away.
fn set_cpu(dir: &Path, v2: bool, cpu_units: u32) -> Result<(), CgroupError> {
    let quota = quota_usec(cpu_units);
    let file = dir.join(if v2 { "cpu.max" } else { "cpu.cfs_quota_us" });
    CpuController::new(dir.to_owned(), PathBuf::new(), v2)
        .set_cfs_quota_and_period(Some(quota), Some(CPU_PERIOD_USEC))
        .map_err(failed(file, quota))
}

/// Writes the memory ceiling, and how far swap extends it; zero bytes take the ceiling away, and leave swap as it is on v2.
fn set_memory(dir: &Path, v2: bool, ceiling: MemoryCeiling) -> Result<(), CgroupError> {
    let memory_bytes = ceiling.bytes;
    let number = |bytes: u64| match i64::try_from(bytes) {
        _ if memory_bytes == 0 => NO_LIMIT,
        Ok(bytes) => bytes,
        Err(_) => i64::MAX,
    };
    let limit = number(memory_bytes);
    let memory = MemController::new(dir.to_owned(), PathBuf::new(), v2);
    if v2 {
        let file = dir.join("memory.max");
        memory.set_limit(limit).map_err(failed(file, limit))?;
        // Absent on kernels without swap accounting.
        let swap_file = dir.join("memory.swap.max");
        let swap = number(ceiling.swap_bytes);
        if memory_bytes != 0 && exists(&swap_file) {
            memory.set_memswap_limit(swap).map_err(failed(swap_file, swap))?;
        }
        return Ok(());
    }
    let file = dir.join("memory.limit_in_bytes");
    let swap_file = dir.join("memory.memsw.limit_in_bytes");
    if !exists(&swap_file) {
        memory.set_limit(limit).map_err(failed(file, limit))?;
        return keep_from_swap(dir, memory_bytes != 0);
    }
    // Memory and swap together may never be less than memory alone, so the order depends on whether it rises.
    let with_swap = number(memory_bytes.saturating_add(ceiling.swap_bytes));
    let set = memory.set_limit(limit).is_ok();
    memory
        .set_memswap_limit(with_swap)
        .map_err(failed(swap_file, with_swap))?;
    if !set {
        memory.set_limit(limit).map_err(failed(file, limit))?;
    }
    Ok(())
}

/// v1 without counted swap: what is limited is not swapped out, so its limit holds. Containers made below inherit it.
fn keep_from_swap(dir: &Path, limited: bool) -> Result<(), CgroupError> {
    let path = dir.join("memory.swappiness");
    if !limited || !exists(&path) {
        return Ok(());
    }
    let value = "0".to_owned();
    fs::write(&path, &value).map_err(|source| CgroupError::Write { path, value, source })
}

fn exists(path: &Path) -> bool {
    fs::exists(path).unwrap_or(false)
}

/// The crate's errors print their cause themselves; only the cause is kept, once.
fn failed(path: PathBuf, value: i64) -> impl FnOnce(cgroups_rs::fs::error::Error) -> CgroupError {
    move |error| {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        let source = match cause.and_then(io::Error::raw_os_error) {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::other(error),
        };
        CgroupError::Write {
            path,
            value: value.to_string(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostResources = HostResources {
        cpu_units: 2048,
        memory_bytes: 1 << 30,
    };

    #[test]
    fn units_become_a_share_of_a_period() {
        for (units, quota) in [
            (0, -1),
            (1, 1_000),
            (256, 25_000),
            (1024, 100_000),
            (2048, 200_000),
        ] {
            assert_eq!(quota_usec(units), quota, "{units}");
        }
    }

    #[test]
    fn weights_are_runcs_and_the_least_is_that_of_ecss_smallest_task() {
        for (units, on_v1, on_v2) in [
            (0, "128", "5"),
            (128, "128", "5"),
            (256, "256", "10"),
            (1024, "1024", "39"),
            (u32::MAX, "262144", "10000"),
        ] {
            let said = |v2| Setting::CpuWeight(units).files(v2)[0].1.to_string();
            assert_eq!(
                (said(false).as_str(), said(true).as_str()),
                (on_v1, on_v2),
                "{units}"
            );
        }
    }

    #[test]
    fn what_the_kernel_writes_back_is_recognised() {
        let bytes = |n| Wanted::Bytes(Some(n));
        assert!(bytes(67_108_864).is("67108864"));
        assert!(bytes(67_108_865).is("67108864"), "rounded down to a page");
        assert!(!bytes(67_108_864).is("67112960"), "never up");
        assert!(!bytes(67_108_864).is("max"));
        assert!(bytes(0).is("0"));
        for none in ["max", "9223372036854771712", "9223372036854710272"] {
            assert!(Wanted::Bytes(None).is(none), "{none}");
        }
        assert!(!Wanted::Bytes(None).is("4096"));
        let cpu = |units| Setting::Cpu(units).files(true)[0].1.to_string();
        assert_eq!((cpu(0), cpu(256)), ("max 100000".into(), "25000 100000".into()));
    }

    #[test]
    fn limits_beyond_the_host_or_below_sense_are_refused() {
        let limits = |cpu_units, memory_bytes| Limits {
            cpu_units,
            memory_bytes,
        };
        assert!(HOST.check(&limits(0, 0)).is_ok());
        assert!(HOST.check(&limits(2048, 1 << 30)).is_ok());
        assert!(matches!(
            HOST.check(&limits(2049, 0)),
            Err(CgroupError::CpuAboveHost {
                asked: 2049,
                available: 2048
            })
        ));
        assert!(matches!(
            HOST.check(&limits(0, (1 << 30) + 1)),
            Err(CgroupError::MemoryAboveHost { .. })
        ));
        assert!(matches!(
            HOST.check(&limits(0, 4096)),
            Err(CgroupError::MemoryBelowLeast { .. })
        ));
    }

    #[test]
    fn the_host_is_read_as_the_kernel_writes_it() {
        assert_eq!(count_cpus("0-3,8\n"), Some(5));
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("3-1"), None);
        assert_eq!(count_cpus(""), None);
        assert_eq!(
            memory_total("MemTotal:       24684084 kB\nMemFree: 1 kB\n"),
            Some(24_684_084 * 1024)
        );
        assert!(HostResources::read().unwrap().memory_bytes > MEMORY_BYTES_MIN);
    }

    fn no_swap(bytes: u64) -> MemoryCeiling {
        MemoryCeiling { bytes, swap_bytes: 0 }
    }

    #[test]
    fn swap_extends_a_ceiling_as_far_as_it_is_asked_to() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let ceiling = MemoryCeiling {
            bytes: 64 << 20,
            swap_bytes: 16 << 20,
        };
        for file in ["memory.swap.max", "memory.memsw.limit_in_bytes"] {
            fs::write(dir.path().join(file), "max\n").unwrap();
        }
        set_memory(dir.path(), true, ceiling).unwrap();
        assert_eq!(read("memory.swap.max"), (16 << 20).to_string());
        set_memory(dir.path(), false, ceiling).unwrap();
        assert_eq!(read("memory.memsw.limit_in_bytes"), (80 << 20).to_string());
        for v2 in [false, true] {
            for (name, wanted) in Setting::Memory(ceiling).files(v2) {
                assert!(wanted.is(&read(name)), "{name}");
            }
        }
        set_memory(dir.path(), false, no_swap(0)).unwrap();
        assert_eq!(read("memory.memsw.limit_in_bytes"), "-1");
    }

    #[test]
    fn v2_files_say_max_for_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        fs::write(dir.path().join("cpu.max"), "max 100000\n").unwrap();
        fs::write(dir.path().join("memory.swap.max"), "max\n").unwrap();
        set_cpu(dir.path(), true, 256).unwrap();
        set_memory(dir.path(), true, no_swap(64 << 20)).unwrap();
        assert_eq!(read("cpu.max"), "25000 100000");
        assert_eq!(
            (read("memory.max"), read("memory.swap.max")),
            ("67108864".into(), "0".into())
        );
        set_cpu(dir.path(), true, 0).unwrap();
        set_memory(dir.path(), true, no_swap(0)).unwrap();
        assert_eq!(read("cpu.max"), "max 100000");
        assert_eq!(
            (read("memory.max"), read("memory.swap.max")),
            ("max".into(), "0".into())
        );
    }

    #[test]
    fn v1_keeps_swap_out_of_the_limit_where_the_kernel_counts_it() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        set_memory(dir.path(), false, no_swap(64 << 20)).unwrap();
        assert!(!dir.path().join("memory.memsw.limit_in_bytes").exists());
        fs::write(dir.path().join("memory.memsw.limit_in_bytes"), "-1").unwrap();
        set_memory(dir.path(), false, no_swap(64 << 20)).unwrap();
        assert_eq!(read("memory.limit_in_bytes"), read("memory.memsw.limit_in_bytes"));
    }
}
