//! Attaching and detaching: again, at the same time, given up, and after a crash.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use berth_agent::effects::network::Network;
use futures_util::{StreamExt, stream};

use crate::host::*;

#[test]
fn attach_again_disturbs_nothing_and_detach_leaves_nothing() {
    on_host(async |host| {
        let before = host.listing();
        let network = host.network().await;
        let started = host.listing();
        let first = attach(&network, 1).await;
        {
            let listener = within(&first.netns, listen);
            let client = connect(address(1)).unwrap();
            let attached = host.listing();
            assert_eq!(attach(&network, 1).await, first);
            assert_eq!(host.listing(), attached);
            // A second start, as after a crash of the agent, keeps the connection as well.
            let again = Network::start(host.config()).await.unwrap();
            assert_eq!(attach(&again, 1).await, first);
            assert_eq!(host.listing(), attached);
            assert_eq!(converse(&listener, client), HOST);
        }
        network.detach(&task(1)).await.unwrap();
        assert_eq!(host.listing(), started);
        network.detach(&task(1)).await.unwrap();
        network.detach(&task(2)).await.unwrap();
        assert_eq!(host.listing(), started);
        network.stop().await.unwrap();
        network.stop().await.unwrap();
        assert_eq!(host.listing(), before);
    });
}

#[test]
fn an_attach_that_nobody_waits_for_any_more_leaves_nothing_after_detach() {
    on_host(async |host| {
        let network = host.network().await;
        let before = host.listing();
        let mut given_up = 0;
        for n in 0..40 {
            let patience = Duration::from_micros(u64::from(n) * 100);
            given_up += u32::from(
                tokio::time::timeout(patience, network.attach(&task(n), address(n)))
                    .await
                    .is_err(),
            );
            network.detach(&task(n)).await.unwrap();
        }
        assert!(given_up > 0);
        assert_eq!(host.listing(), before);
    });
}

