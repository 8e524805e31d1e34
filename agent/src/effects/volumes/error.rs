//! Owns what can go wrong with a volume. Never retries.

use std::{io, path::PathBuf};

/// Why a volume could not be made, filled or removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("volume {volume}: {step} {}", path.display())]
    Io {
        volume: String,
        step: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("volume {volume}: {} is not below one of the paths that this node allows (volumes.host_paths)", path.display())]
    NotAllowed { volume: String, path: PathBuf },
    #[error("volume {volume}: {} is the agent's own", path.display())]
    AgentsOwn { volume: String, path: PathBuf },
    #[error("volume {volume}: this node has no shared volume of that name, and autoprovision is not set")]
    Missing { volume: String },
    #[error(
        "volume {volume}: this node's shared volume of that name has other driverOpts: use another name, or remove it"
    )]
    Differs { volume: String },
    #[error("volume {volume}: {from} cannot be mounted: {says}")]
    NotMounted {
        volume: String,
        /// As `server:/path`.
        from: String,
        says: String,
    },
    #[error("volume {volume}: the server of {from} does not answer, for {seconds} s")]
    NoServer {
        volume: String,
        from: String,
        seconds: u64,
        /// It was there once.
        mounted: bool,
    },
    #[error("{what} of the volumes took longer than {seconds} s")]
    Late { what: &'static str, seconds: u64 },
    #[error("{what} of the volumes was given up")]
    GivenUp { what: &'static str },
    #[error("{what} of the volumes: no thread")]
    Thread { what: &'static str, source: io::Error },
}

impl VolumeError {
    /// Whether the same may succeed later. Exhaustive on purpose: a new variant must choose.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Io { source, .. } => !matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
            ),
            Self::Late { .. } | Self::Thread { .. } => true,
            Self::NoServer { mounted, .. } => *mounted,
            Self::NotMounted { .. }
            | Self::NotAllowed { .. }
            | Self::AgentsOwn { .. }
            | Self::Missing { .. }
            | Self::Differs { .. }
            | Self::GivenUp { .. } => false,
        }
    }

    pub(super) fn io(
        volume: &str,
        step: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let (volume, path) = (volume.to_owned(), path.into());
        move |source| Self::Io {
            volume,
            step,
            path,
            source,
        }
    }
}
