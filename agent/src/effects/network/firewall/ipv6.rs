//! Owns what the table has of IPv6 where tasks can have addresses of it: the twins of the rules for IPv4. Never decides who
//! has which.

use std::net::Ipv6Addr;

pub(super) const PUBLISHED: &str = "published_ipv6";
pub(super) const HAIRPIN: &str = "hairpin_ipv6";
/// Where clouds answer for the instance that asks: AWS, Google Cloud, Oracle and Scaleway.
const INSTANCE_METADATA: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x0042),
];

/// What the rules are made from.
pub(super) struct Parts<'a> {
    /// Of tasks' links.
    pub(super) prefix: &'a str,
    /// Elements, as the table takes them.
    pub(super) published: String,
    pub(super) hairpin: String,
    /// What tasks have addresses of.
    pub(super) sources: String,
    pub(super) between: String,
}

/// What is added to the chains.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) sets: String,
    pub(super) prerouting: String,
    pub(super) publish: String,
    pub(super) forward: String,
    pub(super) postrouting: String,
}

impl Rules {
    /// Where no task can have an address, nothing is forwarded: there is no strict reverse path filter either.
    pub(super) fn none(prefix: &str) -> Self {
        Self {
            forward: format!("iifname \"{prefix}*\" meta nfproto ipv6 counter drop"),
            ..Self::default()
        }
    }

    /// - A task sends from its own address and from no other: not from one that is the link's alone either. It needs none to
    ///   find its gateway, and the gateway none to find it, for both know each other's hardware address for good.
    /// - A published port is one of every address of the host's but loopback, from which IPv6 sends nothing out, and those that
    ///   are one link's alone, from which and to which nothing is forwarded.
    pub(super) fn new(parts: &Parts<'_>, instance_metadata: bool) -> Self {
        let Parts {
            prefix,
            published,
            hairpin,
            sources,
            between,
        } = parts;
        let closed = INSTANCE_METADATA.map(|address| address.to_string()).join(", ");
        let metadata = match instance_metadata {
            true => String::new(),
            false => format!("iifname \"{prefix}*\" ip6 daddr {{ {closed} }} counter drop"),
        };
        Self {
            sets: format!(
                r#"
  map {PUBLISHED} {{
    type inet_proto . inet_service : ipv6_addr . inet_service
    {published}
  }}
  set {HAIRPIN} {{
    type ipv6_addr . ipv6_addr
    {hairpin}
  }}"#
            ),
            prerouting: format!(
                "\n    iifname \"{prefix}*\" meta nfproto ipv6 fib saddr . iif oif missing counter drop"
            ),
            publish: format!(
                "\n    ip6 daddr != {{ ::1, fe80::/10 }} fib daddr type local meta l4proto {{ tcp, udp }} \
                 dnat ip6 to meta l4proto . th dport map @{PUBLISHED}"
            ),
            forward: metadata,
            postrouting: format!(
                "\n    ip6 saddr . ip6 daddr @{HAIRPIN} masquerade{between}\n    ip6 saddr {{ {sources} }} oifname != \
                 \"lo\" oifname != \"{prefix}*\" masquerade"
            ),
        }
    }
}
