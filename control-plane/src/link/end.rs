//! Owns why a link ends, and how its node is told. Never ends one.

use std::time::Duration;

use tonic::{Code, Status};

use super::{
    apply::ApplyError,
    chain,
    dispatch::DispatchError,
    records::ConnectError,
    registry::Agent,
    session::{HELLO, SEND},
};
use crate::{store::typed::RecordError, subnets::SettleError};

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the node closed it")]
    Closed,
    #[error("no hello within {} s", HELLO.as_secs())]
    NoHello,
    #[error("{0}")]
    Refused(String),
    #[error("the node said nothing for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the node did not read its messages for {} s", SEND.as_secs())]
    Stuck,
    #[error("a newer link of the same node takes over")]
    Superseded,
    #[error("{0}")]
    Revoked(String),
    #[error("the authority of this node's certificate is not believed any more: register the host again")]
    Retired,
    #[error("the certificate of this node has expired: register the host again")]
    Expired,
    #[error("read what is known of the node's certificate")]
    Identity(#[from] RecordError),
    #[error(
        "another agent with this node's identity is linked, from {first}: this host is a clone of that one, or two \
         agents share one identity; register this host anew"
    )]
    Clone { first: Agent },
    #[error("the control plane is stopping")]
    Stopping,
    #[error("the stream broke: {}", .0.message())]
    Broken(Status),
    #[error("register the node")]
    Connect(#[from] ConnectError),
    #[error("apply a report")]
    Apply(#[from] ApplyError),
    #[error("tell the node where tasks are reached")]
    Names(#[source] RecordError),
    #[error("tell the node what to run")]
    Dispatch(#[from] DispatchError),
    #[error("give the node its part of the cluster's subnets")]
    Settle(#[from] SettleError),
}

impl End {
    /// What the node is told.
    pub(super) fn status(&self) -> Status {
        let code = match self {
            Self::Closed => Code::Ok,
            Self::NoHello | Self::Silent(_) | Self::Stuck => Code::DeadlineExceeded,
            Self::Refused(_) => Code::InvalidArgument,
            Self::Superseded => Code::Aborted,
            Self::Stopping | Self::Broken(_) => Code::Unavailable,
            Self::Clone { .. } => Code::AlreadyExists,
            Self::Retired | Self::Expired => Code::Unauthenticated,
            Self::Revoked(_)
            | Self::Connect(ConnectError::OtherCluster { .. } | ConnectError::Revoked(_)) => {
                Code::PermissionDenied
            }
            Self::Connect(
                ConnectError::Incomplete(_) | ConnectError::Port { .. } | ConnectError::TooMuch(_),
            ) => Code::InvalidArgument,
            Self::Dispatch(DispatchError::TooLarge { .. }) => Code::ResourceExhausted,
            Self::Connect(_)
            | Self::Apply(_)
            | Self::Dispatch(_)
            | Self::Names(_)
            | Self::Settle(_)
            | Self::Identity(_) => Code::Unavailable,
        };
        Status::new(code, chain(self))
    }
}
