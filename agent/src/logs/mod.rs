//! Owns the agent's side of container output: the loggers that are alive ([`registry`]), and reading what they wrote
//! ([`read`]). Never writes a log: each has one writer, its `berth-logger`.

pub mod location;
pub mod read;
pub mod registry;
pub mod retention;

pub use location::{LoggerCommand, UnsafeName, container_log, task_dir};
pub use read::{Line, LogQuery, LogReadError, LogStream, stream};
pub use registry::{AdoptError, LoggerRegistry, RegistryConfig, RegistryError, Server};
pub use retention::remove_task_logs;
