//! Owns which node has which block of one subnet. A block that is given back rests before another node gets it: the last
//! of its addresses was in use a moment ago.
//!
//! A store that was set back to a backup may have forgotten what it dealt since. So nodes say which ranges they use: what they say
//! goes before what the store has from another time, no other node gets what one says it uses, and what nobody has rests until
//! the nodes had time to speak ([`AFTER_RESTORE_MS`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::Shape;

/// How long a block rests after it was given back, milliseconds: longer than a node lets an address rest.
pub const BLOCK_REST_MS: i64 = 60_000;

/// The epoch of a store that was never set back.
const FIRST_EPOCH: u64 = 1;
/// How long blocks that nobody has rest at least after the store was set back, milliseconds: several times the longest pause between
/// two tries of an agent to link. A node that joined after the backup is not known until then.
pub const AFTER_RESTORE_MS: i64 = 60_000;
/// And at most, where a node that is known does not link.
pub const AFTER_RESTORE_MS_MAX: i64 = 600_000;

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
    /// Of the store, when it was dealt to a node that was linked, or its node said that it uses it. Less than the present one: it
    /// is what a backup says.
    #[serde(default)]
    epoch: u64,
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
    /// The epoch of the store in which this was last settled.
    #[serde(default)]
    epoch: u64,
    /// Since when blocks that nobody has rest, because the store was set back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsure_since_ms: Option<i64>,
}

/// A node that is to have a block, or may use one still.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    pub node: String,
    pub via: Option<IpAddr>,
    pub via_ipv6: Option<Ipv6Addr>,
    /// It keeps what it has, and gets nothing.
    pub leaving: bool,
    /// Ranges of any subnet that it said it uses when it last linked. None: it has not linked since the store was set back.
    pub uses: Option<Vec<Ipv4Net>>,
}

