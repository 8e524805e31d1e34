//! What limits do to processes, and the figures of a sweep.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    time::{Duration, Instant},
};

use berth_agent::{effects::cgroups::Cgroups, telemetry::Sampler};
use berth_agent_core::{desired::Limits, ids::ContainerId};

use crate::hog::*;

fn sampler(cgroups: &Cgroups) -> Sampler {
    Sampler::new(cgroups.clone(), "berth-test", Path::new("/")).unwrap()
}

#[test]
fn a_cpu_hog_under_256_units_gets_a_quarter_of_a_core() {
    const WINDOW: Duration = Duration::from_secs(4);
    let parent = Parent::new();
    let cgroups = &parent.cgroups;
    cgroups
        .create_task(
            &task(1),
            &Limits {
                memory_bytes: 0,
                ..LIMITS
            },
        )
        .unwrap();
    let mut sampler = sampler(cgroups);
    sampler.register(
        &task(1),
        &[(container(1), "one".to_owned()), (container(2), "two".to_owned())],
    );
    // Two processes in two containers: the limit is the task's.
    let spin = "while :; do :; done";
    let _one = Process::in_container(cgroups, &task(1), &container(1), spin);
    let _two = Process::in_container(cgroups, &task(1), &container(2), spin);
    let before = sampler.sample().1.remove(0);
    let start = Instant::now();
    std::thread::sleep(WINDOW);
    let after = sampler.sample().1.remove(0);
    let elapsed = start.elapsed().as_micros() as f64;
    let share = (after.total.cpu_used_usec - before.total.cpu_used_usec) as f64 / elapsed;
    println!("share of a core: {share:.3}");
    assert!((0.225..=0.275).contains(&share), "{share}");
    let containers: u64 = after.containers.iter().map(|c| c.usage.cpu_used_usec).sum();
    assert!(
        containers.abs_diff(after.total.cpu_used_usec) < 50_000,
        "{after:?}"
    );
    assert!(after.total.cpu_throttled_usec > before.total.cpu_throttled_usec);
}

#[test]
fn a_memory_hog_is_killed_and_only_its_own_container_says_so() {
    let parent = Parent::new();
    let cgroups = &parent.cgroups;
    cgroups
        .create_task(
            &task(1),
            &Limits {
                cpu_units: 0,
                memory_bytes: 32 * MIB,
            },
        )
        .unwrap();
    let mut bystander = Process::in_container(cgroups, &task(1), &container(2), "exec sleep 60");
    let mut hog = Process::in_container(cgroups, &task(1), &container(1), "exec tail /dev/zero");
    assert_eq!(hog.0.wait().unwrap().signal(), Some(9));
    assert!(bystander.0.try_wait().unwrap().is_none());
    let kills = [1, 2, 3].map(|n| cgroups.oom_kills(&task(1), &container(n)));
    assert_eq!(kills, [1, 0, 0]);

    let mut sampler = sampler(cgroups);
    sampler.register(
        &task(1),
        &[
            (container(1), "hog".to_owned()),
            (container(2), "bystander".to_owned()),
        ],
    );
    let usage = sampler.sample().1.remove(0);
    assert_eq!(
        (usage.total.oom_kills, usage.total.memory_limit_bytes),
        (1, 32 * MIB)
    );
    assert_eq!(
        (
            usage.containers[0].usage.oom_kills,
            usage.containers[1].usage.oom_kills
        ),
        (1, 0)
    );
    assert_eq!((usage.containers[1].usage.pids, usage.total.pids), (1, 1));
}

#[test]
fn memory_in_use_leaves_out_what_can_be_dropped() {
    let parent = Parent::new();
    let cgroups = &parent.cgroups;
    cgroups
        .create_task(
            &task(1),
            &Limits {
                cpu_units: 0,
                memory_bytes: 256 * MIB,
            },
        )
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cached").display().to_string();
    let write = format!("head -c 33554432 /dev/zero > {file}; cat {file} > /dev/null; exec sleep 60");
    let _process = Process::in_container(cgroups, &task(1), &container(1), &write);
    let mut sampler = sampler(cgroups);
    sampler.register(&task(1), &[(container(1), "one".to_owned())]);
    let (controller, name) = (
        "memory",
        if cgroups.version() == 2 {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        },
    );
    let path = cgroups
        .directory(controller, &cgroups.container_path(&task(1), &container(1)))
        .unwrap()
        .join(name);
    let start = Instant::now();
    loop {
        let charged: u64 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
        let used = sampler.sample().1[0].containers[0].usage.memory_used_bytes;
        if charged > 32 * MIB && used < 8 * MIB {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "charged {charged}, used {used}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_container_made_again_is_measured_again() {
    let parent = Parent::new();
    let cgroups = &parent.cgroups;
    cgroups.create_task(&task(1), &LIMITS).unwrap();
    let mut sampler = sampler(cgroups);
    sampler.register(&task(1), &[(container(1), "one".to_owned())]);
    let mut pids = || sampler.sample().1[0].containers[0].usage.pids;
    assert_eq!(pids(), 0);
    for _attempt in 0..2 {
        let process = Process::in_container(cgroups, &task(1), &container(1), "exec sleep 60");
        assert_eq!(pids(), 1);
        drop(process);
        for controller in ["cpu", "cpuacct", "memory", "pids", "blkio"] {
            let path = cgroups.container_path(&task(1), &container(1));
            match fs::remove_dir(cgroups.directory(controller, &path).unwrap()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
        }
        assert_eq!(pids(), 0);
    }
}

#[test]
fn a_sweep_is_cheap() {
    const TASKS: u32 = 50;
    let parent = Parent::new();
    let cgroups = &parent.cgroups;
    let mut sampler = sampler(cgroups);
    let one: Vec<(ContainerId, String)> = vec![(container(1), "one".to_owned())];
    for n in 0..TASKS {
        let start = Instant::now();
        cgroups.create_task(&task(n), &LIMITS).unwrap();
        if n == TASKS / 2 {
            println!(
                "making a task's cgroups, unoptimised build: {:?}",
                start.elapsed()
            );
        }
        for controller in ["cpu", "cpuacct", "memory", "pids", "blkio"] {
            fs::create_dir_all(
                cgroups
                    .directory(controller, &cgroups.container_path(&task(n), &one[0].0))
                    .unwrap(),
            )
            .unwrap();
        }
        sampler.register(&task(n), &one);
    }
    sampler.sample();
    let best = (0..10)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(sampler.sample().1.len(), TASKS as usize);
            start.elapsed() / TASKS
        })
        .min()
        .unwrap();
    println!("one sweep, per task of one container, unoptimised build: {best:?}");
    assert!(best < Duration::from_micros(500), "{best:?}");
}
