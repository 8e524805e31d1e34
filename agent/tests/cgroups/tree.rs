//! Directories and limits: made, made again, refused, removed.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use berth_agent::effects::{
    cgroups::{CgroupError, Cgroups, Hierarchies},
    network::Retry,
};
use berth_agent_core::{desired::Limits, ids::TaskId};

use crate::hog::*;

/// What the kernel has for a task, whichever version: quota and period in µs, memory in bytes, none as None.
fn kernel_limits(cgroups: &Cgroups, task: &TaskId) -> (Option<u64>, u64, Option<u64>) {
    let read = |controller: &str, file: &str| {
        let dir = cgroups
            .directory(controller, &cgroups.limited_path(task))
            .unwrap();
        fs::read_to_string(dir.join(file)).unwrap().trim().to_owned()
    };
    if cgroups.version() == 2 {
        let cpu = read("cpu", "cpu.max");
        let (quota, period) = cpu.split_once(' ').unwrap();
        return (
            quota.parse().ok(),
            period.parse().unwrap(),
            read("memory", "memory.max").parse().ok(),
        );
    }
    let memory: u64 = read("memory", "memory.limit_in_bytes").parse().unwrap();
    let with_swap = cgroups
        .directory("memory", &cgroups.limited_path(task))
        .unwrap()
        .join("memory.memsw.limit_in_bytes");
    if let Ok(with_swap) = fs::read_to_string(with_swap) {
        assert_eq!(
            with_swap.trim().parse::<u64>().unwrap(),
            memory,
            "swap does not extend the limit"
        );
    }
    let unlimited = memory > i64::MAX as u64 / 2;
    (
        read("cpu", "cpu.cfs_quota_us").parse().ok(),
        read("cpu", "cpu.cfs_period_us").parse().unwrap(),
        (!unlimited).then_some(memory),
    )
}

#[test]
fn limits_are_in_the_kernel_and_asserted_again() {
    let parent = Parent::new();
    let cgroups = &parent.cgroups;
    let expect = |limits: Limits, quota, memory| {
        cgroups.create_task(&task(1), &limits).unwrap();
        assert_eq!(
            kernel_limits(cgroups, &task(1)),
            (quota, 100_000, memory),
            "{limits:?}"
        );
    };
    expect(LIMITS, Some(25_000), Some(64 * MIB));
    expect(LIMITS, Some(25_000), Some(64 * MIB));
    // Raised and lowered: with swap accounted, the order of the two writes matters.
    expect(
        Limits {
            cpu_units: 1536,
            memory_bytes: 256 * MIB,
        },
        Some(150_000),
        Some(256 * MIB),
    );
    expect(
        Limits {
            cpu_units: 128,
            memory_bytes: 8 * MIB,
        },
        Some(12_500),
        Some(8 * MIB),
    );
    expect(Limits::default(), None, None);
    // As when systemd took them away.
    let dir = cgroups.directory("cpu", &cgroups.limited_path(&task(1))).unwrap();
    expect(LIMITS, Some(25_000), Some(64 * MIB));
    let (file, none) = if cgroups.version() == 2 {
        ("cpu.max", "max")
    } else {
        ("cpu.cfs_quota_us", "-1")
    };
    fs::write(dir.join(file), none).unwrap();
    expect(LIMITS, Some(25_000), Some(64 * MIB));
}

#[test]
fn rt_is_in_every_hierarchy_that_a_shim_joins_and_takes_processes() {
    let parent = Parent::new();
    let cgroups = &parent.cgroups;
    cgroups.create_task(&task(1), &LIMITS).unwrap();
    let process = Command::new("sleep").arg("60").spawn().unwrap();
    let process = Process(process);
    let hierarchies = Hierarchies::detect().unwrap();
    let joined = hierarchies
        .all()
        .iter()
        .filter(|h| cgroups.version() == 2 || !h.unified);
    for hierarchy in joined {
        let dir = hierarchy
            .mount
            .join(cgroups.rt_path(&task(1)).trim_start_matches('/'));
        fs::write(dir.join("cgroup.procs"), process.id().to_string())
            .unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    }
    assert_eq!(cgroups.processes(&task(1)), [process.id()]);
    assert_eq!(cgroups.list().unwrap(), [task(1).as_str()]);
}

