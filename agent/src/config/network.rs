//! Owns the settings of the tasks' network, and of that between nodes.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// IPv6 has no smaller links (RFC 8200), and the kernel's veth no larger ones.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65_535;

/// How tasks reach others.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    pub between: Between,
    /// Where the other nodes reach this one; by default the address it has towards the control plane, or towards
    /// everything else where that is on the same host.
    pub node_address: Option<Ipv4Addr>,
    /// The largest packet of tasks, bytes; by default as the link of the default route.
    pub mtu: Option<u32>,
    /// Where docker or firewalld drops what tasks send, a rule of ours may accept it in the place that they keep for that.
    pub pass_other_firewalls: bool,
    /// Tasks reach 169.254.169.254, where clouds answer for the instance: its identity and its credentials.
    pub instance_metadata: bool,
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

impl Network {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if let Some(mtu) = self.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(ConfigError::Value {
                key: "network.mtu",
                value: mtu.to_string(),
                problem: format!("must be {} to {}", MTU.start(), MTU.end()),
            });
        }
        let Some(address) = self.node_address else {
            return Ok(());
        };
        let odd = address.is_loopback() || address.is_unspecified() || address.is_multicast();
        if odd || address.is_broadcast() || address.is_link_local() {
            return Err(ConfigError::Value {
                key: "network.node_address",
                value: address.to_string(),
                problem: "must be an address by which other hosts reach this one".into(),
            });
        }
        Ok(())
    }
}
