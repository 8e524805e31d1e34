//! Other programs on this host that manage containers or packets, and what Berth and they have to know of each other.

use std::fs;

use super::Finding;

const CHECK: &str = "neighbours";
/// Names as the kernel keeps them: at most 15 characters (proc_pid_comm(5)).
const KNOWN: [(&str, &str, &str); 5] = [
    (
        "dockerd",
        "docker",
        "docker's forward policy drops what tasks send unless it is told otherwise (see `firewall` here); and each side \
         counts all of the host as its own: set reserved.cpu_units and reserved.memory_mib",
    ),
    (
        "kubelet",
        "kubelet",
        "both would place work on the same memory: use a host of its own, or reserve what Kubernetes needs \
         (reserved.*); task_cidr must not overlap the pod and service networks",
    ),
    (
        "k3s-server",
        "k3s",
        "both would place work on the same memory: use a host of its own, or reserve what k3s needs (reserved.*)",
    ),
    (
        "amazon-ecs-init",
        "the Amazon ECS agent",
        "two agents must not run the tasks of one host: drain and remove the other one first",
    ),
    (
        "firewalld",
        "firewalld",
        "it may drop what tasks send and get: see `firewall` here",
    ),
];

pub(super) fn check() -> Vec<Finding> {
    judge(&running())
}

fn running() -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

fn judge(names: &[String]) -> Vec<Finding> {
    let found: Vec<Finding> = KNOWN
        .into_iter()
        .filter(|(comm, _, _)| names.iter().any(|name| name == comm))
        .map(|(_, what, advice)| Finding::warning(CHECK, format!("{what} runs here"), advice))
        .collect();
    if found.is_empty() {
        return vec![Finding::ok(
            CHECK,
            "no docker, kubelet, k3s, ECS agent or firewalld",
        )];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    #[test]
    fn known_neighbours_are_warned_of() {
        let found = judge(&["systemd".into(), "dockerd".into(), "kubelet".into()]);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|finding| finding.outcome == Outcome::Warning));
        assert_eq!(judge(&["systemd".into()])[0].outcome, Outcome::Ok);
        assert!(KNOWN.iter().all(|(comm, _, _)| comm.len() <= 15));
    }
}
