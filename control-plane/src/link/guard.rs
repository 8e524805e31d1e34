//! Owns what stands before every call of the node protocol: who calls, and how much of a request is read before it is
//! answered. Nobody whose certificate does not count gets as far as a message. Never knows what a call does.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::time::timeout;
use tonic::{
    Status,
    body::Body,
    codegen::{Context, Pin, Poll, http},
    server::NamedService,
};

use super::{
    Shared,
    caller::{self, Caller},
};

/// Longest request of Register and Renew: a certificate request of some 2 KiB, and all attributes that a host may have.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// From the head of such a request to its last byte.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// The protocol's service, guarded.
#[derive(Clone, Debug)]
pub(super) struct Guard<S> {
    shared: Arc<Shared>,
    inner: S,
}

impl<S> Guard<S> {
    pub(super) fn new(shared: Arc<Shared>, inner: S) -> Self {
        Self { shared, inner }
    }
}

impl<S: NamedService> NamedService for Guard<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tonic::codegen::Service<http::Request<Body>> for Guard<S>
where
    S: tonic::codegen::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (shared, mut inner) = (self.shared.clone(), self.inner.clone());
        Box::pin(async move {
            match admit(&shared, request).await {
                Ok(request) => inner.call(request).await,
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// The request as it may be handled, with its [`Caller`] unless it is one to join.
async fn admit(shared: &Shared, request: http::Request<Body>) -> Result<http::Request<Body>, Status> {
    let (mut parts, body) = request.into_parts();
    let call = parts.uri.path().rsplit('/').next().unwrap_or_default();
    let (joins, is_one_message) = match call {
        "Register" => (true, true),
        "Renew" => (false, true),
        _ => (false, false),
    };
    if !joins {
        let caller = caller::authenticate(shared, &parts.extensions).await?;
        parts.extensions.insert(caller);
    }
    let body = match is_one_message {
        true => timeout(REQUEST_DEADLINE, whole(body))
            .await
            .map_err(|_| Status::deadline_exceeded("the request did not come in time"))??,
        false => body,
    };
    Ok(http::Request::from_parts(parts, body))
}

/// All of a small body.
async fn whole(body: Body) -> Result<Body, Status> {
    let (mut bytes, mut chunks) = (Vec::new(), axum::body::Body::new(body).into_data_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Status::unavailable(format!("the request broke off: {error}")))?;
        if bytes.len() + chunk.len() > REQUEST_BYTES_MAX {
            let text = format!("the request is longer than {REQUEST_BYTES_MAX} bytes");
            return Err(Status::invalid_argument(text));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Body::new(axum::body::Body::from(bytes)))
}

/// Who was found to make this call.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| Status::unauthenticated("a client certificate is required"))
}
