//! Owns one session of the link, from Hello to its end.

use std::{sync::PoisonError, time::Duration};

use berth_agent_core::{change::DesiredAck, event::Event};
use berth_proto::node::v1::{
    self as wire, ControlMessage, NodeMessage, control_message::Message as In, node_message::Message as Out,
    node_service_client::NodeServiceClient,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};

use super::{Link, LinkError, LinkState, bulk, pulls, usage};
use crate::{
    convert,
    driver::{now, send},
    effects::images::PullProgress,
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
    let channel = tokio::select! {
        channel = link.target.connect() => channel?,
        () = stop.cancelled() => return Ok(()),
    };
    let mut client = NodeServiceClient::new(channel.clone())
        .max_decoding_message_size(wire::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(wire::MESSAGE_BYTES_MAX);
    let (out, outgoing) = mpsc::channel(OUT_MAX);
    let hello = link.facts.hello(&link.node, &link.status.borrow_and_update());
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
    link.state.send_replace(LinkState::up());
    tracing::info!(address = %link.target.address, cluster = %welcome.cluster, "link is up");
    Session {
        link,
        channel,
        out,
        sent: welcome.applied_sequence,
        has_snapshot: false,
    }
    .serve(incoming, &welcome, stop)
    .await
}

struct Session<'a> {
    link: &'a mut Link,
    channel: Channel,
    out: Outgoing,
    /// Sequence number of the last report sent in this session.
    sent: u64,
    /// Deltas mean something from now on.
    has_snapshot: bool,
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
        self.send_reports().await?;
        loop {
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
                Ok(()) = self.link.status.changed() => self.send_reports().await?,
                Some(ack) = self.link.desired_acks.recv() => self.send_ack(ack).await?,
                _ = heartbeat.tick() => self.send_heartbeat().await?,
                Ok(()) = next_picture(&mut self.link.pulls, pulls_from) => {
                    pulls_from = Instant::now() + PULLS_INTERVAL;
                    let picture = pulls::to_wire(&self.link.pulls.borrow_and_update());
                    post(&self.out, Out::Pulls(picture)).await?;
                }
                Some(()) = bulk.next(), if !bulk.is_empty() => {}
                () = stop.cancelled() => return self.send_reports().await,
            }
        }
    }

    /// Hands on what came; returns what asks for a stream of its own.
    async fn take(&mut self, message: In) -> Result<Option<wire::OpenBulk>, LinkError> {
        let refused = |refusal: convert::Refusal| LinkError::Protocol {
            what: refusal.to_string(),
        };
        let event = match message {
            In::Snapshot(snapshot) => {
                self.has_snapshot = true;
                convert::snapshot(snapshot).map_err(refused)?
            }
            // What it changes is not known: this node may have missed anything since the last session.
            In::Delta(_) if !self.has_snapshot => {
                return Err(LinkError::Protocol {
                    what: "a delta before the first snapshot".into(),
                });
            }
            In::Delta(delta) => convert::delta(delta).map_err(refused)?,
            In::StateAck(ack) => Event::Acknowledged {
                sequence: ack.sequence,
            },
            In::OpenBulk(open) => return Ok(Some(open)),
            // Whom this node believes is set by files, which it does not change yet.
            In::Trust(_) => return Ok(None),
            In::Welcome(_) => {
                return Err(LinkError::Protocol {
                    what: "a second Welcome".into(),
                });
            }
        };
        send(&self.link.inputs, event).await;
        Ok(None)
    }

    async fn send_reports(&mut self) -> Result<(), LinkError> {
        let last = self.link.status.borrow_and_update().last_sequence;
        while self.sent < last {
            let page = self.link.store.outbox(self.sent, REPORTS_PAGE).await;
            let page = page.map_err(|source| LinkError::Outbox { source })?;
            // Numbers may be missing: a report that was acknowledged meanwhile is gone.
            let Some(newest) = page.last().map(|report| report.sequence) else {
                break;
            };
            for report in &page {
                post(&self.out, Out::StateChange(convert::state_change(report))).await?;
            }
            self.sent = newest;
        }
        Ok(())
    }

    async fn send_ack(&self, ack: DesiredAck) -> Result<(), LinkError> {
        let position = Some(convert::position_to_wire(&ack.position));
        let refused_reason = ack.refused.unwrap_or_default();
        post(
            &self.out,
            Out::DesiredAck(wire::DesiredAck {
                position,
                refused_reason,
            }),
        )
        .await
    }

    async fn send_heartbeat(&self) -> Result<(), LinkError> {
        let impairments = self.link.status.borrow().impairments.clone();
        let (node, tasks) = self
            .link
            .sampler
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .sample();
        let tasks = tasks.iter().map(usage::task).collect();
        let heartbeat = wire::Heartbeat {
            sent_at_ms: now().0,
            node: Some(usage::node(&node)),
            tasks,
            impairments,
        };
        post(&self.out, Out::Heartbeat(heartbeat)).await
    }
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
        Err(_) => Err(LinkError::Slow {
            what: "sending to the control plane",
            seconds: SEND_TIMEOUT.as_secs(),
        }),
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
