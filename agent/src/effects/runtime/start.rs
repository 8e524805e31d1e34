//! Owns the start of a container: snapshot, files, record, process, in as few waits as their order allows. Never
//! leaves a half of it behind when it fails or is cancelled, and never starts one attempt twice.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use berth_agent_core::{
    desired::{ContainerSpec, IpcMode, NetworkMode, PidMode},
    effect::StartContainer,
    ids::{self, TaskId, runtime_id},
    oci::{self, Device, Network, OciError, OciSpec, TaskFacts, User},
};
use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, StartRequest, container,
        snapshots::PrepareSnapshotRequest,
    },
    types::{Mount, v1::Status as TaskStatus},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio_util::sync::CancellationToken;

use super::{
    Identity, OciRuntime, Runtime, RuntimeError, Step, apparmor,
    call::{DEADLINE, PROCESS_DEADLINE, call, unless_cancelled},
    devices, labels,
    options::spec_any,
    seccomp,
};
use crate::{
    effects::quotas,
    logs::{LoggerCommand, UnsafeName},
};

/// The first, one after leftovers were cleared, one after a shim that was leaving took the call.
const ROUNDS_MAX: usize = 3;
/// A shim that is told to leave is gone by then.
const SHIM_LEAVES: Duration = Duration::from_millis(50);

/// A started container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Of its first process, on the host.
    pub pid: u32,
    /// Zero for one that was running already.
    pub timings: Timings,
    /// Where it does not get what its task asked for.
    pub warnings: Vec<String>,
}

/// Where a start's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// For a free place among the starts.
    pub queued: Duration,
    /// Snapshot, files and record, which overlap.
    pub prepare: Duration,
    /// Tasks.Create: shim, logger, `runc create`.
    pub create: Duration,
    /// Tasks.Start: `runc start`.
    pub start: Duration,
}

/// One attempt's names and inputs.
struct Attempt<'a> {
    runtime: &'a Runtime,
    id: String,
    request: &'a StartContainer,
    netns: Option<&'a Path>,
    stop_signal: u32,
    /// What its task shares is this process's.
    holder: Option<u32>,
    cancel: &'a CancellationToken,
    /// This call asked for the process, so it may take it away again.
    asked: AtomicBool,
    /// Why what the task may write is not bounded here.
    unbounded: OnceLock<String>,
}

impl Runtime {
    /// The logger of one attempt, and what it is told.
    ///
    /// # Errors
    /// The container's name cannot be part of a path.
    pub fn logger(
        &self,
        task: &TaskId,
        spec: &ContainerSpec,
        attempt: ids::Attempt,
    ) -> Result<LoggerCommand, UnsafeName> {
        let config = self.config();
        let programs = (config.logger.as_path(), config.logger_socket.as_path());
        LoggerCommand::of((task, spec, attempt), &config.log_dir, programs)
    }

    /// The process whose namespaces its task shares, if it does.
    async fn holder_for(&self, request: &StartContainer) -> Result<Option<u32>, RuntimeError> {
        if request.pid != PidMode::Task && request.ipc != IpcMode::Task {
            return Ok(None);
        }
        match self.holder_pid(&request.task).await? {
            Some(pid) => Ok(Some(pid)),
            None => Err(RuntimeError::HolderEnded {
                task: request.task.clone(),
            }),
        }
    }

