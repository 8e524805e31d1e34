//! Owns the link that makes a task a host of a network outside: made upon a link of the host, inside of the task's namespace.
//! Beside it the task has the veth pair that every task has, for its endpoints and for the host alone. Never chooses an
//! address, and gives the host none on that network.
//!
//! The link is made in the namespace with one message: there is no moment at which it is in the host's.

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use berth_agent_core::lan::{Lan, LanLink};
use ipnet::{IpNet, Ipv4Net};
use tokio::time::sleep;

use super::{
    Attached, Network,
    error::NetworkError,
    ipv6,
    names::{self, Mac, Names, Owner},
    netlink::{Link, Netlink, Socket},
    netns::{self, Entered},
    repair::Attachment,
    routes::Route,
    threads::block_on,
    veth::{CARRIER_DEADLINE, GATEWAY, TASK_LINK, Wiring, carries},
};
use crate::{dns, endpoints::ADDRESS, telemetry::NetworkUsage};

/// The task's end of the pair, beside its `eth0`.
pub(super) const ENDPOINTS_LINK: &str = "berth0";
/// Where clouds answer for the instance that asks, on every network of it.
const INSTANCE_METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// For a host of the network to say that an address is its own: mostly within a millisecond.
const ANSWER_DEADLINE: Duration = Duration::from_millis(200);
const ANSWER_POLL: Duration = Duration::from_millis(5);
/// Between two of the three questions that the kernel asks meanwhile, milliseconds: one that is lost says nothing.
const QUESTIONS_MS: &str = "60";
/// As every kernel has it (RFC 4861, RETRANS_TIMER).
const USUAL_QUESTIONS_MS: &str = "1000";

/// What is said of an uplink.
pub(super) const IS_DOWN: &str = "is down";
const NO_CARRIER: &str = "has no carrier";

/// From a link of the host's being up to its carrying packets: most of that is two sides agreeing how fast, up to five seconds.
const LENT_CARRIER_DEADLINE: Duration = Duration::from_secs(10);

/// A task's link to the network outside.
pub(super) struct LanEnd {
    pub(super) link: Link,
    /// The index of the link of the host's on which it is.
    pub(super) uplink: u32,
    /// Why that one carries nothing now.
    pub(super) idle: Option<NetworkError>,
}

impl LanEnd {
    pub(super) fn mac(&self) -> Mac {
        self.link.address.as_slice().try_into().unwrap_or_default()
    }
}

/// Makes the task's link upon its uplink, unless it is there as it should be.
pub(super) async fn link(
    wiring: &Wiring,
    lan: &Lan,
    host: &Netlink,
    inside: &Netlink,
    netns: &Entered,
) -> Result<LanEnd, NetworkError> {
    let uplink = match &lan.link {
        LanLink::Macvlan { uplink } => find_uplink(host, uplink).await?,
        LanLink::Vlan { uplink, id } => find_uplink(host, &wiring.names.vlan_link(uplink, *id)).await?,
        LanLink::Interface => {
            let interfaces = &wiring.interfaces;
            let link = interfaces.take(&wiring.owner, host, inside, netns).await?;
            return Ok(LanEnd {
                link,
                uplink: 0,
                idle: None,
            });
        }
    };
    let idle = idle(&uplink).map(|state| NetworkError::UplinkIdle {
        uplink: uplink.name.clone(),
        state,
    });
    if !netns.fresh
        && let Some(found) = inside.link(TASK_LINK).await?
    {
        if fits(wiring, &found, uplink.index) {
            return Ok(LanEnd {
                link: found,
                uplink: uplink.index,
                idle,
            });
        }
        inside.delete_link(&found).await?;
    }
    host.create_macvlan(&uplink, TASK_LINK, names::task_mac(&wiring.owner), netns)
        .await?;
    let made = inside.link(TASK_LINK).await?;
    let link = made.ok_or(NetworkError::LinkVanished {
        link: TASK_LINK.to_owned(),
    })?;
    Ok(LanEnd {
        link,
        uplink: uplink.index,
        idle,
    })
}

/// The link upon which those of tasks are made.
pub(super) fn uplink_of(names: &Names, link: &LanLink) -> Option<String> {
    match link {
        LanLink::Macvlan { uplink } => Some(uplink.clone()),
        LanLink::Vlan { uplink, id } => Some(names.vlan_link(uplink, *id)),
        LanLink::Interface => None,
    }
}

