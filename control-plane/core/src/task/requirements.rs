//! Owns what a task needs of its node. Never looks at a node.

use super::{ContainerDefinition, Definition, MIB, NetworkMode, PortMapping, Protocol, required_features};
use crate::expression::Expression;
use crate::placement::Allocation;

/// A processor architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// As Go, images and nodes name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// What a task needs of its node, and is charged there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// The task's, or the sum of its containers'.
    pub cpu_units: u32,
    /// The task's, or the sum of each container's limit or reservation, whichever is larger.
    pub memory_bytes: u64,
    /// Ports of the host that the definition names, ascending: of host and bridge mode, and those that are published.
    pub tcp_ports: Vec<u16>,
    pub udp_ports: Vec<u16>,
    /// How many addresses of its own it needs: one, or in bridge mode one for each container.
    pub addresses: u32,
    /// The subnets of which its address may be; none: it is of the node's own range.
    pub subnets: Vec<String>,
    /// Of all its containers together.
    pub gpus: u32,
    pub architecture: Option<Architecture>,
    /// The definition's `memberOf` constraints.
    pub constraints: Vec<Expression>,
    /// Of [`super::FEATURES`].
    pub features: Vec<&'static str>,
    /// The runtime it asks for; none: the node's own choice.
    pub runtime: Option<String>,
}

impl Requirements {
    /// Of a task that runs images by the digests an earlier one resolved.
    pub fn running_digests(mut self) -> Self {
        self.features.push(super::IMAGE_DIGEST);
        self
    }

    /// Of a task that is to start again after its host restarted.
    pub fn restarting_after_reboot(mut self) -> Self {
        self.features.push(super::RESTART_AFTER_REBOOT);
        self
    }

    /// Of a task whose address is one of these subnets of its cluster.
    pub fn in_subnets(mut self, subnets: Vec<String>) -> Self {
        if !subnets.is_empty() {
            self.features.push(super::NET_SUBNETS);
        }
        self.subnets = subnets;
        self
    }

    /// Of a task that may have an IPv6 address.
    pub fn with_ipv6(mut self) -> Self {
        self.features.push(super::NET_IPV6);
        self
    }

    /// Of a task that is a host of a LAN.
    pub fn on_lan(mut self) -> Self {
        self.features.push(super::NET_LAN);
        self
    }

    /// Of a task that asks for a runtime by name.
    pub fn on_runtime(mut self, runtime: Option<String>) -> Self {
        self.runtime = runtime;
        self
    }

    /// What the task holds on a node once it is placed there. Its GPUs are the node's to choose: see
    /// [`NodeView::allocate`](crate::placement::NodeView::allocate).
    pub(crate) fn allocation(&self, group: &str) -> Allocation {
        Allocation {
            cpu_units: self.cpu_units,
            memory_bytes: self.memory_bytes,
            tcp_ports: self.tcp_ports.clone(),
            udp_ports: self.udp_ports.clone(),
            addresses: self.addresses,
            subnet: None,
            gpus: Vec::new(),
            stopping: false,
            group: group.to_string(),
        }
    }
}

impl Definition {
    /// What a task of this definition needs.
    pub fn requirements(&self) -> Requirements {
        let containers = &self.containers;
        let cpu_sum = || {
            containers
                .iter()
                .fold(0_u32, |sum, c| sum.saturating_add(c.cpu_units))
        };
        let memory_sum = || containers.iter().map(container_memory_mib).sum();
        let memory_mib = self.memory_mib.map_or_else(memory_sum, u64::from);
        Requirements {
            cpu_units: self.cpu_units.unwrap_or_else(cpu_sum),
            memory_bytes: memory_mib * MIB,
            tcp_ports: self.host_ports(Protocol::Tcp, false),
            udp_ports: self.host_ports(Protocol::Udp, false),
            addresses: self.addresses(),
            subnets: Vec::new(),
            gpus: containers.iter().fold(0, |sum, c| sum.saturating_add(c.gpus)),
            architecture: self.architecture,
            constraints: self.constraints.clone(),
            features: required_features(self),
            runtime: None,
        }
    }

    fn addresses(&self) -> u32 {
        match self.network_mode {
            NetworkMode::Awsvpc => 1,
            NetworkMode::Bridge => {
                let own = self.containers.iter().filter(|c| !c.networking.disabled);
                u32::try_from(own.count()).unwrap_or(u32::MAX)
            }
            NetworkMode::Host | NetworkMode::None => 0,
        }
    }

    /// What a task of this definition needs whose ports are to be the host's too.
    pub fn requirements_published(&self) -> Requirements {
        let mut requirements = self.requirements();
        requirements.tcp_ports = self.host_ports(Protocol::Tcp, true);
        requirements.udp_ports = self.host_ports(Protocol::Udp, true);
        requirements.features.push(super::PUBLISHED_PORTS);
        requirements
    }

    fn host_ports(&self, protocol: Protocol, published: bool) -> Vec<u16> {
        match self.network_mode {
            NetworkMode::Host | NetworkMode::Bridge => {}
            NetworkMode::Awsvpc if published => {}
            NetworkMode::Awsvpc | NetworkMode::None => return Vec::new(),
        }
        let mappings = self.containers.iter().flat_map(|c| &c.ports);
        let mut ports: Vec<u16> = mappings
            .filter(|p| p.protocol == protocol)
            .flat_map(PortMapping::host_ports)
            .collect();
        ports.sort_unstable();
        ports
    }
}

fn container_memory_mib(container: &ContainerDefinition) -> u64 {
    let mib = container.memory_mib.max(container.memory_reservation_mib);
    u64::from(mib.unwrap_or(0))
}
