//! Owns the process that holds the namespaces which a task's containers share: berth-init in a container of its own, which
//! has nothing but that, in the task's cgroup and below the task's shim. Never decides which tasks have one.
//!
//! A PID namespace lives with its first process. This one is made before the first container and removed after the last;
//! it is in no list of containers, for it has no attempts and runs nothing of the user's.

use std::{fs, io, path::PathBuf, time::Duration};

use berth_agent_core::{
    desired::LinuxOptions,
    ids::TaskId,
    oci::{self, INIT, Mount, OciSpec, User},
};
use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, GetContainerRequest, ListContainersRequest,
        StartRequest, container,
    },
    types::{Mount as RootMount, v1::Status as TaskStatus},
};

use super::{
    Runtime, RuntimeError, Step,
    call::{DEADLINE, PROCESS_DEADLINE, call, or_gone},
    labels,
    options::spec_any,
};

/// Before the task's id, where a task's containers have an id of their own.
const PREFIX: &str = "pause-";
/// Its directory in the task's, and its cgroup beside those of the containers.
const NAME: &str = "pause";
/// Nobody.
const USER: u32 = 65_534;
/// What a runtime can put into namespaces of others: gVisor's containers each have a kernel of their own.
const SHARING: &str = "io.containerd.runc.";
/// Until the runtime has become the program.
const EXECUTED_LOOKS: u32 = 200;
const EXECUTED_PAUSE: Duration = Duration::from_millis(5);
/// The kernel's mark of a process that is on its way out: PF_EXITING.
const EXITING: u64 = 0x4;

/// Whose holder that is, by its name.
pub fn holder_of(id: &str) -> Option<TaskId> {
    id.strip_prefix(PREFIX)?.parse().ok()
}

fn holder_id(task: &TaskId) -> String {
    format!("{PREFIX}{task}")
}

impl Runtime {
    /// Has the task's holder, which is made if there is none. `runs`: containers of the task do, so one that is made now
    /// would not hold what they have.
    ///
    /// # Errors
    /// The runtime cannot share namespaces; the holder of what runs has ended; what containerd says.
    pub async fn hold(&self, task: &TaskId, runtime: &str, runs: bool) -> Result<(), RuntimeError> {
        let id = holder_id(task);
        if self.holder_pid(task).await?.is_some() {
            return Ok(());
        }
        if runs {
            return Err(RuntimeError::HolderEnded { task: task.clone() });
        }
        // What an earlier try or boot left.
        self.release_holder(task).await?;
        let made = self.make_holder(task, &id, runtime).await;
        if made.is_err()
            && let Err(error) = self.release_holder(task).await
        {
            tracing::debug!(%task, error = %crate::sys::Chain(&error), "a holder that did not start is left for the next try");
        }
        made
    }

