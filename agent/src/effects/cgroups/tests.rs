//! The v2 layout on a directory that stands in for the unified hierarchy. The real v1 is in `tests/cgroups.rs`.

use std::fs;

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
        let cgroups = Cgroups::with_hierarchies(Hierarchies::unified_at(root.path()), "berth").unwrap();
        let fake = Self { root, cgroups };
        let task = format!("berth/{}", task());
        for dir in ["", "berth", &task, &format!("{task}/rt"), &format!("{task}/c")] {
            let dir = fake.root.path().join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
            fs::write(dir.join("cgroup.subtree_control"), "").unwrap();
            fs::write(dir.join("cgroup.procs"), "").unwrap();
        }
        fake
    }

    fn path(&self, below_task: &str) -> PathBuf {
        self.root.path().join(format!("berth/{}/{below_task}", task()))
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
        fs::read_to_string(fake.root.path().join("berth/cgroup.subtree_control")).unwrap(),
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
    assert_eq!(cgroups.rt_path(&task()), format!("/berth/{}/rt", task()));
    assert_eq!(
        cgroups.container_path(&task(), &container()),
        format!("/berth/{}/c/{}", task(), container())
    );
}

#[test]
fn a_parent_is_one_plain_name() {
    for bad in ["", "a/b", "..", ".", "-x", "a b", "/berth"] {
        let made = Cgroups::with_hierarchies(Hierarchies::unified_at(Path::new("/nonexistent")), bad);
        assert!(matches!(made, Err(CgroupError::Parent { .. })), "{bad:?}");
    }
}
