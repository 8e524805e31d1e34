//! Owns the four calls of the node protocol: what carries them out. Who may make them is [`super::guard`]'s. Never
//! handles a message.

use std::sync::Arc;

use berth_proto::node::v1::{
    BulkFromNode, BulkToNode, ControlMessage, NodeMessage, RegisterRequest, RegisterResponse, RenewRequest,
    RenewResponse, node_service_server::NodeService,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Shared, bulk, guard, join, node_event, renew, session};
use crate::{audit::Outcome, metrics::metrics};

/// Messages that may wait for a node to read them; each is at most 4 MiB.
const OUTBOUND_MESSAGES_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct Service(Arc<Shared>);

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

#[tonic::async_trait]
impl NodeService for Service {
    type LinkStream = ReceiverStream<Result<ControlMessage, Status>>;
    type BulkStream = ReceiverStream<Result<BulkToNode, Status>>;

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let from = request.remote_addr().map(|address| address.ip());
        let from = from.ok_or_else(|| Status::unavailable("the connection has gone"))?;
        let registered = join::register(&self.0, from, request.into_inner()).await;
        metrics().issued("register", registered.as_ref().err());
        registered.map(Response::new)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let caller = guard::caller(&request)?;
        let request = request.into_inner();
        let issues = !request.certificate_request_der.is_empty();
        let renewed = renew::renew(&self.0, &caller, request).await;
        if issues {
            metrics().issued("renew", renewed.as_ref().err());
        }
        if issues && renewed.is_ok() {
            let event = node_event(&caller, "Renew");
            self.0.record(event, Outcome::Done).await?;
        }
        renewed.map(Response::new)
    }

    async fn link(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let caller = guard::caller(&request)?;
        let (sender, receiver) = mpsc::channel(OUTBOUND_MESSAGES_MAX);
        // The answer's headers go out at once: a node may wait for them before it says hello.
        self.0
            .tasks
            .spawn(session::run(self.0.clone(), caller, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn bulk(
        &self,
        request: Request<Streaming<BulkFromNode>>,
    ) -> Result<Response<Self::BulkStream>, Status> {
        let peer = guard::caller(&request)?.peer;
        let (sender, receiver) = mpsc::channel(1);
        self.0
            .tasks
            .spawn(bulk::serve(self.0.clone(), peer, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
