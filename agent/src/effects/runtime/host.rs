//! Owns what the host allows a runtime to set. Reads it once; never changes anything.

use std::fs;

use berth_agent_core::oci::{Arch, Cgroups, HostFacts};
use nix::sys::resource::{Resource, getrlimit};

/// CAP_SYS_RESOURCE, capabilities(7).
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// What is true of this host. The agent's own limits stand for containerd's where a capability is missing: on such
/// machines (containers, mostly) both run under the same bounds.
pub(super) fn facts(cgroup_version: u8) -> HostFacts {
    let free = capabilities("self", "CapEff:") & CAP_SYS_RESOURCE != 0;
    let own_oom_score_adj = read_number("/proc/self/oom_score_adj").unwrap_or(0);
    let own_nofile = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
    let cgroups = if cgroup_version == 1 {
        Cgroups::V1
    } else {
        Cgroups::Unified
    };
    HostFacts {
        arch: match std::env::consts::ARCH {
            "x86_64" => Arch::X86_64 { x32: runs_x32() },
            "aarch64" => Arch::Aarch64,
            _ => Arch::Other,
        },
        kernel: kernel(),
        cgroups,
        swap_limit: swap_limit(cgroups),
        apparmor: super::apparmor::is_enabled(),
        oom_score_adj_min: if free { 0 } else { own_oom_score_adj.max(0) },
        nofile_max: if free { u64::MAX } else { own_nofile },
        // The agent's own service is bounded, containerd's is not: what init may have is what a runtime can give.
        capabilities: capabilities("1", "CapBnd:"),
    }
}

/// Asks the kernel for its own process id through the x32 interface: ENOSYS where it has none.
///
/// A thread that asks under a seccomp filter such as that of systemd's SystemCallArchitectures=native is killed. Then
/// nobody is asked, and containers do without x32.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn runs_x32() -> bool {
    const X32_BIT: libc::c_long = 0x4000_0000;
    if is_filtered(&fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        return false;
    }
    // SAFETY: getpid takes no arguments and changes nothing, by whichever interface it is called.
    unsafe { libc::syscall(X32_BIT | libc::SYS_getpid) > 0 }
}

#[cfg(not(target_arch = "x86_64"))]
fn runs_x32() -> bool {
    false
}

/// By `Seccomp:` of proc_pid_status(5): 0 is no filter. Where it is not said, there may be one.
#[cfg(target_arch = "x86_64")]
fn is_filtered(status: &str) -> bool {
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_none_or(|mode| mode.trim() != "0")
}

/// A set of capabilities(7) of a process, as a mask.
fn capabilities(process: &str, set: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(set));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn read_number(path: &str) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Without swap accounting the limit's file is missing, and a runtime that must write it fails.
fn swap_limit(cgroups: Cgroups) -> bool {
    match cgroups {
        Cgroups::V1 => fs::exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").unwrap_or(false),
        // The root has none; any child shows it.
        Cgroups::Unified => fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .any(|child| child.path().join("memory.swap.max").exists()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_host_is_read() {
        let facts = super::facts(1);
        assert!(facts.kernel >= (4, 0), "{facts:?}");
        assert!(facts.nofile_max > 0 && facts.oom_score_adj_min >= 0, "{facts:?}");
        // CAP_CHOWN, the least that any host with root has.
        assert_eq!(facts.capabilities & 1, 1, "{facts:?}");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn nothing_is_asked_through_a_filter() {
        assert!(!super::is_filtered(
            "Name:\tagent\nSeccomp:\t0\nSeccomp_filters:\t0\n"
        ));
        assert!(super::is_filtered("Seccomp:\t2\nSeccomp_filters:\t12\n"));
        assert!(super::is_filtered(""));
    }
}
