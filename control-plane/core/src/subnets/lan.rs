//! Owns what a subnet may be whose tasks are hosts of a network that is there already: a LAN, of which tasks get a range.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{InvalidSubnet, PREFIX_LEN_MIN, Shape, ipv6, parse_range, reserved};

/// As the API spells them, the default first.
pub const KINDS: [&str; 4] = ["routed", "macvlan", "vlan", "interface"];
/// Of IEEE 802.1Q: 0 and 4095 mean something else.
const VLAN_IDS: std::ops::RangeInclusive<i64> = 1..=4094;
/// A network has hosts besides its own and its broadcast address.
const LAN_PREFIX_LEN_MAX: u8 = 30;
/// Of a link's name: the kernel's IFNAMSIZ without its end.
const LINK_CHARS_MAX: usize = 15;

/// A network outside, of which tasks are hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lan {
    pub link: LanLink,
    /// Addresses of all its hosts.
    pub network: Ipv4Net,
    /// Where its hosts send what is for others. None: to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
}

/// How a task is connected to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LanLink {
    /// By a link of its own upon this link of its node.
    Macvlan { uplink: String },
    /// Likewise, in one VLAN of it.
    Vlan { uplink: String, id: u16 },
    /// By one of the links that the node's operator gives to tasks.
    Interface,
}

impl LanLink {
    /// As the API spells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Macvlan { .. } => KINDS[1],
            Self::Vlan { .. } => KINDS[2],
            Self::Interface => KINDS[3],
        }
    }

    pub fn uplink(&self) -> Option<&str> {
        match self {
            Self::Macvlan { uplink } | Self::Vlan { uplink, .. } => Some(uplink),
            Self::Interface => None,
        }
    }

    pub fn vlan_id(&self) -> Option<u16> {
        match self {
            Self::Vlan { id, .. } => Some(*id),
            Self::Macvlan { .. } | Self::Interface => None,
        }
    }
}

/// A subnet as an operator asks for it.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub cidr: String,
    /// The prefix of tasks' IPv6 addresses; none: they have none.
    pub ipv6_cidr: Option<String>,
    pub node_prefix_len: Option<u8>,
    /// One of [`KINDS`]; none: the first.
    pub kind: Option<&'static str>,
    pub uplink: Option<String>,
    pub vlan_id: Option<i64>,
    pub gateway: Option<String>,
    /// Where tasks' addresses come from, inside of `cidr`.
    pub range: Option<String>,
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub field: &'static str,
    pub what: String,
}

/// What nodes get parts of, and what it is besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Design {
    pub shape: Shape,
    /// None: nodes route to it.
    pub lan: Option<Lan>,
    /// Below which tasks have IPv6 addresses.
    pub ipv6_prefix: Option<Ipv6Net>,
}

impl Asked {
    /// # Errors
    /// All that is wrong, in the order of the fields.
    pub fn design(&self) -> Result<Design, Vec<Problem>> {
        let mut problems = Problems::default();
        let kind = self.kind.unwrap_or(KINDS[0]);
        if kind == KINDS[0] {
            let shape = problems.shape("cidrBlock", &self.cidr, self.node_prefix_len);
            let given = [
                ("uplink", self.uplink.is_some()),
                ("vlanId", self.vlan_id.is_some()),
                ("gateway", self.gateway.is_some()),
                ("range", self.range.is_some()),
            ];
            for (field, _) in given.into_iter().filter(|(_, given)| *given) {
                problems.add(field, "is for the kinds macvlan, vlan and interface");
            }
            let ipv6_prefix = self.ipv6_cidr.as_deref().map(ipv6::parse);
            let ipv6_prefix = ipv6_prefix.and_then(|prefix| problems.take("ipv6CidrBlock", prefix));
            let design = |shape| Design {
                shape,
                lan: None,
                ipv6_prefix,
            };
            return problems.done(shape.map(design));
        }
        let network = problems.take("cidrBlock", lan_network(&self.cidr));
        if self.ipv6_cidr.is_some() {
            problems.add(
                "ipv6CidrBlock",
                "is for the kind routed: tasks on a LAN have IPv4 alone",
            );
        }
        let link = self.link(kind, &mut problems);
        let shape = match &self.range {
            Some(range) => problems.shape("range", range, self.node_prefix_len),
            None => {
                problems.add(
                    "range",
                    "is required: other hosts have addresses of the network, and tasks get those of a range in it",
                );
                None
            }
        };
        if let (Some(network), Some(shape)) = (network, shape)
            && !network.contains(&shape.range)
        {
            problems.add("range", format!("{} is not inside of {network}", shape.range));
        }
        let gateway = self.gateway.as_deref().map(|text| gateway(text, network, shape));
        let gateway = gateway.and_then(|gateway| problems.take("gateway", gateway));
        let lan = network.zip(link).map(|(network, link)| Lan {
            link,
            network,
            gateway,
        });
        let design = |(shape, lan)| Design {
            shape,
            lan: Some(lan),
            ipv6_prefix: None,
        };
        problems.done(shape.zip(lan).map(design))
    }

