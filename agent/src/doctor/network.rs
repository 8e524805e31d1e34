//! Whether this kernel can carry the tasks' networks, and whether anything is in their way.

mod ipv6;
mod routers;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Finding;
use crate::{
    config::Config,
    dial::{Dialer, FirstHop},
    effects::network::{self, Drops, Lendable, Place},
    sys::Chain,
};

const TASK_INTERFACES: &str = "task interfaces";

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = vec![kernel(config).await];
    let (firewall, prefix) = firewall(config).await;
    findings.push(firewall);
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    findings.push(addresses(config.task_cidr, &parse_routes(&routes), &prefix));
    if let Some(range) = config.task_range().ok().and_then(|range| range.ipv6()) {
        let routes = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
        let usable = network::check_ipv6().map_err(|error| Chain(&error).to_string());
        findings.push(ipv6::judge(range, usable, &ipv6::parse_routes(&routes), &prefix));
    }
    findings.extend(routers::check(&prefix, config.task_cidr_v6.is_some()));
    if !config.network.task_interfaces.is_empty() {
        findings.push(
            match network::lendable(&config.network.task_interfaces, way(&config.control_plane)).await {
                Ok(judged) => interfaces(&judged),
                Err(error) => Finding::problem(
                    TASK_INTERFACES,
                    Chain(&error).to_string(),
                    "`ip link` and `ip route` say more",
                ),
            },
        );
    }
    findings
}

/// Whom the host talks to in order to reach the control plane. What is wrong with that is said elsewhere.
fn way(control_plane: &str) -> FirstHop {
    match (Dialer::from_env(), control_plane.parse()) {
        (Ok(dialer), Ok(to)) => dialer.way_to(&to),
        _ => FirstHop::default(),
    }
}

/// What is given to a task leads nowhere for the host meanwhile.
fn interfaces(judged: &[(String, Lendable)]) -> Finding {
    let refused = judged.iter().find_map(|(name, judged)| match judged {
        Lendable::No(why) => Some((name, why)),
        Lendable::Yes | Lendable::Missing => None,
    });
    if let Some((name, why)) = refused {
        return Finding::problem(
            TASK_INTERFACES,
            format!("{name} {why}: no task ever gets it"),
            "take it out of network.task_interfaces",
        );
    }
    match judged.iter().find(|(_, judged)| *judged == Lendable::Missing) {
        None => {
            let names: Vec<_> = judged.iter().map(|(name, _)| name.as_str()).collect();
            Finding::ok(
                TASK_INTERFACES,
                format!("{} can be given to tasks", names.join(", ")),
            )
        }
        Some((name, _)) => Finding::warning(
            TASK_INTERFACES,
            format!("there is no link {name}, unless a task has it"),
            "take it out of network.task_interfaces, or see why it is missing: `ip link`",
        ),
    }
}

async fn kernel(config: &Config) -> Finding {
    const CHECK: &str = "task network";
    // A bad one was said where the configuration was read.
    let range = config.task_range().unwrap_or(config.task_cidr.into());
    match network::probe(&config.instance, range).await {
        Ok(()) => Finding::ok(CHECK, "namespace, veth pair and nftables table can be made"),
        Err(error) => Finding::problem(
            CHECK,
            Chain(&error).to_string(),
            "as root: `modprobe veth nf_tables nft_fib_inet nft_masq` and `apt install nftables` bring what is usually missing",
        ),
    }
}

async fn firewall(config: &Config) -> (Finding, String) {
    const CHECK: &str = "firewall";
    match network::foreign_drops(&config.instance, config.task_cidr_v6.is_some()).await {
        Ok((drops, prefix)) => (
            judge_drops(&drops, &prefix, config.network.pass_other_firewalls),
            prefix,
        ),
        Err(error) => {
            let advice = "as root, with nftables installed: `nft list chains` says more";
            (
                Finding::problem(CHECK, Chain(&error).to_string(), advice),
                String::new(),
            )
        }
    }
}

/// Every base chain of a hook must accept: ours cannot overrule another's drop. `may_pass`: the agent sees to it, where that
/// firewall has a place for rules of others.
fn judge_drops(drops: &[Drops], prefix: &str, may_pass: bool) -> Finding {
    const CHECK: &str = "firewall";
    if drops.is_empty() {
        return Finding::ok(CHECK, "no other firewall drops forwarded packets");
    }
    let chains = |drops: &[&Drops]| {
        let names: Vec<_> = drops.iter().map(|drops| drops.chain.as_str()).collect();
        names.join(", ")
    };
    let (own, left): (Vec<_>, Vec<_>) = drops
        .iter()
        .partition(|drops| drops.passes || (may_pass && drops.place != Place::Chain));
    if left.is_empty() {
        let found = format!(
            "{} drops forwarded packets, and lets those of tasks through{}",
            chains(&own),
            if own.iter().all(|drops| drops.passes) {
                ""
            } else {
                " once the agent runs"
            }
        );
        return Finding::ok(CHECK, found);
    }
    let setting = match left.iter().any(|drops| drops.place != Place::Chain) {
        true => {
            "set network.pass_other_firewalls = true, and the agent keeps rules there that accept tasks' links; or "
        }
        false => "",
    };
    let commands: Vec<String> = left.iter().flat_map(|drops| drops.commands(prefix)).collect();
    Finding::problem(
        CHECK,
        format!(
            "{} drops forwarded packets: tasks reach nothing beyond this host",
            chains(&left)
        ),
        format!(
            "{setting}let them through in that firewall's own configuration; until its next restart:\n{}",
            commands.join("\n")
        ),
    )
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    link: String,
    to: Ipv4Net,
}

