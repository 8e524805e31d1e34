//! Owns the repair of what others did to the tasks' links, routes and addresses. Never touches what is not this instance's, and
//! never makes a namespace: processes of the task would be left in the one that is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_agent_core::{
    addresses::Address,
    lan::{Lan, LanLink},
};
use futures_util::{StreamExt as _, stream};
use tracing::{debug, error, warn};

use super::{
    GATEWAY_IPV6, Names, Network, NetworkError,
    attach::is_of,
    lan::uplink_of,
    names::Owner,
    netlink::{HostRoute, Link, Netlink, Socket},
    netns,
    threads::block_on,
};
use crate::{
    endpoints::ADDRESS,
    metrics::{METRICS, NetworkRepair},
    sys::Chain,
};

/// Which failure to repair a task is said, once: the first may be on the task's way up or down.
const TELL_AT: u32 = 2;
/// How often a task that something else is under way for is looked at again soon.
const BUSY_MAX: u32 = 10;

/// Tasks at a time: enough that one that takes long keeps nobody waiting, and threads are left for starts.
const TASKS_AT_ONCE: usize = 4;

/// What became of a look at all tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Repaired {
    All,
    /// Something else was under way for one that was not as it should be.
    Busy,
    NotAll,
}

/// Those that could not be repaired so far, and how often.
#[derive(Debug, Default)]
pub(super) struct Failing(BTreeMap<Owner, Times>);

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    /// Something else was under way for it.
    busy: u32,
    failed: u32,
}

impl Failing {
    /// Of those that are amiss the ones to be repaired now, and how many are left: who may fail again, for seconds, waits for who may
    /// not, and takes turns.
    fn choose(&mut self, amiss: BTreeSet<Owner>) -> (Vec<Owner>, usize) {
        self.0.retain(|task, _| amiss.contains(task));
        let (mut again, mut due): (Vec<_>, Vec<_>) =
            amiss.into_iter().partition(|task| self.0.contains_key(task));
        let times = |task: &Owner| self.0.get(task).map_or(0, |times| times.busy + times.failed);
        again.sort_by_key(times);
        let left = again.len().saturating_sub(TASKS_AT_ONCE);
        again.truncate(TASKS_AT_ONCE);
        due.extend(again);
        (due, left)
    }

    fn busy(&mut self, task: &Owner) -> u32 {
        let times = self.0.entry(task.clone()).or_default();
        times.busy += 1;
        times.busy
    }

    fn failed(&mut self, task: &Owner) -> u32 {
        let times = self.0.entry(task.clone()).or_default();
        times.failed += 1;
        times.failed
    }

    fn forget(&mut self, task: &Owner) {
        self.0.remove(task);
    }
}

/// What a task has of the network.
#[derive(Clone, Debug)]
pub(super) struct Attachment {
    pub(super) address: Address,
    /// It is a host of a network outside.
    pub(super) lan: Option<Lan>,
    /// Then the index of the uplink that its link was made upon. None: it was made by an earlier run of the agent.
    pub(super) uplink: Option<u32>,
}

impl Attachment {
    pub(super) fn routed(address: impl Into<Address>) -> Self {
        Self {
            address: address.into(),
            lan: None,
            uplink: None,
        }
    }

    pub(super) fn on_lan(address: Ipv4Addr, lan: Lan) -> Self {
        Self {
            lan: Some(lan),
            ..Self::routed(address)
        }
    }
}

/// The tasks that have a network: what is repaired.
#[derive(Clone, Debug, Default)]
pub(super) struct Attachments(Arc<Mutex<BTreeMap<Owner, Attachment>>>);

impl Attachments {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Owner, Attachment>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only under the task's lock.
    pub(super) fn put(&self, task: Owner, attachment: Attachment) {
        self.lock().insert(task, attachment);
    }

    /// Only under the task's lock.
    pub(super) fn forget(&self, task: &Owner) -> Option<Attachment> {
        self.lock().remove(task)
    }

    /// Names of the links upon which tasks have theirs.
    pub(super) fn uplinks(&self, names: &Names) -> BTreeSet<String> {
        let all = self.lock();
        let lans = all.values().filter_map(|of| of.lan.as_ref());
        lans.filter_map(|lan| uplink_of(names, &lan.link)).collect()
    }

    pub(super) fn get(&self, task: &Owner) -> Option<Attachment> {
        self.lock().get(task).cloned()
    }
}

/// What the host's own namespace has, at one moment.
#[derive(Default)]
struct Seen {
    links: Vec<Link>,
    routes: Vec<HostRoute>,
    /// Links with the address of the tasks' endpoints.
    endpoints: BTreeSet<u32>,
    /// Links with the address of the tasks' IPv6 gateway.
    gateways: BTreeSet<u32>,
    /// Of the link of the default route, bytes.
    uplink_mtu: Option<u32>,
    /// Links that are not tasks', by name, with their index.
    others: BTreeMap<String, u32>,
    /// Of those, the ones that carry nothing now.
    idle: BTreeSet<String>,
}

