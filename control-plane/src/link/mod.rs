//! Owns the gRPC listener for nodes and every link: who is connected, what each is told, what each reports. Never
//! decides what a node is to run: that comes out of the store, by watch, and may have been put there by another
//! control plane on the same store.
//!
//! Every connection is TLS ([`listener`], [`tls`]). A host without a certificate may call Register and nothing else
//! ([`join`]); for all other calls the certificate says which node and cluster it is.
//!
//! One link is one [`session`]: it reads the node's messages, applies reports ([`apply`]), and sends what
//! [`dispatch`] and [`names`] find in the store. Logs go over streams of their own ([`bulk`]).

mod admission;
mod apply;
mod bounds;
mod bulk;
mod caller;
mod certificates;
mod dispatch;
mod end;
mod guard;
mod join;
mod limits;
mod listener;
mod map;
mod names;
mod network;
mod records;
mod registry;
mod renew;
mod revocations;
mod service;
mod session;
mod standing;
mod tls;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::task_record as test_task;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use berth_proto::node::v1::{MESSAGE_BYTES_MAX, node_service_server::NodeServiceServer};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::TcpIncoming};
use tower::util::MapResponseLayer;

pub(crate) use self::admission::source;
pub use self::tls::TlsError;
use self::{
    bounds::Paces,
    bulk::Tickets,
    guard::Guard,
    limits::{Bucket, LogLimit},
    registry::Registry,
    service::Service,
    tls::Tls,
};
use crate::{
    audit::{Audit, Event, Outcome},
    date,
    model::{Millis, StoreIdentity},
    nodes::Nodes,
    pki::Authorities,
    store::{SharedStore, typed, typed::RecordError},
};

/// An idle connection is asked for a sign of life this often, and given up after as long without one.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Streams of one connection: the link, and bulk.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;
/// Headers of one request, bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Lines in the log about one peer.
const LINES_PER_MINUTE_MAX: u32 = 10;
/// Connections that shook hands and wait to be served.
const ACCEPTED_MAX: usize = 64;

/// What can be set about links.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Host names and addresses by which nodes reach the listener, for its certificate.
    pub names: Vec<String>,
    /// Where hosts that join are sent: `host:port`. None: the first of the listener's addresses that fits.
    pub advertise: Option<String>,
    /// How long the certificate of a node is good.
    pub certificate_lifetime: Duration,
    /// How long that of the listener is good; None: as long as is usual.
    pub server_lifetime: Option<Duration>,
    /// A node that sent nothing for so long is disconnected.
    pub node_silence: Duration,
    /// How often nodes are told to send a heartbeat.
    pub heartbeat_interval: Duration,
    /// Where it is written who joined, renewed and was refused.
    pub audit: Option<Audit>,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("set up TLS for nodes")]
    Tls {
        #[from]
        source: TlsError,
    },
    #[error("find out the address of the listener for nodes")]
    Address { source: io::Error },
    #[error("prepare the store for nodes")]
    Store {
        #[from]
        source: RecordError,
    },
}

/// What every link needs.
#[derive(Debug)]
pub(crate) struct Shared {
    store: SharedStore,
    identity: StoreIdentity,
    config: LinkConfig,
    authorities: Arc<Authorities>,
    /// `host:port` for hosts that join.
    advertised: String,
    /// Failed attempts to join, by source.
    failures: Bucket<IpAddr>,
    /// Renewals, and registrations of who is registered, by node.
    renewals: Bucket<String>,
    /// What each may make the store write.
    paces: Paces,
    log_limit: LogLimit,
    /// Lines about clones.
    clone_limit: LogLimit,
    registry: Registry,
    tickets: Tickets,
    /// Ends every session.
    shutdown: CancellationToken,
    /// Sessions and bulk streams under way.
    tasks: TaskTracker,
}

impl Shared {
    /// Writes an event; what it tells of is not answered without.
    async fn record(&self, event: Event, outcome: Outcome) -> Result<(), tonic::Status> {
        let Some(audit) = &self.config.audit else {
            return Ok(());
        };
        audit.record(event, outcome).await.map_err(|error| {
            tracing::error!(
                error = chain(&error),
                "nodes are refused: the audit log cannot be written"
            );
            tonic::Status::unavailable("the control plane cannot write its audit log: try again later")
        })
    }
}

