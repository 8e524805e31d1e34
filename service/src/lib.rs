//! What both daemons need to be good services of a host: layered settings, readiness and liveness, the service
//! manager's protocol, a small HTTP listener for health and metrics, and log lines that suit where they go. Never
//! knows what a daemon does.

pub mod http;
pub mod liveness;
pub mod log;
pub mod metrics;
pub mod notify;
pub mod places;
pub mod readiness;
pub mod settings;

/// Asked to stop, and stopped.
pub const EXIT_STOPPED: u8 = 0;
/// Failed; a restart may help.
pub const EXIT_FAILED: u8 = 1;
/// Wrong arguments; a restart does not help.
pub const EXIT_USAGE: u8 = 2;
/// A configuration that cannot work; a restart does not help (sysexits.h, EX_CONFIG).
pub const EXIT_CONFIG: u8 = 78;
