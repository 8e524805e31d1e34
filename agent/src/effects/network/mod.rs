//! A task's network, or in bridge mode a container's: one namespace, one routed veth pair, one address of each family; no bridge. Owns everything the agent makes in
//! the kernel for it and the one nftables table of this instance. Never chooses an address and never runs a plugin.
//!
//! Inside a task: `eth0` with a /32 and a default route through a link-local gateway whose hardware address is a
//! permanent neighbour entry. On the host: the other end, without an address, and one /32 route to it. So tasks share no
//! link, no task sees another's ARP, and all policy is in the forward path. IPv6 is the same with a /128, where the range has
//! it.

mod error;
mod firewall;
mod interfaces;
mod inventory;
mod ipv6;
mod lan;
mod locks;
mod mtu;
mod names;
mod netlink;
mod netns;
mod notices;
mod ports;
mod probe;
mod ranges;
mod repair;
mod routes;
mod threads;
mod veth;
mod vlan;

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_agent_core::{
    addresses::{Address, Range},
    ids::TaskId,
    ports::Published,
};
use ipnet::Ipv4Net;
use tokio::{
    sync::OwnedMutexGuard,
    time::{sleep, timeout},
};
use tracing::warn;

pub use self::{
    error::{NetworkError, Retry},
    inventory::HostObject,
    names::Owner,
    veth::{GATEWAY, GATEWAY_IPV6},
};
pub(crate) use firewall::{Drops, Place};
pub(crate) use interfaces::{Lendable, lendable};
pub(crate) use ipv6::check as check_ipv6;
pub(crate) use names::Names;
pub(crate) use netns::{Mounted, mounted_under, mounts_under};
pub(crate) use probe::{foreign_drops, probe};

use self::{
    firewall::{Firewall, Ranges, Wanted},
    interfaces::Interfaces,
    locks::OwnerLocks,
    mtu::Mtu,
    netlink::{Link, Netlink, Socket},
    notices::Notices,
    ranges::Known,
    repair::{Attachment, Attachments},
    threads::{Threads, block_on},
    veth::Wiring,
};
use crate::{sys::Chain, telemetry::NetworkUsage};

/// Waiting for the task's operation before: that one has deadlines of its own.
const TURN_DEADLINE: Duration = Duration::from_secs(60);
/// From unmounting a namespace to its link being gone by itself: normally 20 to 100 ms.
const LINK_GONE_DEADLINE: Duration = Duration::from_secs(2);
/// From deleting a link to its being gone.
const LINK_DELETED_DEADLINE: Duration = Duration::from_secs(2);
/// Between two looks whether a link is gone: a look costs some 5 µs.
const LINK_POLL: Duration = Duration::from_millis(4);

/// What an instance's network is made from.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Every host-global name derives from it: 1 to 32 of `a-z0-9-`, starting with a letter.
    pub instance: String,
    /// Namespace files are at `run_dir/netns/<task>`, and of bridge mode at `run_dir/netns/<task>.<container>`.
    pub run_dir: PathBuf,
    /// Where addresses of tasks that are in no subnet come from. What leaves it for other links of the host is masqueraded.
    pub task_cidr: Range,
    /// Parts of subnets that were in use before; [`Network::configure`] says what is now.
    pub ranges: BTreeSet<Range>,
    /// Likewise of networks outside, of which tasks are hosts.
    pub lans: BTreeSet<Ipv4Net>,
    /// Addresses outside of it that tasks have from before it was changed.
    pub kept: Vec<IpAddr>,
    /// Of the task metadata endpoint.
    pub endpoint_port: u16,
    /// The largest packet of tasks, bytes. None: as the link of the default route.
    pub mtu: Option<u32>,
    /// Tasks' links may be accepted in the places that other firewalls keep for rules of others.
    pub pass_other_firewalls: bool,
    /// Ports of the host that lead to tasks from before.
    pub published: Vec<(TaskId, Published)>,
    /// Of the resolver; None: there is none.
    pub resolver_port: Option<u16>,
    /// Tasks reach the metadata service of the host's own cloud.
    pub instance_metadata: bool,
    /// Links of the host that tasks may have.
    pub interfaces: Vec<String>,
}

/// A task that has its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Of the task's eth0: `0a:01:23:45:67:89`.
    pub mac: String,
    /// The namespace, for the container's spec.
    pub netns: PathBuf,
}