    fn link(&self, kind: &str, problems: &mut Problems) -> Option<LanLink> {
        let uplink = match (&self.uplink, kind == KINDS[3]) {
            (Some(_), true) => {
                problems.add(
                    "uplink",
                    "is for the kinds macvlan and vlan: which interfaces tasks get, each node's configuration says",
                );
                None
            }
            (None, true) => None,
            (None, false) => {
                problems.add(
                    "uplink",
                    "is required: the name of the link that nodes have to the network",
                );
                None
            }
            (Some(name), false) => problems.take("uplink", link_name(name)),
        };
        let id = match (self.vlan_id, kind == KINDS[2]) {
            (Some(_), false) => {
                problems.add("vlanId", "is for the kind vlan");
                None
            }
            (None, true) => {
                problems.add("vlanId", "is required");
                None
            }
            (Some(id), true) if !VLAN_IDS.contains(&id) => {
                problems.add("vlanId", format!("{id} is not of 1 to 4094"));
                None
            }
            (id, _) => id.and_then(|id| u16::try_from(id).ok()),
        };
        match kind {
            kind if kind == KINDS[1] => uplink.map(|uplink| LanLink::Macvlan { uplink }),
            kind if kind == KINDS[2] => uplink.zip(id).map(|(uplink, id)| LanLink::Vlan { uplink, id }),
            _ => Some(LanLink::Interface),
        }
    }
}

/// What is found wrong on the way.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, field: &'static str, what: impl Into<String>) {
        let what = what.into();
        self.0.push(Problem { field, what });
    }

    fn take<T>(&mut self, field: &'static str, result: Result<T, String>) -> Option<T> {
        result.map_err(|what| self.add(field, what)).ok()
    }

    fn shape(&mut self, field: &'static str, range: &str, node_prefix_len: Option<u8>) -> Option<Shape> {
        let shape = Shape::parse(range, node_prefix_len);
        let wrong = |error: InvalidSubnet| {
            let field = match error {
                InvalidSubnet::NodePrefix { .. } => "nodePrefixLength",
                _ => field,
            };
            self.add(field, error.to_string());
        };
        shape.map_err(wrong).ok()
    }

    fn done(self, design: Option<Design>) -> Result<Design, Vec<Problem>> {
        match design {
            Some(design) if self.0.is_empty() => Ok(design),
            _ => Err(self.0),
        }
    }
}

fn lan_network(text: &str) -> Result<Ipv4Net, String> {
    let network = parse_range(text).map_err(|error| error.to_string())?;
    if !(PREFIX_LEN_MIN..=LAN_PREFIX_LEN_MAX).contains(&network.prefix_len()) {
        return Err(format!(
            "{network} is not of /{PREFIX_LEN_MIN} to /{LAN_PREFIX_LEN_MAX}"
        ));
    }
    match reserved(network) {
        Some((other, what)) => Err(format!("{network} overlaps {other}, which is {what}")),
        None => Ok(network),
    }
}

fn gateway(text: &str, network: Option<Ipv4Net>, shape: Option<Shape>) -> Result<Ipv4Addr, String> {
    let shown: String = text.chars().take(64).collect();
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_| format!("{shown:?} is not an IPv4 address"))?;
    if let Some(network) = network {
        if !network.contains(&address) {
            return Err(format!("{address} is not inside of {network}"));
        }
        if address == network.network() || address == network.broadcast() {
            return Err(format!("{address} is no host of {network}"));
        }
    }
    match shape {
        Some(shape) if shape.range.contains(&address) => Err(format!(
            "{address} is inside of {}, of which tasks get addresses: choose a range without it",
            shape.range
        )),
        _ => Ok(address),
    }
}