impl Seen {
    async fn look(host: &Netlink, names: &Names) -> Result<Self, NetworkError> {
        let mut links = host.links().await?;
        let routes = host.task_routes().await?;
        let uplink = links.iter().find(|link| Some(link.index) == routes.uplink);
        let uplink_mtu = uplink.map(|link| link.mtu);
        let is_ours = |link: &Link| link.name.starts_with(names.prefix());
        let others = links.iter().filter(|link| !is_ours(link));
        let (mut idle, mut by_name) = (BTreeSet::new(), BTreeMap::new());
        for link in others {
            by_name.insert(link.name.clone(), link.index);
            if !(link.up && link.carrier) {
                idle.insert(link.name.clone());
            }
        }
        links.retain(is_ours);
        Ok(Self {
            others: by_name,
            idle,
            links,
            routes: routes.hosts,
            endpoints: host.links_with(ADDRESS).await?,
            gateways: host.links_with(GATEWAY_IPV6).await?,
            uplink_mtu,
        })
    }

    /// Of one task, whatever others the host has.
    async fn look_at(host: &Netlink, link: &str) -> Result<Self, NetworkError> {
        let Some(link) = host.link(link).await? else {
            return Ok(Self::default());
        };
        let addresses = host.every_address_of(&link).await?;
        let has = |address: IpAddr| {
            let has = addresses.contains(&address);
            has.then_some(link.index).into_iter().collect()
        };
        Ok(Self {
            routes: host.host_routes_of(&link).await?,
            endpoints: has(ADDRESS.into()),
            gateways: has(GATEWAY_IPV6.into()),
            links: vec![link],
            ..Self::default()
        })
    }

    /// The uplink of a host of a network outside is there, and not known to be the one that its link was made upon. One that
    /// carries nothing is left for when it does: there is nobody to ask whether the address is free.
    fn is_on_another_uplink(&self, names: &Names, attachment: &Attachment) -> bool {
        let link = attachment.lan.as_ref().map(|lan| &lan.link);
        let is_there = |uplink: &str| self.others.contains_key(uplink) && !self.idle.contains(uplink);
        if !link.and_then(LanLink::uplink).is_some_and(is_there) {
            return false;
        }
        let upon = link.and_then(|link| uplink_of(names, link));
        let upon = upon.and_then(|upon| self.others.get(&upon));
        upon.is_none() || upon != attachment.uplink.as_ref()
    }

    /// What is not as it was made for the task.
    fn amiss(&self, names: &Names, task: &Owner, address: Address) -> BTreeSet<NetworkRepair> {
        let name = names.link(task);
        let ours = |link: &&Link| link.name == name && is_of(names, task, link);
        let Some(link) = self.links.iter().find(ours) else {
            return BTreeSet::from([NetworkRepair::Link]);
        };
        let routed = |address: IpAddr| {
            let mut routes = self.routes.iter();
            routes.any(|route| route.address == address && route.link_index == link.index)
        };
        let has_gateway = address.ipv6.is_none() || self.gateways.contains(&link.index);
        let has_addresses = self.endpoints.contains(&link.index) && has_gateway;
        let is_routed = routed(address.ipv4.into()) && address.ipv6.is_none_or(|ipv6| routed(ipv6.into()));
        let checks = [
            (link.up && link.carrier, NetworkRepair::Down),
            (is_routed, NetworkRepair::Route),
            (has_addresses, NetworkRepair::Address),
        ];
        let wrong = checks.into_iter().filter(|(good, _)| !good);
        wrong.map(|(_, what)| what).collect()
    }
}

impl Network {
    /// Answers from now on for the network of a task that an earlier run of the agent made.
    pub fn take_up(&self, owner: impl Into<Owner>, address: impl Into<Address>) {
        self.attachments.put(owner.into(), Attachment::routed(address));
    }

    /// Likewise of a host of a network outside.
    pub fn take_up_on_lan(&self, owner: impl Into<Owner>, address: Ipv4Addr, lan: Lan) {
        self.attachments
            .put(owner.into(), Attachment::on_lan(address, lan));
    }

    async fn look_at_tasks(&self) -> Result<Seen, NetworkError> {
        let names = self.names.clone();
        let look = move || {
            let look = async |host: &Netlink| Seen::look(host, &names).await;
            block_on(async { Socket::open()?.with("list", "links", look).await })
        };
        let (seen, ()) = self.threads.run("look at", "the tasks' links", (), look).await?;
        Ok(seen)
    }

