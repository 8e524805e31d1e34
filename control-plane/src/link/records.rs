//! Owns the node's record as far as its link writes it: what it is, and whether it is connected. Never touches
//! placement's part (allocations) or the operator's (status, attributes, tags). A deregistered node is let in as long as
//! it has tasks to stop.

use std::{collections::BTreeSet, time::Duration};

use berth_proto::node::v1::{Capacity, Hello};

use super::{
    caller::{Caller, revoked_text},
    certificates,
    join::{TEXT_CHARS_MAX, clipped},
};
use crate::{
    model::{Attributes, Cluster, Identity, Millis, Node, Revocation, attribute, keys},
    pki::Peer,
    store::{
        Committed, Compare, Operation, Store, Transaction,
        typed::{self, RecordError, Versioned},
    },
    subnets,
};

/// 4,096 cores and 64 TiB: a node that claims more lies, and would draw every task.
const CPU_UNITS_MAX: u32 = 4_096 * 1_024;
const MEMORY_BYTES_MAX: u64 = 64 << 40;
/// GPUs of one node.
const GPUS_MAX: usize = 256;
const FEATURES_MAX: usize = 256;
/// Reserved ports of one protocol.
const PORTS_MAX: usize = 4_096;

/// How often a transaction is tried whose records others change as well.
pub(super) const ATTEMPTS_MAX: u32 = 16;
/// Grows by itself with every attempt.
const BACK_OFF: Duration = Duration::from_millis(2);

