//! Owns the HTTP API of the control plane: Amazon ECS's JSON protocol, STS's GetCallerIdentity, and Berth's own
//! operations on the same signed endpoint. Never talks to a node but through the store and [`Nodes`].
//!
//! `endpoint` takes a request in, proves who signed it (`sigv4`) and finds the operation (`operations`); each
//! operation lives in the file of its noun, reads its fields first (`fields`) and touches the store afterwards.

mod access;
mod attributes;
mod audit_events;
mod audited;
mod authority;
mod berth;
mod clusters;
mod container_instances;
mod context;
mod endpoint;
mod environment_files;
mod error;
mod fields;
mod idempotency;
mod join_tokens;
mod keys;
mod logs;
mod node_view;
mod nodes;
mod operations;
mod paging;
mod records;
mod sigv4;
mod sts;
mod subnets;
mod tags;
mod task_definitions;
mod tasks;
mod turns;

use std::{fmt, sync::Arc, time::Duration};

use axum::Router;
use berth_control_plane_core::definition::UnsupportedLogDriver;

use self::context::Api;
pub use self::{access::is_key_id, context::CLOCK_SKEW_MAX, keys::new_key};
use crate::{audit::Audit, nodes::Nodes, store::SharedStore};

/// What the API is told at start.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// In ARNs, and the only one accepted in a signature.
    pub region: String,
    /// Twelve digits, in ARNs.
    pub account_id: String,
    /// Who may call besides the keys in the store. These are admins.
    pub keys: Vec<ApiKey>,
    /// How far a request's time may be from ours; AWS's own limit is [`CLOCK_SKEW_MAX`].
    pub clock_skew_max: Duration,
    pub unsupported_log_driver: UnsupportedLogDriver,
}

/// One access key.
#[derive(Clone)]
pub struct ApiKey {
    pub access_key_id: String,
    pub secret: String,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// The whole API: `POST /`. Everything else is answered as an unknown operation.
///
/// The listener puts the caller's address into each request's extensions, as [`ConnectInfo`](axum::extract::ConnectInfo).
pub fn router(config: ApiConfig, store: SharedStore, nodes: Arc<dyn Nodes>, audit: Audit) -> Router {
    Router::new()
        .fallback(endpoint::serve)
        .with_state(Arc::new(Api::new(config, store, nodes, audit)))
}
