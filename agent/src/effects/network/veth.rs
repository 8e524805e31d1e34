//! Owns the wiring of one task: the veth pair and what both its ends need so that packets flow. Never decides which
//! address a task gets.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_agent_core::{
    addresses::Address,
    lan::{Lan, LanLink},
};
use tokio::time::sleep;
use tracing::debug;

use super::{
    error::NetworkError,
    interfaces::Interfaces,
    ipv6,
    lan::{self, LanEnd},
    names::{self, Mac, Names, Owner},
    netlink::{Carrier, Link, Netlink, Socket, VethPair},
    netns::Entered,
    pool::ReadyPair,
    threads::block_on,
    vlan,
};
use crate::{endpoints::ADDRESS, sys::Chain};

/// The task's gateway: every task has the same, and no host has it. Link-local (RFC 3927), and not one of the
/// addresses that clouds and ECS give a meaning to.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same in IPv6: each host's end of a task's link has it, so that a host without another can reach its tasks.
pub const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The task's interface, as the workload sees it.
pub(super) const TASK_LINK: &str = "eth0";
const LOOPBACK: &str = "lo";
/// From both ends being up to packets flowing: mostly at once, at most a second.
pub(super) const CARRIER_DEADLINE: Duration = Duration::from_secs(3);
const CARRIER_POLL: Duration = Duration::from_millis(1);
/// A driver that says nothing of its carrier by now never does.
const CARRIER_UNSAID: Duration = Duration::from_millis(1_500);

/// One task, or container, to be wired.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) names: Arc<Names>,
    pub(super) owner: Owner,
    pub(super) address: Address,
    /// A network outside, of which it is a host with that address. None: the host routes to it.
    pub(super) lan: Option<Lan>,
    /// Of both ends, bytes. None: the kernel's default.
    pub(super) mtu: Option<u32>,
    /// The host has IPv6 at all.
    pub(super) ipv6: bool,
    /// Tasks reach the metadata service of the host's cloud.
    pub(super) instance_metadata: bool,
    /// Those that its operator gives to tasks.
    pub(super) interfaces: Interfaces,
}

/// What was made, or found as it should be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wired {
    /// Of the task's `eth0`.
    pub(super) mac: Mac,
    /// Of a host of a network outside: the index of its uplink.
    pub(super) uplink: Option<u32>,
}

impl Wiring {
    /// Makes what the task's link will be upon, once it is `noted` that the task is there: who removes that looks first whether
    /// somebody is, and each in a turn. Only on a thread of its own, in the host's network namespace.
    pub(super) fn prepare(&self, turn: &vlan::Turn, noted: impl FnOnce()) -> Result<(), NetworkError> {
        let Some(LanLink::Vlan { uplink, id }) = self.lan.as_ref().map(|lan| &lan.link) else {
            noted();
            return Ok(());
        };
        let _turn = turn.take();
        noted();
        let make = async |host: &Netlink| vlan::prepare(&self.names, host, (uplink, *id), self.ipv6).await;
        block_on(async { Socket::open()?.with("make a VLAN of", uplink, make).await })
    }

    /// Makes or completes the wiring between the host (`host`) and the namespace (`inside`).
    pub(super) async fn connect(
        &self,
        host: Socket,
        inside: Socket,
        netns: &Entered,
        ready: Option<ReadyPair>,
    ) -> Result<Wired, NetworkError> {
        let link = self.names.link(&self.owner);
        let closed = || NetworkError::SocketClosed {
            step: "wire",
            link: link.clone(),
        };
        let ((host, host_connection), (inside, inside_connection)) = (host.split(), inside.split());
        let work = async {
            let claimed = match ready {
                Some(ready) => self.claim(&host, &inside, ready).await?,
                None => None,
            };
            let is_configured = claimed.is_some();
            let (host_link, task_link) = match claimed {
                Some(pair) => pair,
                None => self.pair(&host, &inside, netns).await?,
            };
            let end = match &self.lan {
                None => None,
                Some(lan) => Some(lan::link(self, lan, &host, &inside, netns).await?),
            };
            let wired = Wired {
                mac: end
                    .as_ref()
                    .map_or_else(|| names::task_mac(&self.owner), LanEnd::mac),
                uplink: end.as_ref().map(|end| end.uplink),
            };
            tokio::try_join!(
                self.set_up_host(&host, &host_link, is_configured),
                self.set_up_inside(&inside, &task_link, end, is_configured)
            )?;
            tokio::try_join!(
                carries(&host, &host_link, CARRIER_DEADLINE),
                carries(&inside, &task_link, CARRIER_DEADLINE)
            )?;
            Ok(wired)
        };
        tokio::select! {
            // The connections first: when one dies, requests end as if they were acknowledged.
            biased;
            () = host_connection => Err(closed()),
            () = inside_connection => Err(closed()),
            result = work => result,
        }
    }

