//! Owns whether one task fits one node. Never compares nodes.

use std::collections::BTreeMap;

use super::reason::{Reason, SubnetLack};
use super::{AddressPool, Constraint, NodeStatus, NodeView, PlacementRequest};
use crate::expression::Expression;
use crate::task::{Protocol, RUNTIME_PREFIX, Requirements};

/// All reasons against the node; see [`super::check`]. What a node that takes nothing at all lacks besides is of
/// no interest, so it has one reason.
pub(super) fn check(node: &NodeView, request: &PlacementRequest<'_>) -> Vec<Reason> {
    match node.status {
        NodeStatus::Inactive => return vec![Reason::Inactive],
        NodeStatus::Draining => return vec![Reason::Draining],
        NodeStatus::Active if !node.connected => return vec![Reason::Agent],
        NodeStatus::Active => {}
    }
    let mut reasons = Vec::new();
    check_kind(node, request.requirements, &mut reasons);
    check_constraints(node, request, &mut reasons);
    check_room(node, request.requirements, &mut reasons);
    reasons
}

/// What a node is, which no waiting changes.
fn check_kind(node: &NodeView, needs: &Requirements, reasons: &mut Vec<Reason>) {
    if let Some(needed) = needs.architecture.filter(|a| a.as_str() != node.architecture) {
        reasons.push(Reason::Architecture {
            needed: needed.as_str(),
            has: node.architecture.clone(),
        });
    }
    for feature in needs
        .features
        .iter()
        .filter(|f| node.features.iter().all(|has| has != *f))
    {
        reasons.push(Reason::Feature { needed: feature });
    }
    if let Some(runtime) = &needs.runtime {
        check_runtime(node, runtime, reasons);
    }
}

/// Against what the node says it offers, which the reason repeats.
fn check_runtime(node: &NodeView, needed: &str, reasons: &mut Vec<Reason>) {
    let offered = node
        .features
        .iter()
        .filter_map(|f| f.strip_prefix(RUNTIME_PREFIX));
    let offered: Vec<String> = offered.map(str::to_string).collect();
    if !offered.iter().any(|name| name == needed) {
        let needed = needed.to_string();
        reasons.push(Reason::Runtime { needed, offered });
    }
}

fn check_constraints(node: &NodeView, request: &PlacementRequest<'_>, reasons: &mut Vec<Reason>) {
    // Counted once, and only if somebody asks.
    let mut groups: Option<BTreeMap<String, u32>> = None;
    let mut member_of = |expression: &Expression| {
        let groups = groups.get_or_insert_with(|| node.groups());
        let holds = expression.matches(&node.subject(groups));
        (!holds).then(|| Reason::MemberOf {
            expression: expression.as_str().to_string(),
        })
    };
    reasons.extend(request.requirements.constraints.iter().filter_map(&mut member_of));
    for constraint in request.constraints {
        match constraint {
            Constraint::MemberOf(expression) => reasons.extend(member_of(expression)),
            Constraint::DistinctInstance if node.tasks_of(request.group) > 0 => {
                reasons.push(Reason::DistinctInstance {
                    group: request.group.to_string(),
                });
            }
            Constraint::DistinctInstance => {}
        }
    }
}

/// What a node has left.
fn check_room(node: &NodeView, needs: &Requirements, reasons: &mut Vec<Reason>) {
    let free = node.free_cpu_units();
    if needs.cpu_units > free {
        reasons.push(Reason::Cpu {
            needed: needs.cpu_units,
            free,
            total: node.cpu_units,
        });
    }
    let free = node.free_memory_bytes();
    if needs.memory_bytes > free {
        let needed = needs.memory_bytes;
        reasons.push(Reason::Memory {
            needed_bytes: needed,
            free_bytes: free,
            total_bytes: node.memory_bytes,
        });
    }
    if needs.gpus != 0 {
        let free = count(node.free_gpus());
        if needs.gpus > free {
            reasons.push(Reason::Gpu {
                needed: needs.gpus,
                free,
                total: count(node.gpus.iter()),
            });
        }
    }
    for (protocol, needed) in [
        (Protocol::Tcp, &needs.tcp_ports),
        (Protocol::Udp, &needs.udp_ports),
    ] {
        let taken: Vec<u16> = needed
            .iter()
            .copied()
            .filter(|port| is_taken(node, protocol, *port))
            .collect();
        if !taken.is_empty() {
            reasons.push(Reason::Ports { protocol, taken });
        }
    }
    if needs.addresses != 0 {
        check_address(node, needs, reasons);
    }
}

fn check_address(node: &NodeView, needs: &Requirements, reasons: &mut Vec<Reason>) {
    if needs.subnets.is_empty() {
        if needs.addresses > node.free_addresses() {
            let total = node.task_addresses;
            reasons.push(Reason::Address { total });
        }
        return;
    }
    if needs.subnets.iter().any(|id| node.free_in(id) > 0) {
        return;
    }
    let lack = |id: &String| {
        let pool = node.pools.iter().find(|pool| pool.subnet == *id);
        let why = match pool {
            None => SubnetLack::NoBlock,
            Some(AddressPool {
                problem: Some(problem),
                ..
            }) => SubnetLack::Unusable(problem.clone()),
            Some(pool) => SubnetLack::Full(pool.addresses),
        };
        (id.clone(), why)
    };
    let lacks = needs.subnets.iter().map(lack).collect();
    reasons.push(Reason::Subnets { lacks });
}

fn count<T>(of: impl Iterator<Item = T>) -> u32 {
    u32::try_from(of.count()).unwrap_or(u32::MAX)
}

fn is_taken(node: &NodeView, protocol: Protocol, port: u16) -> bool {
    let mut held = node.allocations.iter();
    match protocol {
        Protocol::Tcp => node.reserved_tcp_ports.contains(&port) || held.any(|a| a.tcp_ports.contains(&port)),
        Protocol::Udp => node.reserved_udp_ports.contains(&port) || held.any(|a| a.udp_ports.contains(&port)),
    }
}