/// Whether a link of a task is the one that was made for it, and still is on that uplink.
pub(super) fn fits(wiring: &Wiring, link: &Link, uplink: u32) -> bool {
    link.peer_index == uplink && link.address == names::task_mac(&wiring.owner)
}

/// Why a link of the host carries nothing now, as far as the kernel says it at once.
fn idle(uplink: &Link) -> Option<&'static str> {
    match (uplink.up, uplink.carrier) {
        (false, _) => Some(IS_DOWN),
        (true, false) => Some(NO_CARRIER),
        (true, true) => None,
    }
}

pub(super) async fn find_uplink(host: &Netlink, name: &str) -> Result<Link, NetworkError> {
    let found = host.link(name).await?;
    found.ok_or_else(|| NetworkError::NoUplink {
        uplink: name.to_owned(),
    })
}

/// Gives the link its address, and tells the network of it; leads to the endpoints by the other one. The caller's network
/// namespace is the task's.
pub(super) async fn set_up(
    wiring: &Wiring,
    lan: &Lan,
    inside: &Netlink,
    (LanEnd { link: end, idle, .. }, endpoints): (LanEnd, &Link),
) -> Result<(), NetworkError> {
    let end = &end;
    inside.configure(end, None, false, wiring.ipv6).await?;
    if wiring.ipv6 {
        ipv6::switch_off(TASK_LINK)?;
    }
    let address = wiring.address.ipv4;
    let own = inside.addresses_of(end).await?;
    // Whether the link is up says nothing: an earlier try may have ended while the network was asked.
    if own.iter().any(|own| own.net.addr() == address) {
        inside.up(end).await?;
    } else {
        // Nobody would answer: a turn is not spent on waiting for that.
        if let Some(idle) = idle {
            return Err(idle);
        }
        if let Err(error) = claim(inside, end, address, lan).await {
            // That it is refused matters more than that this fails: the next try sets it down first.
            let _ = inside.down(end).await;
            return Err(error);
        }
        inside.up(end).await?;
        carries(inside, end, carrier_deadline(lan)).await?;
    }
    if let Some(gateway) = lan.gateway {
        inside.add_lan_default_route(end, gateway).await?;
    }
    if !wiring.instance_metadata {
        inside.add_unreachable(INSTANCE_METADATA).await?;
    }
    for address in [ADDRESS, dns::ADDRESS] {
        inside
            .add_route_from(endpoints, address, GATEWAY, wiring.address.ipv4)
            .await?;
    }
    Ok(())
}

/// Gives the link an address that no host of its network has. It is down then: what it announces when it comes up are the
/// addresses that it has.
async fn claim(inside: &Netlink, end: &Link, address: Ipv4Addr, lan: &Lan) -> Result<(), NetworkError> {
    inside.announce(end).await?;
    inside.down(end).await?;
    inside.up(end).await?;
    carries(inside, end, carrier_deadline(lan)).await?;
    let usual = fs::read_to_string(questions_path()).unwrap_or_default();
    // What an agent left that died meanwhile is not usual.
    let usual = Some(usual.trim()).filter(|usual| !["", QUESTIONS_MS].contains(usual));
    ask_every(QUESTIONS_MS)?;
    let refused = refuse_taken(inside, end, address).await;
    ask_every(usual.unwrap_or(USUAL_QUESTIONS_MS))?;
    refused?;
    inside.down(end).await?;
    let prefix_len = lan.network.prefix_len();
    inside.add_lan_address(end, address, prefix_len).await
}

fn carrier_deadline(lan: &Lan) -> Duration {
    match lan.link {
        LanLink::Interface => LENT_CARRIER_DEADLINE,
        LanLink::Macvlan { .. } | LanLink::Vlan { .. } => CARRIER_DEADLINE,
    }
}

/// How long the task's link waits for an answer before it asks for the same neighbour again, milliseconds. In the caller's
/// network namespace.
fn ask_every(milliseconds: &str) -> Result<(), NetworkError> {
    let path = questions_path();
    fs::write(&path, milliseconds).map_err(|source| NetworkError::Setting {
        path: path.into(),
        value: milliseconds.to_owned(),
        source,
    })
}

fn questions_path() -> String {
    format!("/proc/sys/net/ipv4/neigh/{TASK_LINK}/retrans_time_ms")
}

