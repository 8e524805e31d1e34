//! Owns the routes that this instance makes to whole ranges, which it knows again by protocol and metric, and the judgement
//! whether a range is free for that. Never touches a route of somebody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_agent_core::addresses::Range;
use ipnet::{IpNet, Ipv6Net};
use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};

/// Who made a route: not one of the numbers that `rt_protos` gives a meaning to. Instances differ in the metric.
const PROTOCOL: u8 = 190;
/// Up to here a route is a default route, whole or in two halves.
const DEFAULT_PREFIX_LEN_MAX: u8 = 1;
/// All of IPv6 that is handed out yet, to which some networks lead instead (RFC 3587).
const GLOBAL_UNICAST: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Where one of our routes leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum To {
    /// To the node that has the range.
    Peer { address: IpAddr, link: u32 },
    /// The range is this node's: an address of it that no task has is unreachable.
    Nowhere,
}

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RangeRoute {
    pub(super) range: IpNet,
    pub(super) to: To,
}

/// Any route of any table, as far as it matters here.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) range: IpNet,
    pub(super) link: Option<u32>,
    /// Of a route that leads over several links, these.
    hops: Vec<u32>,
    gateway: Option<IpAddr>,
    unreachable: bool,
    /// By it the host sends nothing anywhere.
    leads_nowhere: bool,
    protocol: u8,
    metric: u32,
}

/// How the kernel would send to an address.
#[derive(Clone, Debug, Default)]
pub(super) struct Gateway {
    pub(super) link: Option<u32>,
    pub(super) via: Option<IpAddr>,
    /// It is the host's own.
    pub(super) local: bool,
}

impl Gateway {
    /// The link, if the address is on a network of the host's; else why that does not do.
    pub(super) fn direct(&self, name: &impl Fn(u32) -> String) -> Result<u32, String> {
        match self {
            Self { local: true, .. } => Err("that is an address of this host".into()),
            Self {
                via: Some(via),
                link: Some(link),
                ..
            } => Err(format!(
                "it is not on a network of this host, but behind {via} on {}; network.between = \"routes\" needs one",
                name(*link)
            )),
            Self { link: Some(link), .. } => Ok(*link),
            Self { link: None, .. } => Err("no route leads there".into()),
        }
    }
}

impl Route {
    /// Of this instance.
    pub(super) fn is_ours(&self, metric: u32) -> bool {
        self.protocol == PROTOCOL && self.metric == metric
    }

    /// As one of ours.
    pub(super) fn of_range(&self) -> Option<RangeRoute> {
        let to = match (self.unreachable, self.gateway, self.link) {
            (true, ..) => To::Nowhere,
            (false, Some(address), Some(link)) => To::Peer { address, link },
            _ => return None,
        };
        Some(RangeRoute {
            range: self.range,
            to,
        })
    }

    pub(super) fn parse(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        if header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let mut destination: IpAddr = match header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let mut route = Self {
            range: IpNet::default(),
            link: None,
            hops: Vec::new(),
            gateway: None,
            unreachable: header.kind == RouteType::Unreachable,
            leads_nowhere: matches!(
                header.kind,
                RouteType::Unreachable | RouteType::BlackHole | RouteType::Prohibit | RouteType::Throw
            ),
            protocol: header.protocol.into(),
            metric: 0,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip_address(address)?,
                RouteAttribute::Gateway(address) => route.gateway = ip_address(address),
                RouteAttribute::Oif(index) => route.link = Some(*index),
                RouteAttribute::MultiPath(hops) => {
                    route.hops = hops.iter().map(|hop| hop.interface_index).collect();
                }
                RouteAttribute::Priority(metric) => route.metric = *metric,
                _ => {}
            }
        }
        route.range = IpNet::new(destination, header.destination_prefix_length).ok()?;
        Some(route)
    }

    /// It leads to all that nothing else leads to, or to a half of it, over this link or over several of which it is one.
    pub(super) fn is_default_over(&self, link: u32) -> bool {
        self.is_default() && (self.link == Some(link) || self.hops.contains(&link))
    }

    fn is_default(&self) -> bool {
        self.range.prefix_len() <= DEFAULT_PREFIX_LEN_MAX || self.range == IpNet::V6(GLOBAL_UNICAST)
    }

    fn describe(&self, name: &impl Fn(u32) -> String) -> String {
        let via = self.gateway.map(|gateway| format!(" via {gateway}"));
        let link = self.link.map(|link| format!(" on {}", name(link)));
        format!(
            "{}{}{}",
            self.range,
            via.unwrap_or_default(),
            link.unwrap_or_default()
        )
    }
}

impl RangeRoute {
    /// For people and for the audit.
    pub(super) fn describe(&self) -> String {
        match &self.to {
            To::Peer { address, .. } => format!("{} via {address}", self.range),
            To::Nowhere => format!("{} unreachable", self.range),
        }
    }

