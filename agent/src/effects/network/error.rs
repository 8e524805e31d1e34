//! Owns what can go wrong with a task's network, and whether trying again may help.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_agent_core::{addresses::Range, desired::Protocol};
use ipnet::Ipv4Net;

use crate::dial::Unresolved;

/// Why something about the network could not be done.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("instance name {name:?}: 1 to 32 of a-z, 0-9 and -, starting with a letter")]
    InstanceName { name: String },
    #[error("task range {range}: at least a /30 outside 169.254.0.0/16 and 127.0.0.0/8")]
    TaskRange { range: Ipv4Net },
    #[error("this host has no IPv6: {why}")]
    NoIpv6 { why: String },
    #[error("{step} {}", path.display())]
    Directory {
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("set {} to {value}", path.display())]
    Setting {
        path: PathBuf,
        value: String,
        source: io::Error,
    },
    #[error("nft is not there to {step}: install the package nftables")]
    NftMissing { step: &'static str },
    #[error("run nft to {step}")]
    NftSpawn { step: &'static str, source: io::Error },
    #[error("firewall-cmd {what} of the tasks' links in zone trusted")]
    FirewallCmd { what: &'static str, source: io::Error },
    #[error("nft failed to {step}: {stderr}")]
    Nft { step: &'static str, stderr: String },
    #[error("start a thread to {step}")]
    Thread { step: &'static str, source: io::Error },
    #[error("the thread to {step} ended without a result")]
    ThreadDied { step: &'static str },
    #[error("{step} network namespace {}", netns.display())]
    Namespace {
        step: &'static str,
        netns: PathBuf,
        source: io::Error,
    },
    #[error("network namespace {} is not there", netns.display())]
    NamespaceGone { netns: PathBuf },
    #[error("open a netlink socket")]
    Socket { source: io::Error },
    #[error("the netlink socket closed while asked to {step} {link}")]
    SocketClosed { step: &'static str, link: String },
    #[error("{step} {link}")]
    Netlink {
        step: &'static str,
        link: String,
        source: io::Error,
    },
    #[error("link name {link} is taken by {owner:?}")]
    LinkTaken { link: String, owner: String },
    #[error("link {link} was made and is not there")]
    LinkVanished { link: String },
    #[error("link {link} carries no packets {waited:?} after it was brought up")]
    LinkDown { link: String, waited: Duration },
    #[error("link {uplink}, which the task's subnet is on, {state}")]
    UplinkIdle { uplink: String, state: &'static str },
    #[error("no interface is given to a task before it is known which leads to the control plane")]
    WayUnknown { source: Unresolved },
    #[error("there is no link {uplink}, which the task's subnet is on")]
    NoUplink { uplink: String },
    #[error(
        "{uplink} has a link for VLAN {id} already, which is not this agent's: let the subnet be of kind macvlan on that"
    )]
    VlanTaken { uplink: String, id: u16 },
    #[error("no interface is free of those that network.task_interfaces names: {names}")]
    NoInterface { names: String },
    #[error("a host of the network has {address} already: {holder}")]
    AddressTaken { address: Ipv4Addr, holder: String },
    #[error("address {address} is not in {range}")]
    AddressOutside { address: IpAddr, range: Range },
    #[error("address {address} is already routed to another link than {link}")]
    AddressInUse { address: IpAddr, link: String },
    #[error("link {link} remained {waited:?} after its namespace was unmounted, and after being deleted")]
    LinkRemains { link: String, waited: Duration },
    #[error("no answer within {deadline:?} while asked to {step} {subject}")]
    Deadline {
        step: &'static str,
        subject: String,
        deadline: Duration,
    },
    #[error(
        "no turn within {waited:?} to {step} {subject}: the kernel does not answer {stuck} operations on the network; where that \
         does not end, reboot the host"
    )]
    NoTurn {
        step: &'static str,
        subject: String,
        waited: Duration,
        stuck: usize,
    },
    #[error("a process of the host has {}", named(ports))]
    PortsTaken { ports: Vec<(Protocol, u16)> },
    #[error("{} still holds {count} namespaces", path.display())]
    NotEmpty { path: PathBuf, count: usize },
}

/// Whether the same request may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The host may be in a better state later.
    Backoff,
    /// The request itself is wrong.
    Never,
}

impl NetworkError {
    /// Exhaustive on purpose: a new variant must choose.
    pub fn retry(&self) -> Retry {
        match self {
            Self::InstanceName { .. }
            | Self::TaskRange { .. }
            | Self::AddressOutside { .. }
            | Self::NamespaceGone { .. }
            | Self::AddressTaken { .. }
            | Self::VlanTaken { .. }
            | Self::PortsTaken { .. }
            | Self::LinkTaken { .. } => Retry::Never,
            Self::Directory { .. }
            | Self::Setting { .. }
            | Self::NftMissing { .. }
            | Self::FirewallCmd { .. }
            | Self::NftSpawn { .. }
            | Self::Nft { .. }
            | Self::Thread { .. }
            | Self::ThreadDied { .. }
            | Self::Namespace { .. }
            | Self::Socket { .. }
            | Self::SocketClosed { .. }
            | Self::Netlink { .. }
            | Self::NoUplink { .. }
            | Self::NoInterface { .. }
            | Self::LinkVanished { .. }
            | Self::LinkDown { .. }
            | Self::UplinkIdle { .. }
            | Self::WayUnknown { .. }
            // Somebody may switch it on.
            | Self::NoIpv6 { .. }
            | Self::AddressInUse { .. }
            | Self::LinkRemains { .. }
            | Self::Deadline { .. }
            | Self::NoTurn { .. }
            | Self::NotEmpty { .. } => Retry::Backoff,
        }
    }

    /// Of the way to a network outside: a link, or what it carries, that may come late. While others wait for theirs there may
    /// be no turn to look for it.
    pub fn is_of_uplink(&self) -> bool {
        matches!(
            self,
            Self::NoUplink { .. }
                | Self::UplinkIdle { .. }
                | Self::NoInterface { .. }
                | Self::WayUnknown { .. }
                | Self::LinkDown { .. }
                | Self::NoTurn { .. }
        )
    }

    /// The kernel said so.
    pub(super) fn is_errno(&self, errno: i32) -> bool {
        matches!(self, Self::Netlink { source, .. } if source.raw_os_error() == Some(errno))
    }

    pub(super) fn directory(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Directory { step, path, source }
    }
}

/// Ports as people name them, not all of a long list.
fn named(ports: &[(Protocol, u16)]) -> String {
    const NAMED_MAX: usize = 5;
    let mut text: Vec<_> = ports
        .iter()
        .take(NAMED_MAX)
        .map(|(protocol, port)| format!("port {port}/{}", protocol.as_str()))
        .collect();
    if ports.len() > NAMED_MAX {
        text.push(format!("{} others", ports.len() - NAMED_MAX));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_said_is_told_apart() {
        let error = |errno| NetworkError::Netlink {
            step: "bring up",
            link: "eth1".into(),
            source: io::Error::from_raw_os_error(errno),
        };
        assert!(error(libc::ENETDOWN).is_errno(libc::ENETDOWN));
        assert!(!error(libc::EPERM).is_errno(libc::ENETDOWN));
    }
}
