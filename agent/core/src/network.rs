//! Owns what the control plane says of the cluster's network: this node's parts of the subnets, and where other nodes'
//! are. Never looks at the host: whether a part can be used there, the agent says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{desired::Position, ids::SubnetId};

/// The whole of it, as of one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub position: Position,
    /// Where addresses of tasks come from.
    pub ranges: BTreeMap<SubnetId, Ipv4Net>,
    /// Ranges of other nodes, by where these are reached.
    pub peers: BTreeMap<Ipv4Addr, BTreeSet<Ipv4Net>>,
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
    pub ranges: BTreeMap<SubnetId, Ipv4Net>,
    pub peers: BTreeMap<Ipv4Addr, BTreeSet<Ipv4Net>>,
    /// Addresses that tasks have from ranges before.
    pub kept: Vec<Ipv4Addr>,
    /// Of what the control plane said.
    pub position: Option<Position>,
}

/// What the host was made like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedNetwork {
    /// Those that can be used.
    pub ranges: BTreeMap<SubnetId, Ipv4Net>,
    /// Why the others cannot, for people.
    pub problems: BTreeMap<SubnetId, String>,
    /// What is wrong besides: ranges of other nodes that cannot be reached.
    pub unreached: Vec<String>,
}
