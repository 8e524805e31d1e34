//! Owns tickets and the streams they open: logs on their way from a node to a reader. Never stores a line.
//!
//! A stream holds at most [`BATCHES_MAX`] batches that its reader has not taken; then the node is not read from, and
//! the node in turn stops reading its files.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use berth_proto::node::v1::{
    BulkFromNode, BulkToNode, Heartbeat, LogRequest, OpenBulk, Pulls, bulk_from_node::Message,
    open_bulk::Request,
};
use rand::TryRngCore;
use tokio::{sync::mpsc, sync::oneshot, time::timeout};
use tonic::{Status, Streaming};

use super::Shared;
use crate::{
    nodes::{Held, LogReceiver, NodeError, Nodes},
    pki::{Authorities, Peer},
};

/// How long a ticket is good, and a node has to use it.
const TICKET_SECONDS: u64 = 30;
/// Tickets that wait for their nodes, all together.
const TICKETS_MAX: usize = 1_024;
/// Batches of lines that wait for their reader.
const BATCHES_MAX: usize = 16;
/// From the opening of a stream to its ticket.
const START: Duration = Duration::from_secs(10);
/// A reader that takes nothing for so long while there is something has gone.
const READER_STALL: Duration = Duration::from_secs(300);

type LogSender = mpsc::Sender<Result<Vec<berth_proto::node::v1::LogLine>, String>>;

/// Streams that nodes were asked for and have not opened yet.
#[derive(Debug, Default)]
pub(super) struct Tickets(Mutex<HashMap<String, Waiting>>);

#[derive(Debug)]
struct Waiting {
    node: String,
    lines: LogSender,
    opened: oneshot::Sender<()>,
}

impl Tickets {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None: too many wait already, or the system has no randomness.
    fn issue(&self, waiting: Waiting) -> Option<Ticket<'_>> {
        let mut bytes = [0_u8; 16];
        rand::rngs::OsRng.try_fill_bytes(&mut bytes).ok()?;
        let text = hex::encode(bytes);
        let mut tickets = self.lock();
        if tickets.len() >= TICKETS_MAX {
            return None;
        }
        tickets.insert(text.clone(), waiting);
        drop(tickets);
        Some(Ticket { tickets: self, text })
    }

    /// Takes what waits for this ticket: good once, and for its node alone.
    fn claim(&self, ticket: &str, node: &str) -> Option<Waiting> {
        let mut tickets = self.lock();
        if tickets.get(ticket)?.node != node {
            return None;
        }
        tickets.remove(ticket)
    }
}

/// Void when dropped.
struct Ticket<'a> {
    tickets: &'a Tickets,
    text: String,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.tickets.lock().remove(&self.text);
    }
}

#[async_trait]
impl Nodes for Shared {
    fn latest_heartbeat(&self, node: &str) -> Option<Heartbeat> {
        self.registry.heartbeat(node)
    }

    fn latest_pulls(&self, node: &str) -> Option<Pulls> {
        self.registry.pulls(node)
    }

    fn held(&self, node: &str) -> Option<Held> {
        self.registry.held(node)
    }

    fn advertised(&self) -> String {
        self.advertised.clone()
    }

    fn authorities(&self) -> Arc<Authorities> {
        self.authorities.clone()
    }

    async fn open_logs(&self, node: &str, request: LogRequest) -> Result<LogReceiver, NodeError> {
        let not_connected = || NodeError::NotConnected(node.to_owned());
        let commands = self.registry.commands(node).ok_or_else(not_connected)?;
        let (lines, receiver) = mpsc::channel(BATCHES_MAX);
        let (opened, opening) = oneshot::channel();
        let ticket = self
            .tickets
            .issue(Waiting {
                node: node.to_owned(),
                lines,
                opened,
            })
            .ok_or_else(|| NodeError::Busy(node.to_owned()))?;
        let command = OpenBulk {
            ticket: ticket.text.clone(),
            request: Some(Request::Logs(request)),
        };
        let open = async {
            commands.send(command).await.map_err(|_| not_connected())?;
            tokio::select! {
                biased;
                opened = opening => opened.map_err(|_| not_connected()),
                // The link ended: the node will not hear of the ticket any more.
                () = commands.closed() => Err(not_connected()),
            }
        };
        match timeout(Duration::from_secs(TICKET_SECONDS), open).await {
            Ok(done) => done.map(|()| receiver),
            Err(_) => Err(NodeError::TimedOut(node.to_owned(), TICKET_SECONDS)),
        }
    }
}

/// Carries one stream from its ticket to its end. Dropping `to_node` ends it on the node's side.
pub(super) async fn serve(
    shared: Arc<Shared>,
    peer: Peer,
    mut inbound: Streaming<BulkFromNode>,
    to_node: mpsc::Sender<Result<BulkToNode, Status>>,
) {
    let ticket = match timeout(START, inbound.message()).await {
        Ok(Ok(Some(BulkFromNode {
            message: Some(Message::Start(start)),
        }))) => start.ticket,
        Ok(Err(_)) => return,
        Ok(Ok(_)) => {
            return refuse(
                &to_node,
                Status::invalid_argument("a bulk stream begins with BulkStart"),
            );
        }
        Err(_) => return refuse(&to_node, Status::deadline_exceeded("no BulkStart in time")),
    };
    let Some(waiting) = shared.tickets.claim(&ticket, &peer.node_id) else {
        if shared.log_limit.allows(&peer.node_id) {
            tracing::info!(node = %peer.node_id, "bulk stream with a ticket that is not good");
        }
        return refuse(
            &to_node,
            Status::permission_denied("this ticket is not good, or not any more"),
        );
    };
    if waiting.opened.send(()).is_err() {
        return;
    }
    tokio::select! {
        // What has arrived comes before the end of its stream.
        biased;
        () = copy(inbound, &waiting.lines) => {}
        () = waiting.lines.closed() => {}
        () = to_node.closed() => {}
        () = shared.shutdown.cancelled() => {
            waiting.lines.try_send(Err("the control plane is stopping".into())).ok();
        }
    }
}

fn refuse(to_node: &mpsc::Sender<Result<BulkToNode, Status>>, status: Status) {
    // Nothing was sent before, so there is room; or the node is gone.
    to_node.try_send(Err(status)).ok();
}

async fn copy(mut inbound: Streaming<BulkFromNode>, lines: &LogSender) {
    loop {
        let (batch, last) = match inbound.message().await {
            Ok(Some(BulkFromNode {
                message: Some(Message::LogLines(batch)),
            })) => (Ok(batch.lines), false),
            Ok(Some(BulkFromNode {
                message: Some(Message::Error(error)),
            })) => (Err(error.reason), true),
            Ok(Some(_)) => continue,
            Ok(None) => return,
            Err(status) => (
                Err(format!("the node's stream broke: {}", status.message())),
                true,
            ),
        };
        if lines.send_timeout(batch, READER_STALL).await.is_err() || last {
            return;
        }
    }
}
