//! Owns how a task's IPv6 address follows from its IPv4 one, so that one lease, one quarantine and one subnet's part are of
//! both: below a prefix of at most 96 bits, the IPv4 address is the last 32.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{AddrParseError, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// The longest prefix that leaves room for an IPv4 address.
pub const PREFIX_LEN_MAX: u8 = 96;
const IPV4_BITS: u32 = 0xffff_ffff;

/// Of a task, or in bridge mode of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "StoredAddress", into = "StoredAddress")]
pub struct Address {
    pub ipv4: Ipv4Addr,
    /// None: its range has no IPv6.
    pub ipv6: Option<Ipv6Addr>,
}

/// Where addresses come from: the node's own range, or its part of a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "StoredRange", into = "StoredRange")]
pub struct Range {
    pub ipv4: Ipv4Net,
    /// What is below a prefix of the addresses of `ipv4`: the last 32 bits of its network are that of `ipv4`.
    ipv6: Option<Ipv6Net>,
}

/// Why a range of IPv6 addresses cannot be that of tasks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIpv6 {
    #[error("{prefix} leaves no room for an IPv4 address: it must be at most a /{PREFIX_LEN_MAX}")]
    Length { prefix: Ipv6Net },
    #[error("{prefix} has bits set beyond its prefix: the range is {meant}")]
    HostBits { prefix: Ipv6Net, meant: Ipv6Net },
    #[error("{prefix} overlaps {reserved}, which no host can have addresses of")]
    Reserved { prefix: Ipv6Net, reserved: Ipv6Net },
    #[error("{ipv6} is not what {ipv4} is below a prefix")]
    Unrelated { ipv6: Ipv6Net, ipv4: Ipv4Net },
}

impl Range {
    /// With what `ipv4` is below `prefix`.
    ///
    /// # Errors
    /// When addresses of tasks cannot be below the prefix.
    pub fn below(ipv4: Ipv4Net, prefix: Option<Ipv6Net>) -> Result<Self, InvalidIpv6> {
        let ipv4 = ipv4.trunc();
        let Some(prefix) = prefix else {
            return Ok(ipv4.into());
        };
        check(prefix)?;
        if prefix.prefix_len() > PREFIX_LEN_MAX {
            return Err(InvalidIpv6::Length { prefix });
        }
        let network = join(prefix.network(), ipv4.network());
        let ipv6 = Ipv6Net::new(network, PREFIX_LEN_MAX + ipv4.prefix_len());
        Ok(Self {
            ipv4,
            ipv6: ipv6.ok(),
        })
    }

    /// Of both, as they are known already.
    ///
    /// # Errors
    /// When one is not the other below a prefix, or addresses of tasks cannot be there.
    pub fn both(ipv4: Ipv4Net, ipv6: Ipv6Net) -> Result<Self, InvalidIpv6> {
        let (ipv4, unrelated) = (ipv4.trunc(), InvalidIpv6::Unrelated { ipv6, ipv4 });
        check(ipv6)?;
        let same = join(ipv6.network(), ipv4.network()) == ipv6.network();
        if !same || ipv6.prefix_len() != PREFIX_LEN_MAX + ipv4.prefix_len() {
            return Err(unrelated);
        }
        Ok(Self {
            ipv4,
            ipv6: Some(ipv6),
        })
    }

    pub fn ipv6(&self) -> Option<Ipv6Net> {
        self.ipv6
    }

    /// An address of it, with its IPv6 one.
    pub fn address(&self, ipv4: Ipv4Addr) -> Address {
        Address {
            ipv4,
            ipv6: self.ipv6.map(|ipv6| join(ipv6.network(), ipv4)),
        }
    }

    /// Whether an address is of it, the IPv6 one where it has one too.
    pub fn contains(&self, address: Address) -> bool {
        let of_ipv6 = |address: &Ipv6Addr| self.ipv6.is_some_and(|range| range.contains(address));
        self.ipv4.contains(&address.ipv4) && address.ipv6.as_ref().is_none_or(of_ipv6)
    }
}

