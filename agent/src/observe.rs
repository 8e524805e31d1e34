//! Owns watching containers: every exit reaches the core, once where it can be told, and none is missed for want of an
//! event. Never acts on what it sees.
//!
//! Events are hints: containerd forgets them when it restarts, and the subscription has no beginning that one can
//! wait for. So the list is read too: on every subscription, shortly after, and now and then.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use berth_agent_core::{
    desired::Millis,
    event::{Exit, ObservedState},
    ids::{ContainerId, TaskId},
};
use futures_util::StreamExt;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::effects::runtime::{Identity, Runtime, RuntimeError, holder_of, now};

/// Between lists while all is well.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// Lists after a subscription was asked for: an exit between the first and its taking effect is in the next.
const LIST_AFTER_SUBSCRIBE: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(250), Duration::from_secs(1)];
/// Between attempts to reach containerd.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(5);
/// What is reported of a process whose shim died: the shim takes it along by SIGKILL.
const KILLED: i32 = 128 + 9;

/// Counts the processes of a container that the kernel killed for want of memory, in its present cgroup.
///
/// Read when the exit is seen: the cgroup is there until the container is removed. containerd's own OOM event names
/// every container of a task on v1, and is no evidence.
pub trait OomCounter: Send + Sync {
    /// Zero where there is no such cgroup.
    fn oom_kills(&self, task: &TaskId, container: &ContainerId) -> u64;
}

/// Watches the containers of one instance.
pub struct Observer {
    runtime: Runtime,
    oom: Arc<dyn OomCounter>,
    exits: mpsc::Sender<Exit>,
    /// Tasks whose holder ended.
    holders: Option<mpsc::Sender<TaskId>>,
    /// Processes whose exit was sent, by runtime id and pid (zero: any), until they are removed. An attempt that failed to
    /// start and was undone has another process when it is tried again.
    reported: HashSet<(String, u32)>,
}

/// Nobody listens any more, or the agent is on its way out.
struct Ended;

impl Observer {
    /// Exits go into `exits`; while it is full, watching waits and containerd keeps the events.
    pub fn new(runtime: Runtime, oom: Arc<dyn OomCounter>, exits: mpsc::Sender<Exit>) -> Self {
        Self {
            runtime,
            oom,
            exits,
            holders: None,
            reported: HashSet::new(),
        }
    }

    /// Tasks go into `holders` whose namespaces nobody holds any more.
    pub fn with_holders(mut self, holders: mpsc::Sender<TaskId>) -> Self {
        self.holders = Some(holders);
        self
    }

