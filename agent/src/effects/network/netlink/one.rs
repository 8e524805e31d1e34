//! Owns the questions about one link, which the kernel answers by itself without listing those of all others: what is looked at
//! for each of a thousand tasks must not grow with them.

use std::{collections::BTreeSet, net::IpAddr};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    address::AddressAttribute,
    route::{RouteAttribute, RouteMessage},
};
use rtnetlink::sys::AsyncSocket;

use super::{
    super::error::NetworkError, FAMILIES, HostRoute, Link, Netlink, Socket, listed, route::parse_host_route,
};

impl Socket {
    /// Opens one on which the kernel heeds what a listing is asked to be limited to (since 4.20).
    pub(in super::super) fn open_filtering() -> Result<Self, NetworkError> {
        let mut socket = Self::open()?;
        let raw = socket.connection.socket_mut().socket_mut();
        raw.set_netlink_get_strict_chk(true)
            .map_err(|source| NetworkError::Socket { source })?;
        Ok(socket)
    }
}

impl Netlink {
    /// The link's addresses.
    pub(in super::super) async fn every_address_of(
        &self,
        link: &Link,
    ) -> Result<BTreeSet<IpAddr>, NetworkError> {
        let mut addresses = BTreeSet::new();
        for family in FAMILIES {
            let mut request = self.handle.address().get();
            request.message_mut().header.family = family;
            request.message_mut().header.index = link.index;
            let mut stream = request.execute();
            while let Some(message) = listed(stream.try_next().await, "addresses")? {
                // A kernel without IPv6, or one that does not heed it, lists others.
                if message.header.family != family || message.header.index != link.index {
                    continue;
                }
                addresses.extend(message.attributes.iter().filter_map(|attribute| match attribute {
                    AddressAttribute::Local(address) | AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                }));
            }
        }
        Ok(addresses)
    }

    /// The host routes of the main table that lead to the link.
    pub(in super::super) async fn host_routes_of(&self, link: &Link) -> Result<Vec<HostRoute>, NetworkError> {
        let mut routes = Vec::new();
        for family in FAMILIES {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.table = libc::RT_TABLE_MAIN;
            filter.attributes.push(RouteAttribute::Oif(link.index));
            let mut stream = self.handle.route().get(filter).execute();
            while let Some(message) = listed(stream.try_next().await, "routes")? {
                if message.header.address_family == family {
                    routes.extend(parse_host_route(&message));
                }
            }
        }
        routes.retain(|route| route.link_index == link.index);
        Ok(routes)
    }
}