/// The network of one instance, in the network namespace of the threads that use it.
#[derive(Debug)]
pub struct Network {
    names: Arc<Names>,
    /// The node's own.
    range: Range,
    known: Mutex<Known>,
    firewall: Firewall,
    run_dir: PathBuf,
    netns_dir: PathBuf,
    ipv6: bool,
    instance_metadata: bool,
    threads: Threads,
    locks: OwnerLocks,
    attachments: Attachments,
    vlans: vlan::Turn,
    interfaces: Interfaces,
    mtu: Mtu,
    pass_other_firewalls: bool,
    /// All of it is to be removed: what is in use is not known.
    left_behind: bool,
    /// None: nobody listens.
    notices: tokio::sync::Mutex<Option<Notices>>,
}

impl Network {
    /// Prepares the host: forwarding on, the instance's table in place, the directory of namespaces shared. Idempotent;
    /// tasks that run are not disturbed. Forwarding is the host's own setting and stays on after [`Network::stop`].
    ///
    /// # Errors
    /// On a bad configuration, or when the host refuses; nothing is then left half made that a second start minds.
    pub async fn start(config: NetworkConfig) -> Result<Self, NetworkError> {
        let names = Arc::new(Names::new(&config.instance)?);
        let range = config.task_cidr;
        check_range(range.ipv4)?;
        let netns_dir = netns::prepare_directory(&config.run_dir.join("netns"))?;
        let run_dir = netns_dir.parent().unwrap_or(&config.run_dir).to_owned();
        let interfaces = Interfaces::new(&config.interfaces, &run_dir);
        enable_forwarding()?;
        let mut wanted = Wanted::new(range, config.kept.clone(), config.endpoint_port)
            .resolver(config.resolver_port)
            .instance_metadata(config.instance_metadata);
        wanted.set_ranges(Ranges {
            routed: config.ranges.clone(),
            kept: config.kept.clone(),
            lans: config.lans.clone(),
            ..Ranges::default()
        });
        for (task, port) in config.published {
            wanted.publish(&task, [port]);
        }
        let ipv6 = wanted.has_ipv6();
        let firewall = Firewall::new(Arc::clone(&names), wanted);
        // Before the table: what is done to it from now on is noticed.
        let notices = Notices::open(names.table())?;
        firewall.apply().await?;
        let network = Self {
            names,
            range,
            known: Mutex::new(Known {
                ranges: config.ranges,
                lans: config.lans,
                kept: config.kept,
                ..Known::default()
            }),
            firewall,
            run_dir,
            netns_dir,
            ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            instance_metadata: config.instance_metadata,
            threads: Threads::default(),
            locks: OwnerLocks::default(),
            attachments: Attachments::default(),
            vlans: vlan::Turn::default(),
            interfaces,
            mtu: Mtu::new(config.mtu),
            pass_other_firewalls: config.pass_other_firewalls,
            left_behind: false,
            notices: Some(notices).into(),
        };
        if range.ipv6().is_some() {
            network.enable_ipv6()?;
        } else if ipv6 && let Err(error) = network.enable_ipv6() {
            // Of subnets, or of tasks from before: IPv4 goes on, and a part that cannot be used is said to be one.
            warn!(error = %Chain(&error), "tasks are not reached by IPv6");
        }
        network.learn_mtu().await?;
        network.face_other_firewalls().await?;
        Ok(network)
    }

    /// For the removal of what an instance left: prepares nothing and needs no `nft`. A task can not be attached.
    ///
    /// # Errors
    /// When the instance's name cannot be one.
    pub fn left_behind(config: NetworkConfig) -> Result<Self, NetworkError> {
        let names = Arc::new(Names::new(&config.instance)?);
        let wanted = Wanted::new(config.task_cidr, config.kept.clone(), config.endpoint_port);
        let netns_dir = config.run_dir.join("netns");
        let interfaces = Interfaces::new(&config.interfaces, &config.run_dir);
        Ok(Self {
            firewall: Firewall::new(Arc::clone(&names), wanted),
            names,
            range: config.task_cidr,
            known: Mutex::default(),
            // As the kernel names its mounts.
            netns_dir: fs::canonicalize(&netns_dir).unwrap_or(netns_dir),
            run_dir: config.run_dir,
            ipv6: false,
            instance_metadata: false,
            threads: Threads::default(),
            locks: OwnerLocks::default(),
            attachments: Attachments::default(),
            vlans: vlan::Turn::default(),
            interfaces,
            mtu: Mtu::new(config.mtu),
            pass_other_firewalls: false,
            left_behind: true,
            notices: None.into(),
        })
    }

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

