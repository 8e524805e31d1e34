//! Owns what the control plane says of the cluster's network: this node's parts of the subnets, and where other nodes'
//! are. Never looks at the host: whether a part can be used there, the agent says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::{addresses::Range, desired::Position, ids::SubnetId, lan::Lan};

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
    /// Why the others cannot, for people.
    pub problems: BTreeMap<SubnetId, String>,
    /// What is wrong besides: ranges of other nodes that cannot be reached.
    pub unreached: Vec<String>,
}
