//! Owns further processes in a container that runs: made as its first process was made, and named by the caller. Never
//! decides how long one may take.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use containerd_client::{
    services::v1::{
        DeleteProcessRequest, ExecProcessRequest, GetContainerRequest, GetRequest, KillRequest, StartRequest,
        WaitRequest,
    },
    types::v1::Status as TaskStatus,
};
use prost_types::Any;
use serde_json::Value;

use super::{
    Runtime, RuntimeError, Step,
    call::{DEADLINE, call, or_gone},
};

/// What the shim takes as the description of a process; a bare name, as all of containerd's.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const SIGKILL: u32 = 9;
/// Containers whose process is remembered.
const PROCESSES_MAX: usize = 1024;

/// How the first process of each container was described. A cache: containerd's record is the truth.
#[derive(Debug, Default)]
pub(super) struct Processes(Mutex<BTreeMap<String, Value>>);

impl Processes {
    fn get(&self, id: &str) -> Option<Value> {
        let processes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        processes.get(id).cloned()
    }

    fn put(&self, id: &str, process: Value) {
        let mut processes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if processes.len() >= PROCESSES_MAX {
            processes.clear();
        }
        processes.insert(id.to_owned(), process);
    }

    pub(super) fn removed(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Runtime {
    /// Starts `command` in the container with the environment, user, directory, capabilities and limits of its own process.
    /// What it writes goes to the pipe at `output`, which is open for reading. Returns its process id on the host.
    ///
    /// # Errors
    /// [`RuntimeError::is_already_there`] if there is one of that name. Of one that was refused nothing is left.
    pub async fn exec(
        &self,
        id: &str,
        name: &str,
        command: &[String],
        output: &Path,
    ) -> Result<u32, RuntimeError> {
        let process = with_arguments(self.own_process(id).await?, command);
        // Both, or the shim opens a file without a name.
        let output = output.to_string_lossy().into_owned();
        let request = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: name.to_owned(),
            stdout: output.clone(),
            stderr: output,
            spec: Some(Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: process.to_string().into_bytes(),
            }),
            ..ExecProcessRequest::default()
        };
        let mut client = self.tasks();
        let made = client.exec(self.request(request));
        call(Step::Exec, id, DEADLINE, made).await?;
        let request = StartRequest {
            container_id: id.to_owned(),
            exec_id: name.to_owned(),
        };
        let started = client.start(self.request(request));
        match call(Step::Exec, id, DEADLINE, started).await {
            Ok(started) => Ok(started.pid),
            Err(error) => {
                if let Err(left) = self.exec_delete(id, name).await {
                    tracing::debug!(id, name, error = %left, "a process that did not start is left for the next one to remove");
                }
                Err(error)
            }
        }
    }

    async fn own_process(&self, id: &str) -> Result<Value, RuntimeError> {
        if let Some(known) = self.shared.processes.get(id) {
            return Ok(known);
        }
        let request = GetContainerRequest { id: id.to_owned() };
        let mut client = self.containers();
        let record = client.get(self.request(request));
        let record = call(Step::Inspect, id, DEADLINE, record).await?.container;
        let spec = record.and_then(|record| record.spec).unwrap_or_default();
        let mut spec: Value = serde_json::from_slice(&spec.value).unwrap_or_default();
        let process = spec["process"].take();
        self.shared.processes.put(id, process.clone());
        Ok(process)
    }

    /// Waits until it has ended; its exit code.
    pub async fn exec_ended(&self, id: &str, name: &str, limit: Duration) -> Result<i32, RuntimeError> {
        let request = WaitRequest {
            container_id: id.to_owned(),
            exec_id: name.to_owned(),
        };
        let mut client = self.tasks();
        let ended = call(Step::Wait, id, limit, client.wait(self.request(request))).await?;
        Ok(i32::try_from(ended.exit_status).unwrap_or(i32::MAX))
    }

    /// Its process id on the host, if it runs.
    pub async fn exec_pid(&self, id: &str, name: &str) -> Result<Option<u32>, RuntimeError> {
        let request = GetRequest {
            container_id: id.to_owned(),
            exec_id: name.to_owned(),
        };
        let mut client = self.tasks();
        let answer = or_gone(call(Step::Inspect, id, DEADLINE, client.get(self.request(request))).await)?;
        let process = answer.and_then(|answer| answer.process);
        let runs = process.filter(|process| process.status() == TaskStatus::Running && process.pid > 0);
        Ok(runs.map(|process| process.pid))
    }

    /// SIGKILL, to it alone. One that has ended is a success.
    pub async fn exec_kill(&self, id: &str, name: &str) -> Result<(), RuntimeError> {
        let request = KillRequest {
            container_id: id.to_owned(),
            exec_id: name.to_owned(),
            signal: SIGKILL,
            all: false,
        };
        let mut client = self.tasks();
        or_gone(call(Step::Kill, id, DEADLINE, client.kill(self.request(request))).await).map(drop)
    }

    /// Removes what containerd has of one that has ended, once all that it wrote is in its pipe.
    pub async fn exec_delete(&self, id: &str, name: &str) -> Result<(), RuntimeError> {
        let request = DeleteProcessRequest {
            container_id: id.to_owned(),
            exec_id: name.to_owned(),
        };
        let mut client = self.tasks();
        let deleted = client.delete_process(self.request(request));
        or_gone(call(Step::Delete, id, DEADLINE, deleted).await).map(drop)
    }

    /// The container's first process runs, as far as containerd knows.
    pub async fn runs(&self, id: &str) -> Result<bool, RuntimeError> {
        let process = self.process(id).await?;
        Ok(process.is_some_and(|process| process.status() == TaskStatus::Running))
    }
}

/// The container's own process, running something else and without a terminal.
fn with_arguments(mut process: Value, command: &[String]) -> Value {
    if let Some(process) = process.as_object_mut() {
        process.insert("args".into(), command.into());
        process.insert("terminal".into(), false.into());
        process.remove("consoleSize");
    }
    process
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_its_arguments_and_the_terminal_is_the_containers() {
        let own = serde_json::json!({
            "args": ["a"], "terminal": true, "consoleSize": {"height": 1}, "user": {"uid": 7}, "env": ["A=1"], "cwd": "/x",
        });
        assert_eq!(
            with_arguments(own, &["b".to_owned(), "c".to_owned()]),
            serde_json::json!({
                "args": ["b", "c"], "terminal": false, "user": {"uid": 7}, "env": ["A=1"], "cwd": "/x",
            })
        );
    }
}
