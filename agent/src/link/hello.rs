//! Owns what the node says of itself at the start of every link.

use std::collections::BTreeMap;

use berth_agent_core::{
    addresses::Range,
    ids::{NodeId, SubnetId},
};
use berth_proto::node::v1 as wire;
use tokio::sync::watch;

use super::address::HostAddresses;
use crate::{
    config::Network,
    convert,
    driver::{NodeStatus, now},
    sys,
};

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    pub boot_id: String,
    /// Made anew by every agent process: tells its reconnects from another agent with the same identity.
    pub run_id: String,
    /// For example "containerd 1.6.20".
    pub runtime_version: String,
    pub cgroup_version: u8,
    pub capacity: wire::Capacity,
    /// Which GPUs there are may change meanwhile.
    pub gpus: watch::Receiver<Vec<String>>,
    /// Those of [`convert::FEATURES`] that this host can have, and the runtimes that tasks may ask for.
    pub features: Vec<String>,
    /// Whether other nodes reach the tasks of this one, and where.
    pub network: Network,
    /// Found and configured.
    pub attributes: BTreeMap<String, String>,
}

impl Facts {
    pub(super) fn hello(&mut self, node: &NodeId, status: &NodeStatus, host: HostAddresses) -> wire::Hello {
        let tasks = host.between_nodes(&self.network);
        fn text(address: Option<impl ToString>) -> String {
            address.map(|address| address.to_string()).unwrap_or_default()
        }
        let known = |(id, status): (&berth_agent_core::ids::TaskId, &berth_agent_core::report::Status)| {
            wire::KnownTask {
                task_id: id.to_string(),
                status: convert::status(*status).into(),
            }
        };
        let held = |(subnet, range): (&SubnetId, &Range)| wire::HeldRange {
            subnet_id: subnet.to_string(),
            ipv4_range: range.ipv4.to_string(),
        };
        wire::Hello {
            held_ranges: status.parts.iter().map(held).collect(),
            version_min: wire::VERSION,
            version_max: wire::VERSION,
            node_id: node.to_string(),
            description: Some(self.description()),
            capacity: Some(self.capacity()),
            features: self.features.clone(),
            attributes: self.attributes.clone().into_iter().collect(),
            known_tasks: status.tasks.iter().map(known).collect(),
            position: status.position.as_ref().map(convert::position_to_wire),
            last_sequence: status.last_sequence,
            sent_at_ms: now().0,
            run_id: self.run_id.clone(),
            node_address: text(tasks.ipv4),
            node_ipv6_address: text(tasks.ipv6),
            host_address: text(host.ipv4),
            host_ipv6_address: text(host.ipv6),
        }
    }

    /// What the node offers now.
    pub(super) fn capacity(&mut self) -> wire::Capacity {
        wire::Capacity {
            gpu_ids: self.gpus.borrow_and_update().clone(),
            ..self.capacity.clone()
        }
    }

    fn description(&self) -> wire::NodeDescription {
        wire::NodeDescription {
            hostname: sys::hostname().unwrap_or_default(),
            boot_id: self.boot_id.clone(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            kernel_version: sys::kernel_version().unwrap_or_default(),
            architecture: sys::architecture().into(),
            os: "linux".into(),
            runtime_version: self.runtime_version.clone(),
            cgroup_version: self.cgroup_version.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_which_parts_of_subnets_it_has() {
        let (_gpus, gpus) = watch::channel(Vec::new());
        let mut facts = Facts {
            boot_id: "b".into(),
            run_id: String::new(),
            runtime_version: String::new(),
            cgroup_version: 2,
            capacity: wire::Capacity::default(),
            gpus,
            features: Vec::new(),
            network: Network::default(),
            attributes: BTreeMap::new(),
        };
        let subnet: SubnetId = "subnet-0000000000000000a".parse().unwrap();
        let part: Range = "10.64.3.0/24".parse::<ipnet::Ipv4Net>().unwrap().into();
        let status = NodeStatus {
            parts: BTreeMap::from([(subnet.clone(), part)]),
            ..NodeStatus::default()
        };
        let hello = facts.hello(
            &"a".repeat(32).parse().unwrap(),
            &status,
            HostAddresses::default(),
        );
        let expected = wire::HeldRange {
            subnet_id: subnet.to_string(),
            ipv4_range: "10.64.3.0/24".into(),
        };
        assert_eq!(hello.held_ranges, [expected]);
    }
}
