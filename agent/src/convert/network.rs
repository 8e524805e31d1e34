//! Owns the border for the node's part of the cluster's network. Checks it as if nobody had checked before: it becomes routes
//! and rules of the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use berth_agent_core::{event::Event, ids::SubnetId, lan::Lan, network::Network};
use berth_proto::node::v1 as wire;
use ipnet::Ipv4Net;

use super::{Refusal, position, refuse};

const RANGES_MAX: usize = 16;
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
    let mut ranges: BTreeMap<SubnetId, Ipv4Net> = BTreeMap::new();
    let mut lans: BTreeMap<SubnetId, Lan> = BTreeMap::new();
    for one in wire.ranges {
        let range = range("ranges.ipv4_range", &one.ipv4_range)?;
        let overlaps = |other: &Ipv4Net| other.contains(&range) || range.contains(other);
        if ranges.values().any(overlaps) {
            return refuse("ranges.ipv4_range", format!("{range} overlaps another"));
        }
        if let Some(lan) = super::lan::lan(one.lan)? {
            if !lan.network.contains(&range) {
                return refuse("ranges.lan", format!("{range} is not inside of {}", lan.network));
            }
            lans.insert(subnet_id(&one.subnet_id)?, lan);
        }
        if ranges.insert(subnet_id(&one.subnet_id)?, range).is_some() {
            return refuse("ranges.subnet_id", format!("{:?} is there twice", one.subnet_id));
        }
    }
    let count: usize = wire.peers.iter().map(|peer| peer.ranges.len()).sum();
    if count > PEER_RANGES_MAX {
        return refuse("peers", format!("{count} ranges are more than {PEER_RANGES_MAX}"));
    }
    let mut peers: BTreeMap<Ipv4Addr, BTreeSet<Ipv4Net>> = BTreeMap::new();
    for peer in wire.peers {
        let Ok(address) = peer.address.parse::<Ipv4Addr>() else {
            let text: String = peer.address.chars().take(64).collect();
            return refuse("peers.address", format!("{text:?} is not an IPv4 address"));
        };
        let of_peer = peers.entry(address).or_default();
        for text in &peer.ranges {
            of_peer.insert(range("peers.ranges", text)?);
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
    let reserved = |range: &Ipv4Net| {
        let first = range.network();
        first.is_loopback() || first.is_link_local() || first.is_multicast() || first.octets()[0] == 0
    };
    match text.parse::<Ipv4Net>() {
        Ok(range)
            if PREFIX_LENS.contains(&range.prefix_len()) && range == range.trunc() && !reserved(&range) =>
        {
            Ok(range)
        }
        _ => {
            let text: String = text.chars().take(64).collect();
            refuse(field, format!("{text:?} is not a range of addresses for tasks"))
        }
    }
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

    proptest! {
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