    /// The one a task asks for, else the node's own choice.
    pub(super) fn oci_runtime(&self, id: &str, name: &str) -> Result<OciRuntime, RuntimeError> {
        let config = self.config();
        if name.is_empty() {
            return Ok(OciRuntime {
                kind: config.runtime.clone(),
                binary: config.binary_name.clone(),
            });
        }
        let found = config.runtimes.get(name).cloned();
        found.ok_or_else(|| RuntimeError::NoRuntime {
            id: id.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Creates and starts one attempt of a container. Its image is unpacked, its task's cgroups and network exist.
    ///
    /// Repeating it is safe: an attempt that was started is only looked up, and what an earlier try left half made is
    /// finished or made anew. One at a time per container: its lane sees to that.
    pub async fn start(
        &self,
        request: &StartContainer,
        netns: Option<&Path>,
        cancel: CancellationToken,
    ) -> Result<Started, RuntimeError> {
        let id = runtime_id(&request.spec.id, request.attempt);
        let unfit = |source| RuntimeError::Spec {
            id: id.clone(),
            source,
        };
        let stop_signal = oci::signal::parse(&request.image.config.stop_signal).map_err(unfit)?;
        let attempt = Attempt {
            runtime: self,
            id: id.clone(),
            request,
            netns,
            stop_signal,
            holder: self.holder_for(request).await?,
            cancel: &cancel,
            asked: AtomicBool::new(false),
            unbounded: OnceLock::new(),
        };

        let began = Instant::now();
        let place = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            place = self.shared.starts.acquire() => place.ok(),
        };
        let Some(_place) = place else {
            return Err(RuntimeError::Cancelled { id });
        };
        let queued = began.elapsed();
        let mut started = attempt.run().await?;
        started.timings.queued = queued;
        started.warnings.extend(attempt.unbounded.get().cloned());
        tracing::debug!(task = %request.task, id = %attempt.id, pid = started.pid, timings = ?started.timings, "started");
        self.shared.index.put(attempt.identity(), true);
        Ok(started)
    }
}

impl Attempt<'_> {
    async fn run(&self) -> Result<Started, RuntimeError> {
        let mut round = 1;
        loop {
            let last = round == ROUNDS_MAX;
            match self.once().await {
                Err(error) if error.is_already_there() && !last => {
                    if let Some(pid) = self.adopt().await? {
                        return Ok(Started {
                            pid,
                            timings: Timings::default(),
                            warnings: Vec::new(),
                        });
                    }
                }
                Err(error) if error.is_shim_leaving() && !last => {
                    self.undo().await;
                    tokio::time::sleep(SHIM_LEAVES).await;
                }
                Err(error) => return self.settle(error).await,
                done => return done,
            }
            round += 1;
        }
    }

    async fn once(&self) -> Result<Started, RuntimeError> {
        let began = Instant::now();
        let mounts = self.guarded(self.make_ready()).await?;
        if !self.request.mounts.is_empty() {
            self.guarded(self.fill_volumes(&mounts)).await?;
        }
        let ready = Instant::now();
        self.guarded(self.create_process(mounts)).await?;
        self.check_logger()?;
        let created = Instant::now();
        let pid = self.guarded(self.start_process()).await?;
        let timings = Timings {
            queued: Duration::ZERO,
            prepare: ready - began,
            create: created - ready,
            start: created.elapsed(),
        };
        let warnings = Vec::new();
        Ok(Started {
            pid,
            timings,
            warnings,
        })
    }

    async fn guarded<T>(
        &self,
        work: impl Future<Output = Result<T, RuntimeError>>,
    ) -> Result<T, RuntimeError> {
        unless_cancelled(self.cancel, &self.id, work).await
    }

    /// Snapshot, files and record. All three are awaited even when one fails: none may be made after the undoing.
    async fn make_ready(&self) -> Result<Vec<Mount>, RuntimeError> {
        let (chain_id, user) = (&self.request.image.chain_id, self.user());
        let files = self.runtime.write_files(&self.id, self.request);
        if let Some(user) = self.runtime.cached_user(chain_id, user) {
            let spec = self.spec(user)?;
            let (mounts, files, record) = tokio::join!(self.prepare(), files, self.record(&spec));
            record?;
            files?;
            return mounts;
        }
        let (mounts, files) = tokio::join!(self.prepare(), files);
        let mounts = mounts?;
        files?;
        let user = self
            .runtime
            .resolve_user(&self.id, chain_id, user, &mounts)
            .await?;
        self.record(&self.spec(user)?).await?;
        Ok(mounts)
    }

    /// The definition's user, else the image's.
    fn user(&self) -> &str {
        let own = &self.request.spec.user;
        if own.is_empty() {
            &self.request.image.config.user
        } else {
            own
        }
    }

    fn identity(&self) -> Identity {
        Identity {
            task: self.request.task.clone(),
            container: self.request.spec.id.clone(),
            attempt: self.request.attempt,
            stop_signal: self.stop_signal,
        }
    }

    /// A runtime would say of a profile that is not loaded no more than that there is no such file.
    fn check_apparmor(&self) -> Result<(), RuntimeError> {
        let name = &self.request.spec.linux.apparmor;
        if name.is_empty() || name == oci::APPARMOR_UNCONFINED || !self.runtime.has_apparmor() {
            return Ok(());
        }
        apparmor::check(name).map_err(|source| RuntimeError::AppArmor {
            id: self.id.clone(),
            name: name.clone(),
            source,
        })
    }

    fn spec(&self, user: User) -> Result<serde_json::Value, RuntimeError> {
        let network = match (self.request.network, self.netns) {
            (NetworkMode::Host, _) => Network::Host,
            (_, Some(path)) => Network::Join(path.to_string_lossy().into_owned()),
            (NetworkMode::None, None) => Network::Private,
            (NetworkMode::Awsvpc | NetworkMode::Bridge, None) => {
                return Err(RuntimeError::NoNetwork { id: self.id.clone() });
            }
        };
        self.check_apparmor()?;
        let facts = TaskFacts {
            cgroup_parent: self.runtime.config().cgroup_parent.clone(),
            hostname: self.runtime.hostname(self.request),
            network,
            environment: self.endpoints(),
            mounts: self.mounts(),
            devices: self.devices()?,
            seccomp: self.seccomp()?,
            init: self.init(),
            edits: self.gpus()?,
            holder: self.holder,
            shared_memory: (self.request.ipc == IpcMode::Task)
                .then(|| self.runtime.shared_memory_path(&self.request.task))
                .map(|path| path.to_string_lossy().into_owned()),
        };
        let unfit = |source: OciError| RuntimeError::Spec {
            id: self.id.clone(),
            source,
        };
        OciSpec::for_container(self.request, user, facts, self.runtime.shared.host)
            .build()
            .map_err(unfit)
    }

    fn init(&self) -> Option<String> {
        let path = self.runtime.config().init.as_ref()?;
        Some(path.to_string_lossy().into_owned())
    }

    /// Where the container is told of itself, if it has the network for it.
    fn endpoints(&self) -> Vec<(String, String)> {
        let spec = &self.request.spec;
        match &self.runtime.endpoints {
            Some(endpoints) if !spec.networking.disabled => {
                endpoints.environment(self.request.network, &spec.id)
            }
            _ => Vec::new(),
        }
    }

    fn mounts(&self) -> Vec<oci::Mount> {
        let mut mounts = self.runtime.file_mounts(&self.id, self.request);
        mounts.extend(self.runtime.volume_mounts(self.request));
        mounts
    }

    async fn fill_volumes(&self, snapshot: &[Mount]) -> Result<(), RuntimeError> {
        self.runtime.fill_volumes(self.request, snapshot).await
    }

    /// The profile that its definition names, if it names one.
    fn seccomp(&self) -> Result<Option<oci::seccomp_profile::Profile>, RuntimeError> {
        let name = &self.request.spec.linux.seccomp;
        if name.is_empty() || name == oci::SECCOMP_UNCONFINED {
            return Ok(None);
        }
        let profile = seccomp::read(&self.runtime.config().seccomp_dir, name);
        profile.map(Some).map_err(|source| RuntimeError::Seccomp {
            id: self.id.clone(),
            name: name.clone(),
            source,
        })
    }

    /// What its GPUs change, as their specifications are now.
    fn gpus(&self) -> Result<oci::DeviceEdits, RuntimeError> {
        let edits = self.runtime.config().gpus.edits(&self.request.spec.gpus);
        edits.map_err(|source| RuntimeError::Gpus {
            id: self.id.clone(),
            source,
        })
    }

    fn devices(&self) -> Result<Vec<Device>, RuntimeError> {
        let linux = &self.request.spec.linux;
        let mut all = Vec::new();
        for mapping in &linux.devices {
            let found = devices::mapped(mapping).map_err(|source| RuntimeError::Device {
                id: self.id.clone(),
                path: mapping.host_path.clone(),
                source,
            })?;
            all.extend(found);
        }
        if linux.privileged {
            let of_host = devices::of_host().map_err(|source| RuntimeError::Devices { source })?;
            all.extend(of_host);
        }
        // A place is the first's who has it: the definition's before the host's.
        let mut places = BTreeSet::new();
        all.retain(|device| places.insert(device.path.clone()));
        Ok(all)
    }

    async fn prepare(&self) -> Result<Vec<Mount>, RuntimeError> {
        let config = self.runtime.config();
        let mut labels = labels::identity(&config.instance, self.request);
        // Neither record nor lease refers to it yet: without this the collector may take it at once.
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        labels.insert(labels::GC_ROOT.to_owned(), now);
        let request = PrepareSnapshotRequest {
            snapshotter: config.snapshotter.clone(),
            key: self.id.clone(),
            parent: self.request.image.chain_id.clone(),
            labels,
        };
        let mut client = self.runtime.snapshot_service();
        let prepared = client.prepare(self.runtime.request(request));
        let mounts = call(Step::Prepare, &self.id, DEADLINE, prepared).await?.mounts;
        self.bound(&mounts)?;
        Ok(mounts)
    }

    /// Counts what is written to the container's own layer for its task, before anything is.
    fn bound(&self, mounts: &[Mount]) -> Result<(), RuntimeError> {
        let bytes = self.request.ephemeral_storage_bytes;
        if bytes == 0 {
            return Ok(());
        }
        let layer = match mounts {
            [one] => quotas::overlay_layer(&one.options),
            _ => None,
        };
        let why = match layer {
            Some((snapshots, own)) => {
                let quotas = &self.runtime.config().quotas;
                let bounded = quotas.bound(&self.request.task, bytes, &snapshots, &own);
                bounded.map_err(|source| RuntimeError::Quota {
                    id: self.id.clone(),
                    source,
                })?
            }
            None => Some(format!(
                "snapshotter {} has no layers that can be bounded",
                self.runtime.config().snapshotter
            )),
        };
        if let Some(why) = why {
            // Kept by the first of several tries, which all say the same.
            let _ = self
                .unbounded
                .set(quotas::warning("in the containers' own layers", &why));
        }
        Ok(())
    }

    async fn record(&self, spec: &serde_json::Value) -> Result<(), RuntimeError> {
        let config = self.runtime.config();
        let shim_cgroup = oci::shim_cgroup(&config.cgroup_parent, &self.request.task);
        let runtime = self.runtime.oci_runtime(&self.id, &self.request.runtime)?;
        let container = Container {
            id: self.id.clone(),
            labels: labels::record(&config.instance, self.request, self.stop_signal),
            image: self.request.image.reference.clone(),
            runtime: Some(container::Runtime {
                name: runtime.kind.clone(),
                options: runtime.options(shim_cgroup),
            }),
            spec: Some(spec_any(spec)),
            snapshotter: config.snapshotter.clone(),
            snapshot_key: self.id.clone(),
            ..Container::default()
        };
        let request = CreateContainerRequest {
            container: Some(container),
        };
        let mut client = self.runtime.containers();
        call(
            Step::Record,
            &self.id,
            DEADLINE,
            client.create(self.runtime.request(request)),
        )
        .await
        .map(drop)
    }

    async fn create_process(&self, rootfs: Vec<Mount>) -> Result<(), RuntimeError> {
        let output = self.output()?;
        let request = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs,
            stdout: output.clone(),
            stderr: output,
            // The shim copies from the terminal to the logger.
            terminal: self.request.spec.pseudo_terminal,
            ..CreateTaskRequest::default()
        };
        let mut client = self.runtime.tasks();
        self.asked.store(true, Relaxed);
        let created = client.create(self.runtime.request(request));
        let created = call(Step::Create, &self.id, PROCESS_DEADLINE, created).await;
        if created.as_ref().is_err_and(RuntimeError::is_already_there) {
            self.asked.store(false, Relaxed);
        }
        created.map(drop)
    }

