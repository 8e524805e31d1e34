//! Owns one link from its hello to its end. Never outlives the server: it is tracked, and ends when told to.

use std::{pin::pin, sync::Arc, time::Duration};

use berth_control_plane_core::task::{NET_LAN, NET_SUBNETS};
use berth_proto::node::v1::{
    ControlMessage, DesiredAck, Hello, NodeMessage, NodeNetwork, SNAPSHOT_PARTS, StateAck, StateChange,
    VERSION, Welcome, control_message::Message as ToNode, node_message::Message as FromNode,
};
use futures_util::{FutureExt, future::FusedFuture};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::{
    Shared,
    apply::{Applier, BATCH_CHANGES_MAX},
    bounds,
    caller::Caller,
    chain,
    dispatch::{Dispatch, DispatchError},
    end::End,
    join::clipped,
    names::{self, Host, Names},
    network::{Network, Told},
    node_event, now, records,
    registry::{Agent, Dismissal, Entry, Place},
    standing::{still_good, trust, until},
};
use crate::{audit::Outcome, metrics::metrics, nodes::Held, pki::Peer, subnets};

/// Longest reason of a node's that is kept, characters.
const HELD_CHARS_MAX: usize = 1_024;
/// From the opening of the stream to its hello.
pub(super) const HELLO: Duration = Duration::from_secs(10);
/// How long a new link waits for the former one of the same node to write that it ended.
const PREDECESSOR: Duration = Duration::from_secs(10);
/// How long a second agent waits for the first to end, in steps of [`LOOK`]: the first may be dead already, and its
/// connection about to say so. One that talks on after [`LAST_WORDS`] is alive.
const FIRST_ENDS: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long a node may leave its messages unread.
pub(super) const SEND: Duration = Duration::from_secs(10);
/// Transactions that a link costs besides its reports: that it is there, and that it is not.
const LINK_TRANSACTIONS: u32 = 2;
/// Beyond this, a node's clock is worth a word in the log.
const SKEW_MS_MAX: i64 = 5_000;

type Outbound = mpsc::Sender<Result<ControlMessage, Status>>;

/// Serves one link, whatever comes of it.
pub(super) async fn run(
    shared: Arc<Shared>,
    caller: Caller,
    mut inbound: Streaming<NodeMessage>,
    outbound: Outbound,
) {
    let peer = caller.peer.clone();
    let hello = tokio::select! {
        hello = receive_hello(&shared, &mut inbound, &peer) => hello,
        () = shared.shutdown.cancelled() => Err(End::Stopping),
    };
    let end = match hello {
        Ok(hello) => linked(&shared, &caller, hello, inbound, &outbound).await,
        Err(end) => end,
    };
    let status = end.status();
    match &end {
        End::Clone { first } => {
            if shared.clone_limit.allows(&peer.node_id) {
                let second = caller.address;
                tracing::warn!(node = %peer.node_id, %first, %second, "a second agent with one identity is refused");
                // The refusal stands either way; that it is not written is in the log.
                let event = node_event(&caller, "Link");
                shared.record(event, Outcome::refused("Clone")).await.ok();
            }
        }
        _ if !shared.log_limit.allows(&peer.node_id) => {}
        End::Closed => tracing::info!(node = %peer.node_id, "link closed"),
        _ => tracing::warn!(node = %peer.node_id, reason = status.message(), "link ended"),
    }
    if status.code() != Code::Ok {
        // Told if it still listens.
        outbound.try_send(Err(status)).ok();
    }
}

async fn receive_hello(
    shared: &Shared,
    inbound: &mut Streaming<NodeMessage>,
    peer: &Peer,
) -> Result<Hello, End> {
    let first = timeout(HELLO, inbound.message())
        .await
        .map_err(|_| End::NoHello)?;
    if let Ok(Some(NodeMessage { message })) = &first {
        metrics().received(message.as_ref());
    }
    let hello = match first.map_err(End::Broken)? {
        Some(NodeMessage {
            message: Some(FromNode::Hello(hello)),
        }) => hello,
        Some(_) => return Err(End::Refused("a link begins with Hello".into())),
        None => return Err(End::Closed),
    };
    if hello.node_id != peer.node_id {
        let claimed: String = hello.node_id.chars().take(64).collect();
        let text = format!(
            "hello of node {claimed:?}, with the certificate of node {}",
            peer.node_id
        );
        return Err(End::Refused(text));
    }
    if VERSION < hello.version_min || VERSION > hello.version_max {
        let (low, high) = (hello.version_min, hello.version_max);
        let text = format!("the node speaks versions {low} to {high}, this control plane speaks {VERSION}");
        return Err(End::Refused(text));
    }
    let skew_ms = now() - hello.sent_at_ms;
    let skewed = hello.sent_at_ms != 0 && skew_ms.abs() > SKEW_MS_MAX;
    if skewed && shared.log_limit.allows(&peer.node_id) {
        tracing::warn!(node = %peer.node_id, skew_ms, "the node's clock differs from ours");
    }
    Ok(hello)
}

