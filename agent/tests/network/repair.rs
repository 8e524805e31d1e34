//! What others do to the tasks' network is undone.

use std::{
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use berth_agent::{
    effects::network::{Network, NetworkConfig, Owner},
    metrics::{METRICS, NETWORK_REPAIRS},
};

use berth_agent_core::{desired::Protocol, ports::Published};

use crate::host::*;

/// What is promised.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

/// Tasks of one host, in a test that must not take long.
const MANY: u32 = 200;

/// What is repaired is counted for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `test` while the network is kept repaired.
async fn while_repaired(network: &Network, test: impl AsyncFnOnce()) {
    tokio::select! {
        () = network.keep_repaired() => unreachable!("it never ends"),
        () = test() => {}
    }
}

pub fn repairs(what: &str) -> u64 {
    let at = NETWORK_REPAIRS.iter().position(|known| *known == what).unwrap();
    METRICS.network_repairs[at].load(Relaxed)
}

/// Waits until `good`, as long as is promised.
async fn until(what: &str, mut good: impl FnMut() -> bool) {
    let start = Instant::now();
    while !good() {
        assert!(
            start.elapsed() < REPAIRED_WITHIN,
            "{what}: not within {REPAIRED_WITHIN:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The host's links, addresses, routes and neighbours, without the numbers of links: those made anew have new ones.
fn shape() -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (command, numbered) in [
        ("ip -o link show", true),
        ("ip -4 -o addr show", true),
        ("ip -4 route show", false),
        ("ip neigh show nud permanent", false),
    ] {
        for line in run(command).lines() {
            let words = line.split_whitespace().skip(usize::from(numbered));
            let mut shown = String::new();
            let mut before = "";
            for word in words {
                if before != "link-netnsid" {
                    shown += word.split("@if").next().unwrap();
                    shown += " ";
                }
                before = word;
            }
            lines.push(shown);
        }
    }
    lines.sort();
    lines
}

#[test]
fn what_is_taken_from_a_task_is_given_back() {
    let _alone = alone();
    on_host(async |host| {
        let network = host.network().await;
        let (one, two) = (attach(&network, 1).await, attach(&network, 2).await);
        let listener = within(&one.netns, listen);
        let link = link_name(&network).await;
        let whole = shape();
        let inside = |what: &str| run_in(&one.netns, &format!("ip {what}"));
        while_repaired(&network, async || {
            for (what, wreck) in [
                ("link", format!("ip link del {link}")),
                ("down", format!("ip link set {link} down")),
                ("route", format!("ip route del {}/32", address(1))),
                ("address", format!("ip addr del 169.254.170.2/32 dev {link}")),
                (
                    "link",
                    format!("nsenter --net={} ip link del eth0", one.netns.display()),
                ),
                (
                    "down",
                    format!("nsenter --net={} ip link set eth0 down", one.netns.display()),
                ),
            ] {
                let before = repairs(what);
                run(&wreck);
                until(&wreck, || repairs(what) > before).await;
                assert_eq!(shape(), whole, "after {wreck}");
                let client = connect(address(1)).unwrap();
                assert_eq!(converse(&listener, client), HOST, "after {wreck}");
                assert!(inside("link show eth0").contains(&one.mac), "after {wreck}");
                assert!(inside("route show default").contains("169.254.1.1"));
            }
            // The other task was not disturbed: its link is the one that was made first.
            assert!(run_in(&two.netns, "ip -s link show eth0").contains(&two.mac));
        })
        .await;
    });
}

#[test]
fn what_is_taken_from_hundreds_at_once_is_given_back_in_time_too() {
    let _alone = alone();
    on_host(async |host| {
        let network = host.network().await;
        for n in 1..=MANY {
            attach(&network, n).await;
        }
        let whole = shape();
        let links = run("ip -o link show");
        let group = links.lines().find(|line| line.contains("berth-test/")).unwrap();
        let group = group.split(" group ").nth(1).unwrap().split(' ').next().unwrap();
        while_repaired(&network, async || {
            for (what, wreck) in [
                (
                    "route",
                    format!(
                        "ip route flush root {} proto static",
                        host.config().task_cidr.ipv4
                    ),
                ),
                ("link", format!("ip link del group {group}")),
            ] {
                let before = repairs(what);
                run(&wreck);
                let start = Instant::now();
                until(&wreck, || repairs(what) >= before + u64::from(MANY)).await;
                println!("{MANY} times {what}: {:?}", start.elapsed());
                assert_eq!(shape(), whole, "after {wreck}");
            }
        })
        .await;
    });
}

#[test]
fn what_was_taken_while_no_agent_ran_is_given_back_by_the_next() {
    let _alone = alone();
    on_host(async |host| {
        let attached = {
            let network = host.network().await;
            attach(&network, 1).await
        };
        let listener = within(&attached.netns, listen);
        run(&format!("ip route del {}/32", address(1)));
        let network = host.network().await;
        network.take_up(&task(1), address(1));
        while_repaired(&network, async || {
            until("the route", || connect(address(1)).is_ok()).await;
        })
        .await;
        drop(listener);
    });
}

#[test]
fn nothing_is_made_again_behind_a_detach_and_nothing_without_a_namespace() {
    let _alone = alone();
    on_host(async |host| {
        let network = host.network().await;
        let before = host.listing();
        attach(&network, 1).await;
        let gone = attach(&network, 2).await;
        let link = run("ip -o link show");
        let link = link
            .lines()
            .find(|line| line.contains("berth-test/0000000002"))
            .unwrap();
        let link = link.split([':', '@']).nth(1).unwrap().trim().to_owned();
        while_repaired(&network, async || {
            network.detach(&task(1)).await.unwrap();
            // The namespace that its processes would have is not there any more.
            run(&format!("umount {}", gone.netns.display()));
            let route = repairs("route");
            attach(&network, 3).await;
            run(&format!("ip route del {}/32", address(3)));
            until("the third's route", || repairs("route") > route).await;
            assert!(!run("ip -o link show").contains(&link));
            assert!(run(&format!("stat -f -c %T {}", gone.netns.display())) != "nsfs\n");
        })
        .await;
        network.detach(&task(2)).await.unwrap();
        network.detach(&task(3)).await.unwrap();
        assert_eq!(host.listing(), before);
    });
}

#[test]
fn a_table_that_somebody_changes_is_put_in_place_again() {
    let _alone = alone();
    on_host(async |host| {
        // Listed before ours, also when ours is made anew.
        run("nft add table ip others");
        let network = host.network().await;
        let one = attach(&network, 1).await;
        let published = Published {
            protocol: Protocol::Tcp,
            host_port: 9999,
            address: address(1).into(),
            port: 8080,
        };
        let rules = || run("nft -s list ruleset");
        while_repaired(&network, async || {
            network
                .publish(&task(1), &[Owner::from(&task(1))], &[published])
                .await
                .unwrap();
            let whole = rules();
            assert!(whole.contains("9999"));
            for wreck in [
                "nft add rule inet berth-test forward drop",
                "nft flush chain inet berth-test postrouting",
                "nft delete element inet berth-test published { tcp . 9999 }",
                "nft delete table inet berth-test",
            ] {
                let before = repairs("table");
                run(wreck);
                until(wreck, || rules() == whole).await;
                // What the agent itself did to the table is no repair, however often.
                assert!(repairs("table") <= before + 1, "after {wreck}");
                until(wreck, || repairs("table") > before).await;
            }
            run("nft flush ruleset");
            until("after a flush of everything", || {
                rules() == whole.replace("table ip others {\n}\n", "")
            })
            .await;
        })
        .await;
        drop(one);
    });
}

#[test]
fn what_others_do_to_their_own_tables_is_no_business_of_ours() {
    let _alone = alone();
    on_host(async |host| {
        let network = host.network().await;
        attach(&network, 1).await;
        while_repaired(&network, async || {
            let before = repairs("table");
            run("nft add table inet berth-test2");
            run("nft add chain inet berth-test2 forward { type filter hook forward priority 0 ; policy drop ; }");
            run("nft delete table inet berth-test2");
            // Something of ours after it, which is repaired when all before was looked at.
            let route = repairs("route");
            run(&format!("ip route del {}/32", address(1)));
            until("the route", || repairs("route") > route).await;
            assert_eq!(repairs("table"), before);
        })
        .await;
    });
}

#[test]
fn new_links_take_packets_as_large_as_the_uplink_does() {
    let _alone = alone();
    on_host(async |host| {
        let of = |netns: &std::path::Path, bytes: u32| {
            run_in(netns, "ip -o link show eth0").contains(&format!(" mtu {bytes} "))
        };
        run("ip link set uplink mtu 1400");
        run(&format!("ip route add default via {OUTSIDE} dev uplink"));
        let network = host.network().await;
        let one = attach(&network, 1).await;
        assert!(of(&one.netns, 1400));
        let links = run("ip -o link show");
        let own = links.lines().find(|line| line.contains("berth-test/")).unwrap();
        assert!(own.contains(" mtu 1400 "), "{own}");
        while_repaired(&network, async || {
            run("ip link set uplink mtu 1380");
            let mut n = 2;
            let start = Instant::now();
            loop {
                let attached = attach(&network, n).await;
                if of(&attached.netns, 1380) {
                    break;
                }
                assert!(start.elapsed() < REPAIRED_WITHIN);
                n += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        assert!(of(&one.netns, 1400), "what is there keeps its own");
        let set = Network::start(NetworkConfig {
            mtu: Some(1300),
            ..host.config()
        });
        let set = set.await.unwrap();
        let attached = set.attach(&task(900), address(900)).await.unwrap();
        assert!(of(&attached.netns, 1300));
    });
}