    /// The logger, and what it is told.
    fn output(&self) -> Result<String, RuntimeError> {
        let request = self.request;
        self.runtime
            .logger(&request.task, &request.spec, request.attempt)
            .map(|command| command.uri())
            .map_err(|source| RuntimeError::Log {
                id: self.id.clone(),
                source,
            })
    }

    /// The logger registers before it lets Tasks.Create return.
    fn check_logger(&self) -> Result<(), RuntimeError> {
        match &self.runtime.registry {
            Some(registry) if !registry.registered(&self.id) => {
                Err(RuntimeError::NoLogger { id: self.id.clone() })
            }
            _ => Ok(()),
        }
    }

    async fn start_process(&self) -> Result<u32, RuntimeError> {
        let request = StartRequest {
            container_id: self.id.clone(),
            ..StartRequest::default()
        };
        let mut client = self.runtime.tasks();
        let started = client.start(self.runtime.request(request));
        Ok(call(Step::Start, &self.id, PROCESS_DEADLINE, started).await?.pid)
    }

    /// What an earlier try left: a started process is what was wanted, a created one is started now, and anything
    /// less is cleared away.
    async fn adopt(&self) -> Result<Option<u32>, RuntimeError> {
        match self.runtime.process(&self.id).await? {
            // Its shim does not answer. One that is lost never will: once it has ended, the next try finds that nothing runs.
            Some(process) if process.status() == TaskStatus::Unknown => {
                self.runtime.end_lost_shim(&self.id).await;
                Err(RuntimeError::Silent { id: self.id.clone() })
            }
            Some(process) if process.status() != TaskStatus::Created => Ok(Some(process.pid)),
            Some(_) if self.check_logger().is_ok() => {
                self.asked.store(true, Relaxed);
                match self.guarded(self.start_process()).await {
                    Ok(pid) => Ok(Some(pid)),
                    Err(error) => self.settle(error).await.map(|started| Some(started.pid)),
                }
            }
            _ => self.runtime.remove_id(&self.id).await.map(|()| None),
        }
    }

