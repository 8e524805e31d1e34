//! Owns what the rest of the agent knows of the link: whether it is up, since when, and why not. Never decides anything.

use std::time::{Duration, SystemTime};

use tonic::Code;

use super::LinkError;
use crate::identity::IdentityError;

/// How the link is now: for readiness, metrics and people.
#[derive(Clone, Debug)]
pub struct LinkState {
    pub phase: LinkPhase,
    /// Of this phase. The host's clock, which may jump.
    pub since: SystemTime,
    /// Of the last failure, when it is not up: one line for people, without secrets.
    pub reason: Option<String>,
    /// The cluster this node belongs to, as the control plane said last.
    pub cluster: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkPhase {
    /// Since the agent's start: no try has ended yet.
    Connecting,
    Up,
    /// The control plane cannot be reached, or the link broke. The next try may do better.
    Down,
    /// The control plane said no, and will until somebody does something: tried again at long intervals only.
    Refused,
}

impl LinkState {
    pub(super) fn connecting() -> Self {
        Self {
            phase: LinkPhase::Connecting,
            since: SystemTime::now(),
            reason: None,
            cluster: None,
        }
    }

    pub(super) fn up(cluster: &str) -> Self {
        Self {
            phase: LinkPhase::Up,
            since: SystemTime::now(),
            reason: None,
            cluster: Some(cluster.to_owned()),
        }
    }

    /// The state after a failure. A phase that goes on keeps its beginning.
    pub(super) fn failed(&self, pace: Pace, reason: String) -> Self {
        let phase = match pace {
            Pace::Soon => LinkPhase::Down,
            Pace::Clone | Pace::Late => LinkPhase::Refused,
        };
        Self {
            phase,
            since: if phase == self.phase {
                self.since
            } else {
                SystemTime::now()
            },
            reason: Some(reason),
            cluster: self.cluster.clone(),
        }
    }

    pub fn is_up(&self) -> bool {
        self.phase == LinkPhase::Up
    }

    /// Why it is not up, for people; `None` when it is.
    pub fn problem(&self) -> Option<String> {
        let reason = self.reason.as_deref();
        match self.phase {
            LinkPhase::Up => None,
            LinkPhase::Connecting => Some("link: connecting".into()),
            LinkPhase::Down => Some(format!("link is down: {}", reason.unwrap_or("unknown"))),
            LinkPhase::Refused => Some(format!("link is refused: {}", reason.unwrap_or("unknown"))),
        }
    }
}

/// How soon another try makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// It may work at once.
    Soon,
    /// Another process holds this identity's link. It may be one of this very host that was cut off, which the control
    /// plane gives up after its silence.
    Clone,
    /// Only a person changes it.
    Late,
}

impl Pace {
    /// First and longest wait.
    pub(super) fn bounds(self) -> (Duration, Duration) {
        match self {
            Self::Soon => (Duration::from_millis(100), Duration::from_secs(10)),
            Self::Clone => (Duration::from_secs(20), Duration::from_secs(300)),
            Self::Late => (Duration::from_secs(60), Duration::from_secs(600)),
        }
    }
}

impl LinkError {
    pub(super) fn pace(&self) -> Pace {
        match self {
            Self::Refused { source } => match source.code() {
                Code::AlreadyExists => Pace::Clone,
                Code::PermissionDenied
                | Code::Unauthenticated
                | Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::Unimplemented
                // A message over the protocol's bound: the same one would come again.
                | Code::OutOfRange
                | Code::ResourceExhausted => Pace::Late,
                _ => Pace::Soon,
            },
            Self::Protocol { .. } => Pace::Late,
            // Only a restart makes an agent another node's.
            Self::Identity {
                source: IdentityError::Replaced { .. },
            } => Pace::Late,
            Self::Identity { .. }
            | Self::Address { .. }
            | Self::Connect { .. }
            | Self::Closed
            | Self::Slow { .. }
            | Self::Outbox { .. } => Pace::Soon,
        }
    }

    /// What to do about it, where a person has to.
    pub(super) fn advice(&self) -> Option<&'static str> {
        let Self::Refused { source } = self else {
            return None;
        };
        match source.code() {
            Code::PermissionDenied => Some(
                "this node's identity was revoked or is not accepted; to join again, get a token with `berth token create` \
                 and run `berth-agent register --force`",
            ),
            Code::AlreadyExists => Some(
                "another agent uses this node's identity: this host or the other is a copy; on the copy, run \
                 `berth-agent register --force` with a token of its own",
            ),
            Code::OutOfRange => {
                Some("a message is larger than the protocol allows (4 MiB): this node has too many tasks")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: Code) -> LinkError {
        LinkError::Refused {
            source: Box::new(tonic::Status::new(code, "no")),
        }
    }

    #[test]
    fn what_only_a_person_can_change_is_not_tried_every_ten_seconds() {
        for code in [
            Code::PermissionDenied,
            Code::AlreadyExists,
            Code::OutOfRange,
            Code::Unimplemented,
        ] {
            let (first, last) = refused(code).pace().bounds();
            assert!(
                first > Duration::from_secs(10) && last >= Duration::from_secs(300),
                "{code:?}"
            );
        }
        for error in [
            refused(Code::Unavailable),
            refused(Code::Internal),
            LinkError::Closed,
        ] {
            assert_eq!(error.pace(), Pace::Soon, "{error}");
        }
    }

    #[test]
    fn a_state_says_why_and_since_when() {
        let begun = LinkState::connecting();
        assert!(!begun.is_up() && begun.problem().is_some());
        let down = begun.failed(Pace::Soon, "no route".into());
        assert_eq!(down.problem().unwrap(), "link is down: no route");
        let still = down.failed(Pace::Soon, "timed out".into());
        assert_eq!(
            (still.since, still.problem().unwrap().as_str()),
            (down.since, "link is down: timed out")
        );
        let refused = still.failed(Pace::Late, "revoked".into());
        assert_eq!(refused.phase, LinkPhase::Refused);
        assert!(LinkState::up("default").problem().is_none());
    }
}