#[test]
fn impossible_limits_are_refused_before_anything_is_made() {
    let parent = Parent::new();
    let host = parent.cgroups.host();
    for limits in [
        Limits {
            cpu_units: 0,
            memory_bytes: host.memory_bytes + 1,
        },
        Limits {
            cpu_units: host.cpu_units + 1,
            memory_bytes: 0,
        },
        Limits {
            cpu_units: 0,
            memory_bytes: 1000,
        },
    ] {
        let refused = parent.cgroups.create_task(&task(1), &limits).unwrap_err();
        assert_eq!(refused.retry(), Retry::Never, "{refused}");
    }
    assert_eq!(parent.directories(), [] as [std::path::PathBuf; 0]);
}

#[tokio::test]
async fn removing_waits_for_the_shim_and_leaves_no_hierarchy_out() {
    let parent = Parent::new();
    let cgroups = &parent.cgroups;
    let before = parent.directories();
    cgroups.create_task(&task(1), &LIMITS).unwrap();
    cgroups.create_task(&task(2), &LIMITS).unwrap();
    // As a hybrid host's runtime makes it.
    for hierarchy in Hierarchies::detect().unwrap().all().iter().filter(|h| h.unified) {
        let path = cgroups.container_path(&task(1), &container(1));
        fs::create_dir_all(hierarchy.mount.join(path.trim_start_matches('/'))).unwrap();
    }
    let mut shim = Process::in_rt(cgroups, &task(1), "exec sleep 0.5");
    let reaper = std::thread::spawn(move || shim.0.wait());
    let start = Instant::now();
    cgroups.remove_task(&task(1)).await.unwrap();
    assert!(
        start.elapsed() > Duration::from_millis(300),
        "{:?}",
        start.elapsed()
    );
    reaper.join().unwrap().unwrap();
    assert_eq!(cgroups.list().unwrap(), [task(2).as_str()]);
    cgroups.remove_task(&task(1)).await.unwrap();
    assert!(cgroups.remove_parent().is_err(), "a task is left");
    cgroups.remove_task(&task(2)).await.unwrap();
    cgroups.remove_parent().unwrap();
    cgroups.remove_parent().unwrap();
    assert_eq!(parent.directories(), before);
}

#[tokio::test]
async fn removing_names_the_processes_that_do_not_go() {
    let parent = Parent::new();
    let cgroups = &parent.cgroups;
    cgroups.create_task(&task(1), &LIMITS).unwrap();
    let process = Process::in_container(cgroups, &task(1), &container(1), "exec sleep 60");
    let error = cgroups.remove_task(&task(1)).await.unwrap_err();
    let CgroupError::ProcessesRemain { pids, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (pids.as_slice(), error.retry()),
        ([process.id()].as_slice(), Retry::Backoff)
    );
    drop(process);
    cgroups.remove_task(&task(1)).await.unwrap();
    assert_eq!(cgroups.list().unwrap(), [] as [&str; 0]);
}

#[test]
fn tasks_made_at_the_same_time_do_not_meet() {
    let parent = Parent::new();
    std::thread::scope(|scope| {
        for n in 0..16 {
            let cgroups = parent.cgroups.clone();
            scope.spawn(move || cgroups.create_task(&task(n), &LIMITS).unwrap());
        }
    });
    for n in 0..16 {
        assert_eq!(kernel_limits(&parent.cgroups, &task(n)).2, Some(64 * MIB));
        // A cpuset without CPUs would refuse it.
        drop(Process::in_rt(&parent.cgroups, &task(n), "exit"));
    }
}
