//! Owns which node has which block of one subnet. A block that is given back rests before another node gets it: the last
//! of its addresses was in use a moment ago.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::Shape;

/// How long a block rests after it was given back, milliseconds: longer than a node lets an address rest.
pub const BLOCK_REST_MS: i64 = 60_000;

/// One node's part of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    pub range: Ipv4Net,
    /// Where the other nodes find the range. None: they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// Likewise what that is in IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via_ipv6: Option<Ipv6Addr>,
    /// Why the node does not use it, as the node says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// How many tasks can be in it at a time, where that is fewer than it has addresses, as the node says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl Block {
    /// How many tasks can have an address of it.
    pub fn tasks(&self) -> u32 {
        let addresses = super::addresses(self.range);
        self.limit.map_or(addresses, |limit| limit.min(addresses))
    }
}

/// Who has what of one subnet, by node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    #[serde(default)]
    held: BTreeMap<String, Block>,
    /// Given back, and until when they rest.
    #[serde(default)]
    resting: BTreeMap<Ipv4Net, i64>,
    /// Where the search for a free one goes on, so that all are used in turn.
    #[serde(default)]
    next: u32,
}

/// A node that is to have a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub node: String,
    pub via: Option<IpAddr>,
    pub via_ipv6: Option<Ipv6Addr>,
}

impl Blocks {
    /// The block of a node.
    pub fn of(&self, node: &str) -> Option<&Block> {
        self.held.get(node)
    }

    /// Every node with its block.
    pub fn held(&self) -> impl Iterator<Item = (&String, &Block)> {
        self.held.iter()
    }

    /// How many blocks nobody has; those that rest are among them.
    pub fn free(&self, shape: Shape) -> u32 {
        count(shape).saturating_sub(u32::try_from(self.held.len()).unwrap_or(u32::MAX))
    }

    /// Gives each of `wanted` a block as long as there are any, first come first served, and takes back those of all
    /// others unless `keep` says that something of theirs may be in use. Says whether anything changed.
    pub fn settle(
        &mut self,
        shape: Shape,
        wanted: &[Candidate],
        keep: impl Fn(&str) -> bool,
        now_ms: i64,
    ) -> bool {
        let before = self.clone();
        let named: BTreeSet<&str> = wanted.iter().map(|one| one.node.as_str()).collect();
        let gone = |node: &String| !named.contains(node.as_str()) && !keep(node);
        for (_, block) in self.held.extract_if(.., |node, _| gone(node)) {
            self.resting
                .insert(block.range, now_ms.saturating_add(BLOCK_REST_MS));
        }
        self.resting.retain(|_, until| *until > now_ms);
        for one in wanted {
            if let Some(block) = self.held.get_mut(&one.node) {
                (block.via, block.via_ipv6) = (one.via, one.via_ipv6);
                continue;
            }
            let Some(range) = self.take_free(shape) else {
                continue;
            };
            let block = Block {
                range,
                via: one.via,
                via_ipv6: one.via_ipv6,
                problem: None,
                limit: None,
            };
            self.held.insert(one.node.clone(), block);
        }
        *self != before
    }

    /// Notes what a node says of its block. Says whether that is new.
    pub fn note(&mut self, node: &str, problem: Option<String>, limit: Option<u32>) -> bool {
        match self.held.get_mut(node) {
            Some(block) if block.problem != problem || block.limit != limit => {
                (block.problem, block.limit) = (problem, limit);
                true
            }
            _ => false,
        }
    }

    fn take_free(&mut self, shape: Shape) -> Option<Ipv4Net> {
        let taken: BTreeSet<Ipv4Net> = self.held.values().map(|block| block.range).collect();
        let count = count(shape);
        let free = (0..count)
            .map(|i| (self.next % count + i) % count)
            .map(|index| (index, block(shape, index)))
            .find(|(_, range)| !taken.contains(range) && !self.resting.contains_key(range));
        let (index, range) = free?;
        self.next = index + 1;
        Some(range)
    }
}

fn count(shape: Shape) -> u32 {
    1 << (shape.node_prefix_len - shape.range.prefix_len())
}

fn block(shape: Shape, index: u32) -> Ipv4Net {
    let first = u32::from(shape.range.network());
    let offset = index << (32 - u32::from(shape.node_prefix_len));
    Ipv4Net::new_assert(Ipv4Addr::from(first + offset), shape.node_prefix_len)
}
