//! The pure core of Berth's node agent: task and container state machines, admission, addresses, the ledger. Owns
//! every decision; never touches the host, a clock, a random number or an async runtime.
//!
//! ```text
//! Event ──▶ Node::apply(now, event) ──▶ Change { saves, ledger, reports, effects, timers }
//! ```
//!
//! The caller commits a [`change::Change`] in one transaction before it performs any of its effects. The same events
//! at the same times give the same changes, so a simulator can run a year of faults and a journal replays.

pub mod addresses;
pub mod cdi;
pub mod change;
pub mod container;
pub mod dependency;
pub mod desired;
pub mod effect;
pub mod environment;
pub mod event;
pub mod health;
pub mod ids;
pub mod image;
pub mod lan;
pub mod ledger;
pub mod network;
pub mod node;
pub mod oci;
pub mod ports;
pub mod report;
pub mod resources;
pub mod restart;
pub mod task;
pub mod volumes;