/// From the hello on: takes the node's place, and leaves it when the link has ended and that is written down.
async fn linked(
    shared: &Arc<Shared>,
    caller: &Caller,
    hello: Hello,
    inbound: Streaming<NodeMessage>,
    outbound: &Outbound,
) -> End {
    let peer = &caller.peer;
    let (mut place, previous) = match enter(shared, caller, &hello).await {
        Ok(entered) => entered,
        Err(end) => return end,
    };
    if let Some(previous) = previous
        && timeout(PREDECESSOR, previous.cancelled()).await.is_err()
    {
        tracing::warn!(node = %peer.node_id, "the node's former link does not end");
    }
    let Err(end) = converse(shared, caller, hello, inbound, outbound, &mut place).await;
    if !place.is_superseded()
        && let Err(error) = records::disconnect(&*shared.store, &peer.cluster, &peer.node_id, now()).await
    {
        tracing::error!(node = %peer.node_id, error = chain(&error), "the node's end is not written down");
    }
    end
}

/// Takes the node's place, and with it the token of the link that had it. Another agent's link is not ended while it
/// lives: an agent that was killed left a connection behind that ends at once, a clone did not.
async fn enter(
    shared: &Shared,
    caller: &Caller,
    hello: &Hello,
) -> Result<(Place, Option<CancellationToken>), End> {
    let description = hello.description.clone().unwrap_or_default();
    let agent = Agent {
        run_id: clipped(&hello.run_id),
        address: caller.address,
        hostname: clipped(&description.hostname),
        boot_id: clipped(&description.boot_id),
    };
    let (node, silence) = (&caller.peer.node_id, shared.config.node_silence);
    let asked = Instant::now();
    loop {
        let first = match shared.registry.enter(node, &agent, silence) {
            Entry::In(place, previous) => return Ok((place, previous)),
            Entry::Occupied(first) => first,
        };
        if first.heard > asked + LAST_WORDS || asked.elapsed() >= FIRST_ENDS {
            shared.registry.seen_clone(node, &agent);
            return Err(End::Clone { first: first.agent });
        }
        tokio::select! {
            () = first.ended.cancelled() => {}
            () = sleep(LOOK) => {}
            () = shared.shutdown.cancelled() => return Err(End::Stopping),
        }
    }
}

