//! Kernel, rights, clock, limits and what the host offers beside what is reserved. Never looks at a network.

use nix::sys::resource::{Resource, getrlimit};

use super::Finding;
use crate::{config::Config, sys};

/// What the agent is tested with begins at 5.10 (Debian 11, RHEL 9 has 5.14).
const KERNEL_MIN: (u32, u32) = (5, 10);
/// Usage of one task is read from some twenty kept-open files.
const OPEN_FILES_MIN: u64 = 8_192;
/// Debian's and RHEL's default, and enough for some hundreds of containers.
const PID_MAX_MIN: u64 = 32_768;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    vec![
        rights(),
        kernel(&sys::kernel_version().unwrap_or_default(), std::env::consts::ARCH),
        seccomp(),
        clock(),
        open_files(),
        processes(),
        capacity(config),
    ]
}

fn rights() -> Finding {
    const CHECK: &str = "rights";
    if nix::unistd::geteuid().is_root() {
        return Finding::ok(CHECK, "root");
    }
    Finding::problem(
        CHECK,
        format!("user {}", nix::unistd::geteuid()),
        "the agent makes namespaces, cgroups and mounts: run it, and this check, as root",
    )
}

fn kernel(release: &str, architecture: &str) -> Finding {
    const CHECK: &str = "kernel";
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = format!("{release} on {architecture}");
    if version < KERNEL_MIN {
        let (major, minor) = KERNEL_MIN;
        return Finding::problem(
            CHECK,
            found,
            format!("Berth needs {major}.{minor} or newer: upgrade the kernel, or the distribution"),
        );
    }
    if architecture != "x86_64" {
        return Finding::warning(CHECK, found, "only x86_64 is tested: see docs/support.md");
    }
    Finding::ok(CHECK, found)
}

fn seccomp() -> Finding {
    const CHECK: &str = "seccomp";
    match std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) => Finding::ok(CHECK, format!("filters: {}", actions.trim())),
        Err(_) => Finding::problem(
            CHECK,
            "this kernel has no seccomp filters",
            "containers are confined by one: use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn clock() -> Finding {
    const CHECK: &str = "clock";
    if clock_synchronised() {
        return Finding::ok(CHECK, "synchronised");
    }
    Finding::warning(
        CHECK,
        "the kernel says that nothing keeps this clock right",
        "certificates and logs depend on it: run systemd-timesyncd or chrony \
         (harmless on a virtual machine whose hypervisor sets its clock)",
    )
}

/// adjtimex(2): a clock that a time service disciplines is not STA_UNSYNC.
#[allow(unsafe_code)]
fn clock_synchronised() -> bool {
    // SAFETY: an all-zero `timex` asks (modes 0) and changes nothing; the kernel fills what it points to.
    unsafe {
        let mut state: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut state) != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0
    }
}

fn open_files() -> Finding {
    const CHECK: &str = "open files";
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    if hard >= OPEN_FILES_MIN {
        return Finding::ok(CHECK, format!("up to {hard}"));
    }
    Finding::warning(
        CHECK,
        format!("up to {hard}: usage of many tasks costs more CPU"),
        "the packaged unit sets LimitNOFILE; from a shell raise `ulimit -Hn`",
    )
}

fn processes() -> Finding {
    const CHECK: &str = "processes";
    let read = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    match read.trim().parse::<u64>() {
        Ok(max) if max >= PID_MAX_MIN => Finding::ok(CHECK, format!("process ids up to {max}")),
        _ => Finding::warning(
            CHECK,
            format!("kernel.pid_max is {:?}", read.trim()),
            format!("containers share it: sysctl kernel.pid_max={PID_MAX_MIN} or more"),
        ),
    }
}

fn capacity(config: &Config) -> Finding {
    const CHECK: &str = "capacity";
    let cpu = sys::cpu_count() * 1024;
    let memory_mib = sys::memory_total().unwrap_or(0) >> 20;
    let reserved = &config.reserved;
    let found = format!(
        "{cpu} CPU units and {memory_mib} MiB, of which {} and {} are reserved",
        reserved.cpu_units, reserved.memory_mib
    );
    if reserved.cpu_units >= cpu || u64::from(reserved.memory_mib) >= memory_mib {
        return Finding::problem(
            CHECK,
            found,
            "nothing is left for tasks: lower reserved.cpu_units and reserved.memory_mib",
        );
    }
    if reserved.memory_mib == 0 {
        return Finding::warning(
            CHECK,
            found,
            "tasks may be promised all memory and the host's own services get none: set reserved.memory_mib",
        );
    }
    Finding::ok(CHECK, found)
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    #[test]
    fn kernels_are_judged_by_version_and_architecture() {
        for (release, architecture, outcome) in [
            ("6.1.0-18-cloud-amd64", "x86_64", Outcome::Ok),
            ("5.10.0", "x86_64", Outcome::Ok),
            ("5.4.0-150-generic", "x86_64", Outcome::Problem),
            ("6.1.0", "aarch64", Outcome::Warning),
            ("", "x86_64", Outcome::Problem),
        ] {
            assert_eq!(kernel(release, architecture).outcome, outcome, "{release}");
        }
    }
}
