//! Owns what can go wrong with an image, said as ECS says it: what, where, why, what to try. Never prints a cause
//! twice: the underlying error is in `source` only.

use std::{error::Error, fmt, path::PathBuf, sync::Arc, time::Duration};

use super::digest::Digest;

/// Why an image could not be had. Cheap to clone: everyone who waited for one download gets the same.
#[derive(Clone, Debug)]
pub struct ImageError {
    /// `pull IMAGE from HOST`, `import FILE`.
    subject: Arc<str>,
    cause: Arc<Cause>,
}

impl ImageError {
    pub(super) fn new(subject: impl Into<Arc<str>>, cause: Cause) -> Self {
        Self {
            subject: subject.into(),
            cause: Arc::new(cause),
        }
    }

    /// Trying again later may help.
    pub fn retryable(&self) -> bool {
        self.cause.retryable()
    }

    /// The error's name in ECS's `stoppedReason`.
    pub fn kind(&self) -> &'static str {
        "CannotPullContainerError"
    }

    /// Nobody wanted the image any more.
    pub fn is_cancelled(&self) -> bool {
        matches!(*self.cause, Cause::Cancelled)
    }

    /// One line in ECS's form, kind first and with every cause.
    pub fn reason(&self) -> String {
        let mut line = format!("{}: {self}", self.kind());
        let mut source = self.source();
        while let Some(error) = source {
            line.push_str(": ");
            line.push_str(&error.to_string());
            source = error.source();
        }
        line
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.cause)?;
        match self.cause.hint() {
            "" => Ok(()),
            hint => write!(f, " ({hint})"),
        }
    }
}

impl Error for ImageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.source()
    }
}

