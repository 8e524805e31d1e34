//! Owns what other firewalls of the host do to our packets, and, with the operator's permission, the accept rules in the places
//! that these firewalls keep for others: docker's chain DOCKER-USER, firewalld's zone `trusted`. Each rule is tagged with the
//! instance. Nothing else of theirs is ever changed.

use std::{io, process::Stdio, time::Duration};

use serde::Deserialize;
use tokio::process::Command;

use super::{
    super::{error::NetworkError, names::Names},
    nft::{nft, run_script},
};

/// One run of `firewall-cmd`, a script: half a second where the machine is busy.
const FIREWALL_CMD_DEADLINE: Duration = Duration::from_secs(10);
/// Docker's filters, by its `iptables` and `ip6tables`.
const DOCKER: [Docker; 2] = [
    Docker {
        forward: "ip filter FORWARD",
        user: "ip filter DOCKER-USER",
    },
    Docker {
        forward: "ip6 filter FORWARD",
        user: "ip6 filter DOCKER-USER",
    },
];
/// The name of firewalld's tables.
const FIREWALLD: &str = " firewalld ";

/// Its chains of one family, as `nft` takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Docker {
    /// Drops.
    forward: &'static str,
    /// Its place for rules of others.
    user: &'static str,
}

/// A chain of another firewall that drops forwarded packets unless a rule of it says otherwise, by its policy (docker) or by
/// its last rule (firewalld): our accept cannot overrule it, because every base chain of a hook must accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drops {
    /// As `nft` takes it: `family table chain`.
    pub(crate) chain: String,
    /// Where that firewall looks for rules of others.
    pub(crate) place: Place,
    /// Both directions of the tasks' links are accepted there.
    pub(crate) passes: bool,
}

/// Where an accept rule belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Docker's chain, as `nft` takes it.
    DockerUser(&'static str),
    TrustedZone,
    /// That firewall has none: its own chain.
    Chain,
}

impl Drops {
    /// What an operator can do about it, as commands.
    pub(crate) fn commands(&self, prefix: &str) -> Vec<String> {
        let insert = |chain: &str| {
            let rule = |way| format!("nft insert rule {chain} {way} '\"{prefix}*\"' accept");
            vec![rule("iifname"), rule("oifname")]
        };
        match self.place {
            Place::DockerUser(chain) => insert(chain),
            Place::TrustedZone => vec![format!("firewall-cmd --zone=trusted --add-interface={prefix}+")],
            Place::Chain => insert(&self.chain),
        }
    }
}

/// The chains of others that drop what tasks send and get, of IPv6 too where they have that.
pub(in super::super) async fn foreign_drops(names: &Names, ipv6: bool) -> Result<Vec<Drops>, NetworkError> {
    let listing = nft("list chains", &["-j", "list", "chains"], "").await?;
    let (chains, docker) = forward_chains(&listing, names.table(), ipv6);
    let mut drops = Vec::new();
    for (chain, drops_by_policy) in chains {
        let own = rules(&chain).await?;
        if !drops_by_policy && !own.last().is_some_and(Rule::drops_all) {
            continue;
        }
        let docker = docker.iter().find(|docker| docker.forward == chain);
        let place = match docker {
            Some(docker) => Place::DockerUser(docker.user),
            None if chain.contains(FIREWALLD) => Place::TrustedZone,
            None => Place::Chain,
        };
        let passes = match place {
            Place::DockerUser(chain) => accepts(&rules(chain).await?, names.prefix()),
            Place::TrustedZone => is_trusted(names).await,
            Place::Chain => accepts(&own, names.prefix()),
        };
        drops.push(Drops { chain, place, passes });
    }
    Ok(drops)
}

/// Has the tasks' links accepted by those firewalls that have a place for it, where they are not. Idempotent. What still drops is
/// returned.
pub(in super::super) async fn let_through(names: &Names, ipv6: bool) -> Result<Vec<Drops>, NetworkError> {
    for drops in foreign_drops(names, ipv6)
        .await?
        .iter()
        .filter(|drops| !drops.passes)
    {
        match drops.place {
            Place::DockerUser(chain) => accept_in_docker_user(chain, names).await?,
            Place::TrustedZone => firewall_cmd("--add-interface", names).await.map(drop)?,
            Place::Chain => {}
        }
    }
    let mut left = foreign_drops(names, ipv6).await?;
    left.retain(|drops| !drops.passes);
    Ok(left)
}

