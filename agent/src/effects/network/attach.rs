//! Owns how a task, or in bridge mode a container, gets its network and loses it. One thing at a time is done for an owner.
//! What links are made of is `veth`'s, and of networks outside `lan`'s.

use std::{
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use berth_agent_core::{addresses::Address, ids::TaskId};
use tokio::{
    sync::OwnedMutexGuard,
    time::{sleep, timeout},
};

use super::{
    Attached, Names, Network,
    error::NetworkError,
    ipv6, lan,
    names::{self, Owner},
    netlink::{Link, Netlink, Socket},
    netns,
    repair::Attachment,
    threads::{Threads, block_on},
    veth::Wiring,
    vlan,
};
use crate::telemetry::NetworkUsage;

/// Waiting for the task's operation before: that one has deadlines of its own.
const TURN_DEADLINE: Duration = Duration::from_secs(60);
/// From unmounting a namespace to its link being gone by itself: normally 20 to 100 ms.
const LINK_GONE_DEADLINE: Duration = Duration::from_secs(2);
/// From deleting a link to its being gone.
pub(super) const LINK_DELETED_DEADLINE: Duration = Duration::from_secs(2);
/// Between two looks whether a link is gone: a look costs some 5 µs.
const LINK_POLL: Duration = Duration::from_millis(4);

impl Network {
    /// Gives the task its namespace and wires it: a mounted namespace, the veth pair, the address, routes and
    /// neighbours on both sides. Idempotent; completes what a crash left half made.
    ///
    /// # Errors
    /// [`NetworkError::AddressInUse`] when another link has the address: it is never taken away. After any error,
    /// [`Network::detach`] removes what was made.
    pub async fn attach(
        &self,
        owner: impl Into<Owner>,
        address: impl Into<Address>,
    ) -> Result<Attached, NetworkError> {
        self.attach_as(owner.into(), Attachment::routed(address)).await
    }

    pub(super) async fn attach_as(
        &self,
        owner: Owner,
        mut attachment: Attachment,
    ) -> Result<Attached, NetworkError> {
        let address = attachment.address;
        let outside = |address: &IpAddr| !self.may_be_of_task(*address);
        let mut both = std::iter::once(address.ipv4.into()).chain(address.ipv6.map(IpAddr::from));
        if let Some(address) = both.find(outside) {
            return Err(NetworkError::AddressOutside {
                address,
                range: self.range,
            });
        }
        let wiring = self.wiring(&owner, &attachment);
        let path = self.netns_path(&owner);
        let (attachments, turn) = (self.attachments.clone(), self.vlans.clone());
        let (pool, mtu) = (self.pool.clone(), self.mtu.get());
        let (of, wanted) = (owner.clone(), attachment.clone());
        let attach = move || {
            // Of what it shares with others it is one from now on.
            let note = || {
                if wanted.lan.is_some() {
                    attachments.put(of, wanted.clone());
                }
            };
            // Before the thread leaves the host's namespace.
            wiring.prepare(&turn, note)?;
            block_on(async {
                let host = Socket::open()?;
                // A host of a network outside has another end of the pair.
                let may_take = wanted.lan.is_none() && !netns::is_namespace(&path);
                let (entered, ready) = match may_take.then(|| pool.take(mtu)).flatten() {
                    Some(ready) => {
                        // It may be from when new links had none.
                        if wanted.address.ipv6.is_some() {
                            ipv6::switch_on(&ready.pair.host.name)?;
                        }
                        (netns::settle(ready.netns, &path)?, Some(ready.pair))
                    }
                    None => (netns::enter_or_create(&path)?, None),
                };
                wiring.connect(host, Socket::open()?, &entered, ready).await
            })
        };
        let (wired, _lock) = self
            .locked(self.threads_for(&attachment), "attach", &owner, attach)
            .await?;
        attachment.uplink = wired.uplink;
        self.attachments.put(owner.clone(), attachment);
        Ok(Attached {
            mac: names::format_mac(wired.mac),
            netns: self.netns_path(&owner),
        })
    }

    /// What is done for a host of a network outside may wait for that.
    pub(super) fn threads_for(&self, attachment: &Attachment) -> &Threads {
        match attachment.lan {
            None => &self.threads,
            Some(_) => &self.patient,
        }
    }

    pub(super) fn wiring(&self, owner: &Owner, attachment: &Attachment) -> Wiring {
        Wiring {
            names: self.names.clone(),
            owner: owner.clone(),
            address: attachment.address,
            lan: attachment.lan.clone(),
            mtu: self.mtu.get(),
            ipv6: self.ipv6,
            instance_metadata: self.instance_metadata,
            interfaces: self.interfaces.clone(),
        }
    }

    /// Gives the task a namespace with nothing but loopback. Idempotent.
    ///
    /// # Errors
    /// As [`Network::attach`].
    pub async fn attach_isolated(&self, task: &TaskId) -> Result<PathBuf, NetworkError> {
        let owner = Owner::from(task);
        let path = self.netns_path(&owner);
        let attach = move || {
            netns::enter_or_create(&path)?;
            let up = async |inside: &Netlink| inside.loopback_up().await;
            block_on(async { Socket::open()?.with("bring up", "lo", up).await })
        };
        self.locked(&self.threads, "attach", &owner, attach).await?;
        Ok(self.netns_path(&owner))
    }

    /// Does `work` on a thread when nothing else is under way for the owner; gives the lock back with the result.
    pub(super) async fn locked<T: Send + 'static>(
        &self,
        threads: &Threads,
        step: &'static str,
        owner: &Owner,
        work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<(T, OwnedMutexGuard<()>), NetworkError> {
        let lock = timeout(TURN_DEADLINE, self.locks.lock(owner)).await;
        let lock = lock.map_err(|_| NetworkError::Deadline {
            step,
            subject: owner.file_name(),
            deadline: TURN_DEADLINE,
        })?;
        threads.run(step, &owner.file_name(), lock, work).await
    }

    /// Takes the owner's network away, a task's with its published ports: the namespace is unmounted and unlinked, and the
    /// kernel removes link, routes and neighbours in its own time, which is waited for. Idempotent; nothing to do is success.
    ///
    /// # Errors
    /// [`NetworkError::LinkRemains`] when even deleting the link did not help.
    pub async fn detach(&self, owner: impl Into<Owner>) -> Result<(), NetworkError> {
        let owner = owner.into();
        if owner.container.is_none() {
            self.withdraw(&owner.task).await?;
        }
        let path = self.netns_path(&owner);
        let (attachments, of) = (self.attachments.clone(), owner.clone());
        let interfaces = self.interfaces.clone();
        let remove = move || {
            // Before its namespace goes, with which it might.
            interfaces.give_back(&of, &path)?;
            let lan = attachments.get(&of).and_then(|was| was.lan);
            // Its own it has given back: what is called so in there is the task's.
            if lan
                .as_ref()
                .is_some_and(|lan| lan.link != berth_agent_core::lan::LanLink::Interface)
            {
                lan::leave(&path)?;
            }
            attachments.forget(&of);
            netns::remove(&path).map(|mounted| (mounted, lan))
        };
        let ((was_mounted, lan), mut lock) = self.locked(&self.threads, "detach", &owner, remove).await?;
        if let Some(lan) = lan {
            let (names, attachments) = (self.names.clone(), self.attachments.clone());
            let turn = self.vlans.clone();
            let leave = move || vlan::leave(&names, &attachments, &turn, &lan.link);
            let subject = owner.file_name();
            ((), lock) = self
                .threads
                .run("leave the VLAN of", &subject, lock, leave)
                .await?;
        }
        let name = self.names.link(&owner);
        if was_mounted && link_gone(&name, LINK_GONE_DEADLINE).await {
            return Ok(());
        }
        // It has no namespace to take it along, or a process or a socket in there holds that.
        let (names, link) = (self.names.clone(), name.clone());
        let delete = async move |host: &Netlink| match host.link(&link).await? {
            Some(found) if is_of(&names, &owner, &found) => host.delete_link(&found).await.map(|()| true),
            _ => Ok(false),
        };
        let link = name.clone();
        let delete = move || block_on(async { Socket::open()?.with("delete", &link, delete).await });
        let (deleted, _lock) = self
            .threads
            .run("delete the link of", &name, lock, delete)
            .await?;
        if deleted && !link_gone(&name, LINK_DELETED_DEADLINE).await {
            return Err(NetworkError::LinkRemains {
                link: name,
                waited: LINK_GONE_DEADLINE + LINK_DELETED_DEADLINE,
            });
        }
        Ok(())
    }

    /// Where the owner's namespace is mounted, if it has one.
    pub fn netns_path(&self, owner: &Owner) -> PathBuf {
        self.netns_dir.join(owner.file_name())
    }

    /// What went over the owner's interface, as the owner sees it. None: it has no link.
    pub async fn usage(&self, owner: impl Into<Owner>) -> Option<NetworkUsage> {
        let owner = owner.into();
        let subject = owner.file_name();
        if self.attachments.get(&owner).is_some_and(|of| of.lan.is_some()) {
            return self.usage_inside(&owner).await;
        }
        let name = self.names.link(&owner);
        let look = move || {
            let netlink = async |host: &Netlink| host.link(&name).await;
            block_on(async { Socket::open()?.with("look up", &name, netlink).await })
        };
        let (link, ()) = self.threads.run("look up", &subject, (), look).await.ok()?;
        let link = link.filter(|link| is_of(&self.names, &owner, link))?;
        // What the host's end received, the task sent.
        Some(NetworkUsage {
            rx_bytes: link.stats.tx_bytes,
            rx_packets: link.stats.tx_packets,
            tx_bytes: link.stats.rx_bytes,
            tx_packets: link.stats.rx_packets,
            rx_dropped: link.stats.tx_dropped,
            tx_dropped: link.stats.rx_dropped,
        })
    }
}

/// Whether the link that has an owner's name is really its own. One without an alias was left half made by a crash.
pub(super) fn is_of(names: &Names, owner: &Owner, link: &Link) -> bool {
    link.alias.is_empty() || link.alias == names.alias(owner)
}

/// Waits until there is no link of this name in the caller's namespace.
pub(super) async fn link_gone(name: &str, deadline: Duration) -> bool {
    let start = Instant::now();
    while nix::net::if_::if_nametoindex(name).is_ok() {
        if start.elapsed() > deadline {
            return false;
        }
        sleep(LINK_POLL).await;
    }
    true
}
