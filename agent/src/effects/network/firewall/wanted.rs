//! Owns what the table is to hold, as `nft -f -` takes it: the rules, whose number does not grow with tasks, and the elements
//! of its maps and sets, which are of tasks. Never looks at the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::{IpAddr, Ipv4Addr},
};

use berth_agent_core::{
    addresses::{Address, Range},
    desired::Protocol,
    ids::TaskId,
    ports::Published,
};
use ipnet::{IpNet, Ipv4Net};

use super::{super::names::Names, ipv6};
use crate::{dns, endpoints::ADDRESS};

/// Where clouds answer for the instance that asks.
const INSTANCE_METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Everything that the table holds.
#[derive(Clone, Debug)]
pub(in super::super) struct Wanted {
    /// Where addresses of tasks that are in no subnet come from.
    range: Range,
    ranges: Ranges,
    /// Of the task metadata endpoint.
    endpoint_port: u16,
    /// Of the resolver, if there is one.
    resolver_port: Option<u16>,
    /// Whether tasks reach that of the host's cloud.
    instance_metadata: bool,
    published: BTreeMap<(Protocol, u16), Target>,
}

/// Where addresses are, besides the node's own range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Ranges {
    /// The node's parts of subnets that it routes to.
    pub(in super::super) routed: BTreeSet<Range>,
    /// Addresses outside of these that tasks have.
    pub(in super::super) kept: Vec<IpAddr>,
    /// Parts of other nodes, to which routes lead: tasks are seen there by their own addresses.
    pub(in super::super) peers: BTreeSet<IpNet>,
    /// What the node has of networks outside, of which tasks are hosts.
    pub(in super::super) lans: BTreeSet<Ipv4Net>,
}

/// Where a published port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    task: TaskId,
    address: Address,
    port: u16,
}

/// Elements that come or go together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Elements {
    published: Vec<String>,
    hairpin: BTreeSet<String>,
    published_ipv6: Vec<String>,
    hairpin_ipv6: BTreeSet<String>,
}

impl Wanted {
    pub(in super::super) fn new(range: impl Into<Range>, kept: Vec<IpAddr>, endpoint_port: u16) -> Self {
        Self {
            range: range.into(),
            ranges: Ranges {
                kept,
                ..Ranges::default()
            },
            endpoint_port,
            resolver_port: None,
            instance_metadata: false,
            published: BTreeMap::new(),
        }
    }

    /// With a resolver that listens on this port.
    pub(in super::super) fn resolver(self, resolver_port: Option<u16>) -> Self {
        Self {
            resolver_port,
            ..self
        }
    }

    /// Says whether that is news.
    pub(in super::super) fn set_ranges(&mut self, ranges: Ranges) -> bool {
        let same = self.ranges == ranges;
        self.ranges = ranges;
        !same
    }

    /// Whether a task can have an IPv6 address.
    pub(in super::super) fn has_ipv6(&self) -> bool {
        let Ranges { routed, kept, .. } = &self.ranges;
        let mut ranges = std::iter::once(&self.range).chain(routed);
        ranges.any(|range| range.ipv6().is_some()) || kept.iter().any(IpAddr::is_ipv6)
    }

    /// What tasks have addresses of, of one family, as a set of nftables takes it: nothing in it twice.
    fn sources(&self, of: Family) -> String {
        let all = std::iter::once(&self.range).chain(&self.ranges.routed);
        let ranges: Vec<IpNet> = all.filter_map(|range| of.part(range)).collect();
        let inside = |address: &&IpAddr| ranges.iter().any(|range| range.contains(*address));
        let kept = self.ranges.kept.iter().filter(|address| of.has(address));
        let kept: BTreeSet<&IpAddr> = kept.filter(|address| !inside(address)).collect();
        let (ranges, kept) = (ranges.iter().map(ToString::to_string), kept.iter());
        join(ranges.chain(kept.map(ToString::to_string)))
    }

    /// Between parts of subnets nothing is masqueraded.
    fn between(&self, of: Family) -> String {
        let Ranges { routed, peers, .. } = &self.ranges;
        let ranges = join(routed.iter().filter_map(|range| of.part(range)));
        let peers = join(peers.iter().filter(|peer| of.has(&peer.addr())));
        if ranges.is_empty() || peers.is_empty() {
            return String::new();
        }
        let ip = of.as_str();
        format!("\n    {ip} saddr {{ {ranges} }} {ip} daddr {{ {peers} }} accept")
    }