    /// Whether the namespace of `inside` has the link that makes it a host of the network outside, upon one of these links.
    pub(super) async fn is_on_lan(
        &self,
        inside: Socket,
        uplinks: &BTreeMap<String, u32>,
    ) -> Result<bool, NetworkError> {
        let uplink = self.lan.as_ref();
        let uplink = uplink.and_then(|lan| lan::uplink_of(&self.names, &lan.link));
        let uplink = uplink.and_then(|uplink| uplinks.get(&uplink));
        let look = async |inside: &Netlink| inside.link(TASK_LINK).await;
        let found = inside.with("look up", TASK_LINK, look).await?;
        Ok(uplink
            .zip(found)
            .is_some_and(|(uplink, found)| lan::fits(self, &found, *uplink)))
    }

    /// Makes a pair that was kept ready the owner's. None: it could not be, and is to be made as if there were none.
    async fn claim(
        &self,
        host: &Netlink,
        inside: &Netlink,
        ready: ReadyPair,
    ) -> Result<Option<(Link, Link)>, NetworkError> {
        let ReadyPair {
            host: mut outer,
            task,
        } = ready;
        let (name, alias) = (self.names.link(&self.owner), self.names.alias(&self.owner));
        let mac = names::host_mac(&self.owner);
        // Its name is taken, it is gone, or somebody has set it up: before 6.2 such a link keeps its name.
        if let Err(error) = host.claim(&outer, &name, &alias, mac).await {
            debug!(error = %Chain(&error), "a pair that was ready cannot be the task's; another is made");
            return Ok(None);
        }
        outer.name = name;
        inside.set_mac(&task, &self.task_end_mac()).await?;
        Ok(Some((outer, task)))
    }

    /// Both ends of the pair, made now unless they are there and belong together.
    async fn pair(
        &self,
        host: &Netlink,
        inside: &Netlink,
        netns: &Entered,
    ) -> Result<(Link, Link), NetworkError> {
        let name = self.names.link(&self.owner);
        if !netns.fresh {
            match (host.link(&name).await?, inside.link(self.task_end()).await?) {
                (Some(outer), Some(inner)) if self.belong_together(&outer, &inner) => {
                    return Ok((outer, inner));
                }
                (outer, inner) => self.discard(host, inside, outer, inner).await?,
            }
        }
        let pair = VethPair {
            host_name: &name,
            host_mac: names::host_mac(&self.owner),
            group: self.names.group(),
            mtu: self.mtu,
            task_name: self.task_end(),
            task_mac: self.task_end_mac(),
            task_netns: netns.file.as_raw_fd(),
        };
        if !host.create_veth(&pair).await? {
            // Left by a crash, its peer in a namespace that is gone or going.
            let outer = host.link(&name).await?;
            self.discard(host, inside, outer, None).await?;
            if !host.create_veth(&pair).await? {
                return Err(NetworkError::LinkTaken {
                    link: name,
                    owner: String::new(),
                });
            }
        }
        let outer = host.link(&name).await?;
        let outer = outer.ok_or(NetworkError::LinkVanished { link: name })?;
        let inner = Link {
            index: outer.peer_index,
            name: self.task_end().to_owned(),
            ..Link::default()
        };
        Ok((outer, inner))
    }

