//! Owns the requests about routes, one method each.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::{
    super::{
        error::NetworkError,
        routes::{Gateway, RangeRoute, Route, ip_address, route_address},
    },
    FAMILIES, Link, Netlink, bits, errno, failed, family, listed,
};

/// A host route to one address.
#[derive(Clone, Debug)]
pub(in super::super) struct HostRoute {
    pub(in super::super) address: IpAddr,
    pub(in super::super) link_index: u32,
}

/// What of the main table concerns tasks.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct TaskRoutes {
    pub(in super::super) hosts: Vec<HostRoute>,
    /// The link of the IPv4 default route, of several that which is taken.
    pub(in super::super) uplink: Option<u32>,
}

impl Netlink {
    /// Routes all else through `gateway`, itself reached directly through the link.
    pub(in super::super) async fn add_default_route(
        &self,
        link: &Link,
        gateway: IpAddr,
    ) -> Result<(), NetworkError> {
        let direct = direct_route(link, gateway);
        let result = self.handle.route().add(direct).replace().execute().await;
        result.map_err(failed("route the gateway through", &link.name))?;
        let mut default = RouteMessage::default();
        default.header = RouteHeader {
            address_family: family(gateway),
            ..route_header()
        };
        default.attributes = vec![
            RouteAttribute::Gateway(route_address(gateway)),
            RouteAttribute::Oif(link.index),
        ];
        let result = self.handle.route().add(default).replace().execute().await;
        result.map_err(failed("add the default route through", &link.name))
    }

    /// Routes one address to the link, for the host as `source` if that is given. Never takes it from another link.
    pub(in super::super) async fn add_host_route(
        &self,
        link: &Link,
        address: IpAddr,
        source: Option<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        let mut route = direct_route(link, address);
        // In the scope of a link the kernel would take the link's own address for the host's where that publishes ports
        // (`route_localnet`): it is the endpoints', and nothing is answered there.
        route.header.scope = RouteScope::Universe;
        let source = source.map(|source| RouteAttribute::PrefSource(route_address(source.into())));
        route.attributes.extend(source);
        match self.handle.route().add(route).execute().await {
            Ok(()) => Ok(()),
            Err(e) if errno(&e) == libc::EEXIST => {
                let routes = self.host_routes().await?;
                let ours = |route: &HostRoute| route.address == address && route.link_index == link.index;
                if routes.iter().any(ours) {
                    return Ok(());
                }
                Err(NetworkError::AddressInUse {
                    address,
                    link: link.name.clone(),
                })
            }
            Err(e) => Err(failed("add the host route to", &link.name)(e)),
        }
    }

    /// Every /32 and /128 route of the main table that leads to a link.
    pub(in super::super) async fn host_routes(&self) -> Result<Vec<HostRoute>, NetworkError> {
        Ok(self.task_routes().await?.hosts)
    }

    /// What of the main table concerns tasks.
    pub(in super::super) async fn task_routes(&self) -> Result<TaskRoutes, NetworkError> {
        let mut routes = TaskRoutes::default();
        let mut best = u32::MAX;
        for message in self.all_routes().await? {
            routes.hosts.extend(parse_host_route(&message));
            if let Some((link, metric)) = parse_default_route(&message)
                && (routes.uplink.is_none() || metric < best)
            {
                (routes.uplink, best) = (Some(link), metric);
            }
        }
        Ok(routes)
    }

    /// Every route of every table.
    pub(in super::super) async fn routes(&self) -> Result<Vec<Route>, NetworkError> {
        Ok(self.all_routes().await?.iter().filter_map(Route::parse).collect())
    }