/// The kernel's `fib_route_seq_show`: addresses in hexadecimal, in the host's byte order. Default routes are left out.
fn parse_routes(text: &str) -> Vec<Route> {
    let address = |field: &str| {
        u32::from_str_radix(field, 16)
            .ok()
            .map(|raw| Ipv4Addr::from(raw.to_ne_bytes()))
    };
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let to = Ipv4Net::with_netmask(address(fields.get(1)?)?, address(fields.get(7)?)?).ok()?;
        let link = (*fields.first()?).to_owned();
        (to.prefix_len() > 0).then_some(Route { link, to })
    };
    text.lines().skip(1).filter_map(parse).collect()
}

fn addresses(range: Ipv4Net, routes: &[Route], own_prefix: &str) -> Finding {
    const CHECK: &str = "task addresses";
    let own = |route: &Route| !own_prefix.is_empty() && route.link.starts_with(own_prefix);
    let taken = routes
        .iter()
        .filter(|route| !own(route))
        .find(|route| route.to.contains(&range) || range.contains(&route.to));
    match taken {
        None => Finding::ok(CHECK, format!("{range}, to which this host has no other route")),
        Some(route) => Finding::problem(
            CHECK,
            format!("{range} overlaps {} on {}", route.to, route.link),
            "tasks and that network would not reach each other: set task_cidr to a range that nothing else uses",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
        babcd12345\t0200590A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";

    #[test]
    fn the_link_of_the_default_route_is_no_tasks() {
        let good = ("eth1".to_owned(), Lendable::Yes);
        let gone = ("eth2".to_owned(), Lendable::Missing);
        let no = (
            "eth0".to_owned(),
            Lendable::No("is a link of the default route".into()),
        );
        assert_eq!(interfaces(std::slice::from_ref(&good)).outcome, Outcome::Ok);
        assert_ne!(interfaces(&[good.clone(), gone.clone()]).outcome, Outcome::Ok);
        assert_eq!(interfaces(&[good, gone, no]).outcome, Outcome::Problem);
    }

    #[test]
    fn a_range_that_the_host_routes_elsewhere_is_a_problem() {
        let routes = parse_routes(ROUTES);
        assert_eq!(routes.len(), 2);
        let judged = |range: &str| addresses(range.parse().unwrap(), &routes, "babcd").outcome;
        assert_eq!(
            judged("10.89.0.0/22"),
            Outcome::Ok,
            "routes of our own tasks do not count"
        );
        assert_eq!(judged("192.0.0.0/16"), Outcome::Problem);
        assert_eq!(judged("192.0.2.128/25"), Outcome::Problem);
        assert_eq!(
            addresses("10.89.0.0/22".parse().unwrap(), &routes, "").outcome,
            Outcome::Problem
        );
    }

    #[test]
    fn a_chain_that_drops_comes_with_the_command_that_lets_tasks_through() {
        let drops = |chain: &str, place, passes| Drops {
            chain: chain.into(),
            place,
            passes,
        };
        let docker = |passes| {
            drops(
                "ip filter FORWARD",
                Place::DockerUser("ip filter DOCKER-USER"),
                passes,
            )
        };
        let finding = judge_drops(&[docker(false)], "babcd", false);
        assert_eq!(finding.outcome, Outcome::Problem);
        assert!(
            finding
                .advice
                .contains("nft insert rule ip filter DOCKER-USER iifname '\"babcd*\"' accept"),
            "{finding:?}"
        );
        for (passes, may_pass) in [(true, false), (false, true)] {
            assert_eq!(
                judge_drops(&[docker(passes)], "babcd", may_pass).outcome,
                Outcome::Ok
            );
        }
        // Nobody keeps a place for rules of others there.
        let own = drops("inet fw forward", Place::Chain, false);
        let finding = judge_drops(&[docker(true), own], "babcd", true);
        assert_eq!(finding.outcome, Outcome::Problem);
        assert!(!finding.found.contains("FORWARD") && !finding.advice.contains("pass_other_firewalls"));
    }
}
