//! Owns the border for the node's part of the cluster's network. Checks it as if nobody had checked before: it becomes routes
//! and rules of the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_agent_core::{
    addresses::{PREFIX_LEN_MAX, Range},
    event::Event,
    ids::SubnetId,
    lan::Lan,
    network::Network,
};
use berth_proto::node::v1 as wire;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Refusal, position, refuse};

const RANGES_MAX: usize = 16;
/// Of each family: 16 subnets in 4,096 parts.
const PEER_RANGES_MAX: usize = 65_536;
const PREFIX_LENS: std::ops::RangeInclusive<u8> = 8..=30;

/// What the control plane says of it.
pub fn network(wire: wire::NodeNetwork) -> Result<Event, Refusal> {
    let position = position(wire.position)?;
    if wire.ranges.len() > RANGES_MAX {
        return refuse(
            "ranges",
            format!("{} are more than {RANGES_MAX}", wire.ranges.len()),
        );
    }
    let mut ranges: BTreeMap<SubnetId, Range> = BTreeMap::new();
    let mut lans: BTreeMap<SubnetId, Lan> = BTreeMap::new();
    for one in wire.ranges {
        let ipv4 = range("ranges.ipv4_range", &one.ipv4_range)?;
        let overlaps = |other: &Range| other.ipv4.contains(&ipv4) || ipv4.contains(&other.ipv4);
        if ranges.values().any(overlaps) {
            return refuse("ranges.ipv4_range", format!("{ipv4} overlaps another"));
        }
        let range = match one.ipv6_range.as_str() {
            "" => ipv4.into(),
            text => {
                let ipv6 = ipv6_range("ranges.ipv6_range", text)?;
                let both = Range::both(ipv4, ipv6);
                both.or_else(|error| refuse("ranges.ipv6_range", error.to_string()))?
            }
        };
        if let Some(lan) = super::lan::lan(one.lan)? {
            if !lan.network.contains(&ipv4) {
                return refuse("ranges.lan", format!("{ipv4} is not inside of {}", lan.network));
            }
            if range.ipv6().is_some() {
                return refuse("ranges.ipv6_range", "tasks on a LAN have IPv4 alone");
            }
            lans.insert(subnet_id(&one.subnet_id)?, lan);
        }
        if ranges.insert(subnet_id(&one.subnet_id)?, range).is_some() {
            return refuse("ranges.subnet_id", format!("{:?} is there twice", one.subnet_id));
        }
    }
    for (field, peers) in [("peers", &wire.peers), ("ipv6_peers", &wire.ipv6_peers)] {
        let count: usize = peers.iter().map(|peer| peer.ranges.len()).sum();
        if count > PEER_RANGES_MAX {
            return refuse(field, format!("{count} ranges are more than {PEER_RANGES_MAX}"));
        }
    }
    let mut peers: BTreeMap<IpAddr, BTreeSet<IpNet>> = BTreeMap::new();
    for peer in wire.peers {
        let Ok(address) = peer.address.parse::<Ipv4Addr>() else {
            let text: String = peer.address.chars().take(64).collect();
            return refuse("peers.address", format!("{text:?} is not an IPv4 address"));
        };
        let of_peer = peers.entry(address.into()).or_default();
        for text in &peer.ranges {
            of_peer.insert(range("peers.ranges", text)?.into());
        }
    }
    for peer in wire.ipv6_peers {
        let address = peer.address.parse().ok().filter(may_be_a_nodes);
        let Some(address) = address else {
            let text: String = peer.address.chars().take(64).collect();
            return refuse(
                "ipv6_peers.address",
                format!("{text:?} is not an IPv6 address of a node"),
            );
        };
        let of_peer = peers.entry(address.into()).or_default();
        for text in &peer.ranges {
            of_peer.insert(ipv6_range("ipv6_peers.ranges", text)?.into());
        }
    }
    Ok(Event::Network(Network {
        position,
        ranges,
        lans,
        peers,
    }))
}

/// The subnet of a task; empty: none.
pub(super) fn task_subnet(id: &str) -> Result<Option<SubnetId>, Refusal> {
    if id.is_empty() {
        return Ok(None);
    }
    subnet_id(id).map(Some)
}

fn subnet_id(id: &str) -> Result<SubnetId, Refusal> {
    id.parse()
        .or_else(|error: berth_agent_core::ids::InvalidSubnetId| refuse("subnet_id", error.to_string()))
}

fn range(field: &str, text: &str) -> Result<Ipv4Net, Refusal> {
    match text.parse::<Ipv4Net>() {
        Ok(range)
            if PREFIX_LENS.contains(&range.prefix_len())
                && range == range.trunc()
                && !is_reserved(&range) =>
        {
            Ok(range)
        }
        _ => {
            let text: String = text.chars().take(64).collect();
            refuse(field, format!("{text:?} is not a range of addresses for tasks"))
        }
    }
}