    /// Watches until cancelled, or until nobody receives.
    pub async fn run(mut self, cancel: CancellationToken) {
        // Safe to drop at any point: an exit that was not sent is not marked as reported either.
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            Ended = self.watch() => {}
        }
    }

    async fn watch(&mut self) -> Ended {
        let mut pause = RECONNECT_MIN;
        loop {
            match self.subscription(&mut pause).await {
                Err(ended) => return ended,
                Ok(Some(error)) => {
                    tracing::debug!(error = error.failure().message, "containerd's events ended")
                }
                Ok(None) => tracing::debug!("containerd's events ended"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    /// One subscription to its end; `pause` is set back as soon as containerd answers.
    async fn subscription(&mut self, pause: &mut Duration) -> Result<Option<RuntimeError>, Ended> {
        let mut events = pin!(self.runtime.exits());
        let began = Instant::now();
        let mut lists = LIST_AFTER_SUBSCRIBE.into_iter().map(|after| began + after);
        let mut next_list = began;
        loop {
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Ok(exit)) => self.seen(&exit.id, exit.pid, exit.code, exit.at).await?,
                    Some(Err(error)) => return Ok(Some(error)),
                    None => return Ok(None),
                },
                () = tokio::time::sleep_until(next_list) => {
                    match self.list().await? {
                        Ok(()) => *pause = RECONNECT_MIN,
                        Err(error) => return Ok(Some(error)),
                    }
                    let planned = lists.find(|at| *at > Instant::now());
                    next_list = planned.unwrap_or_else(|| Instant::now() + LIST_EVERY);
                }
            }
        }
    }

    /// Reports what ended and what vanished.
    async fn list(&mut self) -> Result<Result<(), RuntimeError>, Ended> {
        // Before the list: what starts meanwhile is not missing from it.
        let running = self.runtime.running();
        let processes = match self.runtime.processes().await {
            Ok(processes) => processes,
            Err(error) => return Ok(Err(error)),
        };
        let listed: HashSet<String> = processes.iter().map(|process| process.id.clone()).collect();
        for process in processes {
            if let ObservedState::Exited { code, at, .. } = process.state {
                self.seen(&process.id, process.pid, code, at).await?;
            }
        }
        for identity in running
            .iter()
            .filter(|identity| !listed.contains(&identity.runtime_id()))
        {
            if let Err(error) = self.vanished(identity).await? {
                return Ok(Err(error));
            }
        }
        // The exit of one whose shim died may be told again by containerd, long after it left the list.
        let runtime = &self.runtime;
        self.reported
            .retain(|(id, _)| listed.contains(id) || runtime.is_known(id));
        Ok(Ok(()))
    }

    /// Running when last seen, and no longer listed: its shim died while containerd did not tell us. A shim that only
    /// answers late is left out of lists as well, so containerd is asked for this one by name.
    async fn vanished(&mut self, identity: &Identity) -> Result<Result<(), RuntimeError>, Ended> {
        let id = identity.runtime_id();
        match self.runtime.has_no_process(&id).await {
            Ok(true) if self.runtime.is_running(&id) => self.report(identity, 0, KILLED, now()).await?,
            Ok(_) => {}
            Err(error) => return Ok(Err(error)),
        }
        Ok(Ok(()))
    }

    async fn seen(&mut self, id: &str, pid: u32, code: i32, at: Millis) -> Result<(), Ended> {
        let reported = |pid| self.reported.contains(&(id.to_owned(), pid));
        if reported(pid) || reported(0) {
            return Ok(());
        }
        if let Some(task) = holder_of(id) {
            return self.holder_seen(task, pid, id).await;
        }
        match self.runtime.identify(id).await {
            Ok(Some(identity)) => self.report(&identity, pid, code, at).await,
            // Not this instance's.
            Ok(None) => Ok(()),
            Err(error) => {
                // The next list has it again.
                tracing::debug!(
                    id,
                    error = error.failure().message,
                    "cannot tell whose exit this is"
                );
                Ok(())
            }
        }
    }

    /// The end of one that was made anew meanwhile, or of which that is not known, is not the end of what holds.
    async fn holder_seen(&mut self, task: TaskId, pid: u32, id: &str) -> Result<(), Ended> {
        if let Some(holders) = &self.holders
            && self.runtime.holder_has_ended(&task).await
        {
            holders.send(task).await.map_err(|_| Ended)?;
            self.reported.insert((id.to_owned(), pid));
        }
        Ok(())
    }

    async fn report(&mut self, identity: &Identity, pid: u32, code: i32, at: Millis) -> Result<(), Ended> {
        let Identity {
            task,
            container,
            attempt,
            ..
        } = identity.clone();
        let holder_ended = self.runtime.holder_has_ended(&task).await;
        let oom_killed = self.oom.oom_kills(&task, &container) > 0;
        let exit = Exit {
            task,
            container,
            attempt,
            pid,
            code,
            at,
            oom_killed,
            holder_ended,
        };
        self.exits.send(exit).await.map_err(|_| Ended)?;
        let id = identity.runtime_id();
        self.runtime.exited(&id);
        self.reported.insert((id, pid));
        Ok(())
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer")
            .field("reported", &self.reported.len())
            .finish_non_exhaustive()
    }
}
