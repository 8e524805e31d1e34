//! Owns why a node was not chosen: in ECS's words for clients, and with numbers for people.

use std::collections::BTreeMap;
use std::fmt;

use crate::task::{MIB, Protocol};

/// One thing that keeps a node from taking a task. Displays in words, with numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The node is deregistered.
    Inactive,
    Draining,
    /// The node's agent is not connected.
    Agent,
    Architecture {
        needed: &'static str,
        has: String,
    },
    /// The node's agent does not honour something the task needs.
    Feature {
        needed: &'static str,
    },
    /// The node does not offer the runtime that the task asks for.
    Runtime {
        needed: String,
        /// Those it offers.
        offered: Vec<String>,
    },
    MemberOf {
        expression: String,
    },
    DistinctInstance {
        group: String,
    },
    Cpu {
        needed: u32,
        free: u32,
        total: u32,
    },
    Memory {
        needed_bytes: u64,
        free_bytes: u64,
        total_bytes: u64,
    },
    /// Each is one container's alone.
    Gpu {
        needed: u32,
        free: u32,
        total: u32,
    },
    /// Ports of the host that are reserved or that other tasks hold.
    Ports {
        protocol: Protocol,
        taken: Vec<u16>,
    },
    /// All addresses for tasks are held.
    Address {
        total: u32,
    },
    /// No address in any of the subnets that the task may be in; what each of them lacks here.
    Subnets {
        lacks: Vec<(String, SubnetLack)>,
    },
}

/// Why a node has no address of one subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubnetLack {
    /// The node has no part of it: it is divided among others, or the node is too old for subnets.
    NoBlock,
    /// All addresses of the node's part are held.
    Full(u32),
    /// The node cannot use its part, for a reason of its own.
    Unusable(String),
}

impl fmt::Display for SubnetLack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBlock => f.write_str("the node has no part of it: other nodes have all of it"),
            Self::Full(total) => write!(f, "all {total} addresses of the node's part are in use"),
            Self::Unusable(problem) => write!(f, "the node cannot use its part: {problem}"),
        }
    }
}

impl Reason {
    /// The reason as ECS gives it in `failures`.
    pub fn ecs(&self) -> &'static str {
        match self {
            Self::Inactive => "INACTIVE",
            Self::Draining => "DRAINING",
            Self::Agent => "AGENT",
            Self::Architecture { .. } | Self::Feature { .. } | Self::Runtime { .. } => "ATTRIBUTE",
            Self::MemberOf { .. } => "MemberOf placement constraint unsatisfied.",
            Self::DistinctInstance { .. } => "DistinctInstance placement constraint unsatisfied.",
            Self::Cpu { .. } => "RESOURCE:CPU",
            Self::Memory { .. } => "RESOURCE:MEMORY",
            Self::Gpu { .. } => "RESOURCE:GPU",
            Self::Ports { .. } => "RESOURCE:PORTS",
            Self::Address { .. } | Self::Subnets { .. } => "RESOURCE:ENI",
        }
    }

    /// How near a node with this reason comes to taking the task: what it is counts before what it has left.
    fn nearness(&self) -> u8 {
        match self {
            Self::Inactive => 0,
            Self::Draining => 1,
            Self::Agent => 2,
            Self::Architecture { .. } => 3,
            Self::Feature { .. } | Self::Runtime { .. } => 4,
            Self::MemberOf { .. } => 5,
            Self::DistinctInstance { .. } => 6,
            Self::Cpu { .. } => 7,
            Self::Memory { .. } => 8,
            Self::Gpu { .. } => 9,
            Self::Ports { .. } => 10,
            Self::Address { .. } | Self::Subnets { .. } => 11,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inactive => f.write_str("the node is deregistered"),
            Self::Draining => f.write_str("the node is draining"),
            Self::Agent => f.write_str("the node's agent is not connected"),
            Self::Architecture { needed, has } => write!(f, "needs architecture {needed}, the node is {has}"),
            Self::Feature { needed } => write!(f, "needs the feature {needed}, which the node's agent lacks"),
            Self::Runtime { needed, offered } => {
                write!(f, "does not offer the runtime {needed}, but ")?;
                match offered.as_slice() {
                    [] => f.write_str("only its own default"),
                    names => f.write_str(&names.join(", ")),
                }
            }
            Self::MemberOf { expression } => write!(f, "does not satisfy {expression}"),
            Self::DistinctInstance { group } => write!(f, "already runs a task of group {group}"),
            Self::Cpu { needed, free, total } => {
                write!(f, "needs {needed} CPU units, {free} of {total} are free")
            }
            Self::Memory {
                needed_bytes,
                free_bytes,
                total_bytes,
            } => {
                // A need is whole MiB; what is free is rounded down, so that it never looks enough.
                let (free, total) = (free_bytes / MIB, total_bytes / MIB);
                write!(
                    f,
                    "needs {} MiB of memory, {free} of {total} are free",
                    needed_bytes.div_ceil(MIB)
                )
            }
            Self::Gpu { needed, free, total } => {
                write!(f, "needs {needed} of its GPUs, {free} of {total} are free")
            }
            Self::Ports { protocol, taken } => {
                let taken: Vec<String> = taken.iter().map(u16::to_string).collect();
                write!(
                    f,
                    "{} port {} is reserved or in use",
                    protocol.as_str(),
                    taken.join(", ")
                )
            }
            Self::Address { total } => write!(f, "all of its {total} task addresses are in use"),
            Self::Subnets { lacks } => {
                f.write_str("has no free address:")?;
                for (at, (subnet, lack)) in lacks.iter().enumerate() {
                    write!(f, "{} {subnet}: {lack}", if at == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

/// A node that could not take a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The node's id.
    pub node: String,
    /// At least one; the most telling first.
    pub reasons: Vec<Reason>,
}

impl Rejection {
    /// The first reason as ECS gives it.
    pub fn ecs(&self) -> &'static str {
        self.reasons.first().map_or("", Reason::ecs)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, reason) in self.reasons.iter().enumerate() {
            write!(f, "{}{reason}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Why a whole cluster could not take a task: an element of RunTask's `failures`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overall {
    /// In ECS's words. `AGENT` when the cluster has no nodes at all.
    pub reason: &'static str,
    /// For people, with numbers.
    pub detail: String,
}

/// Most nodes are told one by one in an [`Overall`]; beyond it only counts are.
const NODES_TOLD_MAX: usize = 3;

/// The reason of the node that came closest, and what stood against the others.
pub(super) fn overall(rejections: &[Rejection]) -> Overall {
    let nearest = rejections
        .iter()
        .rev()
        .max_by_key(|r| r.reasons.first().map_or(0, Reason::nearness));
    let Some(nearest) = nearest else {
        return Overall {
            reason: Reason::Agent.ecs(),
            detail: "the cluster has no nodes".to_string(),
        };
    };
    Overall {
        reason: nearest.ecs(),
        detail: detail(rejections),
    }
}

fn detail(rejections: &[Rejection]) -> String {
    let nodes = rejections.len();
    if nodes <= NODES_TOLD_MAX {
        let told: Vec<String> = rejections
            .iter()
            .map(|r| format!("node {}: {r}", short(&r.node)))
            .collect();
        return told.join(". ");
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    rejections
        .iter()
        .for_each(|r| *counts.entry(r.ecs()).or_default() += 1);
    let told: Vec<String> = counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    format!("of {nodes} nodes: {}", told.join(", "))
}

/// The first digits of an id: enough for people.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
