//! Owns signals to containers. Never waits for what they cause: the exit arrives as an event.

use berth_agent_core::{
    effect::SignalKind,
    ids::{Attempt, ContainerId, runtime_id},
};
use containerd_client::services::v1::KillRequest;

use super::{
    Runtime, RuntimeError, Step,
    call::{DEADLINE, call, or_gone},
};

const SIGKILL: u32 = 9;

impl Runtime {
    /// Sends the container's stop signal to its first process, or SIGKILL to all. A container that is already gone is
    /// a success. A first process without a handler ignores the stop signal: the caller escalates.
    pub async fn signal(
        &self,
        container: &ContainerId,
        attempt: Attempt,
        kind: SignalKind,
    ) -> Result<(), RuntimeError> {
        let id = runtime_id(container, attempt);
        match kind {
            SignalKind::Kill => self.kill(&id, SIGKILL, true).await,
            SignalKind::Stop => match self.identify(&id).await? {
                Some(identity) => self.kill(&id, identity.stop_signal, false).await,
                None => Ok(()),
            },
        }
    }

    pub(super) async fn kill_all(&self, id: &str) -> Result<(), RuntimeError> {
        self.kill(id, SIGKILL, true).await
    }

    async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<(), RuntimeError> {
        let request = KillRequest {
            container_id: id.to_owned(),
            signal,
            all,
            ..KillRequest::default()
        };
        let mut client = self.tasks();
        or_gone(call(Step::Kill, id, DEADLINE, client.kill(self.request(request))).await).map(drop)
    }
}
