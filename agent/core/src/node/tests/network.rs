//! The node's part of the cluster's network: used once the host was looked at, and no longer than it is the node's.

use std::{collections::BTreeMap, net::IpAddr};

use super::*;
use crate::{
    addresses::{Address, Range},
    ids::SubnetId,
    lan::{Lan, LanLink},
    network::{AppliedNetwork, Network},
};

fn subnet(n: u8) -> SubnetId {
    format!("subnet-{n:017x}").parse().unwrap()
}

fn ranges(of: &[(u8, &str)]) -> BTreeMap<SubnetId, Range> {
    let range = |(n, range): &(u8, &str)| (subnet(*n), range.parse().unwrap());
    of.iter().map(range).collect()
}

fn said(revision: u64, of: &[(u8, &str)]) -> Event {
    Event::Network(Network {
        position: position(revision),
        ranges: ranges(of),
        lans: BTreeMap::new(),
        peers: BTreeMap::new(),
    })
}

fn applied(of: &[(u8, &str)]) -> Event {
    Event::NetworkApplied(AppliedNetwork {
        ranges: ranges(of),
        ..AppliedNetwork::default()
    })
}

fn in_subnet(n: u64, of: u8) -> TaskSpec {
    TaskSpec {
        subnet: Some(subnet(of)),
        ..task(n, 1, vec![container(n, "main")])
    }
}

fn address(node: &Node, spec: &TaskSpec) -> Option<Address> {
    node.task(&spec.id).unwrap().address
}

#[test]
fn a_task_waits_for_its_subnet_and_keeps_its_address_when_that_is_taken_away() {
    let mut node = node();
    let (first, second) = (in_subnet(1, 1), in_subnet(2, 1));
    node.apply(Millis(0), snapshot(1, vec![first.clone()]));
    let waits = |node: &Node, spec: &TaskSpec| match &node.task(&spec.id).unwrap().phase {
        Phase::Waiting { reason, .. } => reason.clone(),
        phase => panic!("{phase:?}"),
    };
    assert!(waits(&node, &first).contains("no part of subnet-00000000000000001"));

    let change = node.apply(Millis(1), said(2, &[(1, "10.64.1.0/30")]));
    let wanted = change.network.unwrap();
    assert_eq!(
        (wanted.ranges, change.node),
        (ranges(&[(1, "10.64.1.0/30")]), true)
    );
    assert_eq!(address(&node, &first), None, "the host was not looked at");
    node.apply(Millis(2), applied(&[(1, "10.64.1.0/30")]));
    assert_eq!(address(&node, &first), Some(Ipv4Addr::new(10, 64, 1, 1).into()));

    let change = node.apply(Millis(3), said(3, &[]));
    assert_eq!(change.network.unwrap().kept, [IpAddr::from([10, 64, 1, 1])]);
    // What the agent said of the state before comes too late.
    node.apply(Millis(4), applied(&[(1, "10.64.1.0/30")]));
    node.apply(Millis(5), snapshot(4, vec![first.clone(), second.clone()]));
    assert!(waits(&node, &second).contains("no part of"));
    assert_eq!(address(&node, &first), Some(Ipv4Addr::new(10, 64, 1, 1).into()));
}

#[test]
fn what_cannot_be_used_is_an_impairment_and_stops_nothing_else() {
    let mut node = node();
    node.apply(Millis(0), said(1, &[(1, "10.64.1.0/24"), (2, "10.65.1.0/24")]));
    let problems = BTreeMap::from([(subnet(1), "10.64.1.0/24 is routed elsewhere".to_owned())]);
    let looked = AppliedNetwork {
        ranges: ranges(&[(2, "10.65.1.0/24")]),
        problems,
        unreached: vec!["the node at 192.0.2.7 is not reached".into()],
        ..AppliedNetwork::default()
    };
    node.apply(Millis(1), Event::NetworkApplied(looked));
    let own_range = |problem: Option<&str>| Event::OwnRange {
        problem: problem.map(str::to_owned),
    };
    node.apply(Millis(1), own_range(Some("10.89.0.0/22 is routed elsewhere")));
    let told = node.impairments();
    assert!(
        told.len() == 3 && told[0].starts_with("10.89.0.0/22 is routed elsewhere: set"),
        "{told:?}"
    );
    node.apply(Millis(1), own_range(None));
    let told = node.impairments();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("subnet-00000000000000001 is not used here: 10.64.1.0/24"),
        "{told:?}"
    );
    let (lost, fine, own) = (
        in_subnet(1, 1),
        in_subnet(2, 2),
        task(3, 1, vec![container(3, "main")]),
    );
    node.apply(
        Millis(2),
        snapshot(2, vec![lost.clone(), fine.clone(), own.clone()]),
    );
    assert_eq!(address(&node, &lost), None);
    assert_eq!(address(&node, &fine), Some(Ipv4Addr::new(10, 65, 1, 1).into()));
    assert_eq!(address(&node, &own), Some(Ipv4Addr::new(10, 0, 0, 1).into()));
}

