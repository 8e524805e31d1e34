//! Owns the wiring of one task: the veth pair and what both its ends need so that packets flow. Never decides which
//! address a task gets.

use std::{
    net::Ipv4Addr,
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{
    error::NetworkError,
    names::{self, Names, Owner},
    netlink::{Link, Netlink, Socket, VethPair},
    netns::Entered,
};
use crate::endpoints::ADDRESS;

/// The task's gateway: every task has the same, and no host has it. Link-local (RFC 3927), and not one of the
/// addresses that clouds and ECS give a meaning to.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The task's interface, as the workload sees it.
const TASK_LINK: &str = "eth0";
/// From both ends being up to packets flowing: mostly at once, at most a second.
const CARRIER_DEADLINE: Duration = Duration::from_secs(3);
const CARRIER_POLL: Duration = Duration::from_millis(1);

/// One task, or container, to be wired.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) names: Arc<Names>,
    pub(super) owner: Owner,
    pub(super) address: Ipv4Addr,
    /// Of both ends, bytes. None: the kernel's default.
    pub(super) mtu: Option<u32>,
    /// The host has IPv6 at all.
    pub(super) ipv6: bool,
}

impl Wiring {
    /// Makes or completes the wiring between the host (`host`) and the namespace (`inside`).
    pub(super) async fn connect(
        &self,
        host: Socket,
        inside: Socket,
        netns: &Entered,
    ) -> Result<(), NetworkError> {
        let link = self.names.link(&self.owner);
        let closed = || NetworkError::SocketClosed {
            step: "wire",
            link: link.clone(),
        };
        let ((host, host_connection), (inside, inside_connection)) = (host.split(), inside.split());
        let work = async {
            let (host_link, task_link) = self.pair(&host, &inside, netns).await?;
            tokio::try_join!(
                self.set_up_host(&host, &host_link),
                self.set_up_inside(&inside, &task_link)
            )?;
            tokio::try_join!(carries(&host, &host_link), carries(&inside, &task_link))
        };
        tokio::select! {
            // The connections first: when one dies, requests end as if they were acknowledged.
            biased;
            () = host_connection => Err(closed()),
            () = inside_connection => Err(closed()),
            result = work => result.map(|_| ()),
        }
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
            match (host.link(&name).await?, inside.link(TASK_LINK).await?) {
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
            task_name: TASK_LINK,
            task_mac: names::task_mac(&self.owner),
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
            name: TASK_LINK.to_owned(),
            ..Link::default()
        };
        Ok((outer, inner))
    }

    fn belong_together(&self, outer: &Link, inner: &Link) -> bool {
        outer.peer_index == inner.index
            && inner.peer_index == outer.index
            && outer.address == names::host_mac(&self.owner)
            && inner.address == names::task_mac(&self.owner)
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

    async fn set_up_host(&self, host: &Netlink, link: &Link) -> Result<(), NetworkError> {
        let alias = self.names.alias(&self.owner);
        host.configure(link, Some(&alias), true, self.ipv6).await?;
        host.up(link).await?;
        host.add_own_address(link, ADDRESS).await?;
        host.add_neighbour(link, self.address, names::task_mac(&self.owner))
            .await?;
        host.add_host_route(link, self.address).await
    }

    async fn set_up_inside(&self, inside: &Netlink, link: &Link) -> Result<(), NetworkError> {
        inside.loopback_up().await?;
        inside.configure(link, None, false, self.ipv6).await?;
        inside.up(link).await?;
        inside.add_address(link, self.address).await?;
        inside
            .add_neighbour(link, GATEWAY, names::host_mac(&self.owner))
            .await?;
        inside.add_default_route(link, GATEWAY).await
    }
}

/// Waits until packets are not dropped any more.
async fn carries(netlink: &Netlink, link: &Link) -> Result<(), NetworkError> {
    let start = Instant::now();
    while !netlink.carries(link).await? {
        if start.elapsed() > CARRIER_DEADLINE {
            return Err(NetworkError::LinkDown {
                link: link.name.clone(),
                waited: CARRIER_DEADLINE,
            });
        }
        sleep(CARRIER_POLL).await;
    }
    Ok(())
}
