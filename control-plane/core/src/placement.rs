//! Owns where a task runs: which nodes can take it, which of them does, and for every other node why not. Pure:
//! placing n tasks is placing one, n times, with the node's allocations brought up to date in between.
//!
//! CPU and memory of a task are free once its desired status is STOPPED (`Allocation::stopping`); its ports and
//! its address are not until its node reports STOPPED, when the caller removes the allocation.

mod fit;
mod node;
mod reason;
mod strategy;
#[cfg(test)]
mod tests;

pub use node::{AddressPool, Allocation, NodeStatus, NodeView};
pub use reason::{Overall, Reason, Rejection, SubnetLack};
pub use strategy::{InvalidStrategy, STRATEGIES_MAX, SpreadBy, Strategy};

use crate::expression::{Expression, ExpressionError};
use crate::task::Requirements;

/// Most constraints of one request, those of the definition not counted.
pub const CONSTRAINTS_MAX: usize = 10;

/// A placement constraint of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// Only nodes that satisfy the expression.
    MemberOf(Expression),
    /// Only nodes without another task of the same group.
    DistinctInstance,
}

/// A `{type, expression}` that is no placement constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConstraint {
    #[error("expected one of memberOf, distinctInstance; got {0:?}")]
    Type(String),
    #[error("memberOf needs an expression")]
    NoExpression,
    #[error("distinctInstance takes no expression")]
    UnwantedExpression,
    #[error("the expression {expression:?} cannot be parsed")]
    Expression {
        expression: String,
        source: ExpressionError,
    },
}

impl Constraint {
    /// Parses an element of `placementConstraints`.
    ///
    /// # Errors
    /// When the type is unknown, or the expression does not go with it or cannot be parsed.
    pub fn parse(kind: &str, expression: Option<&str>) -> Result<Self, InvalidConstraint> {
        match (kind, expression.filter(|e| !e.is_empty())) {
            ("memberOf", Some(text)) => {
                Expression::parse(text)
                    .map(Self::MemberOf)
                    .map_err(|source| InvalidConstraint::Expression {
                        expression: text.to_string(),
                        source,
                    })
            }
            ("memberOf", None) => Err(InvalidConstraint::NoExpression),
            ("distinctInstance", None) => Ok(Self::DistinctInstance),
            ("distinctInstance", Some(_)) => Err(InvalidConstraint::UnwantedExpression),
            (other, _) => Err(InvalidConstraint::Type(other.chars().take(64).collect())),
        }
    }
}

/// One task looking for a node.
#[derive(Clone, Copy, Debug)]
pub struct PlacementRequest<'a> {
    /// What the definition needs, its own `memberOf` constraints included.
    pub requirements: &'a Requirements,
    /// The request's own constraints.
    pub constraints: &'a [Constraint],
    /// Applied in order, each among the equals of the one before. Empty: spread over nodes.
    pub strategy: &'a [Strategy],
    /// The task's group: what spread and distinctInstance count.
    pub group: &'a str,
    /// Decides among equals under [`Strategy::Random`]; a new one for every task.
    pub seed: u64,
}

/// Where a task goes, or why it goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The chosen node's id.
    pub chosen: Option<String>,
    /// The nodes that could not take the task, in the order given. With no node chosen, all of them.
    pub rejections: Vec<Rejection>,
}

impl Placement {
    /// The reason to give for the whole cluster: that of the nodes that came closest.
    pub fn overall(&self) -> Overall {
        reason::overall(&self.rejections)
    }
}

/// Places one task. Nodes in equal standing are taken in the order of their ids, so that the same view always
/// gives the same choice.
pub fn place(nodes: &[NodeView], request: &PlacementRequest<'_>) -> Placement {
    let mut candidates = Vec::new();
    let mut rejections = Vec::new();
    for node in nodes {
        let reasons = check(node, request);
        if reasons.is_empty() {
            candidates.push(node);
        } else {
            rejections.push(Rejection {
                node: node.id.clone(),
                reasons,
            });
        }
    }
    let chosen = strategy::choose(candidates, nodes, request).map(|node| node.id.clone());
    Placement { chosen, rejections }
}

/// Everything that keeps one node from taking the task, the most telling first; empty when it can. This is all
/// that StartTask asks, which names its nodes itself.
pub fn check(node: &NodeView, request: &PlacementRequest<'_>) -> Vec<Reason> {
    fit::check(node, request)
}