    async fn make_holder(&self, task: &TaskId, id: &str, runtime: &str) -> Result<(), RuntimeError> {
        let config = self.config();
        let runtime = self.oci_runtime(id, runtime)?;
        if !runtime.kind.starts_with(SHARING) {
            return Err(RuntimeError::CannotShare {
                id: id.to_owned(),
                runtime: runtime.kind,
            });
        }
        let unfit = |source| RuntimeError::Spec {
            id: id.to_owned(),
            source,
        };
        let init = config.init.as_ref().ok_or(unfit(oci::OciError::InitMissing))?;
        let cgroup = format!("/{}/{task}/c/{NAME}", config.cgroup_parent.trim_matches('/'));
        let nothing = LinuxOptions {
            capabilities_drop: vec!["ALL".to_owned()],
            no_new_privileges: true,
            ..LinuxOptions::default()
        };
        let user = User {
            uid: USER,
            gid: USER,
            additional_gids: Vec::new(),
        };
        let args = vec![INIT.to_owned(), "--hold".to_owned()];
        let spec = OciSpec::new(args, cgroup, self.shared.host)
            .hostname(NAME)
            .user(user)
            .linux(&nothing)
            .readonly_root(true)
            .mount(Mount::read_only(init.to_string_lossy(), INIT))
            .annotation(oci::SHIM_GROUP, task.as_str())
            .build()
            .map_err(unfit)?;
        let root = self.task_directory(task).join(NAME);
        let made = fs::create_dir_all(&root);
        made.map_err(|source| RuntimeError::File {
            path: root.clone(),
            source,
        })?;
        let shim_cgroup = oci::shim_cgroup(&config.cgroup_parent, task);
        let own = [
            (labels::INSTANCE, config.instance.clone()),
            (labels::TASK, task.to_string()),
        ];
        let record = Container {
            id: id.to_owned(),
            labels: own
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            runtime: Some(container::Runtime {
                name: runtime.kind.clone(),
                options: runtime.options(shim_cgroup),
            }),
            spec: Some(spec_any(&spec)),
            ..Container::default()
        };
        let request = CreateContainerRequest {
            container: Some(record),
        };
        let mut records = self.containers();
        call(Step::Record, id, DEADLINE, records.create(self.request(request))).await?;
        let request = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs: vec![RootMount {
                r#type: "bind".to_owned(),
                source: root.to_string_lossy().into_owned(),
                options: vec!["rbind".to_owned(), "rw".to_owned()],
                ..RootMount::default()
            }],
            ..CreateTaskRequest::default()
        };
        let mut tasks = self.tasks();
        let created = tasks.create(self.request(request));
        call(Step::Create, id, PROCESS_DEADLINE, created).await?;
        let request = StartRequest {
            container_id: id.to_owned(),
            ..StartRequest::default()
        };
        let started = tasks.start(self.request(request));
        let pid = call(Step::Start, id, PROCESS_DEADLINE, started).await?.pid;
        match is_process_of_host(pid).await {
            true => Ok(()),
            false => Err(RuntimeError::CannotShare {
                id: id.to_owned(),
                runtime: runtime.binary.unwrap_or(runtime.kind),
            }),
        }
    }

    /// The holder's process on the host. None: there is none, or it has ended.
    pub async fn holder_pid(&self, task: &TaskId) -> Result<Option<u32>, RuntimeError> {
        let process = self.process(&holder_id(task)).await?;
        let runs = process.filter(|process| process.status() == TaskStatus::Running);
        // containerd is told of its end only when all that it takes along has ended.
        Ok(runs.map(|process| process.pid).filter(|pid| !is_ending(*pid)))
    }

    /// The task had a holder, and it has ended. Asks containerd only where there was one.
    pub async fn holder_has_ended(&self, task: &TaskId) -> bool {
        self.task_directory(task).join(NAME).is_dir() && matches!(self.holder_pid(task).await, Ok(None))
    }

    /// Removes the task's holder, and with it what it held. Gone is a success.
    pub async fn release_holder(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let id = holder_id(task);
        let request = GetContainerRequest { id: id.clone() };
        let mut records = self.containers();
        let found = call(Step::Inspect, &id, DEADLINE, records.get(self.request(request))).await;
        if or_gone(found)?.is_some() {
            self.remove_id(&id).await?;
        }
        let root = self.task_directory(task).join(NAME);
        match fs::remove_dir_all(&root) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RuntimeError::File { path: root, source })
            }
            _ => Ok(()),
        }
    }

    /// The tasks of this instance that have a holder, alive or not.
    pub async fn holders(&self) -> Result<Vec<TaskId>, RuntimeError> {
        let request = ListContainersRequest {
            filters: vec![format!("id~={:?}", format!("^{PREFIX}"))],
        };
        let mut records = self.containers();
        let listed = call(
            Step::List,
            "holders",
            DEADLINE,
            records.list(self.request(request)),
        )
        .await?;
        let all = listed.containers.iter();
        Ok(all.filter_map(|container| holder_of(&container.id)).collect())
    }

    /// Ends the process and keeps the record, as [`Runtime::end`] does with a container.
    pub async fn end_holder(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.delete_process(&holder_id(task)).await.map(drop)
    }

    /// Where the task's `/dev/shm` is mounted.
    pub(super) fn shared_memory_path(&self, task: &TaskId) -> PathBuf {
        crate::effects::shared_memory::path(&self.config().run_dir, task)
    }
}

/// The program itself, which has become what was started: not that of a kernel between it and the host's, whatever shim and
/// name that has. It may be a moment until it has.
async fn is_process_of_host(pid: u32) -> bool {
    for _ in 0..EXECUTED_LOOKS {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        if name.is_ok_and(|name| INIT.ends_with(&format!("/{}", name.trim()))) {
            return true;
        }
        tokio::time::sleep(EXECUTED_PAUSE).await;
    }
    false
}

/// proc_pid_stat(5): gone, a zombie, or on its way there.
fn is_ending(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => says_ending(&stat),
        Err(_) => true,
    }
}

fn says_ending(stat: &str) -> bool {
    // The name before may have anything in it.
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return true;
    };
    let mut fields = rest.split(' ');
    let state = fields.next();
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    matches!(state, Some("Z" | "X")) || flags.is_none_or(|flags| flags & EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_named_by_its_task() {
        let task: TaskId = "a".repeat(32).parse().unwrap();
        assert_eq!(holder_of(&holder_id(&task)), Some(task.clone()));
        assert_eq!(holder_of(&format!("{task}-1")), None);
        assert_eq!(berth_agent_core::ids::parse_runtime_id(&holder_id(&task)), None);
    }

    #[test]
    fn one_on_its_way_out_has_ended() {
        let stat = |state: &str, flags: u64| format!("7 (a) b) {state} 1 7 7 0 -1 {flags} 0 0");
        assert!(!says_ending(&stat("S", 0x40_0100)));
        assert!(says_ending(&stat("S", 0x40_0104)));
        assert!(says_ending(&stat("Z", 0)));
        assert!(says_ending(""));
        assert!(!is_ending(std::process::id()));
        assert!(is_ending(u32::MAX));
    }
}