    /// Learns what new tasks' links are made with.
    pub(super) async fn learn_mtu(&self) -> Result<(), NetworkError> {
        self.mtu.learn(self.look_at_tasks().await?.uplink_mtu);
        Ok(())
    }

    /// Repairs every task whose links are not as they were made: first those that could be so far.
    pub(super) async fn repair_tasks(&self, failing: &mut Failing) -> Repaired {
        let seen = match self.look_at_tasks().await {
            Ok(seen) => seen,
            Err(error) => {
                debug!(error = %Chain(&error), "cannot look at the tasks' links");
                return Repaired::NotAll;
            }
        };
        self.mtu.learn(seen.uplink_mtu);
        let amiss: BTreeSet<Owner> = self
            .attachments
            .lock()
            .iter()
            .filter(|(task, attachment)| {
                let amiss = !seen.amiss(&self.names, task, attachment.address).is_empty();
                amiss || seen.is_on_another_uplink(&self.names, attachment)
            })
            .map(|(task, _)| task.clone())
            .collect();
        let (due, left) = failing.choose(amiss);
        let mut outcome = match left {
            0 => Repaired::All,
            _ => Repaired::NotAll,
        };
        let repairs = due.into_iter().map(async |task| {
            let repaired = self.repair_task(&task).await;
            (task, repaired)
        });
        let mut repairs = stream::iter(repairs).buffer_unordered(TASKS_AT_ONCE);
        while let Some((task, repaired)) = repairs.next().await {
            match repaired {
                Ok(None) => {
                    let times = failing.busy(&task);
                    outcome = outcome.max(if times < BUSY_MAX {
                        Repaired::Busy
                    } else {
                        Repaired::NotAll
                    });
                }
                Ok(Some(what)) => {
                    failing.forget(&task);
                    if !what.is_empty() {
                        what.iter().for_each(|what| METRICS.network_repaired(*what));
                        warn!(task = %task.task, ?what, "somebody changed the task's network; it is as it was again");
                    }
                }
                Err(error) => {
                    outcome = Repaired::NotAll;
                    if failing.failed(&task) == TELL_AT {
                        error!(task = %task.task, error = %Chain(&error), "somebody changed the task's network, and it cannot be repaired; trying again");
                    }
                }
            }
        }
        outcome
    }

