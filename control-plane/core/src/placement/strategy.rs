//! Owns which of the nodes that fit is taken. Never takes one that does not fit.

use std::cmp::Reverse;

use super::{NodeView, PlacementRequest};

/// Most strategies of one request.
pub const STRATEGIES_MAX: usize = 5;

/// How to choose among nodes that fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Any; decided by the request's seed.
    Random,
    /// Where the fewest tasks of the group run.
    Spread(SpreadBy),
    /// Where the least CPU would be left.
    BinpackCpu,
    /// Where the least memory would be left.
    BinpackMemory,
}

/// What tasks are spread over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpreadBy {
    /// `instanceId` or `host`.
    Node,
    /// `attribute:NAME`: the values of an attribute; nodes without it count as one more value.
    Attribute(String),
}

/// A `{type, field}` that is no placement strategy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStrategy {
    #[error("expected one of random, spread, binpack; got {0:?}")]
    Type(String),
    #[error("random takes no field, got {0:?}")]
    UnwantedField(String),
    #[error("spread is over instanceId, host or attribute:NAME; got {0:?}")]
    SpreadField(String),
    #[error("binpack is by cpu or memory; got {0:?}")]
    BinpackField(String),
}

impl Strategy {
    /// Parses an element of `placementStrategy`. Without a field, spread is over nodes.
    ///
    /// # Errors
    /// When the type is unknown or the field does not go with it.
    pub fn parse(kind: &str, field: Option<&str>) -> Result<Self, InvalidStrategy> {
        let field = field.unwrap_or_default();
        let shown = || field.chars().take(64).collect::<String>();
        let lower = field.to_ascii_lowercase();
        match kind {
            "random" if field.is_empty() => Ok(Self::Random),
            "random" => Err(InvalidStrategy::UnwantedField(shown())),
            "spread" => match (lower.as_str(), field.strip_prefix("attribute:")) {
                ("" | "instanceid" | "host", _) => Ok(Self::Spread(SpreadBy::Node)),
                (_, Some(name)) if !name.is_empty() => {
                    Ok(Self::Spread(SpreadBy::Attribute(name.to_string())))
                }
                _ => Err(InvalidStrategy::SpreadField(shown())),
            },
            "binpack" => match lower.as_str() {
                "cpu" => Ok(Self::BinpackCpu),
                "memory" => Ok(Self::BinpackMemory),
                _ => Err(InvalidStrategy::BinpackField(shown())),
            },
            other => Err(InvalidStrategy::Type(other.chars().take(64).collect())),
        }
    }
}

const SPREAD_OVER_NODES: &[Strategy] = &[Strategy::Spread(SpreadBy::Node)];

/// One of the candidates; `nodes` is the whole cluster, whose tasks spread counts.
pub(super) fn choose<'a>(
    mut candidates: Vec<&'a NodeView>,
    nodes: &[NodeView],
    request: &PlacementRequest<'_>,
) -> Option<&'a NodeView> {
    let strategies = if request.strategy.is_empty() {
        SPREAD_OVER_NODES
    } else {
        request.strategy
    };
    for strategy in strategies {
        candidates = keep_least(candidates, |node| rank(strategy, node, nodes, request));
    }
    // Among equals the emptier node, so that tasks of many small groups do not all land on the first one.
    let even = !strategies
        .iter()
        .any(|s| matches!(s, Strategy::BinpackCpu | Strategy::BinpackMemory));
    candidates.into_iter().min_by(|a, b| {
        let emptier = |n: &NodeView| (n.tasks(), Reverse(n.free_memory_bytes()));
        let evenness = if even {
            emptier(a).cmp(&emptier(b))
        } else {
            std::cmp::Ordering::Equal
        };
        evenness.then_with(|| a.id.cmp(&b.id))
    })
}

fn keep_least(nodes: Vec<&NodeView>, rank: impl Fn(&NodeView) -> u64) -> Vec<&NodeView> {
    let ranked: Vec<(u64, &NodeView)> = nodes.into_iter().map(|node| (rank(node), node)).collect();
    let least = ranked.iter().map(|(rank, _)| *rank).min();
    ranked
        .into_iter()
        .filter_map(|(rank, node)| (Some(rank) == least).then_some(node))
        .collect()
}

/// Lower is better. What a node has left ranks the same before and after the task is charged.
fn rank(strategy: &Strategy, node: &NodeView, nodes: &[NodeView], request: &PlacementRequest<'_>) -> u64 {
    match strategy {
        Strategy::Random => mix(request.seed, &node.id),
        Strategy::Spread(SpreadBy::Node) => node.tasks_of(request.group) as u64,
        Strategy::Spread(SpreadBy::Attribute(name)) => {
            let value = |node: &NodeView| node.attributes.get(name).cloned().flatten();
            let own = value(node);
            let alike = nodes.iter().filter(|n| value(n) == own);
            alike.map(|n| n.tasks_of(request.group) as u64).sum()
        }
        Strategy::BinpackCpu => u64::from(node.free_cpu_units()),
        Strategy::BinpackMemory => node.free_memory_bytes(),
    }
}

/// A number that depends on every bit of seed and id: FNV-1a, then the finalizer of SplitMix64.
fn mix(seed: u64, id: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
    let mut hash = id.bytes().fold(start, |hash, b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
