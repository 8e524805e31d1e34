//! Owns what a node is told of its cluster's network: its parts of the subnets, and where those of others are. Never
//! decides any of it.

use std::collections::BTreeMap;

use berth_control_plane_core::subnets::{Block, Ipv6Net, ipv6};
use berth_proto::node::v1::{MESSAGE_BYTES_MAX, NodeNetwork, Peer, Position, SubnetRange};
use prost::Message as _;

use super::dispatch::DispatchError;
use crate::{
    model::{StoreIdentity, Subnet, keys},
    store::{
        PAGE_ENTRIES_MAX, SharedStore, StoreError, Watch,
        typed::{self, RecordError},
    },
    subnets::lan_to_wire,
};

/// How often the records are read again because the history was compacted meanwhile.
const ATTEMPTS_MAX: u32 = 5;
/// A message's own tag and length, around what is in it.
const ENVELOPE_BYTES: usize = 16;

/// Who is told.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) node: String,
    /// An agent that does not would take its part of a LAN for one that it routes to.
    pub(super) knows_lans: bool,
}

/// What one node was told last, and what may change it.
#[derive(Debug)]
pub(super) struct Network {
    store: SharedStore,
    identity: StoreIdentity,
    prefix: String,
    to: Told,
    watch: Box<dyn Watch>,
    told: NodeNetwork,
    /// Something changed that was not looked at yet.
    stale: bool,
}

impl Network {
    /// What the node is to be told first, and what follows it.
    pub(super) async fn begin(
        store: SharedStore,
        identity: StoreIdentity,
        cluster: &str,
        to: Told,
    ) -> Result<(NodeNetwork, Self), DispatchError> {
        let prefix = keys::subnets(cluster);
        let (told, watch) = read(&store, &identity, &prefix, &to).await?;
        let network = Self {
            store,
            identity,
            prefix,
            to,
            watch,
            told: told.clone(),
            stale: false,
        };
        Ok((told, network))
    }

    /// The next thing to tell. Cancel-safe: what is stale stays stale until it was read whole.
    pub(super) async fn next(&mut self) -> Result<NodeNetwork, DispatchError> {
        loop {
            if !self.stale {
                match self.watch.next().await {
                    Ok(_) | Err(StoreError::Compacted { .. }) => self.stale = true,
                    Err(error) => return Err(error.into()),
                }
            }
            let (now, watch) = read(&self.store, &self.identity, &self.prefix, &self.to).await?;
            (self.watch, self.stale) = (watch, false);
            let before = std::mem::replace(&mut self.told, now);
            let what = |network: &NodeNetwork| {
                (
                    network.ranges.clone(),
                    network.peers.clone(),
                    network.ipv6_peers.clone(),
                )
            };
            if what(&before) != what(&self.told) {
                return Ok(self.told.clone());
            }
        }
    }
}

