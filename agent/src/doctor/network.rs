//! Whether this kernel can carry the tasks' networks, and whether anything is in their way.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Finding;
use crate::{config::Config, effects::network, sys::Chain};

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = vec![kernel(config).await];
    let (firewall, prefix) = firewall(&config.instance).await;
    findings.push(firewall);
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    findings.push(addresses(config.task_cidr, &parse_routes(&routes), &prefix));
    findings
}

async fn kernel(config: &Config) -> Finding {
    const CHECK: &str = "task network";
    match network::probe(&config.instance, config.task_cidr).await {
        Ok(()) => Finding::ok(CHECK, "namespace, veth pair and nftables table can be made"),
        Err(error) => Finding::problem(
            CHECK,
            Chain(&error).to_string(),
            "as root: `modprobe veth nf_tables nft_fib_inet nft_masq` and `apt install nftables` bring what is usually missing",
        ),
    }
}

async fn firewall(instance: &str) -> (Finding, String) {
    const CHECK: &str = "firewall";
    match network::foreign_drops(instance).await {
        Ok((chains, prefix)) if chains.is_empty() => (
            Finding::ok(CHECK, "no other firewall drops forwarded packets"),
            prefix,
        ),
        Ok((chains, prefix)) => (judge_drops(&chains, &prefix), prefix),
        Err(error) => {
            let advice = "as root, with nftables installed: `nft list chains` says more";
            (
                Finding::problem(CHECK, Chain(&error).to_string(), advice),
                String::new(),
            )
        }
    }
}

/// Every base chain of a hook must accept: ours cannot overrule another's drop.
fn judge_drops(chains: &[String], prefix: &str) -> Finding {
    let commands = chains.iter().map(|chain| {
        // What docker keeps for rules of others, and evaluates first.
        let place = if chain == "ip filter FORWARD" && docker_user() {
            "ip filter DOCKER-USER"
        } else {
            chain.as_str()
        };
        format!(
            "nft insert rule {place} iifname '\"{prefix}*\"' accept; nft insert rule {place} oifname '\"{prefix}*\"' accept"
        )
    });
    let commands: Vec<String> = commands.collect();
    Finding::warning(
        "firewall",
        format!(
            "{} drops forwarded packets: tasks reach nothing beyond this host",
            chains.join(", ")
        ),
        format!(
            "let the tasks' links through, in that firewall's own configuration to keep it; until its next restart:\n{}",
            commands.join("\n")
        ),
    )
}

fn docker_user() -> bool {
    let listed = std::process::Command::new("nft")
        .args(["list", "chain", "ip", "filter", "DOCKER-USER"])
        .output();
    listed.is_ok_and(|output| output.status.success())
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
        let finding = judge_drops(&["inet firewalld filter_FORWARD".into()], "babcd");
        assert_eq!(finding.outcome, Outcome::Warning);
        assert!(
            finding
                .advice
                .contains("nft insert rule inet firewalld filter_FORWARD iifname '\"babcd*\"' accept"),
            "{finding:?}"
        );
    }
}
