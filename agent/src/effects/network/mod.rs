//! A task's network, or in bridge mode a container's: one namespace, one routed veth pair, one address of each family; no bridge. Owns everything the agent makes in
//! the kernel for it and the one nftables table of this instance. Never chooses an address and never runs a plugin.
//!
//! Inside a task: `eth0` with a /32 and a default route through a link-local gateway whose hardware address is a
//! permanent neighbour entry. On the host: the other end, without an address, and one /32 route to it. So tasks share no
//! link, no task sees another's ARP, and all policy is in the forward path. IPv6 is the same with a /128, where the range has
//! it.

mod attach;
mod conntrack;
mod error;
mod firewall;
mod interfaces;
mod inventory;
mod ipv6;
mod lan;
mod locks;
mod lost;
mod mtu;
mod names;
mod netfilter;
mod netlink;
mod netns;
mod notices;
mod pool;
mod ports;
mod probe;
mod published;
mod ranges;
mod repair;
mod routes;
mod threads;
mod veth;
mod vlan;
mod watch;

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_agent_core::{addresses::Range, ids::TaskId, ports::Published};
use ipnet::Ipv4Net;
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
    notices::Notices,
    pool::Pool,
    ranges::Known,
    repair::Attachments,
    threads::Threads,
};
use crate::{dial::FirstHop, sys::Chain};

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
    /// Namespaces that are kept ready for tasks.
    pub ready: usize,
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
    /// The way there is no task's.
    pub control_plane: FirstHop,
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
    /// For what waits for networks outside.
    patient: Threads,
    locks: OwnerLocks,
    attachments: Attachments,
    vlans: vlan::Turn,
    interfaces: Interfaces,
    mtu: Mtu,
    pool: Pool,
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
        let interfaces = Interfaces::new(&config.interfaces, &run_dir, config.control_plane);
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
            patient: Threads::patient(),
            locks: OwnerLocks::default(),
            attachments: Attachments::default(),
            vlans: vlan::Turn::default(),
            interfaces,
            mtu: Mtu::new(config.mtu),
            pool: Pool::new(config.ready),
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
        let interfaces = Interfaces::new(&config.interfaces, &config.run_dir, config.control_plane);
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
            patient: Threads::patient(),
            locks: OwnerLocks::default(),
            attachments: Attachments::default(),
            vlans: vlan::Turn::default(),
            interfaces,
            mtu: Mtu::new(config.mtu),
            pool: Pool::new(0),
            pass_other_firewalls: false,
            left_behind: true,
            notices: None.into(),
        })
    }

    /// For an operator: what keeps tasks from getting a network, or from losing it.
    pub fn impairments(&self) -> Vec<String> {
        let threads = [&self.threads, &self.patient].into_iter();
        let stuck = threads.filter_map(Threads::impairment);
        stuck.chain(self.firewall.impairment()).collect()
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

    /// Puts the whole table in place again, as it is wanted. Idempotent; what passes through it is not disturbed.
    ///
    /// # Errors
    /// When `nft` cannot.
    pub async fn repair(&self) -> Result<(), NetworkError> {
        self.firewall.apply().await
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
        self.empty_pool().await?;
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
        value: "1".into(),
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
