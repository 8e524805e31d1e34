//! Owns the generated types of Berth's node protocol, and nothing else: every rule about their content
//! lives with the sender or the receiver (`convert` in the agent, `link` in the control plane).
//!
//! The protocol itself is documented in `berth/node/v1/node.proto`.

pub mod node {
    pub mod v1 {
        #![allow(missing_docs, missing_debug_implementations, clippy::all)]
        tonic::include_proto!("berth.node.v1");

        /// Version of the protocol that this build speaks. Version N and N-1 interoperate.
        pub const VERSION: u32 = 1;
        /// Limit of one message in either direction, bytes.
        pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
        /// Limit of one node's desired state, all parts of the snapshot together, bytes.
        pub const SNAPSHOT_BYTES_MAX: usize = 64 << 20;
        /// Feature of a node that takes a snapshot in parts.
        pub const SNAPSHOT_PARTS: &str = "link.snapshot-parts";
        /// Names of tasks that a node is told, and keeps. So many fit into one message.
        pub const NAMES_MAX: usize = 20_000;
    }
}
