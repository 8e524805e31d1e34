//! Owns the agent's side of the link: one stream to the control plane, reconnected for as long as the agent runs.
//! Never changes state: what comes in becomes events, what goes out is what the driver stored.

mod address;
mod bulk;
mod hello;
mod parts;
mod pulls;
mod session;
mod state;
mod target;
mod usage;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_agent_core::change::DesiredAck;
use rand::Rng;
use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    dns::NameTable,
    driver::{Input, NodeStatus},
    effects::images::PullProgress,
    identity::{IdentityError, IdentityState, TrustOrder, verify::moment},
    ranges::Answer,
    store::Store,
    sys::Chain,
    telemetry::Sampler,
};
pub use address::ipv6_address;
pub use hello::Facts;
use state::Pace;
pub use state::{LinkPhase, LinkState};
pub use target::Target;
pub(crate) use target::{Connection, connect, endpoint};

/// A session that lasted so long was good: the next failure starts with the shortest back-off again.
const GOOD_SESSION: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("this node's identity")]
    Identity { source: IdentityError },
    #[error("control plane address {address}")]
    Address {
        address: String,
        source: tonic::transport::Error,
    },
    #[error("connect to the control plane at {address}")]
    Connect {
        address: String,
        source: tonic::transport::Error,
    },
    #[error("the control plane ended the link")]
    Refused { source: Box<tonic::Status> },
    #[error("the control plane closed the link")]
    Closed,
    #[error("{what} took longer than {seconds} s")]
    Slow { what: &'static str, seconds: u64 },
    #[error("the control plane sent {what}")]
    Protocol { what: String },
    #[error("read the outbox")]
    Outbox { source: crate::store::StoreError },
}

/// The link and what it needs of the rest.
#[derive(Debug)]
pub struct Link {
    pub target: Target,
    pub facts: Facts,
    pub inputs: mpsc::Sender<Input>,
    pub store: Store,
    pub status: watch::Receiver<NodeStatus>,
    pub desired_acks: mpsc::Receiver<DesiredAck>,
    /// What was made of the control plane's word of the cluster's network.
    pub network: watch::Receiver<Answer>,
    pub sampler: Arc<Mutex<Sampler>>,
    pub pulls: watch::Receiver<PullProgress>,
    /// Of the cluster's tasks.
    pub names: NameTable,
    pub log_dir: PathBuf,
    /// Where the control plane's word on whom to believe goes.
    pub trust: mpsc::Sender<TrustOrder>,
    /// What is wrong with the identity is told in heartbeats.
    pub identity: watch::Receiver<IdentityState>,
    /// How the link is: for readiness and for people.
    pub state: watch::Sender<LinkState>,
}

impl Link {
    /// What [`Link::state`] begins with.
    pub fn initial_state() -> LinkState {
        LinkState::connecting()
    }

    /// Keeps the link up until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let begun = Instant::now();
            let session = session::run(&mut self, &stop);
            let Err(error) = session.await else { break };
            let was_up = self.down(&error);
            if was_up && begun.elapsed() > GOOD_SESSION {
                backoff = Backoff::default();
            }
            let wait = backoff.next(self.pace(&error));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => break,
            }
        }
    }

    /// Says what became of the link: once for each phase and reason, not at each try. Returns whether it was up.
    fn down(&self, error: &LinkError) -> bool {
        let mut reason = Chain(error).to_string();
        if let Some(advice) = error.advice() {
            reason = format!("{reason}: {advice}");
        }
        if let Some(end) = self.expired() {
            reason = format!(
                "this node's certificate expired at {}; join it again with `berth-agent register --force` and a token of \
                 `berth token create` ({reason})",
                moment(end)
            );
        }
        let state = self.state.borrow().failed(self.pace(error), reason.clone());
        let (phase, last) = (state.phase, self.state.send_replace(state));
        if last.phase != phase || last.reason.as_ref() != Some(&reason) {
            tracing::warn!(
                error = reason,
                refused = phase == LinkPhase::Refused,
                "link is down; tasks go on, reports are kept"
            );
        }
        last.is_up()
    }

    /// When the certificate ended, if it has: by the host's clock, which may be wrong, so it is tried all the same.
    fn expired(&self) -> Option<OffsetDateTime> {
        let end = self.identity.borrow().not_after;
        (OffsetDateTime::now_utc() > end).then_some(end)
    }

    fn pace(&self, error: &LinkError) -> Pace {
        match error.pace() {
            Pace::Soon if self.expired().is_some() => Pace::Late,
            pace => pace,
        }
    }
}

/// Waits that double while the reason for them stays of one kind.
#[derive(Debug, Default)]
struct Backoff {
    last: Option<(Pace, Duration)>,
}

impl Backoff {
    fn next(&mut self, pace: Pace) -> Duration {
        let (first, longest) = pace.bounds();
        let wait = match self.last {
            Some((before, wait)) if before == pace => (wait * 2).min(longest),
            _ => first,
        };
        self.last = Some((pace, wait));
        wait.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}
