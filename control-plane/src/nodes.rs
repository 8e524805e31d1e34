//! Owns what the API may ask of connected nodes, besides what goes through the store. The implementation is
//! `link`; the API never sees a stream.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use berth_proto::node::v1::{Heartbeat, LogLine, LogRequest, Pulls};
use tokio::sync::mpsc;

use crate::pki::Authorities;

/// Lines of log, or the reason why there are no more.
pub type LogReceiver = mpsc::Receiver<Result<Vec<LogLine>, String>>;

/// Why a node cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("node {0} is not connected: its logs can be read when it is back")]
    NotConnected(String),
    #[error("node {0} did not open the stream within {1} s")]
    TimedOut(String, u64),
    #[error("node {0} cannot be asked for another stream now: too many wait to be opened")]
    Busy(String),
}

/// What a node said when it did not take over its desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// For people.
    pub reason: String,
    /// It would, if an operator confirmed it.
    pub confirmable: bool,
}

/// Connected nodes, as the API sees them.
#[async_trait]
pub trait Nodes: Send + Sync + Debug {
    /// The last heartbeat of a connected node.
    fn latest_heartbeat(&self, node: &str) -> Option<Heartbeat>;
    /// Downloads under way on a connected node, as it last said.
    fn latest_pulls(&self, node: &str) -> Option<Pulls>;
    /// Why a connected node does not follow its desired state. None: it does.
    fn held(&self, node: &str) -> Option<Held>;
    /// Where a host that joins finds the listener: `host:port`.
    fn advertised(&self) -> String;
    /// Who signs for nodes.
    fn authorities(&self) -> Arc<Authorities>;
    /// Asks the node for logs. Dropping the receiver ends the stream.
    async fn open_logs(&self, node: &str, request: LogRequest) -> Result<LogReceiver, NodeError>;
}
