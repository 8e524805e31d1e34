//! Owns the threads on which everything that touches a namespace or netlink is done, a bounded number at a time. Never a
//! worker of the runtime: a netlink request is carried out inside `sendmsg`, behind one lock for the whole kernel, and
//! changing a namespace changes the thread. Never a fork either.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

use super::error::NetworkError;

/// Threads at a time. They all wait for the kernel's one RTNL lock: more gain nothing.
const THREADS_MAX: usize = 8;
/// Stack of a thread, bytes: it makes a handful of system calls.
const STACK_BYTES: usize = 256 * 1024;
/// Waiting for one of the threads, behind others.
const TURN_DEADLINE: Duration = Duration::from_secs(30);
/// One operation: normally 1 to 3 ms, tens of them when the kernel is busy removing namespaces.
const WORK_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Threads(Arc<Semaphore>);

impl Default for Threads {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(THREADS_MAX)))
    }
}

impl Threads {
    /// Does `work` on a thread of its own, and waits for it. `held` (a lock) is released when the work is over and not
    /// before, even if nobody waits any more: a cancelled caller never lets a second operation in beside the first.
    pub(super) async fn run<T, H>(
        &self,
        step: &'static str,
        subject: &str,
        held: H,
        work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<(T, H), NetworkError>
    where
        T: Send + 'static,
        H: Send + 'static,
    {
        let late = |deadline| {
            move |_| NetworkError::Deadline {
                step,
                subject: subject.to_owned(),
                deadline,
            }
        };
        let turn = timeout(TURN_DEADLINE, self.0.clone().acquire_owned());
        // The semaphore is never closed.
        let turn = turn.await.map_err(late(TURN_DEADLINE))?.ok();
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let result = work().map(|value| (value, held));
                drop(turn);
                // A failed send means that the caller gave up; what was made is for `detach`.
                let _ = sender.send(result);
            })
            .map_err(|source| NetworkError::Thread { step, source })?;
        let result = timeout(WORK_DEADLINE, receiver)
            .await
            .map_err(late(WORK_DEADLINE))?;
        result.unwrap_or(Err(NetworkError::ThreadDied { step }))
    }
}

/// Drives netlink sockets on the calling thread until `work` is done.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, NetworkError>>) -> Result<T, NetworkError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|source| NetworkError::Thread {
            step: "drive netlink sockets",
            source,
        })?
        .block_on(work)
}
