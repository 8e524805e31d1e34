//! Owns what a subnet may be, and which part of it a node gets: blocks of one size, each one node's alone, so that a node
//! hands out addresses without asking. Never stores anything.

mod blocks;
pub mod ipv6;
mod lan;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

pub use blocks::{AFTER_RESTORE_MS, AFTER_RESTORE_MS_MAX, AsOf, BLOCK_REST_MS, Block, Blocks, Candidate};
pub use ipnet::{Ipv4Net, Ipv6Net};
pub use lan::{Asked, Design, KINDS, Lan, LanLink, Problem};

/// What stands for the node's own range, in a cluster that has no subnets.
pub const DEFAULT_SUBNET: &str = "subnet-default";
/// Subnets of one cluster.
pub const SUBNETS_MAX: usize = 16;
/// The largest subnet is a /8, the smallest a /29.
const PREFIX_LEN_MIN: u8 = 8;
const PREFIX_LEN_MAX: u8 = 29;
/// Bits that number the nodes of a subnet: at most 4,096 blocks.
const NODE_BITS_MAX: u8 = 12;
/// Unless it is said: room for so many nodes at least.
const NODE_BITS_DEFAULT: u8 = 4;
/// The block of a node, unless it is said or does not fit.
const NODE_PREFIX_LEN_DEFAULT: u8 = 24;
/// The smallest block: its first and last address are not handed out.
const NODE_PREFIX_LEN_MAX: u8 = 30;
const ID_PREFIX: &str = "subnet-";
const ID_DIGITS: usize = 17;

/// Why a range cannot be a subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubnet {
    #[error("{0:?} is not an IPv4 range in CIDR notation, such as 10.64.0.0/16")]
    Syntax(String),
    #[error("{given} has bits set beyond its prefix: the range is {meant}")]
    HostBits { given: Ipv4Net, meant: Ipv4Net },
    #[error("{0} is not of /{PREFIX_LEN_MIN} to /{PREFIX_LEN_MAX}")]
    Size(Ipv4Net),
    #[error("{range} overlaps {reserved}, which is {what}: no task can have an address there")]
    Reserved {
        range: Ipv4Net,
        reserved: Ipv4Net,
        what: &'static str,
    },
    #[error("/{given} is no size of a node's part of {range}: it is /{min} to /{max}")]
    NodePrefix {
        range: Ipv4Net,
        given: u8,
        min: u8,
        max: u8,
    },
}

/// A range that can be a subnet, and the size of a node's part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub range: Ipv4Net,
    pub node_prefix_len: u8,
}

impl Shape {
    /// Of a range as an operator writes it, and the prefix length of a node's block, if one is asked for.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn parse(range: &str, node_prefix_len: Option<u8>) -> Result<Self, InvalidSubnet> {
        let range = parse_range(range)?;
        let prefix_len = range.prefix_len();
        if !(PREFIX_LEN_MIN..=PREFIX_LEN_MAX).contains(&prefix_len) {
            return Err(InvalidSubnet::Size(range));
        }
        if let Some((reserved, what)) = reserved(range) {
            return Err(InvalidSubnet::Reserved {
                range,
                reserved,
                what,
            });
        }
        let (min, max) = (prefix_len, (prefix_len + NODE_BITS_MAX).min(NODE_PREFIX_LEN_MAX));
        let usual = NODE_PREFIX_LEN_DEFAULT.max(prefix_len + NODE_BITS_DEFAULT);
        let given = node_prefix_len.unwrap_or(usual.min(max));
        if !(min..=max).contains(&given) {
            return Err(InvalidSubnet::NodePrefix {
                range,
                given,
                min,
                max,
            });
        }
        Ok(Self {
            range,
            node_prefix_len: given,
        })
    }
}

fn parse_range(text: &str) -> Result<Ipv4Net, InvalidSubnet> {
    let syntax = |_| InvalidSubnet::Syntax(text.chars().take(64).collect());
    let range: Ipv4Net = text.parse().map_err(syntax)?;
    if range == range.trunc() {
        return Ok(range);
    }
    Err(InvalidSubnet::HostBits {
        given: range,
        meant: range.trunc(),
    })
}

/// Ranges that mean something else on every host.
fn reserved(range: Ipv4Net) -> Option<(Ipv4Net, &'static str)> {
    let all = [
        ([0, 0, 0, 0], 8, "\"this network\" (RFC 791)"),
        ([127, 0, 0, 0], 8, "the host itself"),
        (
            [169, 254, 0, 0],
            16,
            "link-local, and where tasks find their endpoints",
        ),
        ([224, 0, 0, 0], 4, "multicast"),
        ([240, 0, 0, 0], 4, "reserved (RFC 1112)"),
    ];
    let nets = all
        .into_iter()
        .map(|(octets, len, what)| (Ipv4Net::new_assert(Ipv4Addr::from(octets), len), what));
    nets.into_iter().find(|(net, _)| overlap(*net, range))
}

/// Whether the two have an address in common.
pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// How many tasks can have an address in a node's block: all but its first and last.
pub fn addresses(block: Ipv4Net) -> u32 {
    let bits = 32 - u32::from(block.prefix_len());
    1u32.checked_shl(bits).unwrap_or(u32::MAX).saturating_sub(2)
}

/// The id of a subnet, from a fresh random number: as ECS's clients know such ids.
pub fn id(random: u128) -> String {
    let hex = format!("{random:032x}");
    format!("{ID_PREFIX}{}", &hex[..ID_DIGITS])
}

/// Whether a string may be the id of a subnet.
pub fn is_id(id: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let digits = id.strip_prefix(ID_PREFIX);
    digits.is_some_and(|digits| digits.len() == ID_DIGITS && digits.bytes().all(hex))
}
