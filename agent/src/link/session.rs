//! Owns one session of the link, from Hello to its end.

use std::{collections::VecDeque, sync::PoisonError, time::Duration};

use berth_agent_core::{change::DesiredAck, event::Event};
use berth_proto::node::v1::{
    self as wire, ControlMessage, NodeMessage, control_message::Message as In, node_message::Message as Out,
    node_service_client::NodeServiceClient,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};

use super::{
    Connection, Link, LinkError, LinkState,
    address::{self, HostAddresses},
    bulk,
    parts::Parts,
    pulls, usage,
};
use crate::{
    convert,
    driver::{now, send},
    effects::images::PullProgress,
    identity::TrustOrder,
};

/// Messages that may wait for the stream.
const OUT_MAX: usize = 64;
/// Reports read from the outbox at a time.
const REPORTS_PAGE: usize = 64;
/// A control plane that takes no message for so long is taken for dead.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Bulk streams at a time; more are refused and may be asked for again.
const BULK_MAX: usize = 16;
const HEARTBEAT_MIN: Duration = Duration::from_millis(200);
/// Between two pictures of the downloads under way.
const PULLS_INTERVAL: Duration = Duration::from_millis(500);

type Outgoing = mpsc::Sender<NodeMessage>;

/// Until `stop` (Ok) or the link breaks (Err).
pub(super) async fn run(link: &mut Link, stop: &CancellationToken) -> Result<(), LinkError> {
    let Connection { channel, proved_by } = tokio::select! {
        connection = link.target.connect() => connection?,
        () = stop.cancelled() => return Ok(()),
    };
    let mut client = NodeServiceClient::new(channel.clone())
        .max_decoding_message_size(wire::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(wire::MESSAGE_BYTES_MAX);
    let (out, outgoing) = mpsc::channel(OUT_MAX);
    let url = link.target.address.clone();
    // A name may take time to resolve.
    let resolved = tokio::task::spawn_blocking(move || address::resolve(&url)).await;
    let (network, resolved) = (&link.facts.network, resolved.unwrap_or_default());
    let addresses = HostAddresses::of(network, &resolved);
    let status = link.status.borrow_and_update().clone();
    let hello = link.facts.hello(&link.target.node, &status, addresses);
    post(&out, Out::Hello(hello)).await?;
    let open = async {
        let refused = |source| LinkError::Refused {
            source: Box::new(source),
        };
        let mut incoming = client
            .link(ReceiverStream::new(outgoing))
            .await
            .map_err(refused)?
            .into_inner();
        let welcome = match next(&mut incoming).await? {
            In::Welcome(welcome) => welcome,
            other => {
                return Err(LinkError::Protocol {
                    what: format!("{other:?} before Welcome"),
                });
            }
        };
        Ok((incoming, welcome))
    };
    let slow = LinkError::Slow {
        what: "the control plane's welcome",
        seconds: WELCOME_TIMEOUT.as_secs(),
    };
    let (incoming, welcome) = tokio::time::timeout(WELCOME_TIMEOUT, open)
        .await
        .map_err(|_| slow)??;
    if welcome.version != wire::VERSION {
        return Err(LinkError::Protocol {
            what: format!("protocol version {}", welcome.version),
        });
    }
    // Answers to an earlier session's desired state mean nothing in this one.
    while link.desired_acks.try_recv().is_ok() {}
    send(
        &link.inputs,
        Event::Acknowledged {
            sequence: welcome.applied_sequence,
        },
    )
    .await;
    // The control plane may not have heard it.
    link.network.mark_changed();
    link.state.send_replace(LinkState::up(&welcome.cluster));
    tracing::info!(address = %link.target.address, cluster = %welcome.cluster, "link is up");
    Session {
        link,
        channel,
        proved_by,
        out,
        queue: VecDeque::new(),
        progress: Instant::now(),
        sent: welcome.applied_sequence,
        reports_due: true,
        has_snapshot: false,
        parts: Parts::default(),
    }
    .serve(incoming, &welcome, stop)
    .await
}

struct Session<'a> {
    link: &'a mut Link,
    channel: Channel,
    /// The authority by which the control plane proved itself.
    proved_by: CertificateDer<'static>,
    out: Outgoing,
    /// What is to be sent, in order: at most a page of reports and one of each other kind. Sending never keeps this side
    /// from reading: the other may be waiting for just that.
    queue: VecDeque<Out>,
    /// When the stream last took something, or had nothing to take.
    progress: Instant,
    /// Sequence number of the last report sent in this session.
    sent: u64,
    /// The outbox may hold more.
    reports_due: bool,
    /// Deltas mean something from now on.
    has_snapshot: bool,
    /// Of a snapshot that is still coming.
    parts: Parts,
}

