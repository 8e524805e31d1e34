//! Owns what the host is made like for the node's parts of the cluster's subnets: what leaves a part is masqueraded, but not to
//! other nodes' parts, to which routes lead. A range that the host has another use for is left alone. Never chooses a range.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use berth_agent_core::{
    addresses::Range,
    ids::SubnetId,
    lan::LanLink,
    network::{AppliedNetwork, WantedNetwork},
};
use ipnet::{IpNet, Ipv4Net};
use tracing::warn;

use super::{
    Names, Network,
    error::NetworkError,
    firewall::Ranges,
    has,
    interfaces::Needs,
    ipv6, lan,
    netlink::{Link, Netlink, Socket},
    routes::{Gateway, RangeRoute, Route, To, conflict, routed_elsewhere},
    threads::block_on,
};
use crate::{
    metrics::{METRICS, NetworkRepair},
    sys::Chain,
};

/// What the host says before anything is changed. The routes are older than the links: a link of a route that is not among them
/// is gone, and the route with it.
struct Seen {
    links: Vec<Link>,
    routes: Vec<Route>,
    gateways: BTreeMap<IpAddr, Gateway>,
    /// Links that lead to the control plane.
    ways: BTreeSet<u32>,
}

impl Seen {
    /// Of a link, for people.
    fn name(&self, index: u32) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or_else(|| index.to_string(), |link| link.name.clone())
    }

    /// Routes that are not this instance's, nor of its links.
    fn foreign(&self, names: &Names) -> Vec<&Route> {
        let is_others = |link: &u32| {
            let mut links = self.links.iter();
            links.any(|known| known.index == *link && !known.name.starts_with(names.prefix()))
        };
        let routes = self.routes.iter().filter(|route| !route.is_ours(names.group()));
        routes
            .filter(|route| route.link.as_ref().is_none_or(is_others))
            .collect()
    }
}

impl Network {
    /// Makes the host like that, as far as it can be. Idempotent, and all that a repair needs.
    ///
    /// # Errors
    /// When the kernel or `nft` refuses what should be possible: trying again may help.
    pub async fn configure(&self, wanted: &WantedNetwork) -> Result<AppliedNetwork, NetworkError> {
        let gateways: Vec<IpAddr> = wanted.peers.keys().copied().collect();
        let seen = self.look(gateways).await?;
        let (mut applied, routes) = self.plan(wanted, &seen)?;
        let peers: BTreeSet<IpNet> = routes
            .iter()
            .filter(|route| matches!(route.to, To::Peer { .. }))
            .map(|route| route.range)
            .collect();
        let usable = |(subnet, _): &(&SubnetId, _)| !wanted.lans.contains_key(*subnet);
        let routed = applied.ranges.iter().filter(usable);
        let kept_lan = wanted.kept_lan.iter().map(|address| Ipv4Net::from(*address));
        let ranges = Ranges {
            routed: routed.map(|(_, range)| *range).collect(),
            kept: wanted.kept.clone(),
            peers,
            // Also of those that cannot be used now: tasks may have addresses of them.
            lans: wanted.on_lans().chain(kept_lan).collect(),
        };
        if ranges.routed.iter().any(|range| range.ipv6().is_some()) {
            self.enable_ipv6()?;
        }
        self.reserve(&ranges, &routes);
        self.firewall.set_ranges(ranges).await?;
        // What is refused of these is tried again at the next look; all else is used, and told.
        if let Err(error) = self.lead(&seen, routes).await {
            let problem = format!("not every route to other nodes is there: {}", Chain(&error));
            applied.unreached.push(problem);
        }
        applied.lost = self.lost_interfaces().await;
        Ok(applied)
    }

