//! Berth's node agent: everything that touches the host. Decisions are made in `berth-agent-core`.

pub mod effects;
pub mod logs;
pub mod observe;
pub mod telemetry;