    /// What was amiss and is repaired. None: something else is under way for the task, which may be that very repair.
    async fn repair_task(&self, task: &Owner) -> Result<Option<BTreeSet<NetworkRepair>>, NetworkError> {
        let Some(lock) = self.locks.try_lock(task) else {
            return Ok(None);
        };
        let path = self.netns_path(task);
        let (attachments, names, task) = (self.attachments.clone(), self.names.clone(), task.clone());
        // It may be detached by then: nothing is made again behind that.
        let Some(attachment) = attachments.get(&task) else {
            return Ok(Some(BTreeSet::new()));
        };
        let wiring = self.wiring(&task, &attachment);
        let threads = self.threads_for(&attachment);
        let of = task.clone();
        let turn = self.vlans.clone();
        let repair = move || {
            let Some(mut attachment) = attachments.get(&task) else {
                return Ok(BTreeSet::new());
            };
            let link = names.link(&task);
            // Whether a host of a network outside is on its uplink still, only a look at all links tells.
            let look = async {
                if attachment.lan.is_some() {
                    let look = async |host: &Netlink| Seen::look(host, &names).await;
                    return Socket::open()?.with("list", "links", look).await;
                }
                let look = async |host: &Netlink| Seen::look_at(host, &link).await;
                Socket::open_filtering()?.with("look at", &link, look).await
            };
            let seen = block_on(look)?;
            let mut amiss = seen.amiss(&names, &task, attachment.address);
            let moved = seen.is_on_another_uplink(&names, &attachment);
            if amiss.is_empty() && !moved {
                return Ok(amiss);
            }
            // Before the thread leaves the host's namespace.
            wiring.prepare(&turn, || ())?;
            block_on(async {
                let host = Socket::open()?;
                let entered = netns::enter(&path)?;
                let entered = entered.ok_or(NetworkError::NamespaceGone { netns: path })?;
                if moved && !wiring.is_on_lan(Socket::open()?, &seen.others).await? {
                    amiss.insert(NetworkRepair::Link);
                }
                let wired = wiring.connect(host, Socket::open()?, &entered, None).await?;
                attachment.uplink = wired.uplink;
                attachments.put(task, attachment);
                Ok(amiss)
            })
        };
        let (what, _lock) = threads.run("repair", &of.file_name(), lock, repair).await?;
        // Whatever was amiss, its link may have been made anew for it.
        if !what.is_empty() && self.firewall.publishes(&of.task).await {
            self.let_localhost_through(&of)?;
        }
        Ok(Some(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(names: &Names, task: &Owner) -> Link {
        Link {
            index: 7,
            name: names.link(task),
            alias: names.alias(task),
            up: true,
            carrier: true,
            ..Link::default()
        }
    }

    #[test]
    fn each_thing_that_is_not_as_it_was_made_is_named() {
        use NetworkRepair::{Address as AddressGone, Down, Link as Missing, Route};
        let names = Names::new("berth").unwrap();
        let task = Owner::from(&"0123456789abcdef0123456789abcdef".parse().unwrap());
        let ipv6 = "fd00::a59:2".parse().unwrap();
        let address = Address {
            ipv4: [10, 89, 0, 2].into(),
            ipv6: Some(ipv6),
        };
        let route = |address: IpAddr| HostRoute {
            address,
            link_index: 7,
        };
        let whole = || Seen {
            links: vec![link(&names, &task)],
            routes: vec![route(address.ipv4.into()), route(ipv6.into())],
            endpoints: BTreeSet::from([7]),
            gateways: BTreeSet::from([7]),
            uplink_mtu: None,
            others: BTreeMap::new(),
            idle: BTreeSet::new(),
        };
        let amiss = |change: fn(&mut Seen)| {
            let mut seen = whole();
            change(&mut seen);
            seen.amiss(&names, &task, address).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(amiss(|_| {}), []);
        assert_eq!(amiss(|seen| seen.links.clear()), [Missing]);
        assert_eq!(
            amiss(|seen| seen.links[0].alias = "berth/other".into()),
            [Missing]
        );
        assert_eq!(amiss(|seen| seen.links[0].up = false), [Down]);
        assert_eq!(amiss(|seen| seen.links[0].carrier = false), [Down]);
        assert_eq!(amiss(|seen| seen.routes[0].link_index = 8), [Route]);
        assert_eq!(amiss(|seen| seen.routes.truncate(1)), [Route]);
        assert_eq!(amiss(|seen| seen.endpoints.clear()), [AddressGone]);
        assert_eq!(amiss(|seen| seen.gateways.clear()), [AddressGone]);
    }

    #[test]
    fn who_fails_again_comes_after_who_may_not_and_takes_turns() {
        let task = |n: u32| Owner::from(&format!("{n:032x}").parse().unwrap());
        let mut failing = Failing::default();
        for n in 1..=6 {
            assert_eq!(failing.failed(&task(n)), 1);
        }
        let amiss = || (1..=8).map(task).collect::<BTreeSet<_>>();
        let (due, left) = failing.choose(amiss());
        assert_eq!((due, left), ([7, 8, 1, 2, 3, 4].map(task).to_vec(), 2));
        for n in 1..=4 {
            assert_eq!(failing.failed(&task(n)), 2);
        }
        assert_eq!(failing.choose(amiss()).0[..4], [7, 8, 5, 6].map(task));
        failing.forget(&task(5));
        assert_eq!(failing.choose(amiss()).0[..3], [5, 7, 8].map(task));
        // What is as it should be again is forgotten.
        assert_eq!(failing.choose(BTreeSet::new()), (vec![], 0));
        assert_eq!(failing.failed(&task(1)), 1);
    }

    #[test]
    fn a_failure_is_counted_whatever_was_under_way_before() {
        let task = Owner::from(&format!("{:032x}", 1).parse().unwrap());
        let mut failing = Failing::default();
        assert_eq!((failing.busy(&task), failing.busy(&task)), (1, 2));
        assert_eq!((failing.failed(&task), failing.busy(&task)), (1, 3));
        assert_eq!(failing.failed(&task), TELL_AT);
    }

    #[test]
    fn a_link_is_made_anew_upon_another_uplink_once_that_carries() {
        let names = Names::new("berth").unwrap();
        let lan = Lan {
            link: LanLink::Macvlan {
                uplink: "lan0".into(),
            },
            network: "192.168.1.0/24".parse().unwrap(),
            gateway: None,
        };
        let attachment = |uplink| Attachment {
            uplink,
            ..Attachment::on_lan([192, 168, 1, 9].into(), lan.clone())
        };
        let mut seen = Seen {
            links: vec![],
            routes: vec![],
            endpoints: BTreeSet::new(),
            gateways: BTreeSet::new(),
            uplink_mtu: None,
            others: BTreeMap::from([("lan0".to_owned(), 3)]),
            idle: BTreeSet::new(),
        };
        let asks = |seen: &Seen| {
            [None, Some(2), Some(3)].map(|on| seen.is_on_another_uplink(&names, &attachment(on)))
        };
        assert_eq!(asks(&seen), [true, true, false]);
        seen.idle.insert("lan0".into());
        assert_eq!(asks(&seen), [false; 3]);
        seen.others.clear();
        assert_eq!(asks(&seen), [false; 3]);
    }
}