    /// Why tasks should not have addresses of the node's own range, for people: the host routes it elsewhere.
    ///
    /// # Errors
    /// When the host's routes cannot be listed.
    pub async fn range_problem(&self) -> Result<Option<String>, NetworkError> {
        let seen = self.look(Vec::new()).await?;
        let foreign = seen.foreign(&self.names);
        let both = std::iter::once(self.range.ipv4.into()).chain(self.range.ipv6().map(IpNet::from));
        Ok(both
            .filter_map(|range| routed_elsewhere(range, &foreign, &|index| seen.name(index)))
            .next())
    }

    async fn look(&self, gateways: Vec<IpAddr>) -> Result<Seen, NetworkError> {
        let interfaces = self.interfaces.clone();
        let look = move || {
            let netlink = async |host: &Netlink| {
                // In this order: see [`Seen`].
                let routes = host.routes().await?;
                let mut seen = Seen {
                    links: host.links().await?,
                    routes,
                    gateways: BTreeMap::new(),
                    ways: interfaces.ways(host).await,
                };
                for address in gateways {
                    seen.gateways.insert(address, host.way_to(address).await?);
                }
                Ok(seen)
            };
            block_on(async { Socket::open()?.with("list", "routes", netlink).await })
        };
        Ok(self.threads.run("list", "routes", (), look).await?.0)
    }

    /// What can be used, and the routes that go with it.
    fn plan(
        &self,
        wanted: &WantedNetwork,
        seen: &Seen,
    ) -> Result<(AppliedNetwork, BTreeSet<RangeRoute>), NetworkError> {
        let interfaces = self.interfaces.count(&Needs {
            links: &seen.links,
            routes: &seen.routes,
            ways: &seen.ways,
        })?;
        let foreign = seen.foreign(&self.names);
        let name = |index: u32| seen.name(index);
        let judge = |range: IpNet| conflict(range, self.range, &foreign, &name);
        let (mut applied, mut routes) = (AppliedNetwork::default(), BTreeSet::new());
        for (subnet, range) in &wanted.ranges {
            let both = std::iter::once(range.ipv4.into()).chain(range.ipv6().map(IpNet::from));
            let lan = wanted.lans.get(subnet);
            let problem = match lan {
                None => {
                    let no_ipv6 = range.ipv6().and_then(|_| ipv6::check().err());
                    // All of it or nothing: a task that is to have both addresses does not start with one.
                    let problem = no_ipv6.map(|error| error.to_string());
                    problem.or_else(|| both.clone().find_map(judge))
                }
                Some(lan) => lan::problem(
                    lan,
                    range.ipv4,
                    &seen.links,
                    self.range.ipv4,
                    &foreign,
                    interfaces,
                ),
            };
            match problem {
                None => {
                    applied.ranges.insert(subnet.clone(), *range);
                    // To its other hosts it leads by itself.
                    if let Some(lan) = lan {
                        if lan.link == LanLink::Interface {
                            let limit = u32::try_from(interfaces).unwrap_or(u32::MAX);
                            applied.limits.insert(subnet.clone(), limit);
                        }
                        continue;
                    }
                    // What no task has is nowhere else.
                    let to = |range| RangeRoute {
                        range,
                        to: To::Nowhere,
                    };
                    routes.extend(both.map(to));
                }
                Some(problem) => drop(applied.problems.insert(subnet.clone(), problem)),
            }
        }
        for (address, ranges) in &wanted.peers {
            let way = seen.gateways.get(address);
            let way = way.map_or(Err("no route leads there".to_owned()), |way| way.direct(&name));
            match way {
                Ok(link) => {
                    for range in ranges {
                        match judge(*range) {
                            None => {
                                let to = To::Peer {
                                    address: *address,
                                    link,
                                };
                                routes.insert(RangeRoute { range: *range, to });
                            }
                            Some(problem) => applied
                                .unreached
                                .push(format!("the node at {address} is not reached: {problem}")),
                        }
                    }
                }
                Err(problem) => applied
                    .unreached
                    .push(format!("the node at {address} is not reached: {problem}")),
            }
        }
        Ok((applied, routes))
    }

