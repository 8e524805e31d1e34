//! Owns the settings of the tasks' network, and of that between nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::convert::is_link_name;

/// IPv6 has no smaller links (RFC 8200), and the kernel's veth no larger ones.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65_535;

/// How tasks reach others.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    pub between: Between,
    /// Where the other nodes reach this one; by default the address it has towards the control plane, or towards
    /// everything else where that is on the same host.
    pub node_address: Option<Ipv4Addr>,
    /// Likewise for their IPv6 addresses.
    pub node_address_v6: Option<Ipv6Addr>,
    /// The largest packet of tasks, bytes; by default as the link of the default route.
    pub mtu: Option<u32>,
    /// Network namespaces that are kept ready for tasks.
    pub ready_namespaces: u16,
    /// Where docker or firewalld drops what tasks send, a rule of ours may accept it in the place that they keep for that.
    pub pass_other_firewalls: bool,
    /// Tasks reach 169.254.169.254, where clouds answer for the instance: its identity and its credentials.
    pub instance_metadata: bool,
    /// Links of this host that tasks in subnets of kind interface may have, by name.
    pub task_interfaces: Vec<String>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            between: Between::default(),
            node_address: None,
            node_address_v6: None,
            mtu: None,
            ready_namespaces: 4,
            pass_other_firewalls: false,
            instance_metadata: false,
            task_interfaces: vec![],
        }
    }
}

/// Ways between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Between {
    /// None of Berth's: whoever wants one routes the nodes' parts of the subnets.
    #[default]
    None,
    /// A route to each other node of the cluster that has this too; they are on one network.
    Routes,
}

/// Namespaces that one host keeps ready: more than start at once on it gain nothing.
const READY_NAMESPACES_MAX: u16 = 64;
/// Links that one host gives to tasks.
const TASK_INTERFACES_MAX: usize = 64;

impl Network {
    fn check_interfaces(&self) -> Result<(), ConfigError> {
        let names = &self.task_interfaces;
        let wrong = |value: &str, problem: &str| {
            Err(ConfigError::Value {
                key: "network.task_interfaces",
                value: value.chars().take(64).collect(),
                problem: problem.into(),
            })
        };
        if names.len() > TASK_INTERFACES_MAX {
            return wrong(&names.len().to_string(), "must be at most 64");
        }
        for (at, name) in names.iter().enumerate() {
            if !is_link_name(name) {
                return wrong(
                    name,
                    "must be the name of a link other than lo: 1 to 15 of letters, digits, _, - and .",
                );
            }
            if names[..at].contains(name) {
                return wrong(name, "is there twice");
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if let Some(mtu) = self.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(ConfigError::Value {
                key: "network.mtu",
                value: mtu.to_string(),
                problem: format!("must be {} to {}", MTU.start(), MTU.end()),
            });
        }
        if self.ready_namespaces > READY_NAMESPACES_MAX {
            return Err(ConfigError::Value {
                key: "network.ready_namespaces",
                value: self.ready_namespaces.to_string(),
                problem: format!("must be at most {READY_NAMESPACES_MAX}"),
            });
        }
        self.check_interfaces()?;
        let addresses = [
            ("network.node_address", self.node_address.map(IpAddr::from)),
            ("network.node_address_v6", self.node_address_v6.map(IpAddr::from)),
        ];
        for (key, address) in addresses {
            if let Some(address) = address.filter(is_odd) {
                return Err(ConfigError::Value {
                    key,
                    value: address.to_string(),
                    problem: "must be an address by which other hosts reach this one".into(),
                });
            }
        }
        Ok(())
    }
}

/// No host's own, or none that other hosts can use.
fn is_odd(address: &IpAddr) -> bool {
    let of_link = match address {
        IpAddr::V4(address) => address.is_broadcast() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    of_link || address.is_loopback() || address.is_unspecified() || address.is_multicast()
}
