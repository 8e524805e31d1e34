//! Owns the Container Device Interface: reads specifications of it, tells which of their devices are GPUs, and what a
//! container that gets one is to be changed by. Never reads a file or looks at a device: both arrive.
//!
//! Reference: <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>, versions 0.3 to 1.0.

mod library;
mod name;
mod spec;
#[cfg(test)]
mod tests;
mod yaml;

pub use library::Library;
pub use name::{DeviceName, InvalidName, Kind};
pub use spec::{DeviceNode, Edits, Hook, Hooks, Mount, NodeKind, Spec};

/// Longest specification. That of eight GPUs divided into seven each has 300 KiB.
pub const SPEC_BYTES_MAX: usize = 2 << 20;

/// How a specification is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
}

/// Why a specification, or a device of one, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CdiError {
    #[error("it is longer than {SPEC_BYTES_MAX} bytes")]
    TooLong,
    #[error("it is no CDI specification: {0}")]
    Format(String),
    #[error("its cdiVersion is {0:?}; 0.3.0 to 1.0.0 are known")]
    Version(String),
    #[error("{what} {value:?} is {problem}")]
    Value {
        what: &'static str,
        value: String,
        problem: &'static str,
    },
    #[error("{0}: more than a container can use")]
    TooMuch(&'static str),
    #[error("it has {0}, which is not supported")]
    Unsupported(&'static str),
    #[error("device {0} is there twice")]
    Repeated(String),
    #[error("GPU {0} is not in the CDI specifications of this node any more")]
    NoDevice(DeviceName),
}
