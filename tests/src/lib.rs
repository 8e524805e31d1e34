//! Shared harness of the tests: a private containerd, a real control plane, a real agent process, a signed client, and
//! a listing of the host that asks nobody but the host.

#![allow(clippy::unwrap_used)]

pub mod cluster;
pub mod containerd;
pub mod ecs;
pub mod image;
pub mod listing;