    /// The task's end of the pair.
    fn task_end(&self) -> &'static str {
        match self.lan {
            None => TASK_LINK,
            Some(_) => lan::ENDPOINTS_LINK,
        }
    }

    fn task_end_mac(&self) -> Mac {
        match self.lan {
            None => names::task_mac(&self.owner),
            Some(_) => names::endpoints_mac(&self.owner),
        }
    }

    fn belong_together(&self, outer: &Link, inner: &Link) -> bool {
        outer.peer_index == inner.index
            && inner.peer_index == outer.index
            && outer.address == names::host_mac(&self.owner)
            && inner.address == self.task_end_mac()
            && (outer.alias.is_empty() || outer.alias == self.names.alias(&self.owner))
    }

    /// Deletes ends that do not fit, but never another task's link whose id happens to begin like ours.
    async fn discard(
        &self,
        host: &Netlink,
        inside: &Netlink,
        outer: Option<Link>,
        inner: Option<Link>,
    ) -> Result<(), NetworkError> {
        if let Some(outer) = outer {
            if !outer.alias.is_empty() && outer.alias != self.names.alias(&self.owner) {
                return Err(NetworkError::LinkTaken {
                    link: outer.name,
                    owner: outer.alias,
                });
            }
            host.delete_link(&outer).await?;
        }
        // Gone already if it was the other end of that one.
        match inner {
            Some(inner) => inside.delete_link(&inner).await,
            None => Ok(()),
        }
    }

    async fn set_up_host(
        &self,
        host: &Netlink,
        link: &Link,
        is_configured: bool,
    ) -> Result<(), NetworkError> {
        if !is_configured {
            let alias = self.names.alias(&self.owner);
            host.configure(link, Some(&alias), true, self.ipv6).await?;
        }
        host.up(link).await?;
        host.add_own_address(link, ADDRESS).await?;
        // A host of another network would answer to an address of the host's by that.
        let source = self.lan.as_ref().map(|_| ADDRESS);
        for address in self.addresses() {
            if address.is_ipv6() {
                host.add_address(link, GATEWAY_IPV6.into()).await?;
            }
            host.add_neighbour(link, address, self.task_end_mac()).await?;
            host.add_host_route(link, address, source).await?;
        }
        Ok(())
    }

    async fn set_up_inside(
        &self,
        inside: &Netlink,
        link: &Link,
        end: Option<LanEnd>,
        is_configured: bool,
    ) -> Result<(), NetworkError> {
        if self.address.ipv6.is_some() {
            [LOOPBACK, TASK_LINK].into_iter().try_for_each(ipv6::switch_on)?;
        }
        if !is_configured {
            inside.loopback_up().await?;
            inside.configure(link, None, false, self.ipv6).await?;
        }
        if self.address.ipv6.is_some() {
            ipv6::ignore_advertisements(TASK_LINK)?;
        }
        inside.up(link).await?;
        if let (Some(lan), Some(end)) = (&self.lan, end) {
            let gateway = GATEWAY.into();
            inside
                .add_neighbour(link, gateway, names::host_mac(&self.owner))
                .await?;
            return lan::set_up(self, lan, inside, (end, link)).await;
        }
        for address in self.addresses() {
            let gateway = match address {
                IpAddr::V4(_) => GATEWAY.into(),
                IpAddr::V6(_) => GATEWAY_IPV6.into(),
            };
            inside.add_address(link, address).await?;
            inside
                .add_neighbour(link, gateway, names::host_mac(&self.owner))
                .await?;
            inside.add_default_route(link, gateway).await?;
        }
        Ok(())
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let Address { ipv4, ipv6 } = self.address;
        std::iter::once(ipv4.into()).chain(ipv6.map(IpAddr::from))
    }
}

/// Waits until packets are not dropped any more.
pub(super) async fn carries(netlink: &Netlink, link: &Link, deadline: Duration) -> Result<(), NetworkError> {
    let start = Instant::now();
    loop {
        match netlink.carrier(link).await? {
            Carrier::There => return Ok(()),
            Carrier::Unsaid if start.elapsed() > CARRIER_UNSAID => return Ok(()),
            Carrier::Unsaid | Carrier::None => {}
        }
        if start.elapsed() > deadline {
            return Err(NetworkError::LinkDown {
                link: link.name.clone(),
                waited: deadline,
            });
        }
        sleep(CARRIER_POLL).await;
    }
}
