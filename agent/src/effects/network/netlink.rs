//! Owns the route-netlink requests that a task's network is made of, one method each, with the link's name in every
//! error. Never keeps a socket beyond one operation, so that no socket holds a namespace alive.

mod carrier;
mod lan;
mod one;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::RawFd,
};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressScope},
    link::{
        AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoData, InfoKind, InfoVeth,
        LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Stats64,
    },
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, proto::Connection};

pub(super) use self::carrier::Carrier;
use super::{
    error::NetworkError,
    names::Mac,
    routes::{Gateway, RangeRoute, Route, ip_address, route_address},
};

/// A socket in the namespace of the thread that opened it.
pub(super) struct Socket {
    connection: Connection<RouteNetlinkMessage>,
    netlink: Netlink,
}

impl Socket {
    /// Opens one. Needs the runtime's context.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _unsolicited) =
            rtnetlink::new_connection().map_err(|source| NetworkError::Socket { source })?;
        Ok(Self {
            connection,
            netlink: Netlink { handle },
        })
    }

    /// The requests, and what must be polled beside them for them to proceed. It never ends while the socket works.
    pub(super) fn split(self) -> (Netlink, impl Future<Output = ()>) {
        (self.netlink, self.connection)
    }

    /// Does `work` with this socket and closes it.
    pub(super) async fn with<T>(
        self,
        step: &'static str,
        link: &str,
        work: impl AsyncFnOnce(&Netlink) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        let (netlink, connection) = self.split();
        tokio::select! {
            // The connection first: when it dies, requests end as if they were acknowledged.
            biased;
            () = connection => Err(NetworkError::SocketClosed { step, link: link.to_owned() }),
            result = work(&netlink) => result,
        }
    }
}

/// What a link is, as the kernel says.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// Index of a veth's other end, in that end's namespace; of a link upon another one, that one's.
    pub(super) peer_index: u32,
    /// The index of the link of the same namespace upon which it is: as VLAN or macvlan, never a veth's other end.
    pub(super) upon: Option<u32>,
    /// The index of the bridge or bond that it belongs to.
    pub(super) master: Option<u32>,
    pub(super) alias: String,
    pub(super) address: Vec<u8>,
    pub(super) group: u32,
    /// The largest packet it takes, bytes.
    pub(super) mtu: u32,
    /// It is set up.
    pub(super) up: bool,
    /// Its other end is set up too.
    pub(super) carrier: bool,
    pub(super) stats: Stats64,
}

/// A host route to one address.
#[derive(Clone, Debug)]
pub(super) struct HostRoute {
    pub(super) address: IpAddr,
    pub(super) link_index: u32,
}

/// What of the main table concerns tasks.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskRoutes {
    pub(super) hosts: Vec<HostRoute>,
    /// The link of the IPv4 default route, of several that which is taken.
    pub(super) uplink: Option<u32>,
}

/// The families that tasks have addresses of. A kernel without one lists nothing of it.
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Requests over one socket.
#[derive(Clone, Debug)]
pub(super) struct Netlink {
    handle: Handle,
}

/// A veth pair to be made.
#[derive(Debug)]
pub(super) struct VethPair<'a> {
    pub(super) host_name: &'a str,
    pub(super) host_mac: Mac,
    pub(super) group: u32,
    /// Of both ends. None: the kernel's default.
    pub(super) mtu: Option<u32>,
    pub(super) task_name: &'a str,
    pub(super) task_mac: Mac,
    pub(super) task_netns: RawFd,
}

impl Netlink {
    /// Makes both ends, down, in one message. False: the host's name is taken.
    pub(super) async fn create_veth(&self, pair: &VethPair<'_>) -> Result<bool, NetworkError> {
        // One queue: the kernel's default is one per possible CPU, each with its own sysfs entries to make and delete.
        let queues = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        // The peer must not be up at creation (ENOTCONN).
        let mut peer = LinkMessage::default();
        peer.attributes.extend(queues.clone());
        peer.attributes.extend([
            LinkAttribute::IfName(pair.task_name.to_owned()),
            LinkAttribute::Address(pair.task_mac.to_vec()),
            LinkAttribute::NetNsFd(pair.task_netns),
        ]);
        peer.attributes.extend(pair.mtu.map(LinkAttribute::Mtu));
        let [tx, rx] = queues;
        let mut message = LinkMessageBuilder::<LinkVeth>::new(pair.host_name, pair.task_name)
            .address(pair.host_mac.to_vec())
            .link_group(pair.group)
            .append_extra_attribute(tx)
            .append_extra_attribute(rx)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        if let Some(mtu) = pair.mtu {
            message = message.mtu(mtu);
        }
        match self.handle.link().add(message.build()).execute().await {
            Ok(()) => Ok(true),
            Err(e) if errno(&e) == libc::EEXIST => Ok(false),
            Err(e) => Err(failed("create veth", pair.host_name)(e)),
        }
    }

