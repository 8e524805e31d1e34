//! Owns the route-netlink requests that a task's network is made of, one method each, with the link's name in every
//! error. Never keeps a socket beyond one operation, so that no socket holds a namespace alive.

mod carrier;
mod lan;
mod one;
mod route;

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
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, proto::Connection};

pub(super) use self::carrier::Carrier;
pub(super) use self::route::HostRoute;
use super::{error::NetworkError, names::Mac};

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