/// What holds now, and the watch from the revision after it. There are so few subnets in a cluster that they are one page.
async fn read(
    store: &SharedStore,
    identity: &StoreIdentity,
    prefix: &str,
    to: &Told,
) -> Result<(NodeNetwork, Box<dyn Watch>), DispatchError> {
    let mut attempt = 1;
    loop {
        let page = store.range(prefix, None, PAGE_ENTRIES_MAX).await?;
        let revision = page.revision;
        let decoded = page.entries.into_iter().map(typed::decode::<Subnet>);
        let subnets = decoded
            .map(|subnet| subnet.map(|subnet| subnet.value))
            .collect::<Result<Vec<_>, RecordError>>()
            .map_err(|source| DispatchError::Subnet { source })?;
        match store.watch(prefix, revision + 1).await {
            Ok(watch) => {
                let mut network = network(&subnets, to);
                network.position = Some(Position {
                    store_id: identity.store_id.clone(),
                    epoch: identity.epoch,
                    revision,
                });
                let bytes = network.encoded_len();
                if bytes + ENVELOPE_BYTES > MESSAGE_BYTES_MAX {
                    return Err(DispatchError::TooLarge {
                        bytes,
                        limit: MESSAGE_BYTES_MAX,
                    });
                }
                return Ok((network, watch));
            }
            Err(StoreError::Compacted { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// A node that does not say where its own tasks are reached is not told of others: they could not answer.
fn network(subnets: &[Subnet], to: &Told) -> NodeNetwork {
    let node = to.node.as_str();
    let is_known = |subnet: &&Subnet| to.knows_lans || subnet.lan().is_none();
    let own = |subnet: &&Subnet| subnet.blocks.of(node).is_some();
    // A LAN leads to its hosts by itself.
    let routed = || subnets.iter().filter(|subnet| subnet.lan().is_none());
    let ranges = subnets.iter().filter(is_known).filter_map(|subnet| {
        let block = subnet.blocks.of(node)?;
        Some(SubnetRange {
            subnet_id: subnet.id.clone(),
            ipv4_range: block.range.to_string(),
            ipv6_range: in_ipv6(subnet, block)
                .map(|range| range.to_string())
                .unwrap_or_default(),
            lan: subnet.lan().map(lan_to_wire),
        })
    });
    let is_reached = |subnet: &Subnet| subnet.blocks.of(node).is_some_and(|block| block.via.is_some());
    let mut peers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut ipv6_peers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let of_others = |subnet: &Subnet| {
        let others = subnet.blocks.held().filter(|(other, _)| *other != node);
        others
            .filter_map(|(_, block)| Some((block.via_ipv6?, in_ipv6(subnet, block)?)))
            .collect::<Vec<_>>()
    };
    let mut own_blocks = subnets.iter().filter_map(|subnet| subnet.blocks.of(node));
    if own_blocks.any(|block| block.via_ipv6.is_some()) {
        for (via, range) in subnets.iter().flat_map(of_others) {
            ipv6_peers
                .entry(via.to_string())
                .or_default()
                .push(range.to_string());
        }
    }
    if routed().filter(own).any(is_reached) {
        let others = routed().flat_map(|subnet| subnet.blocks.held());
        for (_, block) in others.filter(|(other, _)| *other != node) {
            if let Some(via) = block.via {
                peers
                    .entry(via.to_string())
                    .or_default()
                    .push(block.range.to_string());
            }
        }
    }
    NodeNetwork {
        position: None,
        ranges: ranges.collect(),
        peers: peers
            .into_iter()
            .map(|(address, ranges)| Peer { address, ranges })
            .collect(),
        ipv6_peers: ipv6_peers
            .into_iter()
            .map(|(address, ranges)| Peer { address, ranges })
            .collect(),
    }
}

/// A node's part of a subnet in IPv6.
fn in_ipv6(subnet: &Subnet, block: &Block) -> Option<Ipv6Net> {
    subnet.ipv6_prefix.map(|prefix| ipv6::below(prefix, block.range))
}

#[cfg(test)]
mod tests {
    use berth_control_plane_core::subnets::{AsOf, Candidate, Lan, LanLink, Shape};

    use super::*;
    use crate::model::SubnetKind;

    fn subnet(n: u32, nodes: &[(&str, Option<&str>)]) -> Subnet {
        let shape = Shape::parse(&format!("10.{n}.0.0/16"), None).unwrap();
        let wanted: Vec<Candidate> = nodes
            .iter()
            .map(|(node, via)| Candidate {
                node: (*node).into(),
                via: via.map(|via| via.parse().unwrap()),
                via_ipv6: via.and_then(|via| format!("fd00::{}", via.rsplit('.').next()?).parse().ok()),
                ..Candidate::default()
            })
            .collect();
        let mut subnet = Subnet {
            id: format!("subnet-{n}"),
            cluster: "default".into(),
            name: n.to_string(),
            kind: SubnetKind::Routed,
            range: shape.range,
            node_prefix_len: shape.node_prefix_len,
            ipv6_prefix: (n == 2).then(|| "fd00:2::/64".parse().unwrap()),
            deleting: false,
            tags: Default::default(),
            created_at: 0,
            blocks: Default::default(),
        };
        subnet.blocks.settle(
            shape,
            &wanted,
            AsOf {
                ms: 0,
                epoch: 1,
                epoch_since_ms: 0,
            },
        );
        subnet
    }

    fn to(node: &str) -> Told {
        Told {
            node: node.into(),
            knows_lans: true,
        }
    }

    #[test]
    fn an_agent_that_knows_no_lans_is_told_of_none() {
        let nodes = [("a", Some("192.0.2.1"))];
        let mut lan = subnet(1, &nodes);
        let link = LanLink::Interface;
        lan.kind = SubnetKind::Lan(Lan {
            link,
            network: "10.1.0.0/16".parse().unwrap(),
            gateway: None,
        });
        let subnets = [lan, subnet(2, &nodes)];
        let told = |knows_lans| {
            let to = Told {
                knows_lans,
                ..to("a")
            };
            let ranges = network(&subnets, &to).ranges.into_iter();
            ranges.map(|range| range.subnet_id).collect::<Vec<_>>()
        };
        assert_eq!(told(true), ["subnet-1", "subnet-2"]);
        assert_eq!(told(false), ["subnet-2"]);
    }

    #[test]
    fn a_node_is_told_its_own_ranges_and_where_those_of_others_are() {
        let nodes = [("a", Some("192.0.2.1")), ("b", Some("192.0.2.2")), ("c", None)];
        let subnets = [subnet(1, &nodes), subnet(2, &nodes[..2])];
        let told = network(&subnets, &to("a"));
        let ranges: Vec<_> = told
            .ranges
            .iter()
            .map(|range| (range.subnet_id.as_str(), range.ipv4_range.as_str()))
            .collect();
        assert_eq!(ranges, [("subnet-1", "10.1.0.0/24"), ("subnet-2", "10.2.0.0/24")]);
        let b = Peer {
            address: "192.0.2.2".into(),
            ranges: vec!["10.1.1.0/24".into(), "10.2.1.0/24".into()],
        };
        assert_eq!(told.peers, [b]);
        // Only the second subnet has IPv6.
        assert_eq!(told.ranges[0].ipv6_range, "");
        assert_eq!(told.ranges[1].ipv6_range, "fd00:2::a02:0/120");
        let b = Peer {
            address: "fd00::2".into(),
            ranges: vec!["fd00:2::a02:100/120".into()],
        };
        assert_eq!(told.ipv6_peers, [b]);
        let silent = network(&subnets, &to("c"));
        assert_eq!((silent.ranges.len(), silent.peers.len()), (1, 0));
        assert!(silent.ipv6_peers.is_empty());
        assert_eq!(network(&subnets, &to("stranger")), NodeNetwork::default());
    }
}
