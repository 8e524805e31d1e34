//! Owns the counting of messages on node links. Never looks into one.

use berth_proto::node::v1::{control_message::Message as ToNode, node_message::Message as FromNode};

use tonic::{Code, Status};

use super::{Issue, Message, Metrics};

impl Metrics {
    /// A message was handed to a node's stream.
    pub(crate) fn sent(&self, message: &ToNode) {
        let kind = match message {
            ToNode::Welcome(_) => "welcome",
            ToNode::Snapshot(_) => "snapshot",
            ToNode::Delta(_) => "delta",
            ToNode::StateAck(_) => "state_ack",
            ToNode::OpenBulk(_) => "open_bulk",
            ToNode::Trust(_) => "trust",
            ToNode::Names(_) => "names",
            ToNode::Network(_) => "network",
        };
        self.count("sent", kind);
    }

    /// A message came from a node; none: of a kind that a later version has.
    pub(crate) fn received(&self, message: Option<&FromNode>) {
        let kind = match message {
            Some(FromNode::Hello(_)) => "hello",
            Some(FromNode::StateChange(_)) => "state_change",
            Some(FromNode::Heartbeat(_)) => "heartbeat",
            Some(FromNode::Pulls(_)) => "pulls",
            Some(FromNode::DesiredAck(_)) => "desired_ack",
            Some(FromNode::Capacity(_)) => "capacity",
            Some(FromNode::NetworkAck(_)) => "network_ack",
            None => "unknown",
        };
        self.count("received", kind);
    }

    /// A node asked for a certificate: `register` with a token, `renew` with the one it has.
    pub(crate) fn issued(&self, operation: &'static str, refusal: Option<&Status>) {
        let outcome = match refusal.map(Status::code) {
            None => "ok",
            // A fault of ours, or one that passes.
            Some(Code::Internal | Code::Unavailable | Code::Unknown | Code::DeadlineExceeded) => "failed",
            Some(_) => "refused",
        };
        self.issues.get_or_create(&Issue { operation, outcome }).inc();
    }

    fn count(&self, direction: &'static str, kind: &'static str) {
        self.messages.get_or_create(&Message { direction, kind }).inc();
    }
}