/// As of when blocks are settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsOf {
    pub ms: i64,
    /// Of the store: rises when it is set back to a backup.
    pub epoch: u64,
    /// Since when nodes can link to it in this epoch.
    pub epoch_since_ms: i64,
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

    /// Gives each of `nodes` that wants one a block as long as there are any, first come first served, and takes back those of
    /// nodes that are not named. Says whether anything changed.
    pub fn settle(&mut self, shape: Shape, nodes: &[Candidate], now: AsOf) -> bool {
        let before = self.clone();
        let named: BTreeSet<&str> = nodes.iter().map(|one| one.node.as_str()).collect();
        for (_, block) in self.held.extract_if(.., |node, _| !named.contains(node.as_str())) {
            self.resting
                .insert(block.range, now.ms.saturating_add(BLOCK_REST_MS));
        }
        self.resting.retain(|_, until| *until > now.ms);
        self.hear(shape, nodes, now);
        let sure = self.is_sure(nodes, now);
        for one in nodes.iter().filter(|one| !one.leaving) {
            if let Some(block) = self.held.get_mut(&one.node) {
                (block.via, block.via_ipv6) = (one.via, one.via_ipv6);
                continue;
            }
            if !sure {
                continue;
            }
            let used = used_by_others(shape, nodes, &one.node);
            if let Some(range) = self.take_free(shape, &used) {
                self.give(one, range, now.epoch);
            }
        }
        *self != before
    }

    /// Takes up what nodes said when they linked, where the store knows no better.
    fn hear(&mut self, shape: Shape, nodes: &[Candidate], now: AsOf) {
        let was_set_back = now.epoch > FIRST_EPOCH;
        let is_certain = |block: &Block| !was_set_back || block.epoch == now.epoch;
        for one in nodes {
            let Some(uses) = &one.uses else { continue };
            let known = self.held.get(&one.node);
            let said = uses.iter().copied().find(|range| is_block(shape, *range));
            if let Some(range) = said.filter(|_| !known.is_some_and(is_certain)) {
                let holder = self.held.iter().find(|(_, block)| block.range == range);
                match holder.map(|(node, block)| (node.clone(), is_certain(block))) {
                    Some((node, _)) if node == one.node => {}
                    // Who said so first keeps it; this one gets another.
                    Some((_, true)) => {}
                    Some((node, false)) => {
                        self.held.remove(&node);
                        self.replace(one, range, now);
                    }
                    None => self.replace(one, range, now),
                }
            }
            // An agent of an earlier version says nothing.
            if let Some(block) = self.held.get_mut(&one.node)
                && (uses.is_empty() || uses.contains(&block.range))
            {
                block.epoch = now.epoch;
            }
        }
    }

    /// Gives a node what it says it uses instead of what it had.
    fn replace(&mut self, one: &Candidate, range: Ipv4Net, now: AsOf) {
        if let Some(former) = self.held.remove(&one.node) {
            self.resting
                .insert(former.range, now.ms.saturating_add(BLOCK_REST_MS));
        }
        self.resting.remove(&range);
        self.give(one, range, now.epoch);
    }

    fn give(&mut self, one: &Candidate, range: Ipv4Net, epoch: u64) {
        let block = Block {
            range,
            via: one.via,
            via_ipv6: one.via_ipv6,
            problem: None,
            limit: None,
            epoch: if one.uses.is_some() { epoch } else { 0 },
        };
        self.held.insert(one.node.clone(), block);
    }

    /// Whether what nobody has is known to be nobody's.
    fn is_sure(&mut self, nodes: &[Candidate], now: AsOf) -> bool {
        if self.epoch != now.epoch {
            self.unsure_since_ms = (now.epoch > FIRST_EPOCH).then_some(now.epoch_since_ms);
            self.epoch = now.epoch;
        }
        let Some(since) = self.unsure_since_ms else {
            return true;
        };
        // A clock that was set back does not make it longer.
        let since = since.min(now.ms);
        self.unsure_since_ms = Some(since);
        let age = now.ms.saturating_sub(since);
        let all_linked = nodes.iter().all(|one| one.uses.is_some());
        let sure = age >= AFTER_RESTORE_MS_MAX || (age >= AFTER_RESTORE_MS && all_linked);
        if sure {
            self.unsure_since_ms = None;
        }
        sure
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

    fn take_free(&mut self, shape: Shape, used: &[Ipv4Net]) -> Option<Ipv4Net> {
        let taken: BTreeSet<Ipv4Net> = self.held.values().map(|block| block.range).collect();
        let count = count(shape);
        let is_used = |range: Ipv4Net| used.iter().any(|used| super::overlap(*used, range));
        let free = (0..count)
            .map(|i| (self.next % count + i) % count)
            .map(|index| (index, block(shape, index)))
            .find(|(_, range)| {
                !taken.contains(range) && !self.resting.contains_key(range) && !is_used(*range)
            });
        let (index, range) = free?;
        self.next = index + 1;
        Some(range)
    }
}

/// What the others say they use, of this subnet or of one that the store has forgotten. What is larger than a block is nobody's part.
fn used_by_others(shape: Shape, nodes: &[Candidate], node: &str) -> Vec<Ipv4Net> {
    let others = nodes.iter().filter(|one| one.node != node);
    let ranges = others.flat_map(|one| one.uses.iter().flatten()).copied();
    ranges
        .filter(|range| range.prefix_len() >= shape.node_prefix_len && super::overlap(*range, shape.range))
        .collect()
}

fn is_block(shape: Shape, range: Ipv4Net) -> bool {
    range.prefix_len() == shape.node_prefix_len && range == range.trunc() && shape.range.contains(&range)
}

fn count(shape: Shape) -> u32 {
    1 << (shape.node_prefix_len - shape.range.prefix_len())
}

fn block(shape: Shape, index: u32) -> Ipv4Net {
    let first = u32::from(shape.range.network());
    let offset = index << (32 - u32::from(shape.node_prefix_len));
    Ipv4Net::new_assert(Ipv4Addr::from(first + offset), shape.node_prefix_len)
}
