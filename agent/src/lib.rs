//! Berth's node agent: everything that touches the host. Decisions are made in `berth-agent-core`.
//!
//! ```text
//! link ──▶ driver (core, store) ──▶ executor ──▶ effects ──▶ host
//!  ▲          ▲                                     │
//!  │          └──────── completions, exits, timers ─┘
//!  └── outbox
//! ```

pub mod app;
pub mod audit;
pub mod boot;
pub mod config;
pub mod convert;
pub mod dial;
pub mod dns;
pub mod doctor;
pub mod driver;
pub mod effects;
pub mod endpoints;
pub mod executor;
pub mod halt;
pub mod health;
pub mod identity;
pub mod introspection;
pub mod link;
pub mod logs;
pub mod metrics;
pub mod observe;
pub mod place;
pub mod purge;
pub mod ranges;
mod rate;
pub mod service;
pub mod settings;
pub mod status;
pub mod store;
pub mod sys;
pub mod telemetry;
pub mod timers;
