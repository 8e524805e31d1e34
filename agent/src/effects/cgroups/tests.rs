//! The v2 layout on a directory that stands in for the unified hierarchy. The real v1 is in `tests/cgroups.rs`.

use std::fs;

use berth_agent_core::desired::{Limits, MemoryCeiling};

use super::*;

fn task() -> TaskId {
    "0123456789abcdef0123456789abcdef".parse().unwrap()
}

fn container() -> ContainerId {
    "fedcba9876543210fedcba9876543210".parse().unwrap()
}

/// A directory with the files that the kernel would make, down to the task's cgroups.
struct FakeV2 {
    root: tempfile::TempDir,
    cgroups: Cgroups,
}

impl FakeV2 {
    fn new(controllers: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let cgroups =
            Cgroups::with_hierarchies(Hierarchies::unified_at(root.path()), "/berth.slice").unwrap();
        let fake = Self { root, cgroups };
        let task = format!("berth.slice/{}", task());
        for dir in [
            "",
            "berth.slice",
            &task,
            &format!("{task}/rt"),
            &format!("{task}/c"),
        ] {
            let dir = fake.root.path().join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
            fs::write(dir.join("cgroup.subtree_control"), "").unwrap();
            fs::write(dir.join("cgroup.procs"), "").unwrap();
        }
        fake
    }

    fn path(&self, below_task: &str) -> PathBuf {
        self.root
            .path()
            .join(format!("berth.slice/{}/{below_task}", task()))
    }

    fn read(&self, below_task: &str) -> String {
        fs::read_to_string(self.path(below_task)).unwrap()
    }
}

const LIMITS: Limits = Limits {
    cpu_units: 512,
    memory_bytes: 64 << 20,
};

#[test]
fn v2_enables_controllers_down_to_the_limited_cgroup_but_not_where_processes_are() {
    let fake = FakeV2::new("cpuset cpu io memory hugetlb pids\n");
    fs::write(fake.path("c/cpu.max"), "max 100000\n").unwrap();
    fs::write(fake.path("c/memory.max"), "max\n").unwrap();
    fake.cgroups.create_task(&task(), &LIMITS).unwrap();
    let wanted = "+cpuset +cpu +io +memory +pids";
    assert_eq!(
        fs::read_to_string(fake.root.path().join("cgroup.subtree_control")).unwrap(),
        wanted
    );
    assert_eq!(
        fs::read_to_string(fake.root.path().join("berth.slice/cgroup.subtree_control")).unwrap(),
        wanted
    );
    assert_eq!(fake.read("cgroup.subtree_control"), wanted);
    assert_eq!(fake.read("c/cgroup.subtree_control"), wanted);
    assert_eq!(fake.read("rt/cgroup.subtree_control"), "");
    assert_eq!(fake.read("c/cpu.max"), "50000 100000");
    assert_eq!(fake.read("c/memory.max"), "67108864");
}

#[test]
fn v2_writes_only_the_controllers_that_are_missing() {
    let fake = FakeV2::new("cpu memory pids\n");
    fs::write(fake.path("cgroup.subtree_control"), "cpu pids\n").unwrap();
    fs::write(fake.path("c/cgroup.subtree_control"), "cpu memory pids\n").unwrap();
    tree::create(
        &fake.cgroups.hierarchies,
        &fake.cgroups.limited_path(&task()),
        false,
    )
    .unwrap();
    assert_eq!(fake.read("cgroup.subtree_control"), "+memory");
    assert_eq!(fake.read("c/cgroup.subtree_control"), "cpu memory pids\n");
}

#[test]
fn v2_without_a_controller_refuses_only_the_limit_that_needs_it() {
    let fake = FakeV2::new("cpu\n");
    fs::write(fake.path("c/cpu.max"), "max 100000\n").unwrap();
    let refused = fake.cgroups.create_task(&task(), &LIMITS);
    assert!(matches!(
        refused,
        Err(CgroupError::ControllerMissing {
            controller: "memory",
            ..
        })
    ));
    let cpu_only = Limits {
        memory_bytes: 0,
        ..LIMITS
    };
    fake.cgroups.create_task(&task(), &cpu_only).unwrap();
}

#[test]
fn v2_names_the_victim_of_an_oom_by_its_local_counter() {
    let fake = FakeV2::new("memory\n");
    assert_eq!(fake.cgroups.oom_kills(&task(), &container()), 0);
    let dir = fake.path(&format!("c/{}", container()));
    fs::create_dir(&dir).unwrap();
    fs::write(
        dir.join("memory.events.local"),
        "low 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 1\n",
    )
    .unwrap();
    assert_eq!(fake.cgroups.oom_kills(&task(), &container()), 3);
}

#[test]
fn processes_and_list_look_at_every_directory() {
    let fake = FakeV2::new("memory\n");
    fs::write(fake.path("rt/cgroup.procs"), "7\n0\n").unwrap();
    fs::write(fake.path("c/cgroup.procs"), "9\n8\n").unwrap();
    assert_eq!(fake.cgroups.processes(&task()), [7, 8, 9]);
    assert_eq!(fake.cgroups.list().unwrap(), [task().as_str()]);
}

#[test]
fn paths_are_what_runtime_and_shim_are_told() {
    let cgroups = FakeV2::new("").cgroups;
    assert_eq!(cgroups.rt_path(&task()), format!("/berth.slice/{}/rt", task()));
    assert_eq!(
        cgroups.container_path(&task(), &container()),
        format!("/berth.slice/{}/c/{}", task(), container())
    );
}

