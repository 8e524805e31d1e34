//! Owns what the API refuses and fails with: the code, the HTTP status and the words a client gets. Never decides
//! when.

use berth_control_plane_core::{arn::RefError, task::EchoError};
use http::StatusCode;

use super::sigv4::AuthError;
use crate::{
    audit::AuditError,
    store::{StoreError, typed::RecordError},
    subnets::SettleError,
};

/// Why a call got no answer. The names are those of the ECS model, so that `except client.exceptions.X` works.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("{0}")]
    InvalidParameter(String),
    #[error("{0}")]
    Client(String),
    #[error("Cluster not found: {0}")]
    ClusterNotFound(String),
    #[error("The Cluster cannot be deleted while Tasks are active.")]
    ClusterContainsTasks,
    #[error("The Cluster cannot be deleted while Container Instances are active or draining.")]
    ClusterContainsContainerInstances,
    #[error("{message}")]
    Conflict {
        message: String,
        resource_ids: Vec<String>,
    },
    #[error("{0}")]
    AttributeLimitExceeded(String),
    #[error("{0}")]
    LimitExceeded(String),
    #[error("target not found: {0}")]
    TargetNotFound(String),
    #[error("Service not found: {0}: this endpoint has no services")]
    ServiceNotFound(String),
    #[error("{0}")]
    PlatformUnknown(String),
    #[error("{0}")]
    ResourceNotFound(String),
    /// The key that signed may not call this.
    #[error("{0}")]
    AccessDenied(String),
    /// Nothing was changed.
    #[error("calls that change something are refused as long as the audit log cannot be written")]
    Audit(#[source] AuditError),
    #[error("{0}")]
    UnknownOperation(String),
    #[error("{0}")]
    Serialization(String),
    #[error("request is larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    #[error("request header has more than {count_max} fields or {bytes_max} bytes")]
    HeaderTooLarge { count_max: usize, bytes_max: usize },
    /// The connection broke while the body was read, or nothing more of it came.
    #[error("request body ended early, or came too slowly")]
    BrokenBody,
    #[error("too many calls at once: try again")]
    Busy,
    #[error("call took longer than {0} s: try again, with the same clientToken where there is one")]
    DeadlineExceeded(u64),
    #[error("record changed {0} times while it was being updated: try again")]
    Contended(u32),
    #[error("request makes a record that is too large: shorten the definition, or run fewer tasks at once")]
    RecordTooLarge,
    #[error("the store failed")]
    Store(#[source] StoreError),
    #[error("a stored record is damaged")]
    Record(#[source] RecordError),
    #[error("stored task spec {key:?} cannot be read")]
    Spec { key: String, source: prost::DecodeError },
    #[error("stored task definition {family}:{revision} cannot be used")]
    Definition {
        family: String,
        revision: u32,
        source: EchoError,
    },
    #[error("nodes get their parts of the subnets later than they should")]
    Settle(#[source] SettleError),
    /// A node that should have answered did not.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Server(String),
}

impl ApiError {
    /// The name clients switch on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Auth(error) => error.code(),
            Self::InvalidParameter(_) => "InvalidParameterException",
            Self::Client(_) | Self::RecordTooLarge => "ClientException",
            Self::ClusterNotFound(_) => "ClusterNotFoundException",
            Self::ClusterContainsTasks => "ClusterContainsTasksException",
            Self::ClusterContainsContainerInstances => "ClusterContainsContainerInstancesException",
            Self::Conflict { .. } => "ConflictException",
            Self::AttributeLimitExceeded(_) => "AttributeLimitExceededException",
            Self::LimitExceeded(_) => "LimitExceededException",
            Self::TargetNotFound(_) => "TargetNotFoundException",
            Self::ServiceNotFound(_) => "ServiceNotFoundException",
            Self::PlatformUnknown(_) => "PlatformUnknownException",
            Self::ResourceNotFound(_) => "ResourceNotFoundException",
            Self::AccessDenied(_) => "AccessDeniedException",
            Self::UnknownOperation(_) => "UnknownOperationException",
            Self::Serialization(_) | Self::BrokenBody => "SerializationException",
            Self::TooLarge { .. } => "RequestEntityTooLargeException",
            Self::HeaderTooLarge { .. } => "RequestHeaderSectionTooLargeException",
            Self::Busy
            | Self::DeadlineExceeded(_)
            | Self::Contended(_)
            | Self::Unavailable(_)
            | Self::Audit(_)
            | Self::Store(_)
            | Self::Record(_)
            | Self::Settle(_)
            | Self::Spec { .. }
            | Self::Definition { .. }
            | Self::Server(_) => "ServerException",
        }
    }

    /// What passes by itself is never 4xx: clients take a 400 of DescribeTaskDefinition for "it is gone", and
    /// retry 5xx by themselves.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Busy
            | Self::DeadlineExceeded(_)
            | Self::Contended(_)
            | Self::Unavailable(_)
            | Self::Audit(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(_)
            | Self::Record(_)
            | Self::Settle(_)
            | Self::Spec { .. }
            | Self::Definition { .. }
            | Self::Server(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeaderTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// A problem with one field of the request, named by its path.
    pub fn field(path: impl std::fmt::Display, problem: impl std::fmt::Display) -> Self {
        Self::InvalidParameter(format!("{path}: {problem}"))
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::ValueTooLarge { .. } | StoreError::KeyTooLong { .. } => Self::RecordTooLarge,
            other => Self::Store(other),
        }
    }
}

impl From<RecordError> for ApiError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Store { source } => source.into(),
            other => Self::Record(other),
        }
    }
}

impl From<SettleError> for ApiError {
    fn from(error: SettleError) -> Self {
        match error {
            SettleError::Record { source } => source.into(),
            contended @ SettleError::Contended(_) => Self::Settle(contended),
        }
    }
}

impl From<RefError> for ApiError {
    fn from(error: RefError) -> Self {
        Self::InvalidParameter(error.to_string())
    }
}