    pub(super) fn message(&self, metric: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: match self.range {
                IpNet::V4(_) => AddressFamily::Inet,
                IpNet::V6(_) => AddressFamily::Inet6,
            },
            destination_prefix_length: self.range.prefix_len(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::from(PROTOCOL),
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes = vec![
            RouteAttribute::Destination(route_address(self.range.network())),
            RouteAttribute::Priority(metric),
        ];
        match &self.to {
            To::Peer { address, link } => {
                // The address may be on the link without a network of its own there.
                message.header.flags |= RouteFlags::Onlink;
                message.attributes.extend([
                    RouteAttribute::Gateway(route_address(*address)),
                    RouteAttribute::Oif(*link),
                ]);
            }
            To::Nowhere => message.header.kind = RouteType::Unreachable,
        }
        message
    }
}

/// What the host has the range for already. `foreign` are the routes of others.
pub(super) fn conflict(
    range: IpNet,
    own: Range,
    foreign: &[&Route],
    name: &impl Fn(u32) -> String,
) -> Option<String> {
    let overlaps = |other: IpNet| other.contains(&range) || range.contains(&other);
    if overlaps(own.ipv4.into()) {
        return Some(format!("{range} overlaps task_cidr, which is {}", own.ipv4));
    }
    if let Some(own) = own.ipv6().filter(|own| overlaps((*own).into())) {
        return Some(format!(
            "{range} overlaps what task_cidr is below task_cidr_v6, {own}"
        ));
    }
    routed_elsewhere(range, foreign, name)
}

/// Why a range that nobody of ours has is none to have addresses of, for people.
pub(super) fn routed_elsewhere(
    range: IpNet,
    foreign: &[&Route],
    name: &impl Fn(u32) -> String,
) -> Option<String> {
    let overlaps = |other: IpNet| other.contains(&range) || range.contains(&other);
    let taken = foreign
        .iter()
        .filter(|route| !route.is_default())
        // Who has no way to a larger network loses none by tasks that are in it.
        .filter(|route| !(route.leads_nowhere && route.range.contains(&range)))
        .find(|route| overlaps(route.range))?;
    Some(format!(
        "{range} is routed elsewhere on this host: {}",
        taken.describe(name)
    ))
}

/// As a route has it.
pub(super) fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

pub(super) fn ip_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    fn route(range: &str) -> Route {
        Route {
            range: range.parse().unwrap(),
            link: Some(2),
            hops: Vec::new(),
            gateway: Some(IpAddr::from([192, 0, 2, 1])),
            unreachable: false,
            leads_nowhere: false,
            protocol: 4,
            metric: 0,
        }
    }

    #[test]
    fn a_range_is_free_unless_task_cidr_or_a_route_of_others_overlaps_it() {
        let own = Range::below("10.89.0.0/22".parse().unwrap(), "fd00::/64".parse().ok()).unwrap();
        let name = |index: u32| format!("eth{index}");
        let judged = |range: &str, foreign: &str| {
            let foreign = route(foreign);
            conflict(range.parse().unwrap(), own, &[&foreign], &name)
        };
        for free in ["0.0.0.0/0", "0.0.0.0/1", "10.65.0.0/16"] {
            assert_eq!(judged("10.64.1.0/24", free), None, "{free}");
        }
        for taken in ["10.0.0.0/8", "10.64.1.0/24", "10.64.1.7/32"] {
            let problem = judged("10.64.1.0/24", taken).unwrap();
            assert_eq!(
                problem,
                format!("10.64.1.0/24 is routed elsewhere on this host: {taken} via 192.0.2.1 on eth2")
            );
        }
        assert!(judged("10.89.1.0/24", "0.0.0.0/0").unwrap().contains("task_cidr"));
        for free in ["::/0", "2000::/3", "fd00:1::/64", "10.0.0.0/8"] {
            assert_eq!(judged("fd00:2::a00:0/104", free), None, "{free}");
        }
        assert!(judged("fd00:2::a00:0/104", "fd00:2::/48").is_some());
        assert!(
            judged("fd00::a00:0/104", "::/0")
                .unwrap()
                .contains("task_cidr_v6")
        );
    }

    #[test]
    fn a_default_route_is_one_also_in_halves_and_over_several_links() {
        for default in ["0.0.0.0/0", "128.0.0.0/1", "::/0", "8000::/1", "2000::/3"] {
            assert!(route(default).is_default_over(2), "{default}");
            assert!(!route(default).is_default_over(3), "{default}");
        }
        assert!(!route("10.0.0.0/8").is_default_over(2));
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let hop = |index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop
        };
        message.attributes = vec![RouteAttribute::MultiPath(vec![hop(2), hop(3)])];
        let listed = Route::parse(&message).unwrap();
        assert!(listed.is_default_over(2) && listed.is_default_over(3) && !listed.is_default_over(4));
    }

    #[test]
    fn our_routes_are_known_again_from_what_the_kernel_lists() {
        let to = To::Peer {
            address: [192, 0, 2, 7].into(),
            link: 3,
        };
        let to_ipv6 = To::Peer {
            address: "fd00::7".parse().unwrap(),
            link: 3,
        };
        for (range, to) in [
            ("10.64.1.0/24", to),
            ("10.64.1.0/24", To::Nowhere),
            ("fd00:1::a40:100/120", to_ipv6),
            ("fd00:1::a40:100/120", To::Nowhere),
        ] {
            let range = range.parse().unwrap();
            let ours = RangeRoute { range, to };
            let listed = Route::parse(&ours.message(77)).unwrap();
            assert!(listed.is_ours(77) && !listed.is_ours(78));
            assert_eq!(listed.of_range(), Some(ours));
        }
    }
}
