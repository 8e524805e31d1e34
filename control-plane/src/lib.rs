//! Berth's control plane.

pub mod api;
pub mod api_listener;
pub mod app;
pub mod audit;
pub mod backup;
pub mod config;
mod date;
pub mod join_token;
pub mod link;
pub mod metrics;
pub mod model;
pub mod nodes;
pub mod pki;
pub mod service;
pub mod settings;
pub mod store;
mod subnets;