#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("hello without {0}")]
    Incomplete(&'static str),
    #[error("hello with too much {0}")]
    TooMuch(&'static str),
    #[error("hello: {port} is not a port")]
    Port { port: u32 },
    #[error("node {node} is registered in cluster {registered}; its certificate is for {certified}")]
    OtherCluster {
        node: String,
        registered: String,
        certified: String,
    },
    #[error("{0}")]
    Revoked(String),
    #[error("the record of node {0} changes too often")]
    Contended(String),
    #[error("write the node's record")]
    Record {
        #[from]
        source: RecordError,
    },
}

impl From<crate::store::StoreError> for ConnectError {
    fn from(source: crate::store::StoreError) -> Self {
        Self::Record {
            source: source.into(),
        }
    }
}

pub(super) fn node_key(cluster: &str, node: &str) -> String {
    format!("/nodes/{cluster}/{node}")
}

/// Waits before the next attempt.
pub(super) async fn back_off(attempt: u32) {
    tokio::time::sleep(BACK_OFF * attempt).await;
}

/// Writes who said hello: its record, its cluster's if need be, and where to find it.
pub(super) async fn connect(
    store: &dyn Store,
    caller: &Caller,
    hello: &Hello,
    (epoch, now): (u64, Millis),
) -> Result<(), ConnectError> {
    let peer = &caller.peer;
    for attempt in 1..=ATTEMPTS_MAX {
        let mut transaction = Transaction::default();
        let revocation_key = keys::revocation(&peer.node_id);
        if let Some(found) = typed::get_json::<Revocation>(store, &revocation_key).await? {
            return Err(ConnectError::Revoked(revoked_text(&found.value)));
        }
        transaction.compare.push(Compare::Missing(revocation_key));
        let place_key = format!("/node-clusters/{}", peer.node_id);
        match typed::get_json::<String>(store, &place_key).await? {
            Some(found) if found.value != peer.cluster => {
                return Err(ConnectError::OtherCluster {
                    node: peer.node_id.clone(),
                    registered: found.value,
                    certified: peer.cluster.clone(),
                });
            }
            Some(found) => transaction.compare.push(found.unchanged()),
            None => {
                transaction.compare.push(Compare::Missing(place_key.clone()));
                transaction
                    .operations
                    .push(typed::put_json(place_key, &peer.cluster)?);
            }
        }
        let cluster_key = format!("/clusters/{}", peer.cluster);
        let cluster = typed::get_json::<Cluster>(store, &cluster_key).await?;
        write(&mut transaction, cluster_key, cluster, |known| {
            active_cluster(known, &peer.cluster, now)
        })?;
        let identity_key = keys::identity(&peer.node_id);
        let identity = typed::get_json::<Identity>(store, &identity_key).await?;
        write(&mut transaction, identity_key, identity, |known| {
            certificates::shown(known, caller, now)
        })?;
        let key = node_key(&peer.cluster, &peer.node_id);
        let known = typed::get_json::<Node>(store, &key).await?;
        if known.as_ref().is_some_and(|node| is_deregistered(&node.value)) {
            let text = format!("node {} is deregistered: register the host again", peer.node_id);
            return Err(ConnectError::Revoked(text));
        }
        let node = node_record(known.as_ref().map(|k| &k.value), peer, hello, (epoch, now))?;
        write(&mut transaction, key, known, |_| Some(node))?;
        if let Committed::Done(_) = store.commit(transaction).await? {
            return Ok(());
        }
        back_off(attempt).await;
    }
    Err(ConnectError::Contended(peer.node_id.clone()))
}

/// Adds "as long as nobody else changes it" and, if there is something to write, the new record.
fn write<T: serde::Serialize>(
    transaction: &mut Transaction,
    key: String,
    known: Option<Versioned<T>>,
    next: impl FnOnce(Option<T>) -> Option<T>,
) -> Result<(), RecordError> {
    transaction.compare.push(match &known {
        Some(known) => known.unchanged(),
        None => Compare::Missing(key.clone()),
    });
    if let Some(next) = next(known.map(|k| k.value)) {
        transaction.operations.push(typed::put_json(key, &next)?);
    }
    Ok(())
}

/// One that still holds tasks is let in, to be told to stop them.
fn is_deregistered(node: &Node) -> bool {
    node.status == "INACTIVE" && node.allocations.is_empty()
}

/// The cluster as it has to be written; None if it is there and ACTIVE. A cluster can be deleted once its nodes are
/// deregistered; a node that comes back brings it back.
fn active_cluster(known: Option<Cluster>, name: &str, now: Millis) -> Option<Cluster> {
    let status = "ACTIVE".to_owned();
    match known {
        Some(known) if known.status == status => None,
        Some(known) => Some(Cluster { status, ..known }),
        None => Some(Cluster {
            name: name.into(),
            status,
            tags: Default::default(),
            settings: vec![],
            created_at: now,
        }),
    }
}

fn node_record(
    known: Option<&Node>,
    peer: &Peer,
    hello: &Hello,
    (epoch, now): (u64, Millis),
) -> Result<Node, ConnectError> {
    let description = hello
        .description
        .as_ref()
        .ok_or(ConnectError::Incomplete("description"))?;
    let capacity = hello
        .capacity
        .as_ref()
        .ok_or(ConnectError::Incomplete("capacity"))?;
    if capacity.cpu_units > CPU_UNITS_MAX || capacity.memory_bytes > MEMORY_BYTES_MAX {
        return Err(ConnectError::TooMuch("capacity: no such host is built"));
    }
    let connected_before = known
        .filter(|node| node.agent_connected)
        .map(|node| node.connectivity_at);
    Ok(Node {
        id: peer.node_id.clone(),
        cluster: peer.cluster.clone(),
        status: known.map_or_else(|| "ACTIVE".into(), |node| node.status.clone()),
        agent_connected: true,
        hostname: clipped(&description.hostname),
        boot_id: clipped(&description.boot_id),
        agent_version: clipped(&description.agent_version),
        runtime_version: clipped(&description.runtime_version),
        kernel_version: clipped(&description.kernel_version),
        architecture: clipped(&description.architecture),
        cpu_units: capacity.cpu_units,
        memory_bytes: capacity.memory_bytes,
        task_addresses: capacity.task_addresses,
        node_address: subnets::node_address(&hello.node_address),
        node_ipv6_address: subnets::node_ipv6_address(&hello.node_ipv6_address),
        uses: subnets::used(&hello.held_ranges),
        linked_epoch: epoch,
        reserved_tcp_ports: ports(&capacity.reserved_tcp_ports)?,
        reserved_udp_ports: ports(&capacity.reserved_udp_ports)?,
        gpus: gpus(&capacity.gpu_ids)?,
        features: features(hello)?,
        node_attributes: node_attributes(hello)?,
        attributes: known.map(|node| node.attributes.clone()).unwrap_or_default(),
        tags: known.map(|node| node.tags.clone()).unwrap_or_default(),
        allocations: known.map(|node| node.allocations.clone()).unwrap_or_default(),
        registered_at: known.map_or(now, |node| node.registered_at),
        connectivity_at: connected_before.unwrap_or(now),
    })
}

/// What the node says of itself. It cannot say what constraints trust.
fn node_attributes(hello: &Hello) -> Result<Attributes, ConnectError> {
    if hello.attributes.len() > attribute::OWN_MAX {
        return Err(ConnectError::TooMuch("attributes"));
    }
    let mut attributes = Attributes::new();
    for (name, value) in &hello.attributes {
        if name.chars().count() > TEXT_CHARS_MAX || value.chars().count() > TEXT_CHARS_MAX {
            return Err(ConnectError::TooMuch("text in an attribute"));
        }
        if !name.starts_with(attribute::TRUSTED) {
            attributes.insert(name.clone(), Some(value.clone()).filter(|v| !v.is_empty()));
        }
    }
    Ok(attributes)
}

/// Features of task specs that the node honours.
fn features(hello: &Hello) -> Result<Vec<String>, ConnectError> {
    let too_long = |feature: &String| feature.chars().count() > TEXT_CHARS_MAX;
    if hello.features.len() > FEATURES_MAX || hello.features.iter().any(too_long) {
        return Err(ConnectError::TooMuch("features"));
    }
    Ok(hello.features.clone())
}

/// Those that can be told apart.
fn gpus(ids: &[String]) -> Result<Vec<String>, ConnectError> {
    let unfit = |id: &String| id.is_empty() || id.chars().count() > TEXT_CHARS_MAX;
    if ids.len() > GPUS_MAX || ids.iter().any(unfit) {
        return Err(ConnectError::TooMuch("GPUs"));
    }
    let mut seen = BTreeSet::new();
    Ok(ids.iter().filter(|id| seen.insert(*id)).cloned().collect())
}

/// Writes which GPUs a node has now. The rest of its capacity does not change while it is linked.
pub(super) async fn recount(
    store: &dyn Store,
    cluster: &str,
    node: &str,
    capacity: &Capacity,
) -> Result<(), ConnectError> {
    let (key, gpus) = (node_key(cluster, node), gpus(&capacity.gpu_ids)?);
    for attempt in 1..=ATTEMPTS_MAX {
        let Some(known) = typed::get_json::<Node>(store, &key).await? else {
            return Ok(());
        };
        if known.value.gpus == gpus {
            return Ok(());
        }
        let mut transaction = Transaction::default();
        write(&mut transaction, key.clone(), Some(known), |known| {
            let gpus = gpus.clone();
            known.map(|node| Node { gpus, ..node })
        })?;
        if let Committed::Done(_) = store.commit(transaction).await? {
            return Ok(());
        }
        back_off(attempt).await;
    }
    Err(ConnectError::Contended(node.to_owned()))
}

fn ports(ports: &[u32]) -> Result<Vec<u16>, ConnectError> {
    if ports.len() > PORTS_MAX {
        return Err(ConnectError::TooMuch("reserved ports"));
    }
    ports
        .iter()
        .map(|port| u16::try_from(*port).map_err(|_| ConnectError::Port { port: *port }))
        .collect()
}

/// Writes that a node is not connected, if it is there.
pub(super) async fn disconnect(
    store: &dyn Store,
    cluster: &str,
    node: &str,
    now: Millis,
) -> Result<(), ConnectError> {
    let key = node_key(cluster, node);
    for attempt in 1..=ATTEMPTS_MAX {
        let Some(known) = typed::get_json::<Node>(store, &key).await? else {
            return Ok(());
        };
        let Some(transaction) = disconnection(known, now)? else {
            return Ok(());
        };
        if let Committed::Done(_) = store.commit(transaction).await? {
            return Ok(());
        }
        back_off(attempt).await;
    }
    Err(ConnectError::Contended(node.to_owned()))
}

fn disconnection(mut known: Versioned<Node>, now: Millis) -> Result<Option<Transaction>, RecordError> {
    if !known.value.agent_connected {
        return Ok(None);
    }
    known.value.agent_connected = false;
    known.value.connectivity_at = now;
    let operations: Vec<Operation> = vec![typed::put_json(known.key.clone(), &known.value)?];
    Ok(Some(Transaction {
        compare: vec![known.unchanged()],
        operations,
    }))
}

/// Writes that no node is connected.
pub(super) async fn disconnect_all(store: &dyn Store, now: Millis) -> Result<(), RecordError> {
    for known in typed::all_json::<Node>(store, "/nodes/").await? {
        if let Some(transaction) = disconnection(known, now)? {
            // A conflict means that somebody else is at work on the record; its link, if any, writes what is true.
            store.commit(transaction).await?;
        }
    }
    Ok(())
}