/// What a node did that proved who it is.
fn node_event(caller: &caller::Caller, operation: &str) -> Event {
    Event::new(format!("node/{}", caller.peer.node_id), operation)
        .from(Some(caller.address.ip()))
        .target("cluster", caller.peer.cluster.as_str())
        .target("node", caller.peer.node_id.as_str())
}

impl Shared {
    /// Of nodes' certificates.
    fn certificate_lifetime(&self) -> time::Duration {
        self.config
            .certificate_lifetime
            .try_into()
            .unwrap_or(time::Duration::MAX)
    }
}

/// The listener for nodes, serving.
#[derive(Debug)]
pub struct LinkServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl LinkServer {
    /// Serves nodes on `listener`. Nodes that the store holds for connected are disconnected first: nobody is, yet.
    pub async fn start(
        listener: TcpListener,
        authorities: Arc<Authorities>,
        store: SharedStore,
        config: LinkConfig,
    ) -> Result<Self, LinkError> {
        let address = listener
            .local_addr()
            .map_err(|source| LinkError::Address { source })?;
        let lifetime = config
            .server_lifetime
            .and_then(|lifetime| lifetime.try_into().ok());
        let tls = Tls::new(authorities.clone(), config.names.clone(), lifetime)?;
        let identity = typed::identity(&*store).await?;
        records::disconnect_all(&*store, now()).await?;
        crate::subnets::note_epoch(&*store, identity.epoch, now()).await?;
        names::make_good(&*store).await?;
        let shared = Arc::new(Shared {
            store,
            identity,
            advertised: config.advertise.clone().unwrap_or_else(|| address.to_string()),
            config,
            authorities,
            failures: Bucket::default(),
            renewals: Bucket::default(),
            paces: Paces::default(),
            log_limit: LogLimit::new(LINES_PER_MINUTE_MAX),
            clone_limit: LogLimit::new(1),
            registry: Registry::default(),
            tickets: Tickets::default(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let service = NodeServiceServer::new(Service::new(shared.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let incoming = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .with_keepalive(Some(KEEPALIVE));
        let (accepted, connections) = mpsc::channel(ACCEPTED_MAX);
        let stop = &shared.shutdown;
        shared
            .tasks
            .spawn(listener::accept(incoming, tls.current(), accepted, stop.clone()));
        shared.tasks.spawn(tls.run(stop.clone()));
        shared
            .tasks
            .spawn(revocations::enforce(shared.clone(), stop.clone()));
        let router = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .layer(MapResponseLayer::new(date::stamp))
            .add_service(Guard::new(shared.clone(), service));
        let stop = stop.clone().cancelled_owned();
        let server =
            tokio::spawn(router.serve_with_incoming_shutdown(ReceiverStream::new(connections), stop));
        Ok(Self {
            address,
            shared,
            server,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Nodes that are linked now.
    pub fn connected(&self) -> usize {
        self.shared.registry.connected()
    }

    /// It serves no longer.
    pub fn ended(&self) -> bool {
        self.server.is_finished()
    }

    /// What the API may ask of connected nodes.
    pub fn nodes(&self) -> Arc<dyn Nodes> {
        self.shared.clone()
    }

    /// Ends every link, writes that the nodes are disconnected, and stops listening; all until `deadline`.
    pub async fn stop(mut self, deadline: Instant) {
        self.shared.shutdown.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout_at(deadline, self.shared.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(links = self.shared.tasks.len(), "links did not end in time");
        }
        match tokio::time::timeout_at(deadline, &mut self.server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(error = %error, "the listener for nodes failed"),
            Ok(Err(error)) => tracing::error!(error = %error, "the listener for nodes panicked"),
            Err(_) => self.server.abort(),
        }
    }
}

impl Drop for LinkServer {
    /// Nothing goes on without its owner.
    fn drop(&mut self) {
        self.shared.shutdown.cancel();
    }
}

/// An error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

/// The time, for records.
pub(crate) fn now() -> Millis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}
