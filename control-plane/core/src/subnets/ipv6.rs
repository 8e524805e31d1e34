//! Owns what the IPv6 prefix of a subnet may be, and what is below it: an address of a task is the prefix, and the task's IPv4
//! address as the last 32 bits. So a node's part in IPv6 follows from its part in IPv4.

use std::net::Ipv6Addr;

use ipnet::{Ipv4Net, Ipv6Net};

/// The longest prefix that leaves room for an IPv4 address.
const PREFIX_LEN_MAX: u8 = 96;

/// The prefix of a subnet, as an operator writes it.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Ipv6Net, String> {
    let prefix: Ipv6Net = text.parse().map_err(|_| {
        let text: String = text.chars().take(64).collect();
        format!("{text:?} is not an IPv6 range in CIDR notation, such as fd12:3456:789a:1::/64")
    })?;
    if prefix != prefix.trunc() {
        let meant = prefix.trunc();
        return Err(format!(
            "{prefix} has bits set beyond its prefix: the range is {meant}"
        ));
    }
    if prefix.prefix_len() > PREFIX_LEN_MAX {
        return Err(format!(
            "{prefix} leaves no room for an IPv4 address, which is the end of a task's: it must be at most a /{PREFIX_LEN_MAX}"
        ));
    }
    match reserved().into_iter().find(|(net, _)| overlap(*net, prefix)) {
        Some((net, what)) => Err(format!(
            "{prefix} overlaps {net}, which is {what}: no task can have an address there"
        )),
        None => Ok(prefix),
    }
}

/// Ranges that mean something else on every host.
fn reserved() -> [(Ipv6Net, &'static str); 5] {
    let net = |a, b, len| Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), len);
    [
        (
            net(0, 0, 8),
            "the host itself, and addresses that stand for IPv4 ones (RFC 4291, RFC 6052)",
        ),
        (net(0x2001, 0x0db8, 32), "for documentation (RFC 3849)"),
        (net(0xfe80, 0, 10), "link-local"),
        (net(0xfec0, 0, 10), "reserved (RFC 3879)"),
        (net(0xff00, 0, 8), "multicast"),
    ]
}

/// Whether the two have an address in common.
pub fn overlap(a: Ipv6Net, b: Ipv6Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// What a range of IPv4 addresses is below a prefix that [`parse`] took.
pub fn below(prefix: Ipv6Net, ipv4: Ipv4Net) -> Ipv6Net {
    let network = u128::from(prefix.network()) | u128::from(u32::from(ipv4.network()));
    Ipv6Net::new_assert(network.into(), PREFIX_LEN_MAX + ipv4.prefix_len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_is_one_of_addresses_that_hosts_may_have_with_room_for_ipv4() {
        for good in ["fd00::/8", "fd12:3456:789a:1::/64", "2a00:1::/32", "fd00::/96"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", "not an IPv6 range"),
            ("10.0.0.0/8", "not an IPv6 range"),
            ("fd00::", "not an IPv6 range"),
            ("fd00::1/64", "the range is fd00::/64"),
            ("fd00::/97", "at most a /96"),
            ("fe80::/64", "link-local"),
            ("2001:db8:7::/48", "documentation"),
            ("64:ff9b::/96", "RFC 6052"),
            ("::/0", "the host itself"),
            ("ff05::/16", "multicast"),
        ] {
            let problem = parse(bad).unwrap_err();
            assert!(problem.contains(why), "{bad}: {problem}");
        }
    }

    #[test]
    fn a_nodes_part_is_what_its_ipv4_part_is_below_the_prefix() {
        let part = below(
            "fd00:1:2:3::/64".parse().unwrap(),
            "10.64.1.0/24".parse().unwrap(),
        );
        assert_eq!(part.to_string(), "fd00:1:2:3::a40:100/120");
    }

    proptest! {
        #[test]
        fn any_text_is_a_prefix_or_an_error(text: String, bits: u128, len in 0..=128u8) {
            let _ = parse(&text);
            let prefix = Ipv6Net::new(bits.into(), len).unwrap().trunc();
            if let Ok(prefix) = parse(&prefix.to_string()) {
                let part = below(prefix, "10.64.1.0/24".parse().unwrap());
                prop_assert!(prefix.contains(&part) && part == part.trunc());
            }
        }
    }
}