async fn converse(
    shared: &Arc<Shared>,
    caller: &Caller,
    hello: Hello,
    mut inbound: Streaming<NodeMessage>,
    outbound: &Outbound,
    place: &mut Place,
) -> Result<std::convert::Infallible, End> {
    let peer = &caller.peer;
    turn(shared, peer, place).await?;
    let as_of = (shared.identity.epoch, now());
    records::connect(&*shared.store, caller, &hello, as_of).await?;
    subnets::settle(&*shared.store, &peer.cluster, now()).await?;
    let host = Host::of(&hello);
    let mut applier = Applier::load(shared.store.clone(), peer.clone(), host.clone()).await?;
    if hello.last_sequence < applier.applied() && shared.log_limit.allows(&peer.node_id) {
        let (node_has, applied) = (hello.last_sequence, applier.applied());
        tracing::warn!(node = %peer.node_id, node_has, applied, "the node lost its count of reports");
    }
    if followed_before_restore(shared, &hello) {
        let known = hello
            .known_tasks
            .iter()
            .map(|task| task.task_id.clone())
            .collect();
        let ended = applier.end_vanished(&known).await?;
        if ended > 0 && shared.log_limit.allows(&peer.node_id) {
            tracing::warn!(
                node = %peer.node_id, tasks = ended,
                "tasks of the backup are not on the node any more: they are STOPPED"
            );
        }
    }
    send(
        outbound,
        ToNode::Welcome(welcome(shared, peer, applier.applied())),
    )
    .await?;
    let takes_parts = hello.features.iter().any(|feature| feature == SNAPSHOT_PARTS);
    let (store, identity) = (shared.store.clone(), shared.identity.clone());
    let (snapshot, tasks, mut dispatch) =
        Dispatch::begin(store, identity, &peer.node_id, takes_parts).await?;
    let version = hello.description.map(|d| d.agent_version);
    if shared.log_limit.allows(&peer.node_id) {
        tracing::info!(node = %peer.node_id, cluster = %peer.cluster, version, tasks, "link established");
    }
    send(outbound, ToNode::Snapshot(snapshot)).await?;
    let mut network = None;
    if hello.features.iter().any(|feature| feature == NET_SUBNETS) {
        let (store, identity) = (shared.store.clone(), shared.identity.clone());
        let knows_lans = hello.features.iter().any(|feature| feature == NET_LAN);
        let told = Told {
            node: peer.node_id.clone(),
            knows_lans,
        };
        let (first, following) = Network::begin(store, identity, &peer.cluster, told).await?;
        send(outbound, ToNode::Network(first)).await?;
        network = Some(following);
    }
    let mut authorities = shared.authorities.watch();
    let trusted = authorities.borrow_and_update().clone();
    send(outbound, trust(shared, &peer.node_id, &trusted).await?).await?;
    let (all, mut names) = Names::begin(shared.store.clone(), &peer.cluster)
        .await
        .map_err(End::Names)?;
    send(outbound, ToNode::Names(all)).await?;
    let mut moved = pin!(names::follow(&*shared.store, peer, &host).fuse());
    let mut heard = Instant::now();
    let mut good_until = caller.not_after.unwrap_or_default();
    loop {
        let pause = shared.paces.wait(&peer.node_id);
        // All are cancel-safe: a message or change that is not taken here is taken next time.
        tokio::select! {
            dismissal = place.dismissed.wait() => return Err(match dismissal {
                Dismissal::Superseded => End::Superseded,
                Dismissal::Revoked(reason) => End::Revoked(reason),
            }),
            () = shared.shutdown.cancelled() => return Err(End::Stopping),
            message = inbound.message(), if pause.is_none() => {
                heard = Instant::now();
                let message = message.map_err(End::Broken)?.ok_or(End::Closed)?;
                // Its end is no sign of life: who waits for this place must not take it for one.
                place.heard();
                if receive(message, &mut inbound, &mut applier, outbound, place, shared, peer).await? {
                    shared.paces.spend(&peer.node_id, 1);
                }
            }
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            () = sleep(until(good_until)) => good_until = still_good(shared, peer, good_until).await?,
            Ok(()) = authorities.changed() => {
                let trusted = authorities.borrow_and_update().clone();
                send(outbound, trust(shared, &peer.node_id, &trusted).await?).await?;
            }
            followed = &mut moved, if !moved.is_terminated() => followed.map_err(End::Names)?,
            message = dispatch.next() => send(outbound, message?).await?,
            changed = names.next() => send(outbound, ToNode::Names(changed.map_err(End::Names)?)).await?,
            message = next_network(&mut network) => send(outbound, ToNode::Network(message?)).await?,
            Some(command) = place.commands.recv() => send(outbound, ToNode::OpenBulk(command)).await?,
            () = sleep_until(heard + shared.config.node_silence) => {
                return Err(End::Silent(shared.config.node_silence));
            }
        }
    }
}