/// Takes back what [`let_through`] did, of this instance. Idempotent; those firewalls may be gone.
pub(in super::super) async fn take_back(names: &Names) -> Result<(), NetworkError> {
    let mut script = String::new();
    for docker in DOCKER {
        script += &delete_tagged(docker.user, names).await?;
    }
    if !script.is_empty() {
        run_script("take back rules in DOCKER-USER", &script).await?;
    }
    let listing = nft("list chains", &["-j", "list", "chains"], "").await?;
    if has_table(&listing, FIREWALLD.trim()) && is_trusted(names).await {
        firewall_cmd("--remove-interface", names).await?;
    }
    Ok(())
}

/// The rules of before are replaced: only one of them may be left.
async fn accept_in_docker_user(chain: &str, names: &Names) -> Result<(), NetworkError> {
    let (prefix, tag) = (names.prefix(), tag(names));
    let rule = |way| format!("insert rule {chain} {way} \"{prefix}*\" counter accept comment \"{tag}\"\n");
    let script = delete_tagged(chain, names).await? + &rule("iifname") + &rule("oifname");
    run_script("insert rules into DOCKER-USER", &script).await
}

async fn delete_tagged(chain: &str, names: &Names) -> Result<String, NetworkError> {
    let tag = tag(names);
    let all = rules(chain).await?;
    let tagged = all.iter().filter(|rule| rule.comment.as_deref() == Some(&tag));
    Ok(tagged
        .map(|rule| format!("delete rule {chain} handle {}\n", rule.handle))
        .collect())
}

fn tag(names: &Names) -> String {
    format!("berth: tasks of instance {}", names.table())
}