/// The cause, without the image it happened to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    #[error(transparent)]
    Reference(#[from] super::reference::InvalidReference),
    #[error("configuration: {0}")]
    Config(String),
    #[error("the registry cannot be reached")]
    Unreachable { source: reqwest::Error },
    #[error("the registry was silent for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    #[error("the registry answered {status}: {detail}")]
    Unavailable {
        status: u16,
        detail: String,
        retry_after: Option<Duration>,
    },
    #[error("the registry's certificate is not trusted")]
    Certificate { source: reqwest::Error },
    #[error("cannot make an HTTP client")]
    Client { source: reqwest::Error },
    #[error("the registry's redirect is not followed")]
    Redirect { source: reqwest::Error },
    #[error("access denied ({status}): {detail}")]
    Denied { status: u16, detail: String },
    #[error("{what} unknown: {detail}")]
    NotFound { what: String, detail: String },
    #[error("the registry refused ({status}): {detail}")]
    Refused { status: u16, detail: String },
    #[error("the token service's address {0} is not encrypted")]
    InsecureRealm(String),
    #[error("{what} is not what it is named after: expected {expected}, got {actual}")]
    DigestMismatch {
        what: &'static str,
        expected: Digest,
        actual: String,
    },
    #[error("blob {digest} should have {expected} bytes: {detail}")]
    SizeMismatch {
        digest: Digest,
        expected: u64,
        detail: String,
    },
    #[error("blob {digest} ended after {got} of {expected} bytes")]
    Truncated { digest: Digest, got: u64, expected: u64 },
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("it has {count} layers; the limit is {limit}")]
    TooManyLayers { count: usize, limit: usize },
    #[error("{what} cannot be read")]
    Malformed {
        what: &'static str,
        source: serde_json::Error,
    },
    #[error("{what}: {why}")]
    Invalid { what: &'static str, why: String },
    #[error("it has no image for linux/{wanted}; it has {offered}")]
    NoPlatform { wanted: String, offered: String },
    #[error("media type {0:?} is not supported")]
    Unsupported(String),
    #[error("containerd: {action} {object}")]
    Containerd {
        action: &'static str,
        object: String,
        source: Box<tonic::Status>,
    },
    #[error("layer {digest} cannot be unpacked")]
    Unpack {
        digest: Digest,
        source: Box<tonic::Status>,
    },
    #[error("containerd ended the write of {0} without an answer")]
    LostWrite(String),
    #[error("the archive lacks {0}")]
    ArchiveLacks(String),
    #[error("the archive cannot be read")]
    Archive { source: super::archive::ArchiveError },
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("not done within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("no longer wanted")]
    Cancelled,
}

impl Cause {
    pub fn containerd(action: &'static str, object: impl Into<String>, source: tonic::Status) -> Self {
        Self::Containerd {
            action,
            object: object.into(),
            source: Box::new(source),
        }
    }

    /// Exhaustive on purpose: a new variant must choose.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Stalled(_)
            | Self::Unavailable { .. }
            | Self::Truncated { .. }
            | Self::LostWrite(_)
            | Self::Deadline(_) => true,
            Self::Containerd { source, .. } | Self::Unpack { source, .. } => passing(source),
            Self::Reference(_)
            | Self::Config(_)
            | Self::Certificate { .. }
            | Self::Client { .. }
            | Self::Redirect { .. }
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::Refused { .. }
            | Self::InsecureRealm(_)
            | Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::TooLarge { .. }
            | Self::TooManyLayers { .. }
            | Self::Malformed { .. }
            | Self::Invalid { .. }
            | Self::NoPlatform { .. }
            | Self::Unsupported(_)
            | Self::ArchiveLacks(_)
            | Self::Archive { .. }
            | Self::File { .. }
            | Self::Cancelled => false,
        }
    }

    /// The registry is not there, as opposed to: it is there and said no. A local image may stand in.
    pub fn registry_away(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Stalled(_)
                | Self::Unavailable { .. }
                | Self::Truncated { .. }
                | Self::Deadline(_)
        )
    }

    /// What to try.
    fn hint(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Stalled(_) => {
                "check the registry's name and this host's way to it"
            }
            Self::Unavailable { .. } => "the registry is overloaded or broken; it is tried again",
            Self::Certificate { .. } => "add its authority to registries.extra_ca",
            Self::Redirect { .. } => {
                "list the host in registries.plain_http_hosts if it may be spoken to in clear"
            }
            Self::Denied { .. } => "check the name, and the credentials configured for this registry",
            Self::NotFound { .. } => "check the name and the tag",
            Self::InsecureRealm(_) => {
                "credentials go over TLS only; list the host in registries.plain_http_hosts to allow it"
            }
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => {
                "the registry or something before it is faulty or lies; push the image again"
            }
            Self::NoPlatform { .. } => "push an image for this host's architecture",
            Self::Unpack { .. } | Self::Containerd { .. } => {
                "see containerd's log, and the free space of its root"
            }
            Self::Archive { .. } | Self::ArchiveLacks(_) => {
                "make it again with docker save or as an OCI layout"
            }
            Self::Unsupported(_) => "push it as a docker schema 2 or OCI image with gzip layers",
            _ => "",
        }
    }
}

/// A state of containerd that passes by itself.
fn passing(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::ResourceExhausted
            | Code::Aborted
    ) || status.message().contains("no space left on device")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_why_and_what_to_try() {
        let cause = Cause::NotFound {
            what: "manifest".into(),
            detail: "tag v9".into(),
        };
        let error = ImageError::new("pull reg.example/app:v9 from reg.example", cause);
        assert_eq!(
            error.reason(),
            "CannotPullContainerError: pull reg.example/app:v9 from reg.example: manifest unknown: tag v9 \
             (check the name and the tag)"
        );
        assert!(!error.retryable());
    }

    #[test]
    fn a_cause_is_printed_once() {
        let status = tonic::Status::unavailable("socket is gone");
        let error = ImageError::new("import a.tar", Cause::containerd("stat", "snapshot x", status));
        assert_eq!(error.reason().matches("socket is gone").count(), 1);
        assert!(error.retryable());
    }
}