    /// From here on tasks may be given these, and the audit knows these routes.
    fn reserve(&self, ranges: &Ranges, routes: &BTreeSet<RangeRoute>) {
        let mut known = self.known();
        known.ranges.clone_from(&ranges.routed);
        known.lans.clone_from(&ranges.lans);
        known.kept.clone_from(&ranges.kept);
        known.routes.clone_from(routes);
    }

    /// Takes away what leads elsewhere than it should, and adds what is missing. One that is refused keeps no other.
    async fn lead(&self, seen: &Seen, wanted: BTreeSet<RangeRoute>) -> Result<(), NetworkError> {
        let metric = self.names.group();
        let ours = seen.routes.iter().filter(|route| route.is_ours(metric));
        let there: BTreeSet<RangeRoute> = ours.filter_map(Route::of_range).collect();
        let gone: Vec<RangeRoute> = there.difference(&wanted).cloned().collect();
        let fresh: Vec<RangeRoute> = wanted.difference(&there).cloned().collect();
        let led = std::mem::take(&mut self.known().led);
        let taken: Vec<String> = fresh
            .iter()
            .filter(|route| led.contains(route))
            .map(RangeRoute::describe)
            .collect();
        if gone.is_empty() && fresh.is_empty() {
            self.known().led = wanted;
            return Ok(());
        }
        let lead = move || {
            let netlink = async |host: &Netlink| {
                let mut result = Ok(());
                for route in &gone {
                    result = result.and(host.delete_range_route(route, metric).await);
                }
                for route in &fresh {
                    result = result.and(host.add_range_route(route, metric).await);
                }
                result
            };
            block_on(async { Socket::open()?.with("lead to", "other nodes", netlink).await })
        };
        self.threads.run("lead to", "other nodes", (), lead).await?;
        self.known().led = wanted;
        if let Some(first) = taken.first() {
            taken
                .iter()
                .for_each(|_| METRICS.network_repaired(NetworkRepair::Route));
            warn!(
                routes = taken.len(),
                first, "routes of the cluster's network were gone; they are there again"
            );
        }
        Ok(())
    }
}

/// What is known to be in use besides the node's own range.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) ranges: BTreeSet<Range>,
    /// Of networks outside.
    pub(super) lans: BTreeSet<Ipv4Net>,
    pub(super) kept: Vec<IpAddr>,
    pub(super) routes: BTreeSet<RangeRoute>,
    /// Those that were there after the last look.
    pub(super) led: BTreeSet<RangeRoute>,
}

impl Known {
    pub(super) fn has(&self, address: IpAddr) -> bool {
        let of_lan = |range: &Ipv4Net| matches!(address, IpAddr::V4(own) if range.contains(&own));
        let inside = self.ranges.iter().any(|range| has(range, address));
        self.kept.contains(&address) || inside || self.lans.iter().any(of_lan)
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        AddressFamily,
        route::{RouteAddress, RouteAttribute, RouteMessage},
    };

    use super::*;

    #[test]
    fn a_route_over_a_link_that_is_ours_or_gone_is_nobody_elses() {
        let names = Names::new("berth").unwrap();
        let link = |index, name: &str| Link {
            index,
            name: name.to_owned(),
            ..Link::default()
        };
        let route = |link| {
            let mut message = RouteMessage::default();
            message.header.address_family = AddressFamily::Inet;
            message.header.destination_prefix_length = 32;
            let address = RouteAddress::Inet([192, 168, 1, 9].into());
            message.attributes = vec![RouteAttribute::Destination(address), RouteAttribute::Oif(link)];
            Route::parse(&message).unwrap()
        };
        let seen = Seen {
            links: vec![link(2, "eth0"), link(7, &format!("{}0123456789", names.prefix()))],
            // The last is of a task that stopped meanwhile.
            routes: vec![route(2), route(7), route(8)],
            gateways: BTreeMap::new(),
            ways: BTreeSet::new(),
        };
        let links: Vec<_> = seen.foreign(&names).iter().map(|route| route.link).collect();
        assert_eq!(links, [Some(2)]);
    }
}