impl Session<'_> {
    async fn serve(
        mut self,
        mut incoming: Streaming<ControlMessage>,
        welcome: &wire::Welcome,
        stop: &CancellationToken,
    ) -> Result<(), LinkError> {
        let interval = Duration::from_millis(welcome.heartbeat_interval_ms.into()).max(HEARTBEAT_MIN);
        let mut heartbeat = tokio::time::interval(interval);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut bulk = FuturesUnordered::new();
        let mut pulls_from = Instant::now();
        let out = self.out.clone();
        loop {
            let idle = self.queue.is_empty();
            if idle && self.reports_due {
                self.queue_reports().await?;
                continue;
            }
            // Every branch is cancel-safe: channels, intervals, and streams lose nothing when dropped while waiting.
            tokio::select! {
                message = next(&mut incoming) => {
                    if let Some(open) = self.take(message?).await? {
                        if bulk.len() < BULK_MAX {
                            let (channel, inputs) = (self.channel.clone(), self.link.inputs.clone());
                            bulk.push(bulk::serve(channel, inputs, self.link.log_dir.clone(), open));
                        } else {
                            tracing::warn!(limit = BULK_MAX, "bulk stream refused: too many are open");
                        }
                    }
                }
                permit = out.reserve(), if !idle => {
                    let permit = permit.map_err(|_| LinkError::Closed)?;
                    let message = self.queue.pop_front();
                    permit.send(NodeMessage { message });
                    self.progress = Instant::now();
                }
                () = tokio::time::sleep_until(self.progress + SEND_TIMEOUT), if !idle => return Err(slow_send()),
                Ok(()) = self.link.status.changed(), if idle => self.reports_due = true,
                Ok(()) = self.link.network.changed(), if idle => {
                    let answer = self.link.network.borrow_and_update().to_wire();
                    answer.into_iter().for_each(|ack| self.put(Out::NetworkAck(ack)));
                }
                Some(ack) = self.link.desired_acks.recv(), if idle => self.put(desired_ack(ack)),
                _ = heartbeat.tick(), if idle => {
                    let heartbeat = self.heartbeat();
                    self.put(heartbeat);
                }
                Ok(()) = next_picture(&mut self.link.pulls, pulls_from), if idle => {
                    pulls_from = Instant::now() + PULLS_INTERVAL;
                    let picture = pulls::to_wire(&self.link.pulls.borrow_and_update());
                    self.put(Out::Pulls(picture));
                }
                Ok(()) = self.link.facts.gpus.changed(), if idle => {
                    let capacity = self.link.facts.capacity();
                    self.put(Out::Capacity(capacity));
                }
                Some(()) = bulk.next(), if !bulk.is_empty() => {}
                () = stop.cancelled() => return self.flush().await,
            }
        }
    }

    /// To be sent next. Only called while nothing waits.
    fn put(&mut self, message: Out) {
        if self.queue.is_empty() {
            self.progress = Instant::now();
        }
        self.queue.push_back(message);
    }

    /// On the way out: all that is known, and no more reading.
    async fn flush(&mut self) -> Result<(), LinkError> {
        self.reports_due = true;
        loop {
            while let Some(message) = self.queue.pop_front() {
                post(&self.out, message).await?;
            }
            if !self.reports_due {
                return Ok(());
            }
            self.queue_reports().await?;
        }
    }

    /// Hands on what came; returns what asks for a stream of its own.
    async fn take(&mut self, message: In) -> Result<Option<wire::OpenBulk>, LinkError> {
        let refused = |refusal: convert::Refusal| LinkError::Protocol {
            what: refusal.to_string(),
        };
        let event = match message {
            In::Snapshot(part) => {
                let Some(snapshot) = self.parts.add(part)? else {
                    return Ok(None);
                };
                self.has_snapshot = true;
                convert::snapshot(snapshot).map_err(refused)?
            }
            In::Delta(_) if self.parts.begun() => {
                return Err(LinkError::Protocol {
                    what: "a delta between two parts of a snapshot".into(),
                });
            }
            // What it changes is not known: this node may have missed anything since the last session.
            In::Delta(_) if !self.has_snapshot => {
                return Err(LinkError::Protocol {
                    what: "a delta before the first snapshot".into(),
                });
            }
            In::Delta(delta) => convert::delta(delta).map_err(refused)?,
            In::Network(network) => convert::network(network).map_err(refused)?,
            In::StateAck(ack) => Event::Acknowledged {
                sequence: ack.sequence,
            },
            In::OpenBulk(open) => return Ok(Some(open)),
            In::Names(names) => {
                self.link
                    .names
                    .apply(convert::names(names).map_err(refused)?)
                    .await;
                return Ok(None);
            }
            In::Trust(trust) => {
                let proved_by = self.proved_by.clone();
                // Sent again with the next link or change.
                if self.link.trust.try_send(TrustOrder { trust, proved_by }).is_err() {
                    tracing::warn!(
                        "whom to believe was said too often; the last word is taken with the next link"
                    );
                }
                return Ok(None);
            }
            In::Welcome(_) => {
                return Err(LinkError::Protocol {
                    what: "a second Welcome".into(),
                });
            }
        };
        send(&self.link.inputs, event).await;
        Ok(None)
    }

    /// The next page of the outbox.
    async fn queue_reports(&mut self) -> Result<(), LinkError> {
        let last = self.link.status.borrow_and_update().last_sequence;
        self.reports_due = false;
        if self.sent >= last {
            return Ok(());
        }
        let page = self.link.store.outbox(self.sent, REPORTS_PAGE).await;
        let page = page.map_err(|source| LinkError::Outbox { source })?;
        // Numbers may be missing: a report that was acknowledged meanwhile is gone.
        let Some(newest) = page.last().map(|report| report.sequence) else {
            return Ok(());
        };
        for report in &page {
            self.put(Out::StateChange(convert::state_change(report)));
        }
        self.sent = newest;
        self.reports_due = newest < last;
        Ok(())
    }

    fn heartbeat(&self) -> Out {
        let mut impairments = self.link.status.borrow().impairments.clone();
        impairments.extend(self.link.identity.borrow().problem.clone());
        let (node, tasks) = self
            .link
            .sampler
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .sample();
        let tasks = tasks.iter().map(usage::task).collect();
        Out::Heartbeat(wire::Heartbeat {
            sent_at_ms: now().0,
            node: Some(usage::node(&node)),
            tasks,
            impairments,
        })
    }
}

