//! Owns which node has which part of the subnets of its cluster, as far as the store has it: gives and takes under
//! compare. Who may have what is the core's; nodes hear of it by their links.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use berth_control_plane_core::{
    subnets::{AsOf, Candidate, Ipv4Net, Lan, LanLink, SUBNETS_MAX},
    task::{NET_IPV6, NET_LAN, NET_SUBNETS},
};
use berth_proto::node::v1 as wire;

use crate::{
    model::{EpochStart, Millis, Node, Revocation, StoreIdentity, Subnet, keys},
    store::{
        Committed, Compare, Store, Transaction,
        typed::{self, IDENTITY_KEY, RecordError, Versioned},
    },
};

/// How often a subnet's record is tried that others change as well.
const ATTEMPTS_MAX: u32 = 16;
/// Grows by itself with every attempt.
const BACK_OFF: Duration = Duration::from_millis(2);
/// How long a revoked node keeps its part: nobody will ever say that its tasks are gone.
const REVOKED_MS: Millis = 24 * 3_600 * 1_000;
/// Ranges that one node says it uses: of as many subnets as there can be.
const HELD_MAX: usize = SUBNETS_MAX;
/// Longest reason of a node's that is kept, characters.
const PROBLEM_CHARS_MAX: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    #[error("read or write a subnet's record")]
    Record {
        #[from]
        source: RecordError,
    },
    #[error("the record of subnet {0} changes too often")]
    Contended(String),
}

/// Every subnet of a cluster.
pub(crate) async fn of_cluster(
    store: &dyn Store,
    cluster: &str,
) -> Result<Vec<Versioned<Subnet>>, RecordError> {
    typed::all_json(store, &keys::subnets(cluster)).await
}

/// Gives every node of the cluster its part of every subnet, as long as there are any, and takes back those of nodes that
/// are gone with all their tasks.
pub(crate) async fn settle(store: &dyn Store, cluster: &str, now: Millis) -> Result<(), SettleError> {
    let subnets = of_cluster(store, cluster).await?;
    if subnets.is_empty() {
        return Ok(());
    }
    let as_of = as_of(store, now).await?;
    for subnet in subnets {
        let feature = match &subnet.value {
            subnet if subnet.lan().is_some() => NET_LAN,
            subnet if subnet.ipv6_prefix.is_some() => NET_IPV6,
            _ => NET_SUBNETS,
        };
        let key = subnet.key.clone();
        let mut found = Some(subnet);
        let mut attempt = 1;
        while let Some(mut subnet) = found {
            // After the subnet: whoever was given a part of what was read is among them.
            let nodes = nodes(store, cluster, feature, as_of).await?;
            let is_changed = subnet.value.blocks.settle(subnet.value.shape(), &nodes, as_of);
            if !is_changed || put(store, &subnet).await? {
                break;
            }
            found = again(store, &key, attempt).await?;
            attempt += 1;
        }
    }
    Ok(())
}

/// [`settle`] for every cluster that has subnets.
pub(crate) async fn settle_all(store: &dyn Store, now: Millis) -> Result<(), SettleError> {
    let subnets = typed::all_json::<Subnet>(store, keys::SUBNETS).await?;
    let mut clusters: Vec<String> = subnets.into_iter().map(|subnet| subnet.value.cluster).collect();
    clusters.dedup();
    for cluster in clusters {
        settle(store, &cluster, now).await?;
    }
    Ok(())
}

/// What a node says of its parts, by subnet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    /// Why it does not use one.
    pub(crate) problems: Vec<(String, String)>,
    /// How many tasks can be in one.
    pub(crate) limits: Vec<(String, u32)>,
}

/// Writes what a node says of its parts: it uses those of which it says no problem.
pub(crate) async fn note_problems(
    store: &dyn Store,
    cluster: &str,
    node: &str,
    said: &Said,
) -> Result<(), SettleError> {
    for subnet in of_cluster(store, cluster).await? {
        change(store, subnet, |subnet| {
            let problem = said.problems.iter().find(|(id, _)| *id == subnet.id);
            let problem = problem.map(|(_, reason)| reason.chars().take(PROBLEM_CHARS_MAX).collect());
            let limit = said.limits.iter().find(|(id, _)| *id == subnet.id);
            subnet.blocks.note(node, problem, limit.map(|(_, tasks)| *tasks))
        })
        .await?;
    }
    Ok(())
}

/// As nodes are told of it.
pub(crate) fn lan_to_wire(lan: &Lan) -> wire::Lan {
    let kind = match lan.link {
        LanLink::Macvlan { .. } => wire::LanKind::Macvlan,
        LanLink::Vlan { .. } => wire::LanKind::Vlan,
        LanLink::Interface => wire::LanKind::Interface,
    };
    wire::Lan {
        kind: kind.into(),
        uplink: lan.link.uplink().unwrap_or_default().to_owned(),
        vlan_id: lan.link.vlan_id().unwrap_or_default().into(),
        ipv4_cidr: lan.network.to_string(),
        ipv4_gateway: lan.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
    }
}

/// An address that other hosts can reach; none where a node says something else.
pub(crate) fn node_address(said: &str) -> Option<IpAddr> {
    let address: IpAddr = said.parse().ok()?;
    let IpAddr::V4(v4) = address else { return None };
    let odd = v4.is_loopback() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast();
    (!odd && !v4.is_link_local()).then_some(address)
}

