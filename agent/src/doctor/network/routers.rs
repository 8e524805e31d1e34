//! Whether the host still hears its routers: a kernel that forwards IPv6 listens to no router advertisements unless it is told
//! to listen all the same, and forgets what it knew from them.

use std::{collections::BTreeSet, fs};

use super::Finding;

const CHECK: &str = "IPv6 routers";
/// `IFA_F_PERMANENT` of the kernel's if_addr.h: it does not end.
const PERMANENT: u8 = 0x80;
/// The kernel's number of a scope beyond one link.
const GLOBAL: &str = "00";

/// One of the host's that leads out of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Link {
    name: String,
    /// It was told to listen to routers as long as the host is none, and the host is one.
    deaf: bool,
    /// It makes itself addresses as routers say.
    makes_addresses: bool,
    /// It has an address that ends.
    learned: bool,
    /// It has an address or a route beyond the link.
    used: bool,
}

/// `tasks_have_ipv6`: they are not reached when the host's own addresses have ended.
pub(super) fn check(own_prefix: &str, tasks_have_ipv6: bool) -> Option<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (addresses, routes) = (read("/proc/net/if_inet6"), read("/proc/net/ipv6_route"));
    let learned: BTreeSet<_> = addresses.lines().filter_map(learned).collect();
    let used = addresses.lines().filter_map(with_address);
    let used: BTreeSet<_> = used.chain(routes.lines().filter_map(with_route)).collect();
    let names = fs::read_dir("/proc/sys/net/ipv6/conf").ok()?.flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let is_of_host = |name: &String| {
        let is_own = !own_prefix.is_empty() && name.starts_with(own_prefix);
        !is_own && !["all", "default", "lo"].contains(&name.as_str())
    };
    let link = |name: String| {
        let setting = |setting: &str| read(&format!("/proc/sys/net/ipv6/conf/{name}/{setting}"));
        let is = |of: &str, value: &str| setting(of).trim() == value;
        let state = read(&format!("/sys/class/net/{name}/operstate"));
        let has_device = fs::exists(format!("/sys/class/net/{name}/device")).unwrap_or(false);
        Link {
            deaf: is("forwarding", "1") && is("accept_ra", "1") && is("disable_ipv6", "0"),
            makes_addresses: is("autoconf", "1") && has_device && state.trim() == "up",
            learned: learned.contains(name.as_str()),
            used: used.contains(name.as_str()),
            name,
        }
    };
    let links: Vec<_> = names.filter(is_of_host).map(link).collect();
    Some(judge(&links, tasks_have_ipv6))
}

/// A line of if_inet6: address, index, length, scope, flags, link.
fn fields(line: &str) -> Option<(&str, u8, &str)> {
    let mut fields = line.split_whitespace().skip(3);
    let scope = fields.next()?;
    let flags = u8::from_str_radix(fields.next()?, 16).ok()?;
    Some((scope, flags, fields.next()?))
}

fn with_address(line: &str) -> Option<&str> {
    let (scope, _, link) = fields(line)?;
    (scope == GLOBAL).then_some(link)
}

fn learned(line: &str) -> Option<&str> {
    let (_, flags, _) = fields(line)?;
    with_address(line).filter(|_| flags & PERMANENT == 0)
}

/// A line of ipv6_route: destination first, link last.
fn with_route(line: &str) -> Option<&str> {
    let is_of_link = ["fe80", "ff00"].iter().any(|prefix| line.starts_with(prefix));
    line.split_whitespace().last().filter(|_| !is_of_link)
}

fn judge(links: &[Link], tasks_have_ipv6: bool) -> Finding {
    let advice = |link: &Link| {
        let name = &link.name;
        format!(
            "as root: `sysctl -w net.ipv6.conf.{name}.accept_ra=2`, and the same in a file in /etc/sysctl.d"
        )
    };
    let deaf = || links.iter().filter(|link| link.deaf);
    if let Some(link) = deaf().find(|link| link.learned) {
        let found = format!(
            "this host forwards IPv6, and does not hear its routers on {} any more: its addresses there end",
            link.name
        );
        return match tasks_have_ipv6 {
            true => Finding::problem(CHECK, found, advice(link)),
            false => Finding::warning(CHECK, found, advice(link)),
        };
    }
    if let Some(link) = deaf().find(|link| link.makes_addresses && !link.used) {
        let found = format!(
            "this host forwards IPv6, and hears no routers on {}, where it has no address or route of IPv6",
            link.name
        );
        return Finding::warning(CHECK, found, format!("where there are any, {}", advice(link)));
    }
    Finding::ok(CHECK, "no link of this host lost them to forwarding")
}

#[cfg(test)]
mod tests {
    use super::{super::super::Outcome, *};

    #[test]
    fn a_link_that_went_deaf_is_found_also_once_all_that_it_knew_has_ended() {
        let link = |deaf, makes_addresses, learned, used| Link {
            name: "eth0".into(),
            deaf,
            makes_addresses,
            learned,
            used,
        };
        for (link, outcome) in [
            (link(false, true, true, true), Outcome::Ok),
            (link(true, true, true, true), Outcome::Problem),
            (link(true, true, false, false), Outcome::Warning),
            // What somebody gave it stays, and it needs no router.
            (link(true, true, false, true), Outcome::Ok),
            // Such as a veth of another's container.
            (link(true, false, false, false), Outcome::Ok),
        ] {
            let links = [Link::default(), link];
            let finding = judge(&links, true);
            assert_eq!(finding.outcome, outcome, "{finding:?}");
            let says = finding.advice.contains("net.ipv6.conf.eth0.accept_ra=2");
            assert_eq!(says, outcome != Outcome::Ok, "{finding:?}");
            assert_ne!(judge(&links, false).outcome, Outcome::Problem);
        }
    }

    #[test]
    fn what_ends_and_what_stays_is_read_from_the_kernels_lists() {
        let addresses = "\
            fe80000000000000021122fffe334455 02 40 20 80     eth0\n\
            20010db8000000000211220ffe334455 02 40 00 00     eth0\n\
            fd000099000000000000000000000001 03 40 00 80     eth1\n\
            not a line\n";
        let all = |of: fn(&str) -> Option<&str>| addresses.lines().filter_map(of).collect::<Vec<_>>();
        assert_eq!(all(with_address), ["eth0", "eth1"]);
        assert_eq!(all(learned), ["eth0"]);
        let route = "fd000099000000000000000000000000 40 0 00 0 00000100 00000001 00000000 00000001     eth1";
        assert_eq!(with_route(route), Some("eth1"));
        assert_eq!(with_route(&route.replacen("fd00", "fe80", 1)), None);
    }
}
