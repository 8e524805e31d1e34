//! Owns a listing of everything on the host that a task could leave behind. Asks the host and containerd, never the
//! agent and never its ledger.

use std::{collections::BTreeSet, path::Path, process::Command};

use crate::containerd::Containerd;

/// Objects by kind and name; two listings are compared as sets.
pub type Listing = BTreeSet<String>;

/// Everything that is named after `instance`, or lies under its directories, or belongs to its containerd.
pub fn host(instance: &str, run_dir: &Path, containerd: &Containerd) -> Listing {
    let mut all = Listing::new();
    let mut add =
        |kind: &str, items: Vec<String>| all.extend(items.into_iter().map(|item| format!("{kind} {item}")));
    add("process", processes(instance));
    add("netns", directory(&run_dir.join("netns")));
    add("run directory", directory(&run_dir.join("tasks")));
    add("shared memory", directory(&run_dir.join("shm")));
    let (ready, links): (Vec<_>, _) = links().into_iter().partition(|name| is_ready(name));
    add("link", links);
    add("link", beyond_those_kept(ready));
    add(
        "address",
        lines("ip", &["-o", "addr"])
            .iter()
            .map(|l| l.split_whitespace().skip(1).take(3).collect::<Vec<_>>().join(" "))
            .collect(),
    );
    add("route", lines("ip", &["route", "show", "table", "all"]));
    let learned = |line: &String| line.contains(" expires ");
    let ipv6 = lines("ip", &["-6", "route"]).into_iter();
    add("IPv6 route", ipv6.filter(|line| !learned(line)).collect());
    add("rule", lines("ip", &["rule"]));
    add("neighbour", lines("ip", &["neigh", "show", "nud", "permanent"]));
    add("nft", lines("nft", &["-s", "list", "ruleset"]));
    add("cgroup", cgroups(instance));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_mount = |line: &str| line.split_whitespace().nth(4).unwrap_or_default().to_owned();
    add("mount", mounts.lines().map(of_mount).collect());
    add(
        "container",
        containerd.list(instance, &["containers", "ls", "-q"]),
    );
    add("task", containerd.list(instance, &["tasks", "ls", "-q"]));
    let snapshots = containerd.list(instance, &["snapshots", "ls"]);
    add(
        "snapshot",
        snapshots
            .iter()
            .filter(|l| l.contains("Active"))
            .cloned()
            .collect(),
    );
    add("lease", containerd.list(instance, &["leases", "ls", "-q"]));
    all
}

/// Names of the host's links.
fn links() -> Vec<String> {
    let lines = lines("ip", &["-br", "link"]);
    let names = lines.iter().filter_map(|line| line.split_whitespace().next());
    names.map(link_name).collect()
}

/// It belongs to a namespace that an agent keeps ready.
pub(crate) fn is_ready(link: &str) -> bool {
    let digits = link.strip_prefix('r').unwrap_or_default();
    digits.len() == 14 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Links of namespaces that agents keep ready.
pub fn ready() -> Vec<String> {
    links().into_iter().filter(|name| is_ready(name)).collect()
}

/// As many as one agent keeps ready come and go as it works.
const KEPT_READY: usize = 4;

fn beyond_those_kept(ready: Vec<String>) -> Vec<String> {
    let mut of_agents = std::collections::BTreeMap::<String, Vec<String>>::new();
    for link in ready {
        of_agents.entry(link[..5].to_owned()).or_default().push(link);
    }
    let beyond = of_agents
        .into_values()
        .flat_map(|links| links.into_iter().skip(KEPT_READY));
    beyond.collect()
}

fn link_name(name: &str) -> String {
    name.split('@').next().unwrap_or(name).to_owned()
}

fn lines(command: &str, args: &[&str]) -> Vec<String> {
    let output = Command::new(command)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{command}: {e}"));
    assert!(
        output.status.success(),
        "{command} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.trim().to_owned())
        .collect()
}

fn directory(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// Processes in the instance's cgroups, and shims and loggers that name it in their arguments.
fn processes(instance: &str) -> Vec<String> {
    let mut found = Vec::new();
    for pid in directory(Path::new("/proc"))
        .into_iter()
        .filter(|name| name.parse::<u32>().is_ok())
    {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let command = read("cmdline").replace('\0', " ");
        let in_cgroup = read("cgroup")
            .lines()
            .any(|line| line.contains(&format!(":/{instance}.slice/")));
        let of_instance = command.contains(&format!("-namespace {instance} "));
        if in_cgroup || of_instance {
            found.push(command);
        }
    }
    found
}

fn cgroups(instance: &str) -> Vec<String> {
    let mut found = Vec::new();
    let root = Path::new("/sys/fs/cgroup");
    let mut hierarchies: Vec<_> = directory(root).into_iter().map(|name| root.join(name)).collect();
    hierarchies.push(root.into());
    for hierarchy in hierarchies {
        walk(&hierarchy.join(format!("{instance}.slice")), &mut found);
    }
    found
}

fn walk(dir: &Path, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        found.push(entry.path().display().to_string());
        walk(&entry.path(), found);
    }
}