    async fn attach_as(&self, owner: Owner, mut attachment: Attachment) -> Result<Attached, NetworkError> {
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
        let (of, wanted) = (owner.clone(), attachment.clone());
        let attach = move || {
            let _turn = turn.take_for(&wanted);
            // Of what it shares with others it is one from now on.
            if wanted.lan.is_some() {
                attachments.put(of, wanted);
            }
            block_on(async {
                // Before the thread leaves the host's namespace.
                wiring.prepare().await?;
                let host = Socket::open()?;
                let entered = netns::enter_or_create(&path)?;
                wiring.connect(host, Socket::open()?, &entered).await
            })
        };
        let (wired, _lock) = self.locked("attach", &owner, attach).await?;
        attachment.uplink = wired.uplink;
        self.attachments.put(owner.clone(), attachment);
        Ok(Attached {
            mac: names::format_mac(wired.mac),
            netns: self.netns_path(&owner),
        })
    }

    fn wiring(&self, owner: &Owner, attachment: &Attachment) -> Wiring {
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

    /// Tasks can have IPv6 addresses.
    fn has_ipv6(&self) -> bool {
        let known = self.known();
        self.range.ipv6().is_some() || known.ranges.iter().any(|range| range.ipv6().is_some())
    }

    /// It is of a range of this node's, or of a task from before.
    fn may_be_of_task(&self, address: IpAddr) -> bool {
        has(&self.range, address) || self.known().has(address)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.locked("attach", &owner, attach).await?;
        Ok(self.netns_path(&owner))
    }

    /// Does `work` on a thread when nothing else is under way for the owner; gives the lock back with the result.
    async fn locked<T: Send + 'static>(
        &self,
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
        self.threads.run(step, &owner.file_name(), lock, work).await
    }

    /// Leads ports of the host to those of a task, which are at its `owners`' addresses. Idempotent: those that lead there
    /// already are not asked about again.
    ///
    /// # Errors
    /// [`NetworkError::PortsTaken`] when processes of the host have some of them: none leads to the task then that did not
    /// before.
    pub async fn publish(
        &self,
        task: &TaskId,
        owners: &[Owner],
        ports: &[Published],
    ) -> Result<(), NetworkError> {
        if ports.is_empty() {
            return Ok(());
        }
        for owner in owners {
            self.let_localhost_through(owner)?;
        }
        self.firewall.publish(task, ports).await
    }

    /// What the host sends to its own 127.0.0.1 goes through this link, and comes back.
    fn let_localhost_through(&self, owner: &Owner) -> Result<(), NetworkError> {
        let link = self.names.link(owner);
        set(&format!("/proc/sys/net/ipv4/conf/{link}/route_localnet"))
    }

    /// Takes away what leads to the task from ports of the host. Idempotent.
    ///
    /// # Errors
    /// When `nft` cannot; what leads there then still does.
    pub async fn withdraw(&self, task: &TaskId) -> Result<(), NetworkError> {
        self.firewall.withdraw(task).await
    }

    /// Puts the whole table in place again, as it is wanted. Idempotent; what passes through it is not disturbed.
    ///
    /// # Errors
    /// When `nft` cannot.
    pub async fn repair(&self) -> Result<(), NetworkError> {
        self.firewall.apply().await
    }

    /// The ports of the host that lead to tasks, with the task if there is one, as the table on the host has them.
    ///
    /// # Errors
    /// When `nft` cannot list them.
    pub async fn published(&self) -> Result<Vec<(String, Option<TaskId>)>, NetworkError> {
        self.firewall.list().await
    }