/// A containerd may run in a mount namespace of its own, whose mounts follow the host's.
#[test]
fn namespaces_are_seen_in_mount_namespaces_made_before() {
    on_host(async |host| {
        let network = host.network().await;
        let path = network.netns_path(&(&task(1)).into());
        let script = format!("echo ready; read go; stat -f -c %T {}", path.display());
        let mut elsewhere = Command::new("unshare")
            .args(["--mount", "--propagation", "slave", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(elsewhere.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "ready");
        attach(&network, 1).await;
        elsewhere.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "nsfs");
        assert!(elsewhere.wait().unwrap().success());
    });
}

#[test]
fn an_isolated_task_has_loopback_and_nothing_else() {
    on_host(async |host| {
        let network = host.network().await;
        let before = host.listing();
        let netns = network.attach_isolated(&task(1)).await.unwrap();
        assert_eq!(network.attach_isolated(&task(1)).await.unwrap(), netns);
        let links = run_in(&netns, "ip -o link show up");
        assert!(
            links.lines().all(|line| line.contains(": lo:")) && links.lines().count() == 1,
            "{links}"
        );
        assert_eq!(run_in(&netns, "ip -4 route"), "");
        network.detach(&task(1)).await.unwrap();
        assert_eq!(host.listing(), before);
    });
}

#[test]
fn fifty_at_once_leave_nothing() {
    const TASKS: u32 = 50;
    on_host(async |host| {
        let network = host.network().await;
        let before = host.listing();
        for round in 0..2 {
            let start = Instant::now();
            stream::iter(1..=TASKS)
                .for_each_concurrent(None, async |n| drop(attach(&network, n).await))
                .await;
            let attached = start.elapsed();
            assert_eq!(
                run("ip -4 route")
                    .lines()
                    .filter(|line| line.starts_with("10.77."))
                    .count(),
                TASKS as usize
            );
            let start = Instant::now();
            let detach = async |n| network.detach(&task(n)).await.unwrap();
            stream::iter(1..=TASKS).for_each_concurrent(None, detach).await;
            println!(
                "round {round}: {TASKS} attached in {attached:?}, detached in {:?}",
                start.elapsed()
            );
            assert_eq!(host.listing(), before);
            assert_eq!(network.list().await.unwrap(), []);
        }
    });
}

#[test]
fn attaching_is_quick() {
    on_host(async |host| {
        let network = host.network().await;
        let mut times = Vec::new();
        for n in 1..=60 {
            let start = Instant::now();
            attach(&network, n).await;
            times.push(start.elapsed());
        }
        times.sort();
        let (p50, p90) = (times[30], times[54]);
        println!(
            "attach, one after the other, unoptimised build: p50 {p50:?}, p90 {p90:?}, least {:?}",
            times[0]
        );
        assert!(p50 < Duration::from_millis(20), "{p50:?}");
    });
}

#[test]
fn what_a_crash_left_half_made_is_completed_and_removed() {
    on_host(async |host| {
        let network = host.network().await;
        let before = host.listing();
        let netns = network.netns_path(&(&task(1)).into());
        let link = {
            attach(&network, 1).await;
            let name = link_name(&network).await;
            network.detach(&task(1)).await.unwrap();
            name
        };
        type Wreck = Box<dyn Fn() + Send>;
        let (file, path, name) = (netns.clone(), netns.display().to_string(), link.clone());
        let mounted = format!("unshare --net={path} true");
        let wrecks: [(&str, Wreck); 6] = [
            ("nothing", Box::new(|| {})),
            ("a file without a namespace", {
                let file = file.clone();
                Box::new(move || drop(std::fs::File::create(&file).unwrap()))
            }),
            ("a namespace without a veth", {
                let (file, mounted) = (file.clone(), mounted.clone());
                Box::new(move || {
                    std::fs::File::create(&file).unwrap();
                    run(&mounted);
                })
            }),
            ("a veth without a namespace", {
                let name = name.clone();
                Box::new(move || drop(run(&format!("ip link add {name} type veth peer name other"))))
            }),
            ("a namespace, and a veth that leads elsewhere", {
                let (file, mounted, name) = (file.clone(), mounted.clone(), name.clone());
                Box::new(move || {
                    std::fs::File::create(&file).unwrap();
                    run(&mounted);
                    run(&format!("ip link add {name} type veth peer name other"));
                })
            }),
            ("a pair without addresses", {
                let (file, mounted, name) = (file.clone(), mounted, name);
                Box::new(move || {
                    std::fs::File::create(&file).unwrap();
                    run(&mounted);
                    run_in(&file, "ip link add eth0 type veth peer name other");
                    let own = format!("/proc/{}/ns/net", nix::unistd::gettid());
                    run_in(
                        &file,
                        &format!("ip link set other netns {} name {name}", nix::unistd::gettid()),
                    );
                    assert!(std::path::Path::new(&own).exists());
                })
            }),
        ];
        for (what, wreck) in wrecks {
            wreck();
            let start = Instant::now();
            network.detach(&task(1)).await.unwrap();
            assert_eq!(host.listing(), before, "detach after {what}");
            assert!(
                start.elapsed() < Duration::from_secs(4),
                "detach after {what}: {:?}",
                start.elapsed()
            );
            wreck();
            let attached = attach(&network, 1).await;
            let listener = within(&attached.netns, listen);
            assert_eq!(
                converse(&listener, connect(address(1)).unwrap()),
                HOST,
                "attach after {what}"
            );
            drop(listener);
            network.detach(&task(1)).await.unwrap();
            assert_eq!(host.listing(), before, "attach and detach after {what}");
        }
    });
}

#[test]
fn a_socket_left_in_the_namespace_does_not_keep_the_link() {
    on_host(async |host| {
        let network = host.network().await;
        let one = attach(&network, 1).await;
        let links = run("ip -o link show").lines().count();
        let held = within(&one.netns, listen);
        network.detach(&task(1)).await.unwrap();
        assert_eq!(run("ip -o link show").lines().count(), links - 1);
        drop(held);
    });
}

/// As one that somebody sent there with nsenter(1).
#[test]
fn a_process_left_in_the_namespace_does_not_keep_the_link() {
    on_host(async |host| {
        let network = host.network().await;
        let before = host.listing();
        let one = attach(&network, 1).await;
        let inside = format!("--net={}", one.netns.display());
        let mut left = Command::new("nsenter")
            .args([&inside, "sh", "-c", "echo there; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(left.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "there");
        network.detach(&task(1)).await.unwrap();
        assert_eq!(host.listing(), before);
        assert!(left.try_wait().unwrap().is_none(), "it is not ours to end");
        left.kill().unwrap();
        left.wait().unwrap();
    });
}