#[test]
fn another_stores_network_and_an_older_one_are_not_taken() {
    let mut node = node();
    node.apply(Millis(0), snapshot(5, vec![]));
    node.apply(Millis(1), said(6, &[(1, "10.64.1.0/24")]));
    assert!(node.apply(Millis(2), said(4, &[])).is_empty(), "older");
    let foreign = Event::Network(Network {
        position: Position {
            store_id: "another".into(),
            ..position(9)
        },
        ranges: BTreeMap::new(),
        lans: BTreeMap::new(),
        peers: BTreeMap::new(),
    });
    assert!(node.apply(Millis(3), foreign).is_empty());
    assert_eq!(node.wanted_network().ranges, ranges(&[(1, "10.64.1.0/24")]));
}

fn lan() -> Lan {
    Lan {
        link: LanLink::Macvlan {
            uplink: "eth1".into(),
        },
        network: "192.168.1.0/24".parse().unwrap(),
        gateway: None,
    }
}

fn said_lan(revision: u64) -> Event {
    Event::Network(Network {
        position: position(revision),
        ranges: ranges(&[(1, "192.168.1.128/30"), (2, "10.64.1.0/24")]),
        lans: BTreeMap::from([(subnet(1), lan())]),
        peers: BTreeMap::new(),
    })
}

#[test]
fn a_lan_that_is_not_there_is_an_impairment_once_a_task_is_its_host() {
    let mut node = node();
    let wanted = node.apply(Millis(0), said_lan(1)).network.unwrap();
    let routed: Vec<String> = wanted.routed().map(|part| part.to_string()).collect();
    let on_lans: Vec<String> = wanted.on_lans().map(|part| part.to_string()).collect();
    assert_eq!(
        (routed, on_lans),
        (vec!["10.64.1.0/24".into()], vec!["192.168.1.128/30".into()])
    );
    let without = || {
        let problems = BTreeMap::from([(subnet(1), "there is no link eth1".to_owned())]);
        Event::NetworkApplied(AppliedNetwork {
            ranges: ranges(&[(2, "10.64.1.0/24")]),
            problems,
            ..AppliedNetwork::default()
        })
    };
    node.apply(Millis(1), without());
    assert!(node.impairments().is_empty());
    let spec = TaskSpec {
        lan: Some(lan()),
        ..in_subnet(1, 1)
    };
    node.apply(Millis(2), snapshot(2, vec![spec.clone()]));
    match &node.task(&spec.id).unwrap().phase {
        Phase::Waiting { reason, .. } => assert!(reason.contains("there is no link eth1"), "{reason}"),
        phase => panic!("{phase:?}"),
    }
    let change = node.apply(
        Millis(3),
        applied(&[(1, "192.168.1.128/30"), (2, "10.64.1.0/24")]),
    );
    let prepared = change.effects.iter().find_map(|effect| match effect {
        Effect::PrepareHost(prepare) => Some(prepare.clone()),
        _ => None,
    });
    let prepared = prepared.unwrap();
    assert_eq!(
        (prepared.lan, prepared.address),
        (spec.lan.clone().map(Box::new), address(&node, &spec))
    );
    node.apply(Millis(4), without());
    assert_eq!(
        node.impairments(),
        ["subnet-00000000000000001 is not used here: there is no link eth1"]
    );
    let change = node.apply(Millis(5), said(3, &[]));
    let wanted = change.network.unwrap();
    assert_eq!(
        (wanted.kept.len(), wanted.kept_lan),
        (0, vec![prepared.address.unwrap().ipv4])
    );
}