    /// After a failure. One that says nothing of whether the process was started is not undone, or the next try would be the
    /// second start of one attempt: a process that runs is what was wanted, and anything else is left for the next try to
    /// find.
    async fn settle(&self, error: RuntimeError) -> Result<Started, RuntimeError> {
        if !error.leaves_start_open() || self.cancel.is_cancelled() {
            self.undo().await;
            return Err(error);
        }
        match self.runtime.process(&self.id).await {
            Ok(Some(process)) if !matches!(process.status(), TaskStatus::Created | TaskStatus::Unknown) => {
                Ok(Started {
                    pid: process.pid,
                    timings: Timings::default(),
                    warnings: Vec::new(),
                })
            }
            Ok(_) | Err(_) => Err(error),
        }
    }

    /// Takes away what this call made, and never a process that an earlier one started. What cannot be removed now is
    /// found by its labels later.
    async fn undo(&self) {
        if !self.asked.load(Relaxed) && self.may_be_started().await {
            return;
        }
        self.runtime.shared.index.put(self.identity(), false);
        if let Err(error) = self.runtime.remove_id(&self.id).await {
            let failure = error.failure();
            tracing::warn!(task = %self.request.task, id = %self.id, error = failure.message, "undo of a start failed");
        }
    }

    async fn may_be_started(&self) -> bool {
        match self.runtime.process(&self.id).await {
            Ok(process) => process.is_some_and(|process| process.status() != TaskStatus::Created),
            Err(_) => true,
        }
    }
}
