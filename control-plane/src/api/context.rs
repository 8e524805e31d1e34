//! Owns what every operation is handed: configuration, store, nodes and the limits they share. Never holds state
//! of the cluster: that is the store's.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use berth_control_plane_core::{arn::Realm, definition::UnsupportedLogDriver};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};

use super::{ApiConfig, access::Access, idempotency::TokenLease, turns::Turns};
use crate::{
    audit::Audit,
    model::{Millis, Role},
    nodes::Nodes,
    store::SharedStore,
};

/// AWS's limit on the distance between a request's time and the server's.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);
/// Most log streams open at once.
pub(super) const STREAMS_MAX: usize = 64;

/// What the operations work with.
#[derive(Debug)]
pub(super) struct Api {
    pub realm: Realm,
    pub store: SharedStore,
    pub nodes: Arc<dyn Nodes>,
    pub clock_skew_max: Duration,
    pub unsupported_log_driver: UnsupportedLogDriver,
    pub access: Access,
    pub audit: Audit,
    pub turns: Turns,
    pub streams: Arc<Semaphore>,
    /// One placement at a time in this process: it spares retries. What makes placement right is the compare.
    pub placing: Mutex<()>,
    pub token_lease: TokenLease,
}

/// Who calls: the owner of the key that signed.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub access_key_id: String,
    pub arn: String,
    pub role: Role,
    /// Where from, if the listener said.
    pub address: Option<IpAddr>,
}

impl Api {
    pub fn new(config: ApiConfig, store: SharedStore, nodes: Arc<dyn Nodes>, audit: Audit) -> Self {
        Self {
            realm: Realm {
                region: config.region,
                account: config.account_id,
            },
            store,
            nodes,
            clock_skew_max: config.clock_skew_max,
            unsupported_log_driver: config.unsupported_log_driver,
            access: Access::new(config.keys),
            audit,
            turns: Turns::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            placing: Mutex::new(()),
            token_lease: TokenLease::default(),
        }
    }

    pub fn caller(&self, access_key_id: &str, role: Role, address: Option<IpAddr>) -> Caller {
        Caller {
            access_key_id: access_key_id.to_owned(),
            arn: format!("arn:aws:iam::{}:user/{access_key_id}", self.realm.account),
            role,
            address,
        }
    }
}

/// Now, for records.
pub(super) fn now_ms() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

/// A timestamp as ECS sends it: seconds since the epoch, with a fraction.
pub(super) fn seconds(at: Millis) -> Value {
    #[allow(clippy::cast_precision_loss)] // Exact below 2^53 ms.
    let at = at as f64;
    json!(at / 1000.0)
}

/// An id of a task, a container or the like: 32 hex digits.
pub(super) fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