/// Never, where the node is not told of it.
async fn next_network(network: &mut Option<Network>) -> Result<NodeNetwork, DispatchError> {
    match network {
        Some(network) => network.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until the node may make the store write that it is linked.
async fn turn(shared: &Shared, peer: &Peer, place: &Place) -> Result<(), End> {
    while let Some(wait) = shared.paces.wait(&peer.node_id) {
        if place.is_superseded() {
            return Err(End::Superseded);
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = shared.shutdown.cancelled() => return Err(End::Stopping),
        }
    }
    shared.paces.spend(&peer.node_id, LINK_TRANSACTIONS);
    Ok(())
}

/// The node followed this store, before it was set back to a backup.
fn followed_before_restore(shared: &Shared, hello: &Hello) -> bool {
    hello.position.as_ref().is_some_and(|position| {
        position.store_id == shared.identity.store_id && position.epoch < shared.identity.epoch
    })
}

fn welcome(shared: &Shared, peer: &Peer, applied_sequence: u64) -> Welcome {
    let interval = shared.config.heartbeat_interval.as_millis();
    Welcome {
        version: VERSION,
        heartbeat_interval_ms: u32::try_from(interval).unwrap_or(u32::MAX),
        applied_sequence,
        cluster: peer.cluster.clone(),
    }
}

/// Takes one message, and with a report those that have arrived behind it: they share a transaction and an answer. Says
/// whether there was one.
async fn receive(
    message: NodeMessage,
    inbound: &mut Streaming<NodeMessage>,
    applier: &mut Applier,
    outbound: &Outbound,
    place: &Place,
    shared: &Shared,
    peer: &Peer,
) -> Result<bool, End> {
    let mut changes: Vec<StateChange> = Vec::new();
    let mut next = Some(Ok(Some(message)));
    let mut end = None;
    while let Some(received) = next.take() {
        if let Ok(Some(NodeMessage { message })) = &received {
            metrics().received(message.as_ref());
        }
        match received {
            Ok(Some(NodeMessage {
                message: Some(FromNode::StateChange(change)),
            })) => changes.push(change),
            Ok(Some(NodeMessage {
                message: Some(FromNode::Capacity(capacity)),
            })) => {
                records::recount(&*shared.store, &peer.cluster, &peer.node_id, &capacity).await?;
                // It wrote, or may have.
                shared.paces.spend(&peer.node_id, 1);
            }
            Ok(Some(NodeMessage {
                message: Some(FromNode::NetworkAck(ack)),
            })) => {
                let said = bounds::ranges(ack);
                subnets::note_problems(&*shared.store, &peer.cluster, &peer.node_id, &said).await?;
                shared.paces.spend(&peer.node_id, 1);
            }
            Ok(Some(NodeMessage { message })) => other(message, place, shared, peer)?,
            // What was reported before the end counts.
            Ok(None) => end = Some(End::Closed),
            Err(status) => end = Some(End::Broken(status)),
        }
        if end.is_none() && !changes.is_empty() && changes.len() < BATCH_CHANGES_MAX {
            next = inbound.message().now_or_never();
        }
    }
    let applied = !changes.is_empty();
    if applied {
        let sequence = applier.apply(&changes).await?;
        send(outbound, ToNode::StateAck(StateAck { sequence })).await?;
    }
    end.map_or(Ok(applied), Err)
}

fn other(message: Option<FromNode>, place: &Place, shared: &Shared, peer: &Peer) -> Result<(), End> {
    match message {
        Some(FromNode::Heartbeat(heartbeat)) => place.heartbeat(bounds::heartbeat(heartbeat)),
        Some(FromNode::Pulls(pulls)) => place.pulls(bounds::pulls(pulls)),
        Some(FromNode::DesiredAck(DesiredAck {
            position,
            refused_reason,
            confirmable,
        })) => {
            let revision = position.map_or(0, |p| p.revision);
            let held = (!refused_reason.is_empty()).then(|| Held {
                reason: refused_reason.chars().take(HELD_CHARS_MAX).collect(),
                confirmable,
            });
            place.held(held);
            if refused_reason.is_empty() {
                tracing::debug!(node = %peer.node_id, revision, "desired state is stored");
            } else if shared.log_limit.allows(&peer.node_id) {
                let refused_reason = clipped(&refused_reason);
                tracing::warn!(node = %peer.node_id, revision, refused_reason, "the node refuses its desired state");
            }
        }
        Some(FromNode::Hello(_)) => return Err(End::Refused("a second Hello on one link".into())),
        // A message of a later version of the protocol.
        Some(FromNode::StateChange(_) | FromNode::Capacity(_) | FromNode::NetworkAck(_)) | None => {}
    }
    Ok(())
}

async fn send(outbound: &Outbound, message: ToNode) -> Result<(), End> {
    use mpsc::error::SendTimeoutError::{Closed, Timeout};
    metrics().sent(&message);
    match outbound
        .send_timeout(
            Ok(ControlMessage {
                message: Some(message),
            }),
            SEND,
        )
        .await
    {
        Ok(()) => Ok(()),
        Err(Timeout(_)) => Err(End::Stuck),
        Err(Closed(_)) => Err(End::Closed),
    }
}