    async fn all_routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut routes = Vec::new();
        for family in FAMILIES {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let mut stream = self.handle.route().get(filter).execute();
            while let Some(message) = listed(stream.try_next().await, "routes")? {
                // Some kernels without IPv6 list IPv4 instead.
                if message.header.address_family == family {
                    routes.push(message);
                }
            }
        }
        Ok(routes)
    }

    /// How the kernel would send to an address.
    pub(in super::super) async fn way_to(&self, address: IpAddr) -> Result<Gateway, NetworkError> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(address);
        question.header.destination_prefix_length = bits(address);
        question.attributes = vec![RouteAttribute::Destination(route_address(address))];
        let mut answers = self.handle.route().get(question).execute();
        let answer = match answers.try_next().await {
            Ok(answer) => answer.unwrap_or_default(),
            Err(e) if is_no_way(errno(&e)) => return Ok(Gateway::default()),
            Err(e) => return Err(failed("look for the way to", &address.to_string())(e)),
        };
        let mut way = Gateway {
            local: answer.header.kind == RouteType::Local,
            ..Gateway::default()
        };
        for attribute in answer.attributes {
            match attribute {
                RouteAttribute::Oif(index) => way.link = Some(index),
                RouteAttribute::Gateway(via) => way.via = ip_address(&via),
                _ => {}
            }
        }
        Ok(way)
    }

    /// Adds a route to a range. Idempotent.
    pub(in super::super) async fn add_range_route(
        &self,
        route: &RangeRoute,
        metric: u32,
    ) -> Result<(), NetworkError> {
        match self.handle.route().add(route.message(metric)).execute().await {
            Err(e) if errno(&e) != libc::EEXIST => Err(failed("add the route", &route.describe())(e)),
            _ => Ok(()),
        }
    }

    /// Deletes a route to a range. Idempotent.
    pub(in super::super) async fn delete_range_route(
        &self,
        route: &RangeRoute,
        metric: u32,
    ) -> Result<(), NetworkError> {
        match self.handle.route().del(route.message(metric)).execute().await {
            Err(e) if errno(&e) != libc::ESRCH => Err(failed("delete the route", &route.describe())(e)),
            _ => Ok(()),
        }
    }

    /// Deletes a host route. Idempotent.
    pub(in super::super) async fn delete_host_route(&self, route: &HostRoute) -> Result<(), NetworkError> {
        let link = Link {
            index: route.link_index,
            ..Link::default()
        };
        // Whoever added it and however: the kernel compares these only when they are given.
        let mut message = direct_route(&link, route.address);
        message.header.protocol = RouteProtocol::Unspec;
        message.header.scope = RouteScope::NoWhere;
        match self.handle.route().del(message).execute().await {
            Err(e) if errno(&e) != libc::ESRCH => {
                Err(failed("delete the route to", &route.address.to_string())(e))
            }
            _ => Ok(()),
        }
    }
}

/// By which the kernel says that it would send nothing there: no route leads there, one that keeps everybody from it (blackhole,
/// prohibit), or it knows nothing of the family.
fn is_no_way(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::EINVAL
            | libc::EACCES
            | libc::EAFNOSUPPORT
            | libc::EOPNOTSUPP
    )
}

/// `address` is reached through the link without a gateway.
pub(super) fn direct_route(link: &Link, address: IpAddr) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: family(address),
        destination_prefix_length: bits(address),
        scope: RouteScope::Link,
        ..route_header()
    };
    route.attributes = vec![
        RouteAttribute::Destination(route_address(address)),
        RouteAttribute::Oif(link.index),
    ];
    route
}

fn route_header() -> RouteHeader {
    RouteHeader {
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    }
}

pub(super) fn parse_host_route(message: &RouteMessage) -> Option<HostRoute> {
    if message.header.table != libc::RT_TABLE_MAIN || message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut address = None;
    let mut link_index = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => address = ip_address(destination),
            RouteAttribute::Oif(index) => link_index = Some(*index),
            _ => {}
        }
    }
    // The kernel's own, of what every link has.
    let is_of_link = |address: &IpAddr| matches!(address, IpAddr::V6(own) if own.is_unicast_link_local());
    let whole = |address: &IpAddr| message.header.destination_prefix_length == bits(*address);
    Some(HostRoute {
        address: address.filter(|address| whole(address) && !is_of_link(address))?,
        link_index: link_index?,
    })
}

/// Its link, the first of several, and its metric.
fn parse_default_route(message: &RouteMessage) -> Option<(u32, u32)> {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet {
        return None;
    }
    let leads_out = header.kind == RouteType::Unicast && header.table == libc::RT_TABLE_MAIN;
    if header.destination_prefix_length != 0 || !leads_out {
        return None;
    }
    let link = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    };
    let metric = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    };
    let attributes = &message.attributes;
    let link = attributes.iter().find_map(link)?;
    Some((link, attributes.iter().find_map(metric).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_kernel_sends_nothing_there_is_no_way_and_what_it_refuses_is_none_of_that() {
        let no_way = [
            libc::ENETUNREACH,
            libc::EHOSTUNREACH,
            libc::EINVAL,
            libc::EACCES,
            libc::EAFNOSUPPORT,
            libc::EOPNOTSUPP,
        ];
        assert!(no_way.into_iter().all(is_no_way));
        assert!(!is_no_way(libc::EPERM) && !is_no_way(libc::ENOBUFS));
    }
}
