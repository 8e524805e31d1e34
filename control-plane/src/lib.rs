//! Berth's control plane.

pub mod model;
pub mod api;
pub mod app;
pub mod config;
pub mod link;
pub mod pki;
pub mod store;