fn desired_ack(ack: DesiredAck) -> Out {
    Out::DesiredAck(wire::DesiredAck {
        position: Some(convert::position_to_wire(&ack.position)),
        refused_reason: ack.refused.unwrap_or_default(),
        confirmable: ack.confirmable,
    })
}

/// Waits until `from`, and then for a change that nobody saw.
async fn next_picture(
    pulls: &mut watch::Receiver<PullProgress>,
    from: Instant,
) -> Result<(), watch::error::RecvError> {
    tokio::time::sleep_until(from).await;
    pulls.changed().await
}

async fn post(out: &Outgoing, message: Out) -> Result<(), LinkError> {
    let sending = out.send(NodeMessage {
        message: Some(message),
    });
    match tokio::time::timeout(SEND_TIMEOUT, sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(LinkError::Closed),
        Err(_) => Err(slow_send()),
    }
}

fn slow_send() -> LinkError {
    LinkError::Slow {
        what: "sending to the control plane",
        seconds: SEND_TIMEOUT.as_secs(),
    }
}

async fn next(incoming: &mut Streaming<ControlMessage>) -> Result<In, LinkError> {
    loop {
        match incoming.message().await {
            Ok(Some(ControlMessage {
                message: Some(message),
            })) => return Ok(message),
            // A message of a later version: ignored, as the protocol says.
            Ok(Some(ControlMessage { message: None })) => {}
            Ok(None) => return Err(LinkError::Closed),
            Err(source) => {
                return Err(LinkError::Refused {
                    source: Box::new(source),
                });
            }
        }
    }
}