/// What the kernel takes for the name of a link, and people write.
fn link_name(name: &str) -> Result<String, String> {
    let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let valid = (1..=LINK_CHARS_MAX).contains(&name.len()) && name.chars().all(usual);
    if !valid || matches!(name, "." | "..") {
        let shown: String = name.chars().take(64).collect();
        return Err(format!(
            "{shown:?} is not the name of a link: 1 to {LINK_CHARS_MAX} letters, digits, \"_\", \"-\" and \".\""
        ));
    }
    if name == "lo" {
        return Err("lo leads to no network".to_owned());
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop, prop_assert, proptest};

    fn asked(kind: &'static str) -> Asked {
        Asked {
            cidr: "192.168.1.0/24".into(),
            kind: Some(kind),
            uplink: Some("eth1".into()),
            gateway: Some("192.168.1.1".into()),
            range: Some("192.168.1.128/25".into()),
            ..Asked::default()
        }
    }

    fn wrong(asked: &Asked) -> Vec<&'static str> {
        let problems = asked.design().unwrap_err();
        assert!(problems.iter().all(|problem| !problem.what.is_empty()));
        problems.iter().map(|problem| problem.field).collect()
    }

    #[test]
    fn a_lan_is_a_network_with_a_range_for_tasks() {
        let design = asked("macvlan").design().unwrap();
        assert_eq!(design.shape.range.to_string(), "192.168.1.128/25");
        let lan = design.lan.unwrap();
        let uplink = "eth1".to_owned();
        assert_eq!(lan.link, LanLink::Macvlan { uplink });
        assert_eq!(lan.network.to_string(), "192.168.1.0/24");
        assert_eq!(lan.gateway, Some(Ipv4Addr::new(192, 168, 1, 1)));
        let vlan = Asked {
            vlan_id: Some(4094),
            gateway: None,
            ..asked("vlan")
        };
        let lan = vlan.design().unwrap().lan.unwrap();
        assert_eq!((lan.link.vlan_id(), lan.gateway), (Some(4094), None));
        let interface = Asked {
            uplink: None,
            ..asked("interface")
        };
        assert_eq!(interface.design().unwrap().lan.unwrap().link.kind(), "interface");
        let routed = Asked {
            cidr: "10.64.0.0/16".into(),
            ..Asked::default()
        };
        assert_eq!(routed.design().unwrap().lan, None);
        let dual = |prefix: &str| Asked {
            ipv6_cidr: Some(prefix.into()),
            ..routed.clone()
        };
        let design = dual("fd00:1::/64").design().unwrap();
        assert_eq!(design.ipv6_prefix, "fd00:1::/64".parse().ok());
        assert_eq!(wrong(&dual("fe80::/64")), ["ipv6CidrBlock"]);
    }

    #[test]
    fn all_that_is_wrong_is_named_and_nothing_is_ignored() {
        let mut routed = asked("routed");
        routed.vlan_id = Some(7);
        assert_eq!(wrong(&routed), ["uplink", "vlanId", "gateway", "range"]);
        let bare = Asked {
            cidr: "192.168.1.0/24".into(),
            kind: Some("vlan"),
            ..Asked::default()
        };
        assert_eq!(wrong(&bare), ["uplink", "vlanId", "range"]);
        let with = |change: fn(&mut Asked)| {
            let mut asked = asked("macvlan");
            change(&mut asked);
            wrong(&asked)
        };
        assert_eq!(with(|a| a.vlan_id = Some(7)), ["vlanId"]);
        assert_eq!(with(|a| a.kind = Some("interface")), ["uplink"]);
        for name in ["", "a/b", "a b", "lo", "..", "abcdefghijklmnop", "é"] {
            let bad = Asked {
                uplink: Some(name.into()),
                ..asked("macvlan")
            };
            assert_eq!(wrong(&bad), ["uplink"], "{name:?}");
        }
        for id in [0, 4095, -1, 1 << 40] {
            let bad = Asked {
                vlan_id: Some(id),
                ..asked("vlan")
            };
            assert_eq!(wrong(&bad), ["vlanId"], "{id}");
        }
        assert_eq!(with(|a| a.range = Some("192.168.2.0/25".into())), ["range"]);
        assert_eq!(
            with(|a| a.range = Some("192.168.0.0/16".into())),
            ["range", "gateway"]
        );
        assert_eq!(with(|a| a.cidr = "192.168.1.7/24".into()), ["cidrBlock"]);
        assert_eq!(with(|a| a.cidr = "169.254.0.0/16".into()), ["cidrBlock"]);
        assert_eq!(with(|a| a.node_prefix_len = Some(31)), ["nodePrefixLength"]);
        assert_eq!(
            with(|a| a.ipv6_cidr = Some("fd00::/64".into())),
            ["ipv6CidrBlock"]
        );
        for gateway in [
            "192.168.2.1",
            "192.168.1.0",
            "192.168.1.255",
            "192.168.1.200",
            "fe80::1",
            "x",
        ] {
            let bad = Asked {
                gateway: Some(gateway.into()),
                range: Some("192.168.1.192/26".into()),
                ..asked("macvlan")
            };
            assert_eq!(wrong(&bad), ["gateway"], "{gateway}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_keeps_tasks_off_other_hosts(
            octets in any::<[u8; 4]>(), len in 8u8..=32, range_len in 8u8..=32, node in prop::option::of(8u8..=32),
            gateway in any::<[u8; 4]>(), uplink in ".{0,17}",
        ) {
            let network = Ipv4Net::new(Ipv4Addr::from(octets), len).unwrap();
            let asked = Asked {
                cidr: network.trunc().to_string(),
                ipv6_cidr: None,
                node_prefix_len: node,
                kind: Some("macvlan"),
                uplink: Some(uplink),
                vlan_id: None,
                gateway: Some(Ipv4Addr::from(gateway).to_string()),
                range: Some(Ipv4Net::new(Ipv4Addr::from(octets), range_len).unwrap().trunc().to_string()),
            };
            if let Ok(design) = asked.design() {
                let lan = design.lan.unwrap();
                prop_assert!(lan.network.contains(&design.shape.range));
                prop_assert!(!design.shape.range.contains(&lan.gateway.unwrap()));
            }
        }
    }
}
