//! Owns the agent's side of the link: one stream to the control plane, reconnected for as long as the agent runs.
//! Never changes state: what comes in becomes events, what goes out is what the driver stored.

mod bulk;
mod hello;
mod pulls;
mod session;
mod state;
mod usage;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_agent_core::{change::DesiredAck, ids::NodeId};
use rand::Rng;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::{
    driver::{Input, NodeStatus},
    effects::images::PullProgress,
    store::Store,
    sys::Chain,
    telemetry::Sampler,
};
pub use hello::Facts;
use state::Pace;
pub use state::{LinkPhase, LinkState};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A session that lasted so long was good: the next failure starts with the shortest back-off again.
const GOOD_SESSION: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("read {what} {path}")]
    Identity {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
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

/// Where the control plane is, and who this node is.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: String,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authority: PathBuf,
}

impl Target {
    /// The endpoint with its identity, read anew each time: certificates are renewed while the agent runs.
    fn endpoint(&self) -> Result<Endpoint, LinkError> {
        let read = |what, path: &PathBuf| {
            std::fs::read(path).map_err(|source| LinkError::Identity {
                what,
                path: path.clone(),
                source,
            })
        };
        let identity = Identity::from_pem(read("certificate", &self.certificate)?, self.read_key()?);
        let authority = Certificate::from_pem(read("authority", &self.authority)?);
        let tls = ClientTlsConfig::new()
            .ca_certificate(authority)
            .identity(identity);
        let address = |source| LinkError::Address {
            address: self.address.clone(),
            source,
        };
        Ok(Endpoint::from_shared(self.address.clone())
            .map_err(address)?
            .tls_config(tls)
            .map_err(address)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true))
    }

    /// The private key, if nobody but its owner can read it.
    fn read_key(&self) -> Result<Vec<u8>, LinkError> {
        use std::os::unix::fs::MetadataExt as _;
        let read = |source| LinkError::Identity {
            what: "key",
            path: self.key.clone(),
            source,
        };
        let mode = std::fs::metadata(&self.key).map_err(read)?.mode();
        if mode & 0o077 != 0 {
            let problem = format!("mode {:o} lets others read it: chmod 600", mode & 0o777);
            return Err(read(std::io::Error::other(problem)));
        }
        std::fs::read(&self.key).map_err(read)
    }

    async fn connect(&self) -> Result<Channel, LinkError> {
        let connect = |source| LinkError::Connect {
            address: self.address.clone(),
            source,
        };
        self.endpoint()?.connect().await.map_err(connect)
    }
}

/// The link and what it needs of the rest.
#[derive(Debug)]
pub struct Link {
    pub target: Target,
    pub node: NodeId,
    pub facts: Facts,
    pub inputs: mpsc::Sender<Input>,
    pub store: Store,
    pub status: watch::Receiver<NodeStatus>,
    pub desired_acks: mpsc::Receiver<DesiredAck>,
    pub sampler: Arc<Mutex<Sampler>>,
    pub pulls: watch::Receiver<PullProgress>,
    pub log_dir: PathBuf,
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
            let wait = backoff.next(error.pace());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => break,
            }
        }
    }

    /// Says what became of the link: once for each phase, not at each try. Returns whether it was up.
    fn down(&self, error: &LinkError) -> bool {
        let chain = Chain(error).to_string();
        let reason = match error.advice() {
            Some(advice) => format!("{chain}: {advice}"),
            None => chain,
        };
        let state = self.state.borrow().failed(error.pace(), reason.clone());
        let (phase, last) = (state.phase, self.state.send_replace(state));
        if last.phase != phase {
            tracing::warn!(
                error = reason,
                refused = phase == LinkPhase::Refused,
                "link is down; tasks go on, reports are kept"
            );
        }
        last.is_up()
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