    /// Lets tasks reach the metadata service of the host's cloud, or not.
    pub(in super::super) fn instance_metadata(self, instance_metadata: bool) -> Self {
        Self {
            instance_metadata,
            ..self
        }
    }

    /// Adds ports of a task. A port that another task has becomes this one's: who has which is decided elsewhere.
    pub(in super::super) fn publish(&mut self, task: &TaskId, ports: impl IntoIterator<Item = Published>) {
        for port in ports {
            let target = Target {
                task: task.clone(),
                address: port.address,
                port: port.port,
            };
            self.published.insert((port.protocol, port.host_port), target);
        }
    }

    /// Takes all ports of a task away. Those that there were.
    pub(super) fn withdraw(&mut self, task: &TaskId) -> Vec<Published> {
        let of_task = self.published.extract_if(.., |_, target| target.task == *task);
        let one = |((protocol, host_port), target): ((Protocol, u16), Target)| Published {
            protocol,
            host_port,
            address: target.address,
            port: target.port,
        };
        of_task.map(one).collect()
    }

    pub(super) fn publishes(&self, task: &TaskId) -> bool {
        self.published.values().any(|target| target.task == *task)
    }

    pub(super) fn is_of(&self, protocol: Protocol, host_port: u16, task: &TaskId) -> bool {
        let target = self.published.get(&(protocol, host_port));
        target.is_some_and(|target| target.task == *task)
    }

    /// What makes a table that holds `self` one that holds `wanted`, where only elements differ.
    pub(super) fn changes_to(&self, wanted: &Self, names: &Names) -> String {
        let (mine, theirs) = (self.elements(), wanted.elements());
        let table = names.table();
        let without = |mine: &Elements, theirs: &Elements| {
            let published = mine.published.iter().filter(|e| !theirs.published.contains(e));
            let published_ipv6 = mine
                .published_ipv6
                .iter()
                .filter(|e| !theirs.published_ipv6.contains(e));
            let hairpin_ipv6 = mine.hairpin_ipv6.difference(&theirs.hairpin_ipv6);
            Elements {
                published: published.cloned().collect(),
                hairpin: mine.hairpin.difference(&theirs.hairpin).cloned().collect(),
                published_ipv6: published_ipv6.cloned().collect(),
                hairpin_ipv6: hairpin_ipv6.cloned().collect(),
            }
        };
        let statement = |verb: &str, elements: &Elements| {
            let of = |name: &str, all: String| match all.as_str() {
                "" => String::new(),
                all => format!("{verb} element inet {table} {name} {{ {all} }}\n"),
            };
            of("published", join(&elements.published))
                + &of("hairpin", join(&elements.hairpin))
                + &of(ipv6::PUBLISHED, join(&elements.published_ipv6))
                + &of(ipv6::HAIRPIN, join(&elements.hairpin_ipv6))
        };
        statement("delete", &without(&mine, &theirs)) + &statement("add", &without(&theirs, &mine))
    }

    fn elements(&self) -> Elements {
        let mut elements = Elements::default();
        for ((protocol, host_port), target) in &self.published {
            let Target { task, address, port } = target;
            let protocol = protocol.as_str();
            let key = format!("{protocol} . {host_port} comment \"{task}\"");
            let Address { ipv4, ipv6 } = address;
            elements.published.push(format!("{key} : {ipv4} . {port}"));
            elements.hairpin.insert(format!("{ipv4} . {ipv4}"));
            if let Some(ipv6) = ipv6 {
                elements.published_ipv6.push(format!("{key} : {ipv6} . {port}"));
                elements.hairpin_ipv6.insert(format!("{ipv6} . {ipv6}"));
            }
        }
        elements
    }

