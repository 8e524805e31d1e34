//! Owns how one call to containerd is made: always under a deadline, and given up on cancellation only after a grace,
//! because a call that is cut off may leave things behind that nobody was told of.

use std::time::Duration;

use containerd_client::services::v1::{
    containers_client::ContainersClient, snapshots::snapshots_client::SnapshotsClient,
    tasks_client::TasksClient,
};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, transport::Channel};

use super::{Runtime, RuntimeError, Step};

/// Of a call that only writes or reads records.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// Of Tasks.Create and Tasks.Start, which run several processes; under a burst they queue for the cores.
pub(super) const PROCESS_DEADLINE: Duration = Duration::from_secs(60);
/// Of Tasks.Delete, which waits for the logger to drain: containerd itself kills a logger after 10 s.
pub(super) const DELETE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a call that is under way may go on after its effect was cancelled.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// Of one answer; a list of a thousand tasks is about 300 KiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The answer, or what containerd said instead; `subject` is the runtime id it is about.
pub(super) async fn call<T>(
    step: Step,
    subject: &str,
    deadline: Duration,
    work: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(deadline, work).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(RuntimeError::answered(step, subject, &status)),
        Err(_) => Err(RuntimeError::Deadline {
            step,
            id: subject.to_owned(),
            after: deadline,
        }),
    }
}

/// Does not begin work that was cancelled, and waits for work under way a little longer.
pub(super) async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    id: &str,
    work: impl Future<Output = Result<T, RuntimeError>>,
) -> Result<T, RuntimeError> {
    let cancelled = || RuntimeError::Cancelled { id: id.to_owned() };
    if cancel.is_cancelled() {
        return Err(cancelled());
    }
    let overdue = async {
        cancel.cancelled().await;
        tokio::time::sleep(CANCEL_GRACE).await;
    };
    tokio::select! {
        biased;
        done = work => done,
        () = overdue => Err(cancelled()),
    }
}

/// NotFound is what was wanted.
pub(super) fn or_gone<T>(result: Result<T, RuntimeError>) -> Result<Option<T>, RuntimeError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

impl Runtime {
    pub(super) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.shared.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.shared.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn snapshot_service(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.shared.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
}