    /// Takes the owner's network away, a task's with its published ports: the namespace is unmounted and unlinked, and the
    /// kernel removes link, routes and neighbours in its own time, which is waited for. Idempotent; nothing to do is success.
    ///
    /// # Errors
    /// [`NetworkError::LinkRemains`] when even deleting the link did not help.
    pub async fn detach(&self, owner: impl Into<Owner>) -> Result<(), NetworkError> {
        let owner = owner.into();
        if owner.container.is_none() {
            self.firewall.withdraw(&owner.task).await?;
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
        let ((was_mounted, lan), mut lock) = self.locked("detach", &owner, remove).await?;
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

    /// Has tasks' links pass other firewalls, or takes that back, as the operator said; warns of those that they do not pass.
    async fn face_other_firewalls(&self) -> Result<(), NetworkError> {
        let left = if self.pass_other_firewalls {
            match firewall::let_through(&self.names, self.has_ipv6()).await {
                // It is theirs: the agent works without.
                Err(error) => {
                    warn!(error = %Chain(&error), "cannot have another firewall let tasks through");
                    firewall::foreign_drops(&self.names, self.has_ipv6()).await?
                }
                left => left?,
            }
        } else {
            if let Err(error) = firewall::take_back(&self.names).await {
                warn!(error = %Chain(&error), "cannot take back what lets tasks through another firewall");
            }
            firewall::foreign_drops(&self.names, self.has_ipv6()).await?
        };
        let left: Vec<_> = left.into_iter().filter(|drops| !drops.passes).collect();
        tell_of_drops(&left, self.names.prefix());
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

    /// Removes the table and the directories, on a private agent's way out, when no task is left. Idempotent.
    ///
    /// # Errors
    /// [`NetworkError::NotEmpty`] while there are namespaces; nothing is removed then. [`NetworkError::NftSpawn`] without
    /// `nft`; the directories are removed then.
    pub async fn stop(&self) -> Result<(), NetworkError> {
        let count = match fs::read_dir(&self.netns_dir) {
            Ok(entries) => entries.count(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(NetworkError::directory("list", &self.netns_dir)(e)),
        };
        if count > 0 {
            return Err(NetworkError::NotEmpty {
                path: self.netns_dir.clone(),
                count,
            });
        }
        let table = self
            .firewall
            .remove()
            .await
            .and(firewall::take_back(&self.names).await);
        netns::remove_directory(&self.netns_dir)?;
        match fs::remove_dir(&self.run_dir) {
            // The run directory may hold what others put there.
            Err(e)
                if !matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(NetworkError::directory("remove", &self.run_dir)(e))
            }
            _ => table,
        }
    }
}

/// One line for each chain of which nobody has been told.
fn tell_of_drops(drops: &[Drops], prefix: &str) {
    for drops in drops {
        warn!(
            chain = drops.chain,
            "another firewall drops forwarded packets: tasks reach nothing beyond this host until it accepts the \
             links {prefix}*; `berth-agent doctor` has the command"
        );
    }
}

/// Whether the link that has an owner's name is really its own. One without an alias was left half made by a crash.
fn is_of(names: &Names, owner: &Owner, link: &Link) -> bool {
    link.alias.is_empty() || link.alias == names.alias(owner)
}

/// Waits until there is no link of this name in the caller's namespace.
async fn link_gone(name: &str, deadline: Duration) -> bool {
    let start = Instant::now();
    while nix::net::if_::if_nametoindex(name).is_ok() {
        if start.elapsed() > deadline {
            return false;
        }
        sleep(LINK_POLL).await;
    }
    true
}

/// Whether an address of either family is of the range.
fn has(range: &Range, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => range.ipv4.contains(&address),
        IpAddr::V6(address) => range.ipv6().is_some_and(|range| range.contains(&address)),
    }
}

fn check_range(range: Ipv4Net) -> Result<(), NetworkError> {
    let range = range.trunc();
    let reserved = [
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
        Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    ];
    let overlaps = |other: &Ipv4Net| other.contains(&range) || range.contains(other);
    if range.prefix_len() > 30 || reserved.iter().any(overlaps) {
        return Err(NetworkError::TaskRange { range });
    }
    Ok(())
}

/// Lets the host route between its links. Written only when it is off: writing it resets other settings of every link.
fn enable_forwarding() -> Result<(), NetworkError> {
    set("/proc/sys/net/ipv4/ip_forward")
}

/// Switches a setting of the kernel on that is off.
fn set(path: &str) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Setting {
        path: path.into(),
        value: "1",
        source,
    };
    if fs::read_to_string(path).map_err(failed)?.trim() == "1" {
        return Ok(());
    }
    fs::write(path, "1").map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_range_is_routable_and_has_room() {
        for good in ["10.1.0.0/16", "192.168.7.0/24", "10.9.8.7/24"] {
            assert!(check_range(good.parse().unwrap()).is_ok(), "{good}");
        }
        for bad in ["10.0.0.0/31", "169.254.170.0/24", "0.0.0.0/0", "127.0.0.0/24"] {
            assert!(check_range(bad.parse().unwrap()).is_err(), "{bad}");
        }
    }
}
