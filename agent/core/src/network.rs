//! Owns what the control plane says of the cluster's network: this node's parts of the subnets, and where other nodes'
//! are. Never looks at the host: whether a part can be used there, the agent says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::{
    addresses::Range,
    desired::Position,
    ids::{SubnetId, TaskId},
    lan::Lan,
};

/// The whole of it, as of one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub position: Position,
    /// Where addresses of tasks come from.
    pub ranges: BTreeMap<SubnetId, Range>,
    /// Those of them of which tasks are hosts of a network outside. Absent in what an older agent stored.
    #[serde(default)]
    pub lans: BTreeMap<SubnetId, Lan>,
    /// Ranges of other nodes, by where these are reached: those of a family by an address of the same.
    pub peers: BTreeMap<IpAddr, BTreeSet<IpNet>>,
}

impl WantedNetwork {
    /// The parts of the one kind or the other.
    fn parts(&self, lan: bool) -> impl Iterator<Item = Range> {
        let of = move |(subnet, _): &(&SubnetId, _)| self.lans.contains_key(*subnet) == lan;
        self.ranges.iter().filter(of).map(|(_, range)| *range)
    }

    /// What the host routes to, as a whole.
    pub fn routed(&self) -> impl Iterator<Item = Range> {
        self.parts(false)
    }

    /// Tasks here have IPv6 addresses, and those of other nodes are reached by IPv4 alone: this node, or every other, said no
    /// IPv6 address of its own.
    pub fn lacks_ipv6_peers(&self) -> bool {
        let has_ipv6 = self.routed().any(|range| range.ipv6().is_some());
        has_ipv6 && !self.peers.is_empty() && !self.peers.keys().any(IpAddr::is_ipv6)
    }

    /// What the host has of networks outside.
    pub fn on_lans(&self) -> impl Iterator<Item = Ipv4Net> {
        // They have IPv4 alone.
        self.parts(true).map(|range| range.ipv4)
    }
}

impl Network {
    /// Whether `self` may take the place of `known`: it is of the same store, and not older.
    pub(crate) fn follows(&self, known: &Position) -> bool {
        let order = |p: &Position| (p.epoch, p.revision);
        self.position.store_id == known.store_id && order(&self.position) >= order(known)
    }
}

/// What the host has to be made like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedNetwork {
    pub ranges: BTreeMap<SubnetId, Range>,
    /// Those of them that the host does not route to.
    pub lans: BTreeMap<SubnetId, Lan>,
    pub peers: BTreeMap<IpAddr, BTreeSet<IpNet>>,
    /// Addresses that tasks have from ranges before.
    pub kept: Vec<IpAddr>,
    /// Likewise of networks outside.
    pub kept_lan: Vec<Ipv4Addr>,
    /// Of what the control plane said.
    pub position: Option<Position>,
}

/// What the host was made like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedNetwork {
    /// Those that can be used.
    pub ranges: BTreeMap<SubnetId, Range>,
    /// How many tasks can be in one, where that is not said by its addresses.
    #[serde(default)]
    pub limits: BTreeMap<SubnetId, u32>,
    /// Why the others cannot, for people.
    pub problems: BTreeMap<SubnetId, String>,
    /// Tasks that lost what their network is made of, and how, for people.
    #[serde(default)]
    pub lost: BTreeMap<TaskId, String>,
    /// What is wrong besides: ranges of other nodes that cannot be reached.
    pub unreached: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_leads_nowhere_where_no_node_said_an_address_of_it() {
        let range = |prefix: Option<&str>| {
            let prefix = prefix.map(|prefix| prefix.parse().unwrap());
            Range::below("10.64.1.0/24".parse().unwrap(), prefix).unwrap()
        };
        let wanted = |own: Range, peers: &[&str]| WantedNetwork {
            ranges: BTreeMap::from([("subnet-0000000000000000a".parse().unwrap(), own)]),
            peers: peers
                .iter()
                .map(|peer| (peer.parse().unwrap(), BTreeSet::new()))
                .collect(),
            ..WantedNetwork::default()
        };
        let dual = range(Some("fd00:64::/64"));
        assert!(wanted(dual, &["192.0.2.7"]).lacks_ipv6_peers());
        assert!(!wanted(dual, &["192.0.2.7", "fd00::7"]).lacks_ipv6_peers());
        assert!(!wanted(dual, &[]).lacks_ipv6_peers(), "there is nobody to reach");
        assert!(!wanted(range(None), &["192.0.2.7"]).lacks_ipv6_peers());
    }
}
