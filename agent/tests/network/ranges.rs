//! Parts of subnets, and routes to those of other nodes, as the kernel has them.

use std::{collections::BTreeMap, net::Ipv4Addr};

use berth_agent::effects::network::{HostObject, Network};
use berth_agent_core::network::WantedNetwork;

use super::{
    host::{HOST, OUTSIDE, attach, on_host, run},
    repair::{alone, repairs},
};

fn wanted(peer: Ipv4Addr) -> WantedNetwork {
    let subnet = "subnet-0000000000000000a".parse().unwrap();
    WantedNetwork {
        ranges: BTreeMap::from([(subnet, "10.64.1.0/24".parse().unwrap())]),
        peers: BTreeMap::from([(peer.into(), ["10.64.2.0/24".parse().unwrap()].into())]),
        ..WantedNetwork::default()
    }
}

/// Those of the protocol that marks ours.
fn routes() -> Vec<String> {
    let output = std::process::Command::new("ip")
        .args(["route", "show", "proto", "190"])
        .output()
        .unwrap();
    let brief = |line: &str| line.split(" metric ").next().unwrap().trim().to_owned();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(brief)
        .collect()
}

async fn strays(network: &Network) -> Vec<HostObject> {
    let mut objects = network.list().await.unwrap();
    objects.retain(|object| matches!(object, HostObject::RangeRoute { .. }));
    objects
}

#[test]
fn routes_are_wanted_or_strays_and_a_purge_removes_them() {
    on_host(async |host| {
        let network = host.network().await;
        let applied = network.configure(&wanted(OUTSIDE)).await.unwrap();
        assert!(
            applied.problems.is_empty() && applied.unreached.is_empty(),
            "{applied:?}"
        );
        let both = [
            "unreachable 10.64.1.0/24",
            "10.64.2.0/24 via 192.0.2.2 dev uplink",
        ];
        assert_eq!(routes(), both);
        assert_eq!(strays(&network).await, []);
        // What is wanted no more goes, and what was there all the time stays.
        run("ip route add 10.99.0.0/24 via 192.0.2.2 proto 190 metric 7");
        assert_eq!(network.configure(&wanted(OUTSIDE)).await.unwrap(), applied);
        network.configure(&WantedNetwork::default()).await.unwrap();
        assert_eq!(
            routes(),
            ["10.99.0.0/24 via 192.0.2.2 dev uplink"],
            "another instance's"
        );

        // One that knows of none of them, as a purge does.
        network.configure(&wanted(OUTSIDE)).await.unwrap();
        let left = Network::left_behind(host.config()).unwrap();
        let found = strays(&left).await;
        assert_eq!(found.len(), 2, "{found:?}");
        left.remove_strays(&found).await.unwrap();
        assert_eq!(routes(), ["10.99.0.0/24 via 192.0.2.2 dev uplink"]);
    });
}

#[test]
fn a_route_that_somebody_removes_is_there_again_and_counted() {
    let _alone = alone();
    on_host(async |host| {
        let network = host.network().await;
        let repaired = || repairs("route");
        let before = repaired();
        network.configure(&wanted(OUTSIDE)).await.unwrap();
        assert_eq!(repaired(), before, "nobody removed it");
        let whole = routes();
        run("ip route del 10.64.2.0/24");
        network.configure(&wanted(OUTSIDE)).await.unwrap();
        assert_eq!((repaired(), routes()), (before + 1, whole));
    });
}

#[test]
fn the_nodes_own_range_is_found_to_be_somebody_elses() {
    on_host(async |host| {
        let network = host.network().await;
        attach(&network, 1).await;
        network.configure(&wanted(OUTSIDE)).await.unwrap();
        run(&format!("ip route add default via {OUTSIDE}"));
        assert_eq!(
            network.range_problem().await.unwrap(),
            None,
            "its own tasks are no others"
        );
        for route in ["10.77.4.0/24", "10.64.0.0/10"] {
            run(&format!("ip route add {route} via {OUTSIDE}"));
            let problem = network.range_problem().await.unwrap().unwrap();
            assert!(
                problem.contains("10.77.0.0/16") && problem.contains(route),
                "{problem}"
            );
            run(&format!("ip route del {route} via {OUTSIDE}"));
        }
        for nowhere in [
            "blackhole 10.0.0.0/9",
            "unreachable 10.77.0.0/16",
            "throw 10.76.0.0/15",
        ] {
            run(&format!("ip route add {nowhere}"));
            assert_eq!(
                network.range_problem().await.unwrap(),
                None,
                "{nowhere} takes nothing"
            );
        }
        run("ip route add blackhole 10.77.9.0/24");
        let problem = network.range_problem().await.unwrap().unwrap();
        assert!(problem.contains("10.77.9.0/24"), "{problem}");
        run("ip route del blackhole 10.77.9.0/24");
        assert_eq!(network.range_problem().await.unwrap(), None);
    });
}

#[test]
fn a_node_that_is_not_on_a_network_of_this_one_is_told_and_not_routed_to() {
    on_host(async |host| {
        run("ip route add 198.51.100.0/24 via 192.0.2.2");
        run("ip route add prohibit 203.0.113.8/32");
        let network = host.network().await;
        for (peer, why) in [
            (Ipv4Addr::new(198, 51, 100, 7), "behind 192.0.2.2 on uplink"),
            (Ipv4Addr::new(203, 0, 113, 7), "no route leads there"),
            (Ipv4Addr::new(203, 0, 113, 8), "no route leads there"),
            (HOST, "an address of this host"),
        ] {
            let applied = network.configure(&wanted(peer)).await.unwrap();
            assert_eq!(applied.unreached.len(), 1, "{applied:?}");
            assert!(applied.unreached[0].contains(why), "{applied:?}");
            assert_eq!(
                applied.ranges.len(),
                1,
                "the node's own part is used all the same"
            );
            assert_eq!(routes(), ["unreachable 10.64.1.0/24"], "{peer}");
        }
    });
}

#[test]
fn a_route_that_the_kernel_refuses_is_told_and_keeps_no_other() {
    on_host(async |host| {
        let network = host.network().await;
        let mut wanted = wanted(OUTSIDE);
        // No gateway: it is every host's.
        let everybody = "192.0.2.255".parse().unwrap();
        let refused = ["10.64.3.0/24".parse().unwrap()];
        wanted.peers.insert(everybody, refused.into());
        let applied = network.configure(&wanted).await.unwrap();
        assert_eq!(
            (applied.ranges.len(), applied.unreached.len()),
            (1, 1),
            "{applied:?}"
        );
        assert!(applied.unreached[0].contains("10.64.3.0/24"), "{applied:?}");
        let others = [
            "unreachable 10.64.1.0/24",
            "10.64.2.0/24 via 192.0.2.2 dev uplink",
        ];
        assert_eq!(routes(), others);
    });
}
