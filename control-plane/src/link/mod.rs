//! Owns the gRPC listener for nodes and every link: who is connected, what each is told, what each reports. Never
//! decides what a node is to run: that comes out of the store, by watch, and may have been put there by another
//! control plane on the same store.
//!
//! Every connection is mutual TLS, and the node's certificate says which node and cluster it is. `Register` and
//! `Renew` answer UNIMPLEMENTED: certificates are issued by [`Authority::issue_node`](crate::pki::Authority::issue_node)
//! and carried to the node by hand in this version; joining by token needs a listener that lets strangers in, and
//! comes with the tokens.
//!
//! One link is one [`session`]: it reads the node's messages, applies reports ([`apply`]), and sends what
//! [`dispatch`] finds in the store. Logs go over streams of their own ([`bulk`]).

mod apply;
mod bulk;
mod dispatch;
mod map;
mod records;
mod registry;
mod service;
mod session;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::task_record as test_task;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use berth_proto::node::v1::{MESSAGE_BYTES_MAX, node_service_server::NodeServiceServer};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming};

use self::{bulk::Tickets, registry::Registry, service::Service};
use crate::{
    model::{Millis, StoreIdentity},
    nodes::Nodes,
    pki::ServerIdentity,
    store::{SharedStore, typed, typed::RecordError},
};

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// An idle connection is asked for a sign of life this often, and given up after as long without one.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Streams of one connection: the link, and bulk.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;
/// Headers of one request, bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// What can be set about links.
#[derive(Clone, Copy, Debug)]
pub struct LinkConfig {
    /// A node that sent nothing for so long is disconnected.
    pub node_silence: Duration,
    /// How often nodes are told to send a heartbeat.
    pub heartbeat_interval: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("set up TLS for nodes")]
    Tls { source: tonic::transport::Error },
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
    registry: Registry,
    tickets: Tickets,
    /// Ends every session.
    shutdown: CancellationToken,
    /// Sessions and bulk streams under way.
    tasks: TaskTracker,
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
        server_identity: &ServerIdentity,
        authority_pem: &str,
        store: SharedStore,
        config: LinkConfig,
    ) -> Result<Self, LinkError> {
        let address = listener
            .local_addr()
            .map_err(|source| LinkError::Address { source })?;
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(
                &server_identity.certificate_pem,
                &server_identity.key_pem,
            ))
            .client_ca_root(Certificate::from_pem(authority_pem))
            .timeout(HANDSHAKE);
        let builder = Server::builder()
            .tls_config(tls)
            .map_err(|source| LinkError::Tls { source })?
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADER_BYTES_MAX);
        let identity = typed::identity(&*store).await?;
        records::disconnect_all(&*store, now()).await?;
        let shared = Arc::new(Shared {
            store,
            identity,
            config,
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
        let stop = shared.shutdown.clone().cancelled_owned();
        let mut builder = builder;
        let router = builder.add_service(service);
        let server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stop));
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

/// The time, for records.
pub(crate) fn now() -> Millis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}
