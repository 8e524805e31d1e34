//! What the agent does on the host, one module per kind of thing. Each effect is idempotent and names what it makes by
//! task and attempt. Nothing here decides: `berth-agent-core` does.

pub mod cgroups;
pub mod connection;
mod environment;
pub mod gpus;
mod host;
pub mod images;
pub mod network;
pub mod probes;
pub mod quotas;
pub mod runtime;
pub mod shared_memory;
pub(crate) mod shims;
pub mod volumes;

pub use host::{Given, Host, Listening};