/// Files as the kernel has them in a fresh cgroup.
fn fresh_limits(fake: &FakeV2, dir: &str) {
    for (file, text) in [
        ("cpu.weight", "100\n"),
        ("cpu.max", "max 100000\n"),
        ("memory.max", "max\n"),
        ("memory.swap.max", "max\n"),
        ("pids.max", "max\n"),
    ] {
        fs::write(fake.path(&format!("{dir}{file}")), text).unwrap();
    }
}

#[test]
fn v2_has_every_limit_and_a_changed_one_is_brought_back_and_counted() {
    let fake = FakeV2::new("cpu memory pids\n");
    ["", "c/"].iter().for_each(|dir| fresh_limits(&fake, dir));
    let cgroups = fake.cgroups.clone().task_pids_max(500);
    cgroups.create_task(&task(), &LIMITS).unwrap();
    let all = || {
        let c = ["cpu.max", "memory.max", "memory.swap.max", "pids.max"];
        let mut all: Vec<String> = c
            .iter()
            .map(|file| fake.read(&format!("c/{file}")).trim().to_owned())
            .collect();
        all.push(fake.read("cpu.weight").trim().to_owned());
        all
    };
    let wanted = ["50000 100000", "67108864", "0", "500", "20"];
    assert_eq!(all(), wanted);
    assert_eq!(
        (cgroups.reassert(&task()), cgroups.repairs()),
        (0, 0),
        "nothing to do"
    );

    // As when controllers were taken away and came back.
    fs::write(fake.path("cgroup.subtree_control"), "").unwrap();
    ["", "c/"].iter().for_each(|dir| fresh_limits(&fake, dir));
    assert_eq!((cgroups.reassert_all(), cgroups.repairs()), (5, 5));
    assert_eq!(all(), wanted);
    assert_eq!(fake.read("cgroup.subtree_control"), "+cpu +memory +pids");
    assert_eq!(cgroups.reassert_all(), 0);
}

#[test]
fn a_container_is_killed_by_its_cgroup_where_that_can_be() {
    let fake = FakeV2::new("cpu memory pids\n");
    let dir = format!("c/{}", container());
    fs::create_dir_all(fake.path(&dir)).unwrap();
    assert!(!fake.cgroups.kill_container(&task(), &container()));
    let file = format!("{dir}/cgroup.kill");
    assert!(!fake.path(&file).exists());
    fs::write(fake.path(&file), "").unwrap();
    assert!(fake.cgroups.kill_container(&task(), &container()));
    assert_eq!(fake.read(&file), "1");
}

#[test]
fn v2_keeps_up_a_containers_limits_while_it_runs() {
    let fake = FakeV2::new("cpu memory pids\n");
    ["", "c/"].iter().for_each(|dir| fresh_limits(&fake, dir));
    let cgroups = &fake.cgroups;
    cgroups.create_task(&task(), &LIMITS).unwrap();
    let dir = format!("c/{}/", container());
    fs::create_dir(fake.path(&dir)).unwrap();
    fresh_limits(&fake, &dir);
    assert_eq!(cgroups.reassert(&task()), 0, "not told of it");
    // One without a ceiling, whose specification keeps it from the swap of its task.
    fs::write(fake.path(&format!("{dir}memory.swap.max")), "0\n").unwrap();
    fs::write(fake.path(&format!("{dir}memory.max")), "1\n").unwrap();
    cgroups.keep_container(
        &task(),
        &container(),
        MemoryCeiling {
            bytes: 0,
            swap_bytes: 0,
        },
    );
    assert_eq!(cgroups.reassert(&task()), 2, "memory, processes");
    assert_eq!(fake.read(&format!("{dir}memory.max")), "max");
    assert_eq!(fake.read(&format!("{dir}memory.swap.max")), "0\n");
    fresh_limits(&fake, &dir);
    cgroups.keep_container(
        &task(),
        &container(),
        MemoryCeiling {
            bytes: 32 << 20,
            swap_bytes: 0,
        },
    );
    assert_eq!(cgroups.reassert(&task()), 3, "memory, swap, processes");
    assert_eq!(fake.read(&format!("{dir}memory.max")), "33554432");
    assert_eq!(
        fake.read(&format!("{dir}cpu.weight")),
        "100\n",
        "the runtime's own business"
    );
    cgroups.forget_container(&task(), &container());
    fresh_limits(&fake, &dir);
    assert_eq!(cgroups.reassert(&task()), 0);
}

#[tokio::test]
async fn what_is_removed_is_not_made_again() {
    let fake = FakeV2::new("cpu memory pids\n");
    ["", "c/"].iter().for_each(|dir| fresh_limits(&fake, dir));
    fake.cgroups.create_task(&task(), &LIMITS).unwrap();
    fs::remove_dir_all(fake.path("")).unwrap();
    assert_eq!(fake.cgroups.reassert_all(), 0);
    fake.cgroups.remove_task(&task()).await.unwrap();
    assert!(!fake.path("").exists());
}

#[test]
fn a_controller_is_offered_where_the_root_lists_it() {
    let fake = FakeV2::new("cpu io pids\n");
    let offered = |name| fake.cgroups.hierarchies.offers(name);
    assert!(offered("cpu") && offered("pids") && !offered("memory"));
}