    /// The whole table: made if missing, deleted, made anew, in one transaction.
    ///
    /// - A task reaches nothing in 169.254.0.0/16 through the host: the metadata service of the host's own cloud, which has
    ///   the host's credentials, only where that is set.
    /// - Of IPv6, nothing is forwarded for tasks where none can have an address of it; else see [`ipv6`].
    /// - A source that the host does not route back through the very link it came in on is spoofed, and dropped. Each task
    ///   link has `rp_filter=1` as well, but the kernel takes the larger of that and `conf.all.rp_filter`, and 2, which many
    ///   distributions set there, is the weaker check.
    /// - Port 80 of [`ADDRESS`] is the task metadata endpoint, which listens on `endpoint_port` of it: tasks reach that and
    ///   nothing else of the host there, and nobody else reaches it.
    /// - Port 53 of [`dns::ADDRESS`], which no link has, is the resolver, on `resolver_port` of [`ADDRESS`]: likewise.
    /// - A published port is one of every address of the host's, 127.0.0.1 too, for who comes from outside, from a task and
    ///   from the host itself. What is sent to 127.0.0.1 leaves loopback through links with `route_localnet`; whoever is at
    ///   their other end reaches nothing of the host's loopback (CVE-2020-8558).
    /// - A task that is a host of a network outside has its link to this host for its endpoints alone, and the host reaches it
    ///   there: nothing that comes from that network is led there, and nothing from there to it, but that tasks of this node
    ///   reach it too. Who reaches it so is seen as [`ADDRESS`], to which the answer comes back. Of the host itself such a task
    ///   reaches nothing by that link but its endpoints, whichever address it asks.
    /// - The host is none of a VLAN's for being where tasks have theirs: what comes to its link there is dropped. What is for
    ///   tasks is theirs before it comes to any chain.
    /// - A task that comes to itself by the host's address, or the host by 127.0.0.1, needs another source: the answer would
    ///   not come back by the way on which it is translated.
    pub(super) fn render(&self, names: &Names) -> String {
        let endpoint_port = self.endpoint_port;
        let (sources, between) = (self.sources(Family::Ipv4), self.between(Family::Ipv4));
        let (table, prefix, vlan_prefix) = (names.table(), names.prefix(), names.vlan_prefix());
        let elements = self.elements();
        let elements_of = |all: Vec<String>| match all.as_slice() {
            [] => String::new(),
            all => format!("elements = {{ {} }}", all.join(", ")),
        };
        let resolver = Resolver::rules(names, self.resolver_port);
        let lans = Lans::rules(names, &self.ranges.lans);
        let instance_metadata = match self.instance_metadata {
            true => format!("\n    iifname \"{prefix}*\" ip daddr {INSTANCE_METADATA} accept"),
            false => String::new(),
        };
        let published = elements_of(elements.published);
        let hairpin = elements_of(elements.hairpin.into_iter().collect());
        let ipv6 = match self.has_ipv6() {
            true => ipv6::Rules::new(
                &ipv6::Parts {
                    prefix,
                    published: elements_of(elements.published_ipv6),
                    hairpin: elements_of(elements.hairpin_ipv6.into_iter().collect()),
                    sources: self.sources(Family::Ipv6),
                    between: self.between(Family::Ipv6),
                },
                self.instance_metadata,
            ),
            false => ipv6::Rules::none(prefix),
        };
        let publish = "ip daddr != 169.254.170.0/24 fib daddr type local meta l4proto { tcp, udp } \
                       dnat ip to meta l4proto . th dport map @published";
        format!(
            r#"table inet {table} {{ }}
delete table inet {table}
table inet {table} {{
  map published {{
    type inet_proto . inet_service : ipv4_addr . inet_service
    {published}
  }}
  set hairpin {{
    type ipv4_addr . ipv4_addr
    {hairpin}
  }}{}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{prefix}*" meta nfproto ipv4 fib saddr . iif oif missing counter drop
    iifname "{prefix}*" ip daddr 127.0.0.0/8 counter drop
    iifname "{vlan_prefix}*" counter drop{}
  }}
  chain dstnat {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{prefix}*" ip daddr {ADDRESS} tcp dport 80 dnat ip to {ADDRESS}:{endpoint_port}{}
    {publish}{}
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    {publish}{}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{prefix}*" ip daddr {ADDRESS} tcp dport {endpoint_port} accept{}{}
    iifname "{prefix}*" ip daddr {ADDRESS} counter drop
    ip daddr {ADDRESS} tcp dport {endpoint_port} counter drop{}
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;{}
    iifname "{prefix}*" ip daddr 169.254.0.0/16 counter drop
    iifname "{prefix}*" ip saddr 169.254.0.0/16 counter drop
    {}{}
    iifname "{prefix}*" accept
    oifname "{prefix}*" accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr . ip daddr @hairpin masquerade
    oifname "{prefix}*" ip saddr 127.0.0.0/8 masquerade{between}{}
    ip saddr {{ {sources} }} oifname != "lo" oifname != "{prefix}*" masquerade{}
  }}
}}
"#,
            ipv6.sets,
            ipv6.prerouting,
            resolver.leads,
            ipv6.publish,
            ipv6.publish,
            resolver.admits,
            lans.admits,
            resolver.closes,
            instance_metadata,
            ipv6.forward,
            lans.closes,
            lans.seen,
            ipv6.postrouting,
        )
    }
}

