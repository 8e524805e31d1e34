//! Owns what is known of a task's part of the host, and what the end of a preparation or a release changes of it.

use serde::{Deserialize, Serialize};

use super::{Logs, START_TRIES_MAX, Task};
use crate::{
    container::{Container, Retry},
    desired::{Millis, Protocol},
    event::{Completion, Failure},
    report::StopCode,
    resources::port_name,
};

/// How long a task waits for the network outside of which it is to be a host, milliseconds: after a boot its link may come
/// late, and a switch may let nothing through for half a minute.
pub const NETWORK_DEADLINE_MS: i64 = 120_000;
/// Between two looks whether it is there, milliseconds.
const NETWORK_LOOK_MS: i64 = 2_000;

/// What the task has of the host: cgroups, directories, volumes, network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Host {
    Nothing,
    Preparing {
        cancelled: bool,
    },
    Ready,
    /// A preparation failed or was given up: something may exist.
    HalfMade,
    Releasing,
    Released,
}

/// A network outside that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// What of it, for people.
    pub reason: String,
    /// Moved along when the host's clock is set.
    pub since: Millis,
}

impl Awaited {
    /// When it was waited for long enough.
    pub fn until(&self) -> Millis {
        self.since.plus(NETWORK_DEADLINE_MS)
    }

    pub(super) fn waiting(&self) -> String {
        format!("waits for its network: {}", self.reason)
    }
}

impl Task {
    /// A preparation or a release ended.
    pub(super) fn on_host(&mut self, completion: Completion, now: Millis) -> Result<(), String> {
        let is_awaited = matches!(completion, Completion::NetworkAwaited(_));
        if matches!(self.host, Host::Preparing { .. }) && !is_awaited {
            self.awaited = None;
        }
        match (self.host, completion) {
            (
                Host::Preparing { .. },
                Completion::HostReady {
                    mac_address,
                    warnings,
                },
            ) => {
                self.warn(warnings);
                self.host = Host::Ready;
                (self.host_retry, self.addresses_tried) = (Retry::default(), 0);
                self.mac_address = Some(mac_address).filter(|mac| !mac.is_empty());
            }
            // What the definition names is nobody else's to choose; of the others the node chooses new ones.
            (Host::Preparing { .. }, Completion::PortsTaken { ports }) => {
                self.host = Host::HalfMade;
                self.host_retry.failed(now);
                let named = |port: &&(Protocol, u16)| self.spec.host_ports().any(|own| own == **port);
                let fixed: Vec<_> = ports.iter().filter(named).map(|port| port_name(*port)).collect();
                let reason = if !fixed.is_empty() {
                    Some(format!("a process of the host has {}", fixed.join(", ")))
                } else if self.host_retry.failures >= START_TRIES_MAX {
                    Some("processes of the host have all ports that were chosen for it".to_owned())
                } else {
                    None
                };
                if let Some(reason) = reason {
                    let reason = format!("ResourceInitializationError: {reason}");
                    self.begin_stop(StopCode::TaskFailedToStart, reason, now);
                    self.host_retry = Retry::default();
                }
            }
            // Which one it has next, the node says.
            (Host::Preparing { .. }, Completion::AddressTaken(_)) => {
                self.host = Host::HalfMade;
                self.host_retry.failed(now);
            }
            (Host::Preparing { .. }, Completion::NetworkAwaited(failure)) => {
                self.host = Host::HalfMade;
                self.await_network(&failure, now);
            }
            (Host::Preparing { .. }, Completion::Cancelled) => self.host = Host::HalfMade,
            (Host::Preparing { .. }, Completion::Failed(failure)) => {
                self.host = Host::HalfMade;
                self.host_retry.failed(now);
                if !failure.retryable || self.host_retry.failures >= START_TRIES_MAX {
                    self.begin_stop(
                        StopCode::TaskFailedToStart,
                        Container::failure_reason(&failure),
                        now,
                    );
                    self.host_retry = Retry::default();
                }
            }
            (Host::Releasing, Completion::HostReleased) => {
                self.host = Host::Released;
                self.host_retry = Retry::default();
            }
            (Host::Releasing, Completion::Failed(_) | Completion::Cancelled) => {
                self.host = Host::HalfMade;
                self.host_retry.failed(now);
            }
            (_, Completion::LogsRemoved) if self.logs == Logs::Removing => self.logs = Logs::Removed,
            (_, Completion::Failed(_) | Completion::Cancelled) if self.logs == Logs::Removing => {
                self.logs = Logs::Expired;
                self.host_retry.failed(now);
            }
            (host, completion) => return Err(format!("host is {host:?} at {completion:?}")),
        }
        Ok(())
    }

    /// What its network is made of is gone for good: a link that was its own.
    pub(crate) fn on_network_lost(&mut self, reason: &str, now: Millis) {
        if self.host == Host::Ready {
            self.begin_stop(StopCode::EssentialContainerExited, reason.to_owned(), now);
        }
    }

    /// The network outside is not there: it is looked for again until its time is over. No failure: nothing that is wrong with
    /// the task or the host would be seen more often.
    fn await_network(&mut self, failure: &Failure, now: Millis) {
        let since = self.awaited.as_ref().map_or(now, |awaited| awaited.since);
        let reason = failure.message.clone();
        let awaited = Awaited { reason, since };
        if awaited.until() <= now {
            let reason = Container::failure_reason(failure);
            let reason = format!("{reason}; waited {} s for it", NETWORK_DEADLINE_MS / 1000);
            self.begin_stop(StopCode::TaskFailedToStart, reason, now);
            self.host_retry = Retry::default();
        } else {
            self.host_retry.at = Some(now.plus(NETWORK_LOOK_MS));
        }
        self.awaited = Some(awaited);
    }
}
