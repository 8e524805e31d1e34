//! Which cgroups the kernel offers, and whether tasks can be limited and watched with them.

use std::path::Path;

use super::Finding;
use crate::effects::cgroups::Hierarchies;

/// What a task's limits are made of, on either version.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
const UNIFIED: &str = "/sys/fs/cgroup";

pub(super) fn check() -> Vec<Finding> {
    vec![hierarchy(), pressure(Path::new("/proc/pressure/memory").exists())]
}

fn hierarchy() -> Finding {
    const CHECK: &str = "cgroups";
    let found = match Hierarchies::detect() {
        Ok(found) => found,
        Err(error) => {
            return Finding::problem(
                CHECK,
                crate::sys::Chain(&error).to_string(),
                "boot with systemd, which mounts them, or mount cgroup2 on /sys/fs/cgroup",
            );
        }
    };
    let offered: Vec<String> = if found.version() == 2 {
        let text = std::fs::read_to_string(format!("{UNIFIED}/cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    } else {
        found
            .all()
            .iter()
            .flat_map(|one| one.controllers.clone())
            .collect()
    };
    judge(found.version(), &offered)
}

fn judge(version: u8, offered: &[String]) -> Finding {
    const CHECK: &str = "cgroups";
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|needed| !offered.iter().any(|have| have == needed))
        .collect();
    let found = format!("version {version}: {}", offered.join(" "));
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Finding::problem(
            CHECK,
            format!("{found}; without {missing}"),
            format!(
                "boot the kernel with cgroup_enable={missing} (and without cgroup_disable): in /etc/default/grub, \
                 then update-grub and reboot"
            ),
        );
    }
    if version == 1 {
        return Finding::warning(
            CHECK,
            found,
            "version 2 is what new hosts have and what bootstrap.sh installs on: boot with \
             systemd.unified_cgroup_hierarchy=1",
        );
    }
    Finding::ok(CHECK, found)
}

fn pressure(there: bool) -> Finding {
    const CHECK: &str = "pressure";
    if there {
        return Finding::ok(CHECK, "PSI is on");
    }
    Finding::warning(
        CHECK,
        "this kernel reports no PSI: metrics lack what tasks wait for",
        "boot with psi=1",
    )
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    fn offered(names: &str) -> Vec<String> {
        names.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_missing_controller_is_named_with_the_kernels_option() {
        let finding = judge(2, &offered("cpuset cpu io pids"));
        assert_eq!(finding.outcome, Outcome::Problem);
        assert!(finding.advice.contains("cgroup_enable=memory"), "{finding:?}");
    }

    #[test]
    fn version_1_works_and_is_not_recommended() {
        assert_eq!(
            judge(1, &offered("cpu cpuacct memory pids")).outcome,
            Outcome::Warning
        );
        assert_eq!(judge(2, &offered("cpu memory pids")).outcome, Outcome::Ok);
    }
}
