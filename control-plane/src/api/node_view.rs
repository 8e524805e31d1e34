//! Owns the step from a stored node to what placement and expressions look at. Never decides anything.

use berth_control_plane_core::{
    expression::Expression,
    placement::{AddressPool, Allocation, NodeStatus, NodeView},
    task::NET_LAN,
};

use super::error::ApiError;
use crate::model::{self, Attributes, Node, Subnet};

/// The host's name, as an attribute of every node.
const HOSTNAME: &str = "berth.hostname";

/// All attributes of a node. What was put wins; the names a node finds out by itself cannot be put.
pub(super) fn attributes(node: &Node) -> Attributes {
    let mut all = node.node_attributes.clone();
    all.extend(node.attributes.clone());
    all.insert(HOSTNAME.to_owned(), Some(node.hostname.clone()));
    all
}

/// What placement reads. Errors: a status that nobody writes.
pub(super) fn view(node: &Node) -> Result<NodeView, ApiError> {
    let status: NodeStatus = node
        .status
        .parse()
        .map_err(|_| ApiError::Server(format!("node {} has unknown status {:?}", node.id, node.status)))?;
    Ok(NodeView {
        id: node.id.clone(),
        status,
        connected: node.agent_connected,
        architecture: node.architecture.clone(),
        agent_version: node.agent_version.clone(),
        registered_at_ms: node.registered_at,
        cpu_units: node.cpu_units,
        memory_bytes: node.memory_bytes,
        task_addresses: node.task_addresses,
        pools: vec![],
        reserved_tcp_ports: node.reserved_tcp_ports.clone(),
        reserved_udp_ports: node.reserved_udp_ports.clone(),
        gpus: node.gpus.clone(),
        allocations: node.allocations.values().map(allocation).collect(),
        attributes: attributes(node),
        features: node.features.clone(),
    })
}

/// The node's parts of the subnets of its cluster: what [`view`] leaves out, for who places tasks.
pub(super) fn pools<'a>(node: &Node, of: impl Iterator<Item = &'a Subnet>) -> Vec<AddressPool> {
    let knows_lans = node.features.iter().any(|feature| feature == NET_LAN);
    let pool = |subnet: &Subnet| {
        // A part from before its agent was replaced by an older one: that would take it for one of its own.
        if subnet.lan().is_some() && !knows_lans {
            return None;
        }
        let block = subnet.blocks.of(&node.id)?;
        Some(AddressPool {
            subnet: subnet.id.clone(),
            addresses: block.tasks(),
            problem: block.problem.clone(),
        })
    };
    of.filter_map(pool).collect()
}

fn allocation(stored: &model::Allocation) -> Allocation {
    Allocation {
        cpu_units: stored.cpu_units,
        memory_bytes: stored.memory_bytes,
        tcp_ports: stored.tcp_ports.clone(),
        udp_ports: stored.udp_ports.clone(),
        addresses: stored.addresses.max(stored.address.into()),
        subnet: stored.subnet.clone(),
        gpus: stored.gpus.clone(),
        stopping: stored.stopping,
        group: stored.group.clone(),
    }
}

/// The other way, for the record.
pub(super) fn stored(allocation: Allocation) -> model::Allocation {
    model::Allocation {
        cpu_units: allocation.cpu_units,
        memory_bytes: allocation.memory_bytes,
        tcp_ports: allocation.tcp_ports,
        udp_ports: allocation.udp_ports,
        address: allocation.addresses != 0,
        addresses: allocation.addresses,
        subnet: allocation.subnet,
        gpus: allocation.gpus,
        group: allocation.group,
        stopping: allocation.stopping,
    }
}

/// Whether a filter expression holds for a node.
pub(super) fn matches(filter: &Expression, view: &NodeView) -> bool {
    filter.matches(&view.subject(&view.groups()))
}
