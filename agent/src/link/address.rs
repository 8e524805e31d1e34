//! Owns where other nodes reach this one. Sends nothing: the kernel is asked which address it would send from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use nix::sys::socket::setsockopt;

use crate::config::{Between, Network};

/// Of no host (RFC 5737): the way there is the default route.
const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
/// Likewise (RFC 3849).
const ANYWHERE_IPV6: (Ipv6Addr, u16) = (Ipv6Addr::new(0x2001, 0x0db8, 0, 0, 0, 0, 0, 1), 9);

/// Where this host is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HostAddresses {
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
}

impl HostAddresses {
    /// `control_plane`: where that is, for the host's address towards it.
    pub(super) fn of(network: &Network, control_plane: &[SocketAddr]) -> Self {
        Self {
            ipv4: ipv4_address(network, control_plane),
            ipv6: ipv6_address(network, control_plane),
        }
    }

    /// Where other nodes reach addresses of this one's tasks, if they are to.
    pub(super) fn between_nodes(self, network: &Network) -> Self {
        match network.between {
            Between::None => Self::default(),
            Between::Routes => self,
        }
    }
}

fn ipv4_address(network: &Network, control_plane: &[SocketAddr]) -> Option<Ipv4Addr> {
    let ipv4 = |address| match address {
        IpAddr::V4(address) => Some(address).filter(|address| !address.is_loopback()),
        IpAddr::V6(_) => None,
    };
    let towards = |to: SocketAddr| source(to).and_then(ipv4);
    network
        .node_address
        .or_else(|| control_plane.iter().copied().find_map(towards))
        .or_else(|| towards(ANYWHERE.into()))
}

/// Not one that is a link's alone, nor one that the host has for a day (RFC 8981) where it has another.
pub fn ipv6_address(network: &Network, control_plane: &[SocketAddr]) -> Option<Ipv6Addr> {
    let ipv6 = |address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => {
            Some(address).filter(|address| !address.is_loopback() && !address.is_unicast_link_local())
        }
    };
    let towards = |to: SocketAddr| source(to).and_then(ipv6);
    network
        .node_address_v6
        .or_else(|| control_plane.iter().copied().find_map(towards))
        .or_else(|| towards(ANYWHERE_IPV6.into()))
}

// Of addresses that are equally good otherwise, one that stays (RFC 5014).
nix::setsockopt_impl!(
    PreferStable,
    libc::IPPROTO_IPV6,
    libc::IPV6_ADDR_PREFERENCES,
    libc::c_int,
    nix::sys::socket::sockopt::SetStruct<'_, libc::c_int>
);

#[derive(Clone, Copy, Debug)]
struct PreferStable;

/// Addresses of `https://host:port`; none where it has no name here, as behind a proxy.
pub(super) fn resolve(url: &str) -> Vec<SocketAddr> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    authority.to_socket_addrs().into_iter().flatten().collect()
}

fn source(to: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    if to.is_ipv6() {
        // A kernel that does not know it says which it would send from.
        let _ = setsockopt(&socket, PreferStable, &libc::IPV6_PREFER_SRC_PUBLIC);
    }
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_configured_one_and_never_loopback() {
        let near = resolve("https://127.0.0.1:7071/");
        assert_eq!(near, ["127.0.0.1:7071".parse().unwrap()]);
        let mut network = Network::default();
        let found = HostAddresses::of(&network, &near).ipv4;
        assert!(found.is_none_or(|address| !address.is_loopback()));
        network.node_address = Some(Ipv4Addr::new(198, 51, 100, 7));
        assert_eq!(HostAddresses::of(&network, &near).ipv4, network.node_address);
        let near = resolve("https://[::1]:7071/");
        let found = HostAddresses::of(&network, &near).ipv6;
        assert!(found.is_none_or(|address| !address.is_loopback()));
        network.node_address_v6 = "fd00::7".parse().ok();
        let host = HostAddresses::of(&network, &near);
        assert_eq!(
            (host.ipv4, host.ipv6),
            (network.node_address, network.node_address_v6)
        );
        // That tasks are reached there is another thing.
        assert_eq!(host.between_nodes(&network), HostAddresses::default());
        network.between = Between::Routes;
        assert_eq!(host.between_nodes(&network), host);
    }
}