/// The upper 96 bits of one, and all of the other.
fn join(prefix: Ipv6Addr, ipv4: Ipv4Addr) -> Ipv6Addr {
    let upper = u128::from(prefix) & !u128::from(IPV4_BITS);
    Ipv6Addr::from(upper | u128::from(u32::from(ipv4)))
}

fn check(prefix: Ipv6Net) -> Result<(), InvalidIpv6> {
    if prefix != prefix.trunc() {
        return Err(InvalidIpv6::HostBits {
            prefix,
            meant: prefix.trunc(),
        });
    }
    let taken = reserved().find(|other| other.contains(&prefix) || prefix.contains(other));
    match taken {
        Some(reserved) => Err(InvalidIpv6::Reserved { prefix, reserved }),
        None => Ok(()),
    }
}

/// Ranges that mean something else on every host (RFC 4291, RFC 6052, RFC 3849).
fn reserved() -> impl Iterator<Item = Ipv6Net> {
    let all: [([u16; 3], u8); 5] = [
        // Unspecified, loopback, and those that stand for IPv4 addresses.
        ([0, 0, 0], 8),
        ([0x2001, 0x0db8, 0], 32),
        ([0xfe80, 0, 0], 10),
        ([0xfec0, 0, 0], 10),
        ([0xff00, 0, 0], 8),
    ];
    all.into_iter()
        .map(|([a, b, c], len)| Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), len))
}

impl From<Ipv4Addr> for Address {
    fn from(ipv4: Ipv4Addr) -> Self {
        Self { ipv4, ipv6: None }
    }
}

impl From<Ipv4Net> for Range {
    fn from(ipv4: Ipv4Net) -> Self {
        Self { ipv4, ipv6: None }
    }
}

/// Without IPv6.
impl FromStr for Range {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Ipv4Net>().map(Self::from)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ipv6 {
            None => write!(f, "{}", self.ipv4),
            Some(ipv6) => write!(f, "{} and {ipv6}", self.ipv4),
        }
    }
}

/// Earlier versions stored the IPv4 address alone, and so is one without IPv6.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredAddress {
    Ipv4(Ipv4Addr),
    Both { ipv4: Ipv4Addr, ipv6: Ipv6Addr },
}

impl From<StoredAddress> for Address {
    fn from(stored: StoredAddress) -> Self {
        match stored {
            StoredAddress::Ipv4(ipv4) => ipv4.into(),
            StoredAddress::Both { ipv4, ipv6 } => Self {
                ipv4,
                ipv6: Some(ipv6),
            },
        }
    }
}

impl From<Address> for StoredAddress {
    fn from(Address { ipv4, ipv6 }: Address) -> Self {
        match ipv6 {
            None => Self::Ipv4(ipv4),
            Some(ipv6) => Self::Both { ipv4, ipv6 },
        }
    }
}

/// Likewise.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredRange {
    Ipv4(Ipv4Net),
    Both { ipv4: Ipv4Net, ipv6: Ipv6Net },
}

impl From<StoredRange> for Range {
    fn from(stored: StoredRange) -> Self {
        match stored {
            StoredRange::Ipv4(ipv4) => ipv4.into(),
            StoredRange::Both { ipv4, ipv6 } => Self {
                ipv4,
                ipv6: Some(ipv6),
            },
        }
    }
}

