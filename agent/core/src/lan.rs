//! Owns what a network outside is of which tasks are hosts, as far as a task's connection to it goes. Never looks at a link.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A network outside, of which tasks are hosts: of kinds macvlan, vlan and interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lan {
    pub link: LanLink,
    /// Addresses of all its hosts.
    pub network: Ipv4Net,
    /// Where its hosts send what is for others. None: to none.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
}

/// How a task is connected to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LanLink {
    /// By a link of its own upon this one of the host.
    Macvlan { uplink: String },
    /// Likewise, in one VLAN of it: 1 to 4094.
    Vlan { uplink: String, id: u16 },
    /// By one of the host's links that its operator gives to tasks.
    Interface,
}

impl LanLink {
    /// The host's link that has to be there.
    pub fn uplink(&self) -> Option<&str> {
        match self {
            Self::Macvlan { uplink } | Self::Vlan { uplink, .. } => Some(uplink),
            Self::Interface => None,
        }
    }
}