/// What hosts of networks outside add to the chains; nothing without any.
#[derive(Default)]
struct Lans {
    admits: String,
    closes: String,
    seen: String,
}

impl Lans {
    fn rules(names: &Names, lans: &BTreeSet<Ipv4Net>) -> Self {
        if lans.is_empty() {
            return Self::default();
        }
        let (lans, prefix) = (join(lans), names.prefix());
        let (from, to) = (
            format!("iifname \"{prefix}*\" ip saddr {{ {lans} }}"),
            format!("oifname \"{prefix}*\" ip daddr {{ {lans} }}"),
        );
        Self {
            admits: format!("\n    {from} ct direction reply accept\n    {from} counter drop"),
            closes: format!(
                "\n    {from} ct direction reply accept\n    {from} counter drop\n    \
                 iifname \"{prefix}*\" {to} accept\n    {to} counter drop"
            ),
            seen: format!("\n    {to} ip saddr != {ADDRESS} snat ip to {ADDRESS}"),
        }
    }
}

/// Of what addresses are.
#[derive(Clone, Copy, Debug)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// As nftables calls it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }

    fn has(self, address: &IpAddr) -> bool {
        matches!(
            (self, address),
            (Self::Ipv4, IpAddr::V4(_)) | (Self::Ipv6, IpAddr::V6(_))
        )
    }

    fn part(self, range: &Range) -> Option<IpNet> {
        match self {
            Self::Ipv4 => Some(range.ipv4.into()),
            Self::Ipv6 => range.ipv6().map(IpNet::from),
        }
    }
}

fn join(all: impl IntoIterator<Item = impl Display>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    all.join(", ")
}

/// What the resolver adds to the chains; nothing without one.
#[derive(Default)]
struct Resolver {
    leads: String,
    admits: String,
    closes: String,
}