impl From<Range> for StoredRange {
    fn from(Range { ipv4, ipv6 }: Range) -> Self {
        match ipv6 {
            None => Self::Ipv4(ipv4),
            Some(ipv6) => Self::Both { ipv4, ipv6 },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn below(ipv4: &str, prefix: &str) -> Result<Range, InvalidIpv6> {
        Range::below(ipv4.parse().unwrap(), Some(prefix.parse().unwrap()))
    }

    #[test]
    fn an_ipv6_address_is_the_ipv4_one_below_the_prefix() {
        let range = below("10.64.1.0/24", "fd00:1:2:3::/64").unwrap();
        assert_eq!(range.ipv6().unwrap().to_string(), "fd00:1:2:3::a40:100/120");
        let address = range.address("10.64.1.7".parse().unwrap());
        assert_eq!(address.ipv6.unwrap().to_string(), "fd00:1:2:3::a40:107");
        assert!(range.contains(address));
        assert!(!below("10.64.1.0/24", "fd00::/96").unwrap().contains(address));
        assert!(!Range::from(range.ipv4).contains(address));
        assert_eq!(Range::both(range.ipv4, range.ipv6().unwrap()), Ok(range));
    }

    #[test]
    fn a_prefix_has_room_for_ipv4_and_is_one_that_hosts_may_have() {
        for good in ["fd00::/8", "fd12:3456:789a::/48", "2a00:1::/32", "fd00::/96"] {
            assert!(below("10.0.0.0/22", good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("fd00::/97", "at most a /96"),
            ("fd00::1/64", "the range is fd00::/64"),
            ("fe80::/64", "fe80::/10"),
            ("ff00::/16", "ff00::/8"),
            ("2001:db8:1::/48", "2001:db8::/32"),
            ("::/0", "overlaps"),
            ("::ffff:0:0/96", "overlaps"),
        ] {
            let problem = below("10.0.0.0/22", bad).unwrap_err().to_string();
            assert!(problem.contains(why), "{bad}: {problem}");
        }
        for unrelated in ["fd00::/120", "fd00::a00:0/117", "fd00::a00:0/119"] {
            let judged = Range::both("10.0.0.0/22".parse().unwrap(), unrelated.parse().unwrap());
            assert!(
                matches!(judged, Err(InvalidIpv6::Unrelated { .. })),
                "{unrelated}"
            );
        }
    }

    #[test]
    fn what_an_earlier_version_stored_is_read_and_without_ipv6_it_is_stored_the_same() {
        let address: Address = serde_json::from_str("\"10.0.0.1\"").unwrap();
        assert_eq!(address, Ipv4Addr::new(10, 0, 0, 1).into());
        assert_eq!(serde_json::to_string(&address).unwrap(), "\"10.0.0.1\"");
        let range: Range = serde_json::from_str("\"10.0.0.0/24\"").unwrap();
        assert_eq!(serde_json::to_string(&range).unwrap(), "\"10.0.0.0/24\"");
        let both = below("10.0.0.0/24", "fd00::/64").unwrap();
        for range in [range, both] {
            let address = range.address(Ipv4Addr::new(10, 0, 0, 9));
            let (stored, at) = (serde_json::to_string(&range), serde_json::to_string(&address));
            assert_eq!(serde_json::from_str::<Range>(&stored.unwrap()).unwrap(), range);
            assert_eq!(serde_json::from_str::<Address>(&at.unwrap()).unwrap(), address);
        }
    }

    proptest! {
        #[test]
        fn no_two_addresses_are_one_and_each_is_in_its_range(bits: u128, len in 16..=96u8, a: u32, b: u32, of in 8..=29u8) {
            let prefix = Ipv6Net::new(Ipv6Addr::from(bits), len).unwrap().trunc();
            let (a, b) = (Ipv4Addr::from(a), Ipv4Addr::from(b));
            let ipv4 = Ipv4Net::new(a, of).unwrap().trunc();
            if let Ok(range) = Range::below(ipv4, Some(prefix)) {
                let [first, second] = [a, b].map(|address| range.address(address));
                prop_assert!(range.contains(first));
                prop_assert!(prefix.contains(&first.ipv6.unwrap()));
                prop_assert_eq!(first.ipv6 == second.ipv6, a == b);
                prop_assert_eq!(range.contains(second), ipv4.contains(&b));
                prop_assert_eq!(Range::both(ipv4, range.ipv6().unwrap()), Ok(range));
            }
        }
    }
}
