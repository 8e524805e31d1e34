//! Owns the settings of the network between nodes.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// How tasks reach those of other nodes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    pub between: Between,
    /// Where the other nodes reach this one; by default the address it has towards the control plane, or towards
    /// everything else where that is on the same host.
    pub node_address: Option<Ipv4Addr>,
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
