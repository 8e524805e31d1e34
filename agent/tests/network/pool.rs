//! Namespaces that are kept ready: taken, filled up, thrown away, and gone however the agent ends.

use std::time::{Duration, Instant};

use berth_agent::effects::network::{HostObject, Network, NetworkConfig};

use crate::host::*;

const FILLED_WITHIN: Duration = Duration::from_secs(10);

fn config(host: &Host, ready: usize) -> NetworkConfig {
    NetworkConfig {
        ready,
        ..host.config()
    }
}

/// Names of the links that are kept ready, of any run.
fn ready() -> Vec<String> {
    let links = run("ip -o link show");
    let names = links
        .lines()
        .filter_map(|line| line.split(": ").nth(1)?.split('@').next());
    let ready = names.filter(|name| name.starts_with('r') && name.len() == 15);
    ready.map(str::to_owned).collect()
}

async fn until(count: usize, mut counted: impl FnMut() -> usize) {
    let start = Instant::now();
    while counted() != count {
        assert!(
            start.elapsed() < FILLED_WITHIN,
            "{}, not {count}: {:?}",
            counted(),
            ready()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Does something while the namespaces are filled up.
async fn while_filled<T>(network: &Network, work: impl Future<Output = T>) -> T {
    tokio::select! {
        () = network.keep_ready() => unreachable!("it goes on for ever"),
        done = work => done,
    }
}

/// Fills them up to so many, and no more.
async fn fill(network: &Network, count: usize) {
    while_filled(network, until(count, || network.ready())).await;
}

#[test]
fn a_task_takes_one_that_is_ready_and_another_is_made() {
    on_host(async |host| {
        let before = host.listing();
        let network = Network::start(config(host, 2)).await.unwrap();
        fill(&network, 2).await;
        let strays: Vec<HostObject> = network.list().await.unwrap();
        assert_eq!(strays, [], "what is ready is nobody's to remove");
        // Nobody fills up: two are taken, one is made, and they are alike.
        let mut tasks = Vec::new();
        for (n, left) in [(1, 1), (2, 0), (3, 0)] {
            let attached = attach(&network, n).await;
            assert_eq!(ready().len(), left);
            assert_eq!(attached.mac, format!("0a:00:00:00:00:{n:02x}"));
            let inside = run_in(&attached.netns, "ip -o -d link show");
            tasks.push(inside.lines().count());
            let listener = within(&attached.netns, listen);
            assert_eq!(converse(&listener, connect(address(n)).unwrap()), HOST);
            let server = within(&host.outside_netns(), listen);
            let client = within(&attached.netns, || connect(OUTSIDE).unwrap());
            assert_eq!(converse(&server, client), HOST);
        }
        assert_eq!(tasks, [2, 2, 2], "loopback and eth0");
        // One that is there is not made again out of another.
        fill(&network, 2).await;
        let again = attach(&network, 1).await;
        assert_eq!(again, attach(&network, 1).await);
        assert_eq!(ready().len(), 2);
        for n in 1..=3 {
            network.detach(&task(n)).await.unwrap();
        }
        network.stop().await.unwrap();
        assert_eq!(host.listing(), before);
    });
}

#[test]
fn the_settings_of_a_link_are_the_same_wherever_it_came_from() {
    on_host(async |host| {
        let network = Network::start(config(host, 1)).await.unwrap();
        fill(&network, 1).await;
        let (taken, made) = (attach(&network, 1).await, attach(&network, 2).await);
        let settings = |netns: &std::path::Path, link: &str| {
            let dirs = ["ipv4/conf", "ipv6/conf"].map(|family| format!("/proc/sys/net/{family}/{link}"));
            // Some are counters' seeds, or cannot be read.
            let read = format!("grep -rs . {} --exclude=stable_secret", dirs.join(" "));
            run_in(netns, &read)
        };
        assert_eq!(settings(&taken.netns, "eth0"), settings(&made.netns, "eth0"));
        let links = run("ip -o link show");
        let name = |n: u32| {
            let alias = format!("berth-test/{}", task(n));
            let line = links.lines().find(|line| line.contains(&alias)).unwrap();
            line.split(": ")
                .nth(1)
                .unwrap()
                .split('@')
                .next()
                .unwrap()
                .to_owned()
        };
        let own = std::path::Path::new("/proc/thread-self/ns/net");
        let of = |n| settings(own, &name(n)).replace(&name(n), "link");
        assert_eq!(of(1), of(2));
        let shown = |n: u32| {
            let shown = run(&format!("ip -d -o link show {}", name(n)));
            let words = shown.split_whitespace().skip(2);
            let stable = words.filter(|word| !word.contains(&format!("{n:02x}")));
            stable.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(shown(1).len(), shown(2).len(), "{:?} {:?}", shown(1), shown(2));
    });
}

#[test]
fn those_of_an_agent_that_was_killed_go_by_themselves() {
    on_host(async |host| {
        let network = Network::start(config(host, 3)).await.unwrap();
        fill(&network, 3).await;
        let old = ready();
        // The next one is there before they are gone. What is left of them a purge would remove.
        let next = Network::start(config(host, 1)).await.unwrap();
        let of_old = HostObject::Link {
            name: old[0].clone(),
            owner: None,
        };
        assert!(next.list().await.unwrap().contains(&of_old));
        fill(&next, 1).await;
        drop(network);
        until(1, || ready().len()).await;
        assert!(!old.contains(&ready()[0]));
        next.stop().await.unwrap();
        assert_eq!(ready(), [""; 0]);
    });
}

#[test]
fn a_crash_in_the_middle_of_taking_one_is_completed_and_removed() {
    on_host(async |host| {
        let network = Network::start(config(host, 0)).await.unwrap();
        let before = host.listing();
        attach(&network, 1).await;
        let (link, netns) = (link_name(&network).await, network.netns_path(&(&task(1)).into()));
        // It has its place, and not its name yet.
        run(&format!("ip link set {link} down"));
        run(&format!("ip link set {link} name r0123456789abcd alias no"));
        let attached = attach(&network, 1).await;
        assert_eq!(attached.netns, netns);
        assert_eq!(ready(), [""; 0]);
        let listener = within(&netns, listen);
        assert_eq!(converse(&listener, connect(address(1)).unwrap()), HOST);
        drop(listener);
        network.detach(&task(1)).await.unwrap();
        assert_eq!(host.listing(), before);
    });
}

#[test]
fn a_name_that_is_taken_and_a_pair_that_somebody_deleted_cost_the_task_nothing() {
    on_host(async |host| {
        let network = Network::start(config(host, 2)).await.unwrap();
        attach(&network, 1).await;
        let link = link_name(&network).await;
        network.detach(&task(1)).await.unwrap();
        fill(&network, 2).await;
        // Left by a crash: without an alias.
        run(&format!("ip link add {link} type bridge"));
        let attached = attach(&network, 1).await;
        let listener = within(&attached.netns, listen);
        assert_eq!(converse(&listener, connect(address(1)).unwrap()), HOST);
        assert_eq!(ready().len(), 1);
        run(&format!("ip link delete {}", ready()[0]));
        let attached = attach(&network, 2).await;
        let listener = within(&attached.netns, listen);
        assert_eq!(converse(&listener, connect(address(2)).unwrap()), HOST);
    });
}

#[test]
fn those_of_another_mtu_are_thrown_away() {
    on_host(async |host| {
        run("ip link set uplink mtu 1400");
        run(&format!("ip route add default via {OUTSIDE} dev uplink"));
        let network = Network::start(config(host, 2)).await.unwrap();
        fill(&network, 2).await;
        let has = |netns: &std::path::Path, mtu: u32| {
            run_in(netns, "ip -o link show eth0").contains(&format!(" mtu {mtu} "))
        };
        assert!(has(&attach(&network, 1).await.netns, 1400));
        run("ip link set uplink mtu 1380");
        let learned = async {
            let start = Instant::now();
            for n in 2.. {
                if has(&attach(&network, n).await.netns, 1380) {
                    return;
                }
                assert!(start.elapsed() < FILLED_WITHIN);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = network.keep_repaired() => unreachable!("it goes on for ever"),
            () = while_filled(&network, learned) => {}
        }
        fill(&network, 2).await;
        assert!(has(&attach(&network, 500).await.netns, 1380));
        assert_eq!(ready().len(), 1);
    });
}