/// Likewise an IPv6 address.
pub(crate) fn node_ipv6_address(said: &str) -> Option<Ipv6Addr> {
    let address: Ipv6Addr = said.parse().ok()?;
    let odd = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    let of_link = address.is_unicast_link_local() || address.to_ipv4_mapped().is_some();
    (!odd && !of_link).then_some(address)
}

/// Nodes of a cluster, as blocks are dealt out, in the order in which they came. Those that know a feature want a part; others
/// may use one still, and those that are gone.
async fn nodes(
    store: &dyn Store,
    cluster: &str,
    wanted: &str,
    now: AsOf,
) -> Result<Vec<Candidate>, RecordError> {
    let mut all = typed::all_json::<Node>(store, &keys::nodes(cluster)).await?;
    all.sort_by_key(|node| (node.value.registered_at, node.value.id.clone()));
    let mut nodes = Vec::new();
    for Versioned { value: node, .. } in all {
        let is_gone = node.status == "INACTIVE";
        if is_gone && (node.allocations.is_empty() || long_revoked(store, &node.id, now.ms).await?) {
            continue;
        }
        nodes.push(Candidate {
            leaving: is_gone || !node.features.iter().any(|feature| feature == wanted),
            node: node.id,
            via: node.node_address,
            via_ipv6: node.node_ipv6_address,
            uses: (node.linked_epoch == now.epoch).then_some(node.uses),
        });
    }
    Ok(nodes)
}

/// The epoch is of the store's identity: it rises when the store is set back to a backup.
async fn as_of(store: &dyn Store, now: Millis) -> Result<AsOf, RecordError> {
    let identity = typed::get_json::<StoreIdentity>(store, IDENTITY_KEY).await?;
    let epoch = identity.map_or(0, |identity| identity.value.epoch);
    let start = typed::get_json::<EpochStart>(store, keys::EPOCH_START).await?;
    let start = start.filter(|start| start.value.epoch == epoch);
    Ok(AsOf {
        ms: now,
        epoch,
        epoch_since_ms: start.map_or(now, |start| start.value.since),
    })
}

/// Notes when the store is served in this epoch for the first time: from then on nodes can say what they use.
pub(crate) async fn note_epoch(store: &dyn Store, epoch: u64, now: Millis) -> Result<(), RecordError> {
    loop {
        let known = typed::get_json::<EpochStart>(store, keys::EPOCH_START).await?;
        if known.as_ref().is_some_and(|known| known.value.epoch == epoch) {
            return Ok(());
        }
        let unchanged = known.map_or(Compare::Missing(keys::EPOCH_START.into()), |known| {
            known.unchanged()
        });
        let transaction = Transaction {
            compare: vec![unchanged],
            operations: vec![typed::put_json(
                keys::EPOCH_START,
                &EpochStart { epoch, since: now },
            )?],
        };
        if let Committed::Done(_) = store.commit(transaction).await? {
            return Ok(());
        }
    }
}

/// What a node says it uses, as far as it is a range.
pub(crate) fn used(said: &[wire::HeldRange]) -> Vec<Ipv4Net> {
    let ranges = said.iter().take(HELD_MAX);
    ranges.filter_map(|held| held.ipv4_range.parse().ok()).collect()
}

async fn long_revoked(store: &dyn Store, node: &str, now: Millis) -> Result<bool, RecordError> {
    let revocation = typed::get_json::<Revocation>(store, &keys::revocation(node)).await?;
    Ok(revocation.is_some_and(|found| found.value.revoked_at <= now.saturating_sub(REVOKED_MS)))
}

/// Changes a subnet's record, reading it again when somebody else was faster. `change` says whether there is anything to
/// write.
async fn change(
    store: &dyn Store,
    subnet: Versioned<Subnet>,
    change: impl Fn(&mut Subnet) -> bool,
) -> Result<(), SettleError> {
    let key = subnet.key.clone();
    let mut found = Some(subnet);
    let mut attempt = 1;
    while let Some(mut subnet) = found {
        if !change(&mut subnet.value) || put(store, &subnet).await? {
            break;
        }
        found = again(store, &key, attempt).await?;
        attempt += 1;
    }
    Ok(())
}

/// False: somebody else changed the record meanwhile.
async fn put(store: &dyn Store, subnet: &Versioned<Subnet>) -> Result<bool, SettleError> {
    let transaction = Transaction {
        compare: vec![subnet.unchanged()],
        operations: vec![typed::put_json(subnet.key.as_str(), &subnet.value)?],
    };
    let committed = store.commit(transaction).await.map_err(RecordError::from)?;
    Ok(matches!(committed, Committed::Done(_)))
}

/// The record as it is a moment later. None: it is gone.
async fn again(store: &dyn Store, key: &str, attempt: u32) -> Result<Option<Versioned<Subnet>>, SettleError> {
    if attempt >= ATTEMPTS_MAX {
        return Err(SettleError::Contended(key.to_owned()));
    }
    tokio::time::sleep(BACK_OFF * attempt).await;
    Ok(typed::get_json(store, key).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_address_is_one_that_others_reach() {
        assert!(node_address("192.0.2.7").is_some());
        assert!(node_ipv6_address("fd00::7").is_some());
        for bad in [
            "",
            "192.0.2.7",
            "::1",
            "::",
            "fe80::7",
            "ff02::1",
            "::ffff:192.0.2.7",
        ] {
            assert!(node_ipv6_address(bad).is_none(), "{bad}");
        }
        for bad in [
            "",
            "127.0.0.1",
            "0.0.0.0",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "fd00::1",
            "x",
        ] {
            assert!(node_address(bad).is_none(), "{bad}");
        }
    }
}
