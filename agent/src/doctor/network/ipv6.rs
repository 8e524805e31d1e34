//! Whether tasks can have the IPv6 addresses that are set for them.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use super::Finding;

const CHECK: &str = "task IPv6";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    link: String,
    to: Ipv6Net,
}

/// The kernel's `rt6_info_route`: all numbers in hexadecimal.
pub(super) fn parse_routes(text: &str) -> Vec<Route> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = u128::from_str_radix(fields.first()?, 16).ok()?;
        let len = u8::from_str_radix(fields.get(1)?, 16).ok()?;
        Some(Route {
            link: (*fields.get(9)?).to_owned(),
            to: Ipv6Net::new(Ipv6Addr::from(address), len).ok()?,
        })
    };
    text.lines().filter_map(parse).collect()
}

pub(super) fn judge(
    range: Ipv6Net,
    usable: Result<(), String>,
    routes: &[Route],
    own_prefix: &str,
) -> Finding {
    if let Err(problem) = usable {
        let advice = "set net.ipv6.conf.all.disable_ipv6 = 0 and net.ipv6.conf.default.disable_ipv6 = 0, start the kernel \
                      without ipv6.disable=1, or take task_cidr_v6 away";
        return Finding::problem(CHECK, problem, advice);
    }
    let own = |route: &&Route| !own_prefix.is_empty() && route.link.starts_with(own_prefix);
    let overlaps = |to: Ipv6Net| to.prefix_len() > 3 && (to.contains(&range) || range.contains(&to));
    let mut others = routes.iter().filter(|route| !own(route));
    if let Some(taken) = others.find(|route| overlaps(route.to)) {
        return Finding::problem(
            CHECK,
            format!("{range} overlaps {} on {}", taken.to, taken.link),
            "tasks and that network would not reach each other: set task_cidr_v6 to a prefix that nothing else uses",
        );
    }
    Finding::ok(CHECK, format!("{range}, to which this host has no other route"))
}

#[cfg(test)]
mod tests {
    use super::{super::super::Outcome, *};

    const ROUTES: &str = "\
        fd000077000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 00000001 babcd12345\n\
        fd000099000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n\
        00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0\n";

    #[test]
    fn what_keeps_tasks_or_the_host_from_ipv6_is_a_problem() {
        let routes = parse_routes(ROUTES);
        assert_eq!(routes.len(), 3);
        let judged =
            |range: &str, usable: Result<(), String>| judge(range.parse().unwrap(), usable, &routes, "babcd");
        for (range, outcome) in [
            ("fd00:77::a59:0/118", Outcome::Ok),
            ("fd00:99::a59:0/118", Outcome::Problem),
        ] {
            let finding = judged(range, Ok(()));
            assert_eq!(finding.outcome, outcome, "{finding:?}");
        }
        let finding = judged("fd00:77::a59:0/118", Err("no IPv6".into()));
        assert_eq!(
            (finding.outcome, finding.found.as_str()),
            (Outcome::Problem, "no IPv6")
        );
    }
}
