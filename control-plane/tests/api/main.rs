//! The API over HTTP on loopback: the real router and the real SQLite store, a client that signs as the AWS SDK
//! does, and nodes played by the test, which writes their records.

// All of this is test code, also what stands outside of #[test] functions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod auth;
mod berth;
mod client;
mod clusters;
mod container_instances;
mod environment_files;
mod identity;
mod join_tokens;
mod keys;
mod launching;
mod protection;
mod stopping;
mod subnets;
mod tags_and_attributes;
mod task_definitions;
mod world;