/// No task has an address of it.
fn is_reserved(range: &Ipv4Net) -> bool {
    let first = range.network();
    first.is_loopback() || first.is_link_local() || first.is_multicast() || first.octets()[0] == 0
}

/// What is below a prefix of a range of IPv4 addresses.
fn ipv6_range(field: &str, text: &str) -> Result<Ipv6Net, Refusal> {
    let of_tasks = |range: &Ipv6Net| {
        let [.., a, b, c, d] = range.network().octets();
        let len = range.prefix_len().saturating_sub(PREFIX_LEN_MAX);
        let ipv4 = Ipv4Net::new(Ipv4Addr::new(a, b, c, d), len).ok();
        ipv4.filter(|ipv4| PREFIX_LENS.contains(&len) && !is_reserved(ipv4))
            .is_some_and(|ipv4| Range::both(ipv4, *range).is_ok())
    };
    match text.parse::<Ipv6Net>() {
        Ok(range) if of_tasks(&range) => Ok(range),
        _ => {
            let text: String = text.chars().take(64).collect();
            refuse(
                field,
                format!("{text:?} is not a range of IPv6 addresses for tasks"),
            )
        }
    }
}

/// On a network of several hosts, and the same on all of them.
fn may_be_a_nodes(address: &Ipv6Addr) -> bool {
    let odd = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    !odd && !address.is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    fn said(ranges: &[(&str, &str)], peers: &[(&str, &[&str])]) -> wire::NodeNetwork {
        let range = |(subnet, range): &(&str, &str)| wire::SubnetRange {
            subnet_id: (*subnet).into(),
            ipv4_range: (*range).into(),
            ..Default::default()
        };
        let peer = |(address, ranges): &(&str, &[&str])| wire::Peer {
            address: (*address).into(),
            ranges: ranges.iter().map(|range| (*range).into()).collect(),
        };
        wire::NodeNetwork {
            position: Some(wire::Position {
                store_id: "s".into(),
                epoch: 1,
                revision: 2,
            }),
            ranges: ranges.iter().map(range).collect(),
            peers: peers.iter().map(peer).collect(),
            ipv6_peers: vec![],
        }
    }

    const A: &str = "subnet-0000000000000000a";
    const B: &str = "subnet-0000000000000000b";

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        let good = said(
            &[(A, "10.64.1.0/24"), (B, "10.65.1.0/24")],
            &[("192.0.2.7", &["10.64.2.0/24", "10.65.2.0/24"])],
        );
        let Event::Network(network) = network(good).unwrap() else {
            panic!("another event");
        };
        assert_eq!((network.ranges.len(), network.peers.len()), (2, 1));
        for (bad, field) in [
            (said(&[(A, "10.64.1.0/31")], &[]), "ranges.ipv4_range"),
            (said(&[(A, "10.64.1.7/24")], &[]), "ranges.ipv4_range"),
            (said(&[(A, "169.254.0.0/24")], &[]), "ranges.ipv4_range"),
            (said(&[(A, "0.0.0.0/8")], &[]), "ranges.ipv4_range"),
            (
                said(&[(A, "10.64.1.0/24"), (B, "10.64.0.0/16")], &[]),
                "ranges.ipv4_range",
            ),
            (
                said(&[(A, "10.64.1.0/24"), (A, "10.65.0.0/16")], &[]),
                "ranges.subnet_id",
            ),
            (said(&[("subnet-default", "10.64.1.0/24")], &[]), "subnet_id"),
            (said(&[], &[("fd00::1", &["10.64.1.0/24"])]), "peers.address"),
            (said(&[], &[("192.0.2.7", &["10.64.1.0"])]), "peers.ranges"),
            (said(&[(A, "10.64.1.0/24"); 17], &[]), "ranges"),
        ] {
            assert_eq!(super::network(bad.clone()).unwrap_err().field, field, "{bad:?}");
        }
    }

    #[test]
    fn ipv6_is_what_the_ipv4_range_is_below_a_prefix_and_reached_by_ipv6() {
        let dual = |ipv6: &str, peer: &str, ranges: &[&str]| {
            let mut wire = said(&[(A, "10.64.1.0/24")], &[]);
            wire.ranges[0].ipv6_range = ipv6.into();
            wire.ipv6_peers = vec![wire::Peer {
                address: peer.into(),
                ranges: ranges.iter().map(|range| (*range).into()).collect(),
            }];
            network(wire)
        };
        let (own, theirs) = ("fd00:64::a40:100/120", "fd00:64::a40:200/120");
        let Ok(Event::Network(good)) = dual(own, "fd00::7", &[theirs]) else {
            panic!("it is good");
        };
        let range = good.ranges.values().next().unwrap();
        assert_eq!(range.ipv6().unwrap().to_string(), own);
        assert_eq!(good.peers.len(), 1);
        for (ipv6, peer, range, field) in [
            ("fd00:64::a40:200/120", "fd00::7", theirs, "ranges.ipv6_range"),
            ("fd00:64::/64", "fd00::7", theirs, "ranges.ipv6_range"),
            ("fe80::a40:100/120", "fd00::7", theirs, "ranges.ipv6_range"),
            ("x", "fd00::7", theirs, "ranges.ipv6_range"),
            (own, "192.0.2.7", theirs, "ipv6_peers.address"),
            (own, "fe80::7", theirs, "ipv6_peers.address"),
            (own, "::1", theirs, "ipv6_peers.address"),
            (own, "fd00::7", "10.64.2.0/24", "ipv6_peers.ranges"),
            (own, "fd00::7", "fd00:64::/64", "ipv6_peers.ranges"),
            (own, "fd00::7", "::/0", "ipv6_peers.ranges"),
            (own, "fd00::7", "fd00:64::7f00:0/120", "ipv6_peers.ranges"),
        ] {
            let refused = dual(ipv6, peer, &[range]).unwrap_err();
            assert_eq!(refused.field, field, "{ipv6} {peer} {range}");
        }
        let mut lan = said(&[(A, "192.168.1.0/24")], &[]);
        lan.ranges[0].ipv6_range = "fd00:64::c0a8:100/120".into();
        assert!(network(lan.clone()).is_ok());
        lan.ranges[0].lan = Some(wire::Lan {
            kind: wire::LanKind::Macvlan.into(),
            uplink: "eth1".into(),
            ipv4_cidr: "192.168.1.0/24".into(),
            ..Default::default()
        });
        assert_eq!(network(lan).unwrap_err().field, "ranges.ipv6_range");
    }

    #[test]
    fn each_family_may_have_as_many_ranges_as_the_other() {
        let many = |count: usize, ipv6: bool| {
            let part = |n: usize| match ipv6 {
                false => format!("10.{}.{}.{}/30", n >> 14, n >> 6 & 255, (n & 63) << 2),
                true => format!("fd00:64::a{:02x}:{:x}/126", n >> 14, n << 2 & 0xffff),
            };
            wire::Peer {
                address: if ipv6 { "fd00::7" } else { "192.0.2.7" }.into(),
                ranges: (0..count).map(part).collect(),
            }
        };
        let dual = |ipv4: usize, ipv6: usize| {
            let mut wire = said(&[], &[]);
            wire.peers = vec![many(ipv4, false)];
            wire.ipv6_peers = vec![many(ipv6, true)];
            network(wire)
        };
        let Ok(Event::Network(all)) = dual(PEER_RANGES_MAX, PEER_RANGES_MAX) else {
            panic!("as many as there can be");
        };
        let counts: Vec<usize> = all.peers.values().map(BTreeSet::len).collect();
        assert_eq!(counts, [PEER_RANGES_MAX; 2]);
        assert_eq!(dual(PEER_RANGES_MAX + 1, 0).unwrap_err().field, "peers");
        assert_eq!(dual(0, PEER_RANGES_MAX + 1).unwrap_err().field, "ipv6_peers");
    }

    proptest! {
        #[test]
        fn any_ipv6_range_is_one_below_a_prefix_or_refused(text: String, bits: u128, len in 0..=128u8) {
            let _ = ipv6_range("x", &text);
            if let Ok(range) = ipv6_range("x", &format!("{}/{len}", Ipv6Addr::from(bits))) {
                assert!(range.prefix_len() > PREFIX_LEN_MAX && range == range.trunc());
            }
        }

        #[test]
        fn any_message_is_taken_or_refused(
            ranges in prop::collection::vec((".{0,30}", ".{0,20}"), 0..4),
            octets in any::<[u8; 4]>(), len in any::<u8>(),
        ) {
            let mut wire = said(&[], &[]);
            wire.ranges = ranges
                .into_iter()
                .map(|(subnet_id, ipv4_range)| wire::SubnetRange { subnet_id, ipv4_range, ..Default::default() })
                .collect();
            wire.ranges.push(wire::SubnetRange {
                subnet_id: A.into(),
                ipv4_range: format!("{}/{len}", Ipv4Addr::from(octets)),
                ..Default::default()
            });
            let _ = network(wire);
        }
    }
}
