//! Owns the border for networks outside of which tasks are hosts. Checks them as if nobody had checked before: their names and
//! addresses become links and routes.

use std::net::Ipv4Addr;

use berth_agent_core::lan::{Lan, LanLink};
use berth_proto::node::v1 as wire;
use ipnet::Ipv4Net;

use super::{Refusal, refuse};

const VLAN_IDS: std::ops::RangeInclusive<u32> = 1..=4094;
const PREFIX_LENS: std::ops::RangeInclusive<u8> = 8..=30;
/// The kernel's IFNAMSIZ without its end.
const LINK_CHARS_MAX: usize = 15;

/// None: the host routes.
pub(super) fn lan(wire: Option<wire::Lan>) -> Result<Option<Lan>, Refusal> {
    let Some(wire) = wire else {
        return Ok(None);
    };
    let network = match wire.ipv4_cidr.parse::<Ipv4Net>() {
        Ok(network) if PREFIX_LENS.contains(&network.prefix_len()) && network == network.trunc() => network,
        _ => {
            return refuse(
                "lan.ipv4_cidr",
                format!("{:?} is not a network", shown(&wire.ipv4_cidr)),
            );
        }
    };
    let gateway = match wire.ipv4_gateway.as_str() {
        "" => None,
        text => match text.parse::<Ipv4Addr>() {
            Ok(gateway) if network.contains(&gateway) => Some(gateway),
            _ => {
                let problem = format!("{:?} is not a host of {network}", shown(text));
                return refuse("lan.ipv4_gateway", problem);
            }
        },
    };
    let uplink = || match is_link_name(&wire.uplink) {
        true => Ok(wire.uplink.clone()),
        false => refuse(
            "lan.uplink",
            format!("{:?} is not the name of a link", shown(&wire.uplink)),
        ),
    };
    let link = match wire.kind() {
        wire::LanKind::Macvlan => LanLink::Macvlan { uplink: uplink()? },
        wire::LanKind::Vlan => LanLink::Vlan {
            uplink: uplink()?,
            id: match u16::try_from(wire.vlan_id) {
                Ok(id) if VLAN_IDS.contains(&wire.vlan_id) => id,
                _ => return refuse("lan.vlan_id", format!("{} is not of 1 to 4094", wire.vlan_id)),
            },
        },
        wire::LanKind::Interface => LanLink::Interface,
        wire::LanKind::Unspecified => return refuse("lan.kind", format!("{} is not known", wire.kind)),
    };
    Ok(Some(Lan {
        link,
        network,
        gateway,
    }))
}

/// What the kernel takes, and is one word in a path and a message.
pub(crate) fn is_link_name(name: &str) -> bool {
    let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=LINK_CHARS_MAX).contains(&name.len())
        && name.chars().all(usual)
        && !matches!(name, "." | ".." | "lo")
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    fn said() -> wire::Lan {
        wire::Lan {
            kind: wire::LanKind::Vlan.into(),
            uplink: "eth1".into(),
            vlan_id: 7,
            ipv4_cidr: "192.168.1.0/24".into(),
            ipv4_gateway: "192.168.1.1".into(),
        }
    }

    #[test]
    fn what_is_no_lan_is_refused_by_name() {
        let good = lan(Some(said())).unwrap().unwrap();
        let uplink = "eth1".to_owned();
        assert_eq!(good.link, LanLink::Vlan { uplink, id: 7 });
        assert_eq!(good.gateway, Some(Ipv4Addr::new(192, 168, 1, 1)));
        let with = |change: fn(&mut wire::Lan)| {
            let mut wire = said();
            change(&mut wire);
            lan(Some(wire)).unwrap_err().field
        };
        assert_eq!(with(|lan| lan.kind = 9), "lan.kind");
        assert_eq!(with(|lan| lan.uplink = "../eth".into()), "lan.uplink");
        assert_eq!(with(|lan| lan.uplink = "lo".into()), "lan.uplink");
        assert_eq!(with(|lan| lan.vlan_id = 4095), "lan.vlan_id");
        assert_eq!(
            with(|lan| lan.ipv4_cidr = "192.168.1.7/24".into()),
            "lan.ipv4_cidr"
        );
        assert_eq!(
            with(|lan| lan.ipv4_gateway = "10.0.0.1".into()),
            "lan.ipv4_gateway"
        );
    }

    proptest! {
        #[test]
        fn any_lan_is_taken_or_refused(
            kind in any::<i32>(), uplink in ".{0,20}", vlan_id in any::<u32>(), ipv4_cidr in ".{0,20}",
            ipv4_gateway in ".{0,16}",
        ) {
            let _ = lan(Some(wire::Lan { kind, uplink, vlan_id, ipv4_cidr, ipv4_gateway }));
        }
    }
}
