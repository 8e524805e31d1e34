//! `berth subnet`: the ranges of which tasks of a cluster have addresses.

use serde_json::{Value, json};

use crate::api::{Client, ClientError, list_pages};
use crate::arguments::{Format, Global, SubnetCommand, SubnetCreateArgs};
use crate::error::CliError;
use crate::ids;
use crate::output::{self, Table};

/// What stands for the node's own range, in a cluster that has no subnets.
const DEFAULT_SUBNET: &str = "subnet-default";

pub async fn run(client: &Client, global: &Global, command: SubnetCommand) -> Result<u8, CliError> {
    match command {
        SubnetCommand::Create(args) => create(client, global, args).await,
        SubnetCommand::List => list(client, global).await,
        SubnetCommand::Delete { subnets } => delete(client, global, &subnets).await,
    }
}

/// Ids of the cluster's subnets, for a task that may be in any of them: of those that nodes route to, if there are any. A task
/// becomes a host of somebody's network only where there is no other.
pub async fn all(client: &Client, cluster: &str) -> Result<Vec<String>, ClientError> {
    let found = match list_pages(client, "ListSubnets", "subnets", json!({"cluster": cluster})).await {
        // An older control plane knows of none.
        Err(ClientError::Refused { code, .. }) if code == "UnknownOperationException" => Vec::new(),
        found => found?,
    };
    let (routed, lans): (Vec<&Value>, Vec<&Value>) =
        found.iter().partition(|subnet| text(subnet, "kind") == "routed");
    let ids: Vec<String> = if routed.is_empty() { lans } else { routed }
        .into_iter()
        .filter_map(|subnet| subnet["subnetId"].as_str().map(str::to_owned))
        .collect();
    Ok(if ids.is_empty() {
        vec![DEFAULT_SUBNET.to_owned()]
    } else {
        ids
    })
}

async fn create(client: &Client, global: &Global, args: SubnetCreateArgs) -> Result<u8, CliError> {
    let body = json!({
        "cluster": global.cluster, "name": args.name, "cidrBlock": args.cidr, "ipv6CidrBlock": args.ipv6_cidr_block,
        "nodePrefixLength": args.node_prefix,
        "kind": args.kind, "uplink": args.uplink, "vlanId": args.vlan_id, "gateway": args.gateway, "range": args.range,
    });
    let answer = client.berth("CreateSubnet", &body).await?;
    if global.output == Format::Json {
        output::print_json(&answer)?;
        return Ok(0);
    }
    let subnet = &answer["subnet"];
    output::print_line(&format!(
        "{} is {} of cluster {}: each node gets a /{} of it",
        text(subnet, "subnetId"),
        range(subnet),
        text(subnet, "cluster"),
        subnet["nodePrefixLength"],
    ))?;
    Ok(0)
}

async fn list(client: &Client, global: &Global) -> Result<u8, CliError> {
    let body = json!({"cluster": global.cluster});
    let subnets = list_pages(client, "ListSubnets", "subnets", body).await?;
    if global.output == Format::Json {
        output::print_json(&json!({ "subnets": subnets }))?;
        return Ok(0);
    }
    let mut table = Table::new(&[
        "SUBNET", "NAME", "KIND", "RANGE", "PER NODE", "NODES", "FREE", "STATUS",
    ]);
    for subnet in &subnets {
        table.row(vec![
            text(subnet, "subnetId"),
            text(subnet, "name"),
            kind(subnet),
            range(subnet),
            format!("/{}", subnet["nodePrefixLength"]),
            nodes(subnet).count().to_string(),
            subnet["freeNodeBlocks"].to_string(),
            text(subnet, "status"),
        ]);
    }
    output::print(&table.to_string())?;
    if global.output == Format::Wide {
        output::print(&parts(&subnets).to_string())?;
    }
    for (subnet, node) in subnets.iter().flat_map(|s| nodes(s).map(move |node| (s, node))) {
        if let Some(problem) = node["problem"].as_str() {
            let (id, subnet) = (text(node, "node"), text(subnet, "subnetId"));
            output::print_line(&format!(
                "node {} does not use its part of {subnet}: {problem}",
                ids::short(&id)
            ))?;
        }
    }
    Ok(0)
}

/// Of which nodes have parts.
fn range(subnet: &Value) -> String {
    let part = subnet["range"].as_str().map(str::to_owned);
    let part = part.unwrap_or_else(|| text(subnet, "cidrBlock"));
    match subnet["ipv6CidrBlock"].as_str() {
        Some(prefix) => format!("{part}, {prefix}"),
        None => part,
    }
}

/// With what the network is that its tasks are hosts of.
fn kind(subnet: &Value) -> String {
    let mut kind = text(subnet, "kind");
    if let Some(uplink) = subnet["uplink"].as_str() {
        kind = format!("{kind} {uplink}");
    }
    match subnet["vlanId"].as_u64() {
        Some(id) => format!("{kind}.{id}"),
        None => kind,
    }
}

/// Of IPv4 and, where there is one, of IPv6.
fn both(node: &Value, ipv4: &str, ipv6: &str) -> String {
    let ipv4 = text(node, ipv4);
    match node[ipv6].as_str() {
        Some(ipv6) => format!("{ipv4}, {ipv6}"),
        None => ipv4,
    }
}

/// Which node has which part.
fn parts(subnets: &[Value]) -> Table {
    let mut table = Table::new(&["SUBNET", "NODE", "PART", "REACHED AT"]);
    for subnet in subnets {
        for node in nodes(subnet) {
            table.row(vec![
                text(subnet, "subnetId"),
                text(node, "node"),
                both(node, "cidrBlock", "ipv6CidrBlock"),
                both(node, "nodeAddress", "nodeIpv6Address"),
            ]);
        }
    }
    table
}

async fn delete(client: &Client, global: &Global, subnets: &[String]) -> Result<u8, CliError> {
    for subnet in subnets {
        let body = json!({"cluster": global.cluster, "subnet": subnet});
        let answer = client.berth("DeleteSubnet", &body).await?;
        if global.output == Format::Json {
            output::print_json(&answer)?;
        } else {
            output::print_line(&format!(
                "{} is deleted: no task has an address of {}",
                text(&answer["subnet"], "subnetId"),
                text(&answer["subnet"], "cidrBlock"),
            ))?;
        }
    }
    Ok(0)
}

fn nodes(subnet: &Value) -> impl Iterator<Item = &Value> {
    subnet["nodes"].as_array().into_iter().flatten()
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or("-").to_owned()
}