    /// The link of this name.
    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(message) => Ok(message.map(parse_link)),
            Err(e) if errno(&e) == libc::ENODEV => Ok(None),
            Err(e) => Err(failed("look up", name)(e)),
        }
    }

    /// Every link of the namespace.
    pub(super) async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        let mut stream = self.handle.link().get().execute();
        let mut links = Vec::new();
        while let Some(message) = stream.try_next().await.map_err(failed("list", "links"))? {
            links.push(parse_link(message));
        }
        Ok(links)
    }

    /// Sets what can only be set on a link that exists and is down: alias, forwarding, strict reverse path filter, and
    /// no IPv6 address of its own making.
    pub(super) async fn configure(
        &self,
        link: &Link,
        alias: Option<&str>,
        router: bool,
        ipv6: bool,
    ) -> Result<(), NetworkError> {
        let mut families = Vec::new();
        if router {
            let mut settings = InetDevConf::default();
            settings.forwarding = 1;
            settings.rp_filter = 1;
            families.push(AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(settings)]));
        }
        if ipv6 {
            families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                In6AddrGenMode::None,
            )]));
        }
        let mut message = LinkUnspec::new_with_index(link.index);
        if let Some(alias) = alias {
            message = message.alias(alias);
        }
        if !families.is_empty() {
            message = message.append_extra_attribute(LinkAttribute::AfSpecUnspec(families));
        }
        let request = self.handle.link().change(message.build());
        request.execute().await.map_err(failed("configure", &link.name))
    }

    pub(super) async fn up(&self, link: &Link) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index).up().build();
        let request = self.handle.link().change(message);
        request.execute().await.map_err(failed("bring up", &link.name))
    }

    /// Makes a link that is down an owner's: name, alias, hardware address.
    pub(super) async fn claim(
        &self,
        link: &Link,
        name: &str,
        alias: &str,
        mac: Mac,
    ) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index)
            .name(name.to_owned())
            .alias(alias)
            .address(mac.to_vec());
        let request = self.handle.link().change(message.build());
        request.execute().await.map_err(failed("rename", &link.name))
    }

    /// Brings up the loopback interface, which has index 1 in every namespace.
    pub(super) async fn loopback_up(&self) -> Result<(), NetworkError> {
        self.up(&Link {
            index: 1,
            name: "lo".to_owned(),
            ..Link::default()
        })
        .await
    }

    /// Gives the link its address, as a /32 or /128: it shares a network with nobody, so that nobody is asked for duplicates.
    pub(super) async fn add_address(&self, link: &Link, address: IpAddr) -> Result<(), NetworkError> {
        let bits = bits(address);
        let mut request = self.handle.address().add(link.index, address, bits);
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        let result = request.replace().execute().await;
        result.map_err(failed("give an address to", &link.name))
    }

    /// As [`add_address`](Self::add_address), but packets to others never have it as their source.
    pub(super) async fn add_own_address(&self, link: &Link, address: Ipv4Addr) -> Result<(), NetworkError> {
        let mut request = self.handle.address().add(link.index, address.into(), 32);
        request.message_mut().header.scope = AddressScope::Host;
        let result = request.replace().execute().await;
        result.map_err(failed("give an address to", &link.name))
    }

    /// The indices of the links that have `address`.
    pub(super) async fn links_with(&self, address: impl Into<IpAddr>) -> Result<BTreeSet<u32>, NetworkError> {
        let address = address.into();
        let mut request = self.handle.address().get();
        request.message_mut().header.family = family(address);
        let mut stream = request.execute();
        let mut links = BTreeSet::new();
        // IPv6 has no peers' addresses, and says only this.
        let own = match address {
            IpAddr::V4(_) => AddressAttribute::Local(address),
            IpAddr::V6(_) => AddressAttribute::Address(address),
        };
        while let Some(message) = listed(stream.try_next().await, "addresses")? {
            if message.attributes.contains(&own) {
                links.insert(message.header.index);
            }
        }
        Ok(links)
    }

    /// Says where `address` is, for good: nobody asks and nobody answers on this link.
    pub(super) async fn add_neighbour(
        &self,
        link: &Link,
        address: IpAddr,
        mac: Mac,
    ) -> Result<(), NetworkError> {
        let request = self.handle.neighbours().add(link.index, address);
        let result = request.link_layer_address(&mac).replace().execute().await;
        result.map_err(failed("add a neighbour on", &link.name))
    }

    /// Routes all else through `gateway`, itself reached directly through the link.
    pub(super) async fn add_default_route(&self, link: &Link, gateway: IpAddr) -> Result<(), NetworkError> {
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
    pub(super) async fn add_host_route(
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
    pub(super) async fn host_routes(&self) -> Result<Vec<HostRoute>, NetworkError> {
        Ok(self.task_routes().await?.hosts)
    }

    /// What of the main table concerns tasks.
    pub(super) async fn task_routes(&self) -> Result<TaskRoutes, NetworkError> {
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
    pub(super) async fn routes(&self) -> Result<Vec<Route>, NetworkError> {
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
    pub(super) async fn way_to(&self, address: IpAddr) -> Result<Gateway, NetworkError> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(address);
        question.header.destination_prefix_length = bits(address);
        question.attributes = vec![RouteAttribute::Destination(route_address(address))];
        let mut answers = self.handle.route().get(question).execute();
        let answer = match answers.try_next().await {
            Ok(answer) => answer.unwrap_or_default(),
            // No route leads there.
            Err(e) if matches!(errno(&e), libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL) => {
                return Ok(Gateway::default());
            }
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
    pub(super) async fn add_range_route(&self, route: &RangeRoute, metric: u32) -> Result<(), NetworkError> {
        match self.handle.route().add(route.message(metric)).execute().await {
            Err(e) if errno(&e) != libc::EEXIST => Err(failed("add the route", &route.describe())(e)),
            _ => Ok(()),
        }
    }

    /// Deletes a route to a range. Idempotent.
    pub(super) async fn delete_range_route(
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
    pub(super) async fn delete_host_route(&self, route: &HostRoute) -> Result<(), NetworkError> {
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

    /// Deletes a link, and a veth's other end with it: 16 to 36 ms. Idempotent.
    pub(super) async fn delete_link(&self, link: &Link) -> Result<(), NetworkError> {
        match self.handle.link().del(link.index).execute().await {
            Err(e) if errno(&e) != libc::ENODEV => Err(failed("delete", &link.name)(e)),
            _ => Ok(()),
        }
    }

    /// Moves a link to another group. A link that is gone is no error.
    pub(super) async fn set_group(&self, name: &str, group: u32) -> Result<(), NetworkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .name(name)
            .link_group(group)
            .build();
        match self.handle.link().change(message).execute().await {
            Err(e) if errno(&e) != libc::ENODEV => Err(failed("change the group of", name)(e)),
            _ => Ok(()),
        }
    }

    /// Deletes every link of a group in one operation: as slow as deleting one. Idempotent.
    pub(super) async fn delete_group(&self, group: u32) -> Result<(), NetworkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().link_group(group).build();
        match self.handle.link().del_with_message(message).execute().await {
            Err(e) if errno(&e) != libc::ENODEV => Err(failed("delete group", &group.to_string())(e)),
            _ => Ok(()),
        }
    }
}

/// `address` is reached through the link without a gateway.
fn direct_route(link: &Link, address: IpAddr) -> RouteMessage {
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

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Of a prefix that is this one address.
fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn parse_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    let (mut is_pair, mut is_across) = (false, false);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Link(index) => link.peer_index = index,
            LinkAttribute::LinkNetNsId(_) => is_across = true,
            LinkAttribute::LinkInfo(infos) => {
                const PAIRS: [InfoKind; 3] = [InfoKind::Veth, InfoKind::Netkit, InfoKind::Vxcan];
                is_pair = infos
                    .iter()
                    .any(|info| matches!(info, LinkInfo::Kind(kind) if PAIRS.contains(kind)));
            }
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Address(address) => link.address = address,
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Stats64(stats) => link.stats = stats,
            _ => {}
        }
    }
    link.upon = (link.peer_index != 0 && !is_pair && !is_across).then_some(link.peer_index);
    link
}

fn parse_host_route(message: &RouteMessage) -> Option<HostRoute> {
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

/// The positive error number the kernel answered with; 0 when the failure was ours.
fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => -message.raw_code(),
        _ => 0,
    }
}

/// The next of a family's, as the kernel lists it. One that does not know the family has none of it.
fn listed<T>(next: Result<Option<T>, rtnetlink::Error>, what: &str) -> Result<Option<T>, NetworkError> {
    match next {
        Err(e) if matches!(errno(&e), libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Ok(None),
        next => next.map_err(failed("list", what)),
    }
}

fn failed(step: &'static str, link: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let link = link.to_owned();
    move |error| NetworkError::Netlink {
        step,
        link,
        source: match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use super::*;

    /// As a kernel that was started with `ipv6.disable=1`.
    #[test]
    fn a_kernel_that_does_not_know_a_family_has_none_of_it() {
        let refused = |errno: i32| {
            let mut message = rtnetlink::packet_core::ErrorMessage::default();
            message.code = NonZeroI32::new(-errno);
            listed::<()>(Err(rtnetlink::Error::NetlinkError(message)), "routes")
        };
        for unknown in [libc::EAFNOSUPPORT, libc::EOPNOTSUPP] {
            assert!(matches!(refused(unknown), Ok(None)));
        }
        assert!(refused(libc::EPERM).is_err());
        assert!(matches!(listed(Ok(Some(7)), "routes"), Ok(Some(7))));
    }
}
