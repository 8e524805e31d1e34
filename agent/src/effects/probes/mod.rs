//! Owns probes: one execution of a health check's command in its container, to its end. Nothing of it is left when it is
//! done: no process, no record, no pipe. Never judges what it found, and never decides when the next one is.
//!
//! All that a probe makes has one name in its container's attempt. So the next one finds what an agent that was killed
//! left, and what is left at the container's end goes with it.

mod family;
mod output;

use std::{path::PathBuf, sync::Arc, time::Duration};

use berth_agent_core::{
    effect::Probe,
    event::{Completion, Failure},
    health::Outcome,
    ids::runtime_id,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::runtime::{Runtime, RuntimeError};
use crate::sys;
use output::{Output, bounded};

/// Of the process in its container, and of its pipe.
const NAME: &str = "probe";
/// From SIGKILL to the end of a probe.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// An answer to the wait for its end may come so much after the end.
const WAIT_SLACK: Duration = Duration::from_secs(5);
/// When a container ends, its probe ends first, of SIGKILL; its own end is known by then.
const END_KNOWN: Duration = Duration::from_millis(100);
/// Exit code after SIGKILL.
const KILLED: i32 = 137;

/// Makes probes.
#[derive(Clone, Debug)]
pub struct Probes {
    runtime: Runtime,
    /// Files of containers are below `<run_dir>/tasks/<task>`.
    run_dir: PathBuf,
    /// Those whose process is being made: that costs the host as much as a start. One that runs costs its container.
    making: Arc<Semaphore>,
}

/// How a probe's process came to its end.
enum End {
    Exited(i32),
    TimedOut,
    Cancelled,
    /// Nobody answers for it.
    Lost(RuntimeError),
}

impl Probes {
    pub fn new(runtime: Runtime, run_dir: PathBuf) -> Self {
        let at_a_time = usize::try_from(sys::cpu_count()).unwrap_or(1).max(1);
        Self {
            runtime,
            run_dir,
            making: Arc::new(Semaphore::new(at_a_time)),
        }
    }

    /// Executes the probe to its end, or to its timeout.
    pub async fn run(&self, probe: &Probe, cancel: CancellationToken) -> Completion {
        let id = runtime_id(&probe.container, probe.attempt);
        let path = self
            .run_dir
            .join("tasks")
            .join(probe.task.as_str())
            .join(&id)
            .join(NAME);
        let mut output = match Output::open(path) {
            Ok(output) => output,
            Err(error) => return failed(format!("make the probe's pipe: {error}")),
        };
        let pid = {
            let place = tokio::select! {
                biased;
                () = cancel.cancelled() => return Completion::Cancelled,
                place = self.making.acquire() => place,
            };
            let Ok(_place) = place else {
                return Completion::Cancelled;
            };
            match self.begin(&id, probe, &output).await {
                Ok(pid) => pid,
                Err(error) => return self.not_begun(&id, probe, &error).await,
            }
        };
        let end = self.end(&id, probe, pid, &mut output, &cancel).await;
        // Deleting it waits for what it wrote.
        tokio::select! {
            deleted = self.runtime.exec_delete(&id, NAME) => if let Err(error) = deleted {
                tracing::debug!(id, error = error.failure().message, "a probe is left for the next one to remove");
            },
            Err(error) = output.read() => tracing::debug!(id, %error, "a probe's output cannot be read"),
        }
        self.completion(&id, probe, end, output).await
    }

    /// Its process, after what an earlier agent left was removed.
    async fn begin(&self, id: &str, probe: &Probe, output: &Output) -> Result<u32, RuntimeError> {
        match self.runtime.exec(id, NAME, &probe.command, output.path()).await {
            Err(error) if error.is_already_there() => {
                if let Some(pid) = self.runtime.exec_pid(id, NAME).await? {
                    self.kill(id, probe, pid).await;
                }
                self.runtime.exec_delete(id, NAME).await?;
                self.runtime.exec(id, NAME, &probe.command, output.path()).await
            }
            begun => begun,
        }
    }

    /// A program that cannot be executed is a failed check; that the runtime could not be asked says nothing.
    async fn not_begun(&self, id: &str, probe: &Probe, error: &RuntimeError) -> Completion {
        let message = error.failure().message;
        if !error.is_refused_for_good() || self.has_ended(id).await {
            return failed(message);
        }
        Completion::Probed {
            attempt: probe.attempt,
            outcome: Outcome {
                exit_code: None,
                output: bounded(message),
            },
        }
    }

    async fn end(
        &self,
        id: &str,
        probe: &Probe,
        pid: u32,
        output: &mut Output,
        cancel: &CancellationToken,
    ) -> End {
        let timeout = Duration::from_millis(probe.timeout_ms.into());
        let end = tokio::select! {
            biased;
            () = cancel.cancelled() => End::Cancelled,
            ended = self.runtime.exec_ended(id, NAME, timeout + WAIT_SLACK) => match ended {
                Ok(code) => End::Exited(code),
                Err(error) => End::Lost(error),
            },
            () = tokio::time::sleep(timeout) => End::TimedOut,
            Err(error) = output.read() => {
                tracing::debug!(id, %error, "a probe's output cannot be read");
                End::TimedOut
            }
        };
        if !matches!(end, End::Exited(_)) {
            self.kill(id, probe, pid).await;
        }
        end
    }

    /// SIGKILL to the process and all it started, and its end.
    async fn kill(&self, id: &str, probe: &Probe, pid: u32) {
        let cgroup = probe.container.to_string();
        let family = tokio::task::spawn_blocking(move || family::end(pid, &cgroup));
        if let Err(error) = family.await {
            tracing::warn!(id, %error, "the end of a probe's processes");
        }
        let killed = self.runtime.exec_kill(id, NAME).await;
        // Also of one that had ended: containerd's versions say so with different codes.
        let ended = self.runtime.exec_ended(id, NAME, KILL_WAIT).await;
        if let (Err(killed), Err(ended)) = (killed, ended) {
            let (killed, ended) = (killed.failure().message, ended.failure().message);
            tracing::warn!(
                id,
                killed,
                ended,
                "a probe that was killed is not known to have ended"
            );
        }
    }

    async fn completion(&self, id: &str, probe: &Probe, end: End, output: Output) -> Completion {
        let seconds = probe.timeout_ms / 1000;
        let (exit_code, about) = match end {
            End::Cancelled => return Completion::Cancelled,
            End::Lost(error) => return failed(error.failure().message),
            // Its container's end is no failed check.
            End::Exited(KILLED) if self.has_ended(id).await => return Completion::Cancelled,
            End::Exited(code) => (Some(code), String::new()),
            End::TimedOut => (None, format!("killed after its timeout of {seconds} s")),
        };
        Completion::Probed {
            attempt: probe.attempt,
            outcome: Outcome {
                exit_code,
                output: output.finish(&about),
            },
        }
    }

    async fn has_ended(&self, id: &str) -> bool {
        tokio::time::sleep(END_KNOWN).await;
        !self.runtime.runs(id).await.unwrap_or(true)
    }
}

fn failed(message: String) -> Completion {
    Completion::Failed(Failure {
        kind: "HealthCheckError".into(),
        message: bounded(message),
        retryable: true,
    })
}
