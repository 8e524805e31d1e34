//! Owns the choice of addresses for tasks: a range that no route of this host covers. Never sets a route.

use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;

use super::DevError;

/// Where a range is looked for when none is asked for.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 89, 0, 0), 16);
const DEFAULT_PREFIX: u8 = 24;
/// A smaller range holds no tasks worth the name.
const PREFIX_MAX: u8 = 29;

/// How the range came about, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Asked,
    Kept,
    Free,
}

impl Origin {
    pub fn explain(self) -> &'static str {
        match self {
            Self::Asked => "--task-cidr",
            Self::Kept => "as at the first start",
            Self::Free => "the first /24 of 10.89.0.0/16 that this host has no route to",
        }
    }
}

/// The range to use. `kept` is the one this state directory used before: routes into it are its own.
pub fn choose(
    asked: Option<Ipv4Net>,
    kept: Option<Ipv4Net>,
    routes: &[Ipv4Net],
) -> Result<(Ipv4Net, Origin), DevError> {
    let taken = |range: &Ipv4Net| {
        routes.iter().copied().find(|route| {
            // A killed predecessor leaves routes to single tasks.
            let own = kept == Some(*range) && route.prefix_len() == 32 && range.contains(route);
            !own && (range.contains(route) || route.contains(range))
        })
    };
    if let Some(asked) = asked {
        let asked = asked.trunc();
        if asked.prefix_len() > PREFIX_MAX {
            return Err(DevError::CidrSmall(asked));
        }
        return match taken(&asked) {
            Some(route) => Err(DevError::CidrTaken { given: asked, route }),
            None => Ok((asked, Origin::Asked)),
        };
    }
    if let Some(kept) = kept.filter(|kept| taken(kept).is_none()) {
        return Ok((kept, Origin::Kept));
    }
    let free = POOL
        .subnets(DEFAULT_PREFIX)
        .into_iter()
        .flatten()
        .find(|range| taken(range).is_none());
    free.map(|range| (range, Origin::Free))
        .ok_or(DevError::NoCidr { pool: POOL })
}

/// The range written down at an earlier start.
pub fn read_kept(path: &Path) -> Option<Ipv4Net> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// This host's IPv4 routes, without the default ones.
pub fn read_routes() -> Result<Vec<Ipv4Net>, DevError> {
    let path = "/proc/net/route";
    Ok(parse_routes(
        &std::fs::read_to_string(path).map_err(DevError::path(path))?,
    ))
}

/// The format is the kernel's `fib_route_seq_show`: addresses in hexadecimal, in the host's byte order.
fn parse_routes(text: &str) -> Vec<Ipv4Net> {
    let address = |field: &str| {
        u32::from_str_radix(field, 16)
            .ok()
            .map(|raw| Ipv4Addr::from(raw.to_ne_bytes()))
    };
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let route = Ipv4Net::with_netmask(address(fields.get(1)?)?, address(fields.get(7)?)?).ok()?;
            (route.prefix_len() > 0).then_some(route)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_free_range_is_chosen() {
        assert_eq!(
            choose(None, None, &[]).unwrap(),
            (net("10.89.0.0/24"), Origin::Free)
        );
        let routes = [net("10.89.0.7/32"), net("10.89.1.0/25"), net("192.0.2.0/24")];
        assert_eq!(
            choose(None, None, &routes).unwrap(),
            (net("10.89.2.0/24"), Origin::Free)
        );
        assert!(matches!(
            choose(None, None, &[net("10.0.0.0/8")]),
            Err(DevError::NoCidr { .. })
        ));
    }

    #[test]
    fn a_killed_predecessors_routes_are_no_obstacle() {
        let kept = Some(net("10.89.3.0/24"));
        assert_eq!(
            choose(None, kept, &[net("10.89.3.9/32")]).unwrap(),
            (net("10.89.3.0/24"), Origin::Kept)
        );
        // Somebody else took it meanwhile.
        assert_eq!(
            choose(None, kept, &[net("10.89.3.0/24")]).unwrap(),
            (net("10.89.0.0/24"), Origin::Free)
        );
    }

    #[test]
    fn what_is_asked_for_is_checked() {
        assert_eq!(
            choose(Some(net("10.9.1.5/24")), None, &[]).unwrap(),
            (net("10.9.1.0/24"), Origin::Asked)
        );
        let error = choose(Some(net("192.0.2.0/25")), None, &[net("192.0.2.0/24")]).unwrap_err();
        assert!(error.to_string().contains("192.0.2.0/24"), "{error}");
        assert!(matches!(
            choose(Some(net("10.9.1.0/30")), None, &[]),
            Err(DevError::CidrSmall(_))
        ));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_table_is_understood() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(parse_routes(text), [net("192.0.2.0/24")]);
    }
}
