//! Owns the four calls of the node protocol: who may make them, and what carries them out. Never handles a message.

use std::sync::Arc;

use berth_proto::node::v1::{
    BulkFromNode, BulkToNode, ControlMessage, NodeMessage, RegisterRequest, RegisterResponse, RenewRequest,
    RenewResponse, node_service_server::NodeService,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Shared, bulk, session};
use crate::pki::Peer;

/// Messages that may wait for a node to read them; each is at most 4 MiB.
const OUTBOUND_MESSAGES_MAX: usize = 8;

const NO_JOINING: &str = "joining by token is not available in this version: the operator issues the node's \
    certificate on the control plane";

#[derive(Debug)]
pub(super) struct Service(Arc<Shared>);

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

/// Who calls, by the certificate that TLS has verified.
fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let certificates = request.peer_certs();
    let Some(leaf) = certificates.as_ref().and_then(|chain| chain.first()) else {
        return Err(Status::unauthenticated("a client certificate is required"));
    };
    Peer::from_der(leaf).map_err(|error| Status::permission_denied(format!("client certificate: {error}")))
}

#[tonic::async_trait]
impl NodeService for Service {
    type LinkStream = ReceiverStream<Result<ControlMessage, Status>>;
    type BulkStream = ReceiverStream<Result<BulkToNode, Status>>;

    async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        Err(Status::unimplemented(NO_JOINING))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        Err(Status::unimplemented(NO_JOINING))
    }

    async fn link(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let peer = peer(&request)?;
        let (sender, receiver) = mpsc::channel(OUTBOUND_MESSAGES_MAX);
        // The answer's headers go out at once: a node may wait for them before it says hello.
        self.0
            .tasks
            .spawn(session::run(self.0.clone(), peer, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn bulk(
        &self,
        request: Request<Streaming<BulkFromNode>>,
    ) -> Result<Response<Self::BulkStream>, Status> {
        let peer = peer(&request)?;
        let (sender, receiver) = mpsc::channel(1);
        self.0
            .tasks
            .spawn(bulk::serve(self.0.clone(), peer, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