/// Asks the network whether a host of it has the address: without an address of its own, as RFC 5227 has it, but with less
/// patience.
async fn refuse_taken(inside: &Netlink, end: &Link, address: Ipv4Addr) -> Result<(), NetworkError> {
    inside.ask_for(end, address).await?;
    let begun = Instant::now();
    let mut is_last = false;
    loop {
        if let Some(holder) = inside.answer_for(end, address).await? {
            return Err(NetworkError::AddressTaken {
                address,
                holder: names::format_mac(holder),
            });
        }
        if is_last {
            return Ok(());
        }
        sleep(ANSWER_POLL).await;
        // What came while this thread had no turn is looked at too.
        is_last = begun.elapsed() >= ANSWER_DEADLINE;
    }
}

/// Why the host cannot have tasks on that network, or not with addresses of `part`.
pub(super) fn problem(
    lan: &Lan,
    part: Ipv4Net,
    links: &[Link],
    own: Ipv4Net,
    foreign: &[&Route],
    interfaces: usize,
) -> Option<String> {
    let network = lan.network;
    if own.contains(&network) || network.contains(&own) {
        return Some(format!("{network} overlaps task_cidr {own} of this node"));
    }
    let no_host = [
        network.network(),
        network.broadcast(),
        part.network(),
        part.broadcast(),
    ];
    let mut ipv4 = foreign.iter().filter_map(|route| match route.range {
        IpNet::V4(range) => Some(range),
        IpNet::V6(_) => None,
    });
    let taken = ipv4.find(|range| {
        let one = range.prefix_len() == 32 && part.contains(range);
        one && !no_host.contains(&range.addr())
    });
    if let Some(taken) = taken {
        return Some(format!(
            "{} of {part} is this host's, or routed elsewhere",
            taken.addr()
        ));
    }
    if matches!(lan.link, LanLink::Interface) {
        let none = "network.task_interfaces names no link that there is and that the host can spare: `berth-agent doctor` says why";
        return (interfaces == 0).then(|| none.to_owned());
    }
    let uplink = lan.link.uplink()?;
    match links.iter().find(|link| link.name == uplink) {
        None => Some(format!("there is no link {uplink}")),
        Some(link) => idle(link).map(|state| format!("link {uplink} {state}")),
    }
}

impl Network {
    /// Makes the task a host of a network outside, with that address: a namespace with a link on that network, and the veth
    /// pair for its endpoints. Idempotent, as [`Network::attach`].
    ///
    /// # Errors
    /// As [`Network::attach`]; [`NetworkError::NoUplink`] when the link is not there that leads to the network.
    pub async fn attach_to_lan(
        &self,
        owner: impl Into<Owner>,
        address: Ipv4Addr,
        lan: &Lan,
    ) -> Result<Attached, NetworkError> {
        self.attach_as(owner.into(), Attachment::on_lan(address, lan.clone()))
            .await
    }

    /// What went over the link that is inside of the owner's namespace. None: there is none.
    pub(super) async fn usage_inside(&self, owner: &Owner) -> Option<NetworkUsage> {
        let path = self.netns_path(owner);
        let look = move || link_inside(&path);
        let (link, ()) = self
            .threads
            .run("look up", &owner.file_name(), (), look)
            .await
            .ok()?;
        let stats = link?.stats;
        Some(NetworkUsage {
            rx_bytes: stats.rx_bytes,
            rx_packets: stats.rx_packets,
            tx_bytes: stats.tx_bytes,
            tx_packets: stats.tx_packets,
            rx_dropped: stats.rx_dropped,
            tx_dropped: stats.tx_dropped,
        })
    }
}

/// The `eth0` of a namespace. Changes the calling thread.
fn link_inside(path: &Path) -> Result<Option<Link>, NetworkError> {
    if netns::enter(path)?.is_none() {
        return Ok(None);
    }
    let look = async |inside: &Netlink| inside.link(TASK_LINK).await;
    block_on(async { Socket::open()?.with("look up", TASK_LINK, look).await })
}

/// Takes a namespace off the network outside, whatever may keep it alive. Changes the calling thread.
pub(super) fn leave(path: &Path) -> Result<(), NetworkError> {
    if netns::enter(path)?.is_none() {
        return Ok(());
    }
    let leave = async |inside: &Netlink| match inside.link(TASK_LINK).await? {
        Some(link) => inside.delete_link(&link).await,
        None => Ok(()),
    };
    block_on(async { Socket::open()?.with("delete", TASK_LINK, leave).await })
}