impl Resolver {
    fn rules(names: &Names, port: Option<u16>) -> Self {
        let (prefix, asked) = (names.prefix(), dns::ADDRESS);
        let Some(port) = port else {
            return Self::default();
        };
        let both = "meta l4proto { tcp, udp } th dport";
        let ours = format!("ip daddr {ADDRESS} {both} {port}");
        Self {
            leads: format!(
                "\n    iifname \"{prefix}*\" ip daddr {asked} {both} 53 dnat ip to {ADDRESS}:{port}"
            ),
            admits: format!("\n    iifname \"{prefix}*\" {ours} accept"),
            closes: format!("\n    {ours} counter drop"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(n: u8) -> TaskId {
        format!("{n:032x}").parse().unwrap()
    }

    fn own() -> Range {
        "10.1.0.0/16".parse().unwrap()
    }

    fn dual() -> Range {
        Range::below(own().ipv4, "fd00:1::/64".parse().ok()).unwrap()
    }

    fn port(host_port: u16, address: &str) -> Published {
        Published {
            protocol: Protocol::Tcp,
            host_port,
            address: address.parse::<Ipv4Addr>().unwrap().into(),
            port: 80,
        }
    }

    #[test]
    fn the_table_is_replaced_in_one_transaction() {
        let names = Names::new("berth-t").unwrap();
        let range = own();
        let rules = Wanted::new(range, vec![], 51679).render(&names);
        let lines: Vec<_> = rules.lines().collect();
        assert_eq!(lines[0], "table inet berth-t { }");
        assert_eq!(lines[1], "delete table inet berth-t");
        assert!(rules.contains("ip saddr { 10.1.0.0/16 } oifname != "));
        assert!(!rules.contains("elements") && !rules.contains("dport 53"));
        let rules = Wanted::new(range, vec![], 51679)
            .resolver(Some(51680))
            .render(&names);
        assert!(rules.contains(
            "ip daddr 169.254.170.3 meta l4proto { tcp, udp } th dport 53 dnat ip to 169.254.170.2:51680\n"
        ));
        let kept = vec!["10.9.0.1".parse().unwrap()];
        let rules = Wanted::new(range, kept, 51679).render(&names);
        assert!(rules.contains("ip saddr { 10.1.0.0/16, 10.9.0.1 } oifname != "));
        assert!(!rules.contains("accept\n    ip saddr"));
    }

    #[test]
    fn tasks_are_seen_by_their_own_addresses_where_routes_lead_and_nowhere_else() {
        let nets = |of: &[&str]| -> BTreeSet<IpNet> { of.iter().map(|net| net.parse().unwrap()).collect() };
        let parts = |of: &[&str]| -> BTreeSet<Range> { of.iter().map(|net| net.parse().unwrap()).collect() };
        let mut wanted = Wanted::new(own(), vec![], 51679);
        let kept: Vec<IpAddr> = ["10.64.1.9", "10.9.0.1"].map(|ip| ip.parse().unwrap()).into();
        let ranges = Ranges {
            routed: parts(&["10.64.1.0/24"]),
            kept,
            peers: nets(&["10.64.2.0/24", "10.64.3.0/24"]),
            lans: BTreeSet::new(),
        };
        assert!(wanted.set_ranges(ranges.clone()));
        assert!(!wanted.set_ranges(ranges));
        let rules = wanted.render(&Names::new("t").unwrap());
        assert!(
            rules.contains(
                "    ip saddr { 10.64.1.0/24 } ip daddr { 10.64.2.0/24, 10.64.3.0/24 } accept\n    ip saddr { 10.1.0.0/16, \
                 10.64.1.0/24, 10.9.0.1 } oifname != "
            ),
            "{rules}"
        );
    }

    #[test]
    fn hosts_of_a_network_outside_are_neither_masqueraded_nor_routed_to_from_there() {
        let mut wanted = Wanted::new(own(), vec![], 51679);
        let names = Names::new("t").unwrap();
        assert!(!wanted.render(&names).contains("ct direction"));
        wanted.set_ranges(Ranges {
            lans: BTreeSet::from(["192.168.1.128/28".parse().unwrap()]),
            ..Ranges::default()
        });
        let rules = wanted.render(&names);
        let at = |text: &str| rules.find(text).unwrap_or_else(|| panic!("{text} in {rules}"));
        assert!(rules.contains("ip saddr { 10.1.0.0/16 } oifname"));
        let prefix = names.prefix();
        let closed = at(&format!(
            "oifname \"{prefix}*\" ip daddr {{ 192.168.1.128/28 }} counter drop"
        ));
        assert!(closed < at(&format!("    oifname \"{prefix}*\" accept")));
        let closed = at(&format!(
            "iifname \"{prefix}*\" ip saddr {{ 192.168.1.128/28 }} counter drop"
        ));
        assert!(closed < at(&format!("    iifname \"{prefix}*\" accept")));
    }

    #[test]
    fn a_host_of_a_network_outside_reaches_of_this_one_its_endpoints_and_nothing_else() {
        let mut wanted = Wanted::new(own(), vec![], 51679).resolver(Some(51680));
        wanted.set_ranges(Ranges {
            lans: BTreeSet::from(["192.168.1.128/28".parse().unwrap()]),
            ..Ranges::default()
        });
        let rules = wanted.render(&Names::new("t").unwrap());
        let input = rules.split("chain input").nth(1).unwrap().split('}').take(5);
        let input = input.collect::<Vec<_>>().join("}");
        let at = |text: &str| input.find(text).unwrap_or_else(|| panic!("{text} in {input}"));
        let closed = at("ip saddr { 192.168.1.128/28 } counter drop");
        for admitted in [
            "tcp dport 51679 accept",
            "th dport 51680 accept",
            "ip saddr { 192.168.1.128/28 } ct direction reply accept",
        ] {
            assert!(at(admitted) < closed, "{admitted} in {input}");
        }
    }

    #[test]
    fn the_host_takes_nothing_from_a_vlan_of_its_tasks() {
        let names = Names::new("t").unwrap();
        let rules = Wanted::new(own(), vec![], 51679).render(&names);
        let raw = rules.split("chain prerouting").nth(1).unwrap();
        let raw = raw.split("chain").next().unwrap();
        let dropped = format!("    iifname \"{}*\" counter drop\n", names.vlan_prefix());
        assert!(raw.contains(&dropped), "{raw}");
    }

    #[test]
    fn the_clouds_metadata_is_let_through_only_where_that_is_set() {
        let names = Names::new("berth-t").unwrap();
        let rules = |set: bool| {
            let wanted = Wanted::new(own(), vec![], 51679);
            wanted.instance_metadata(set).render(&names)
        };
        let accept = "ip daddr 169.254.169.254 accept\n";
        assert!(!rules(false).contains(accept));
        let rules = rules(true);
        let (first, then) = (
            rules.find(accept),
            rules.find("ip daddr 169.254.0.0/16 counter drop"),
        );
        assert!(first.is_some() && first < then, "{rules}");
    }

    #[test]
    fn elements_come_and_go_with_their_task_and_are_in_the_whole_table() {
        let names = Names::new("t").unwrap();
        let empty = Wanted::new(own(), vec![], 51679);
        let mut one = empty.clone();
        one.publish(&task(1), [port(8080, "10.1.0.1"), port(8081, "10.1.0.1")]);
        let first = format!("tcp . 8080 comment \"{}\" : 10.1.0.1 . 80", task(1));
        let second = format!("tcp . 8081 comment \"{}\" : 10.1.0.1 . 80", task(1));
        let added = format!(
            "add element inet t published {{ {first}, {second} }}\nadd element inet t hairpin {{ 10.1.0.1 . 10.1.0.1 }}\n"
        );
        assert_eq!(empty.changes_to(&one, &names), added);
        assert!(
            one.render(&names)
                .contains(&format!("elements = {{ {first}, {second} }}"))
        );
        let mut two = one.clone();
        two.publish(&task(2), [port(9090, "10.1.0.2")]);
        assert!(two.is_of(Protocol::Tcp, 9090, &task(2)) && !two.is_of(Protocol::Udp, 9090, &task(2)));
        let mut rest = two.clone();
        assert!(!rest.withdraw(&task(2)).is_empty() && rest.withdraw(&task(2)).is_empty());
        assert!(
            two.changes_to(&rest, &names)
                .starts_with("delete element inet t published { tcp . 9090")
        );
        assert_eq!(one.changes_to(&rest, &names), "");
    }

    #[test]
    fn what_tasks_can_have_of_ipv6_is_led_and_seen_as_it_is_in_ipv4() {
        let names = Names::new("t").unwrap();
        let rules = Wanted::new(own(), vec![], 51679).render(&names);
        assert!(
            rules.contains("meta nfproto ipv6 counter drop") && !rules.contains("ip6"),
            "{rules}"
        );
        let mut wanted = Wanted::new(dual(), vec!["fd00:9::1".parse().unwrap()], 51679);
        let part = Range::below("10.64.1.0/24".parse().unwrap(), "fd00:2::/64".parse().ok()).unwrap();
        let peers = ["fd00:2::a40:200/120", "10.64.2.0/24"].map(|peer| peer.parse().unwrap());
        let ranges = Ranges {
            routed: [part].into(),
            peers: peers.into(),
            ..wanted.ranges.clone()
        };
        wanted.set_ranges(ranges);
        let rules = wanted.render(&names);
        assert!(!rules.contains("meta nfproto ipv6 counter drop"));
        for rule in [
            "    ip6 saddr { fd00:2::a40:100/120 } ip6 daddr { fd00:2::a40:200/120 } accept\n    ip6 saddr { \
             fd00:1::a01:0/112, fd00:2::a40:100/120, fd00:9::1 } oifname != ",
            "    ip saddr { 10.64.1.0/24 } ip daddr { 10.64.2.0/24 } accept\n    ip saddr { 10.1.0.0/16, 10.64.1.0/24 } ",
        ] {
            assert!(rules.contains(rule), "{rules}");
        }
        // Whose range has none any more keeps what it has.
        let kept = vec!["fd00:9::1".parse().unwrap()];
        assert!(
            Wanted::new(own(), kept, 51679)
                .render(&names)
                .contains("ip6 saddr { fd00:9::1 }")
        );
    }

    #[test]
    fn a_port_leads_to_both_addresses_of_a_task_that_has_both() {
        let names = Names::new("t").unwrap();
        let empty = Wanted::new(dual(), vec![], 51679);
        let mut one = empty.clone();
        let address = dual().address([10, 1, 0, 1].into());
        one.publish(
            &task(1),
            [Published {
                address,
                ..port(80, "10.1.0.1")
            }],
        );
        let added = empty.changes_to(&one, &names);
        let ipv6 = format!("tcp . 80 comment \"{}\" : fd00:1::a01:1 . 80", task(1));
        assert!(added.contains(&format!(
            "add element inet t published {{ tcp . 80 comment \"{}\" : 10.1.0.1 . 80 }}",
            task(1)
        )));
        assert!(
            added.contains(&format!("add element inet t published_ipv6 {{ {ipv6} }}")),
            "{added}"
        );
        assert!(
            added.ends_with("add element inet t hairpin_ipv6 { fd00:1::a01:1 . fd00:1::a01:1 }\n"),
            "{added}"
        );
        assert!(one.render(&names).contains(&format!("elements = {{ {ipv6} }}")));
    }
}