/// Of one chain, none where there is no such chain.
async fn rules(chain: &str) -> Result<Vec<Rule>, NetworkError> {
    let mut words = vec!["-j", "-a", "list", "chain"];
    words.extend(chain.split(' '));
    match nft("list a chain", &words, "").await {
        Ok(listing) => Ok(parse(&listing)
            .into_iter()
            .filter_map(|entry| entry.rule)
            .collect()),
        Err(NetworkError::Nft { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Both what comes from the links and what goes to them is accepted.
fn accepts(rules: &[Rule], prefix: &str) -> bool {
    ["iifname", "oifname"].iter().all(|way| {
        let links = format!("{prefix}*");
        rules.iter().any(|rule| rule.accepts(way, &links))
    })
}

async fn is_trusted(names: &Names) -> bool {
    matches!(firewall_cmd("--query-interface", names).await, Ok(true))
}

/// Whether it said yes.
async fn firewall_cmd(what: &'static str, names: &Names) -> Result<bool, NetworkError> {
    let failed = |source: io::Error| NetworkError::FirewallCmd { what, source };
    let run = Command::new("firewall-cmd")
        .arg("--zone=trusted")
        .arg(format!("{what}={}+", names.prefix()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    let run = tokio::time::timeout(FIREWALL_CMD_DEADLINE, run).await;
    let run = run.map_err(|_| NetworkError::Deadline {
        step: "ask",
        subject: "firewall-cmd".to_owned(),
        deadline: FIREWALL_CMD_DEADLINE,
    })?;
    let status = run.map_err(failed)?;
    // A query answers with 1 for no.
    if !status.success() && what != "--query-interface" {
        return Err(failed(io::Error::other(status.to_string())));
    }
    Ok(status.success())
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    chain: Option<Chain>,
    rule: Option<Rule>,
}

/// As libnftables-json(5) has it.
#[derive(Deserialize)]
struct Rule {
    handle: u64,
    comment: Option<String>,
    #[serde(default)]
    expr: Vec<serde_json::Value>,
}

impl Rule {
    /// It is nothing but an accept of these links.
    fn accepts(&self, way: &str, links: &str) -> bool {
        let matches = |expr: &serde_json::Value| {
            expr.pointer("/match/left/meta/key").and_then(|key| key.as_str()) == Some(way)
                && expr.pointer("/match/right").and_then(|right| right.as_str()) == Some(links)
        };
        let others = self.expr.iter().filter(|expr| !matches(expr));
        self.expr.iter().any(matches)
            && others.clone().any(|expr| expr.get("accept").is_some())
            && others.clone().all(|expr| expr.get("match").is_none())
    }

    /// Whatever comes to it goes no further.
    fn drops_all(&self) -> bool {
        let drops = |expr: &serde_json::Value| expr.get("drop").is_some() || expr.get("reject").is_some();
        self.expr.iter().any(drops) && self.expr.iter().all(|expr| expr.get("match").is_none())
    }
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

fn parse(listing: &[u8]) -> Vec<Entry> {
    serde_json::from_slice::<Listing>(listing).map_or_else(|_| Vec::new(), |listing| listing.nftables)
}

fn has_table(listing: &[u8], table: &str) -> bool {
    let chains = parse(listing).into_iter().filter_map(|entry| entry.chain);
    chains.into_iter().any(|chain| chain.table == table)
}

/// Those of others that see forwarded packets, with whether their policy drops; and of docker's those beside which its place for
/// rules of others is.
fn forward_chains(listing: &[u8], own_table: &str, ipv6: bool) -> (Vec<(String, bool)>, Vec<Docker>) {
    let sees = |chain: &&Chain| {
        chain.hook.as_deref() == Some("forward")
            && (matches!(chain.family.as_str(), "ip" | "inet") || ipv6 && chain.family == "ip6")
            && chain.table != own_table
    };
    let chains: Vec<Chain> = parse(listing)
        .into_iter()
        .filter_map(|entry| entry.chain)
        .collect();
    let forward = chains.iter().filter(sees);
    let forward = forward.map(|chain| (chain.name(), chain.policy.as_deref() == Some("drop")));
    let is_there = |docker: &Docker| chains.iter().any(|chain| chain.name() == docker.user);
    (forward.collect(), DOCKER.into_iter().filter(is_there).collect())
}

impl Chain {
    fn name(&self) -> String {
        format!("{} {} {}", self.family, self.table, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_forward_chains_of_others_are_looked_at() {
        let listing = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter",
                       "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 2}},
            {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter",
                       "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "input", "handle": 1, "type": "filter",
                       "hook": "input", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "berth", "name": "forward", "handle": 1, "type": "filter",
                       "hook": "forward", "prio": 0, "policy": "drop"}}]}"#;
        assert_eq!(
            forward_chains(listing, "berth", false),
            (vec![("ip filter FORWARD".to_owned(), true)], vec![])
        );
        let both = ["ip filter FORWARD", "ip6 filter FORWARD"].map(|chain| (chain.to_owned(), true));
        assert_eq!(forward_chains(listing, "berth", true), (both.into(), vec![]));
        assert_eq!(forward_chains(b"not json", "berth", true), (vec![], vec![]));
        let docker = br#"{"nftables": [
            {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter",
                       "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip6", "table": "filter", "name": "DOCKER-USER", "handle": 2}}]}"#;
        assert_eq!(forward_chains(docker, "berth", true).1, [DOCKER[1]]);
    }

    #[test]
    fn a_rule_that_accepts_less_than_the_tasks_links_does_not_let_them_through() {
        let rules = |way: &str, more: &str| {
            let rule = format!(
                r#"{{"rule": {{"family": "ip", "table": "filter", "chain": "DOCKER-USER", "handle": 9, "comment": "c", "expr": [
                {{"match": {{"op": "==", "left": {{"meta": {{"key": "{way}"}}}}, "right": "b1234*"}}}}{more},
                {{"counter": {{"packets": 0, "bytes": 0}}}}, {{"accept": null}}]}}}}"#
            );
            parse(format!(r#"{{"nftables": [{rule}]}}"#).as_bytes())
        };
        let port = r#", {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}}"#;
        let of = |lists: [Vec<Entry>; 2]| {
            let all: Vec<_> = lists
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.rule)
                .collect();
            accepts(&all, "b1234")
        };
        assert!(of([rules("iifname", ""), rules("oifname", "")]));
        assert!(!of([rules("iifname", ""), rules("iifname", "")]));
        assert!(!of([rules("iifname", port), rules("oifname", "")]));
        assert!(!accepts(&[], "b1234"));
    }

    #[test]
    fn each_firewall_has_its_own_command() {
        let commands = |chain: &str, place| {
            let chain = chain.to_owned();
            Drops {
                chain,
                place,
                passes: false,
            }
            .commands("b1234")
        };
        assert_eq!(
            commands("ip filter FORWARD", Place::DockerUser(DOCKER[0].user))[0],
            "nft insert rule ip filter DOCKER-USER iifname '\"b1234*\"' accept"
        );
        assert_eq!(
            commands("ip6 filter FORWARD", Place::DockerUser(DOCKER[1].user))[1],
            "nft insert rule ip6 filter DOCKER-USER oifname '\"b1234*\"' accept"
        );
        assert_eq!(
            commands("inet firewalld filter_FORWARD", Place::TrustedZone),
            ["firewall-cmd --zone=trusted --add-interface=b1234+"]
        );
        assert_eq!(
            commands("inet fw forward", Place::Chain)[1],
            "nft insert rule inet fw forward oifname '\"b1234*\"' accept"
        );
    }
}
