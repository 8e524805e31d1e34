//! Owns the host as the executor sees it: each effect of the core, made of calls to the modules beside this one; and
//! the list of everything that this instance has on the host. Never decides.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::Ipv4Addr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use berth_agent_core::{
    container::Life,
    desired::{ContainerSpec, NetworkMode, SharedNamespaces},
    effect::{Effect, PrepareHost, SignalKind, StartContainer},
    event::{Completion, Exit, Failure, Observed, ObservedState},
    ids::{ContainerId, TaskId},
    ledger::HostObject,
    task::Task,
};
use berth_service::notify::Notifier;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    cgroups::{Cgroups, TaskLimits},
    environment::EnvironmentFiles,
    images::{Images, ImagesConfig, Limits, Platform, RegistryCredential},
    network::{self, Network, NetworkConfig},
    probes::Probes,
    quotas::{self, Quotas},
    runtime::{OciRuntime, Runtime, RuntimeConfig, RuntimeError, init_usable},
    shared_memory,
    volumes::{Places, VolumeError, Volumes},
};
use crate::{
    audit::{ListError, directories},
    config::{Config, NamedRuntime},
    endpoints::{self, Endpoints},
    logs::{self, AdoptError, LoggerRegistry, RegistryConfig},
    observe::{Observer, OomCounter},
    sys::{self, Chain},
    telemetry::Sampler,
};

/// Starts at a time per core: more is no faster, and each waits longer.
const STARTS_PER_CORE: usize = 3;

/// Everything the agent has to do with the host.
#[derive(Debug)]
pub struct Host {
    environment_files: EnvironmentFiles,
    pub images: Images,
    pub runtime: Runtime,
    pub probes: Probes,
    pub network: Network,
    pub cgroups: Cgroups,
    pub sampler: Arc<Mutex<Sampler>>,
    pub loggers: LoggerRegistry,
    pub endpoints: Endpoints,
    volumes: Volumes,
    quotas: Quotas,
    run_dir: PathBuf,
    log_dir: PathBuf,
}

/// What a new host's caller has to serve.
#[derive(Debug)]
pub struct Listening {
    pub loggers: logs::Server,
    pub endpoints: endpoints::Listeners,
}

impl OomCounter for Cgroups {
    fn oom_kills(&self, task: &TaskId, container: &ContainerId) -> u64 {
        Self::oom_kills(self, task, container)
    }
}

impl super::runtime::LoggerRegistry for LoggerRegistry {
    fn registered(&self, runtime_id: &str) -> bool {
        Self::registered(self, runtime_id)
    }
}

impl Host {
    /// Sets up what all tasks share. `notifier` keeps containers' pipes for the next agent; `kept_addresses` are held by
    /// tasks, outside of `task_cidr`.
    ///
    /// # Errors
    /// What is missing on this host, and what to do about it.
    pub async fn start(
        config: &Config,
        channel: tonic::transport::Channel,
        notifier: Notifier,
        kept_addresses: Vec<Ipv4Addr>,
    ) -> anyhow::Result<(Self, Listening)> {
        let logger = config.logger_path().context("find the agent's own executable")?;
        anyhow::ensure!(
            logger.is_file(),
            "the logger {} is missing: it is installed beside berth-agent, or named by `logger` in the configuration",
            logger.display()
        );
        let cgroups = Cgroups::new(&config.cgroup_parent())?.task_pids_max(config.task_pids_max);
        let (endpoints, listeners) = Endpoints::bind(&config.run_dir)?;
        let network = Network::start(NetworkConfig {
            instance: config.instance.clone(),
            run_dir: config.run_dir.clone(),
            task_cidr: config.task_cidr,
            kept: kept_addresses,
            endpoint_port: endpoints.port(),
        })
        .await?;
        let images = Images::new(channel.clone(), images_config(config)?)?;
        images.recover().await?;
        let volumes = Volumes::new(Places::new(
            &config.state_dir,
            &config.run_dir,
            config.volumes.host_paths.clone(),
        ));
        let runtime_config = RuntimeConfig {
            init: init_program(config),
            ..runtime_config(config, logger.clone(), cgroups.version(), volumes.clone())
        };
        let runtime = Runtime::new(channel, runtime_config);
        let (loggers, server) = LoggerRegistry::listen(RegistryConfig {
            socket: config.logger_socket(),
            logger,
            place: place_logger(runtime.clone(), cgroups.clone()),
            notifier,
        })?;
        let sampler = Sampler::new(cgroups.clone(), &config.instance, &config.state_dir)?;
        let host = Self {
            environment_files: EnvironmentFiles::new(config.registries.extra_ca.clone()),
            images,
            probes: Probes::new(runtime.clone(), config.run_dir.clone()),
            runtime: runtime
                .with_registry(Arc::new(loggers.clone()))
                .with_endpoints(endpoints.clone()),
            network,
            cgroups,
            sampler: Arc::new(Mutex::new(sampler)),
            loggers,
            endpoints,
            volumes,
            quotas: Quotas::new(&config.state_dir),
            run_dir: config.run_dir.clone(),
            log_dir: config.log_dir(),
        };
        let listening = Listening {
            loggers: server,
            endpoints: listeners,
        };
        Ok((host, listening))
    }

    /// Takes up the loggers of what the runtime has, so that their containers survive them from now on. One that died
    /// together with the agent before is replaced, if the service manager kept its pipes.
    pub async fn adopt_loggers(&self, observed: &[Observed], tasks: &[Task]) {
        for seen in observed {
            let id = berth_agent_core::ids::runtime_id(&seen.container, seen.attempt);
            let runs = matches!(seen.state, ObservedState::Running { .. });
            if !runs && !self.loggers.has_stored(&id) {
                continue;
            }
            let rt = self.cgroups.rt_processes(&seen.task);
            let taken = match self.loggers.adopt(&id, &rt).await {
                Err(AdoptError::NotFound { .. }) if self.loggers.has_stored(&id) => {
                    match self.logger_arguments(seen, tasks) {
                        Some(arguments) => self.loggers.resume(&id, arguments).await,
                        // Its task is about to be ended: what it says has no place to go.
                        None => continue,
                    }
                }
                other => other,
            };
            if let Err(error) = taken
                && runs
            {
                tracing::warn!(container = %id, error = %Chain(&error), "cannot take up the container's logger: its output is lost if it dies");
            }
        }
        self.loggers.drop_unclaimed();
    }

    /// What the container's logger was started with, but for the socket.
    fn logger_arguments(&self, seen: &Observed, tasks: &[Task]) -> Option<Vec<(OsString, OsString)>> {
        let task = tasks.iter().find(|task| task.spec.id == seen.task)?;
        let spec = task.spec.container(&seen.container)?;
        let command = self.runtime.logger(&seen.task, spec, seen.attempt).ok()?;
        let arguments = command.arguments().into_iter();
        Some(arguments.map(|(key, value)| (key.into(), value)).collect())
    }

    /// Answers from now on for what an earlier run of the agent began: it is measured, and its limits are kept up.
    pub fn take_up(&self, task: &Task) {
        let spec = &task.spec;
        let name = |c: &ContainerSpec| (c.id.clone(), c.name.clone());
        let containers: Vec<_> = spec.containers.iter().map(name).collect();
        self.sampler().register(&spec.id, &containers);
        let limits = TaskLimits {
            ceilings: spec.limits,
            swap_bytes: spec.swap_bytes(),
            cpu_shares: spec.cpu_shares(),
        };
        self.cgroups.keep(&spec.id, limits);
        for container in &spec.containers {
            if task.container(&container.id).life == Life::Running {
                self.cgroups
                    .keep_container(&spec.id, &container.id, container.memory_ceiling());
            }
        }
        self.cgroups.reassert(&spec.id);
    }

    /// Watches containers; exits go into `exits`, tasks whose shared namespaces nobody holds any more into `holders`.
    pub fn observer(&self, exits: mpsc::Sender<Exit>, holders: mpsc::Sender<TaskId>) -> Observer {
        Observer::new(self.runtime.clone(), Arc::new(self.cgroups.clone()), exits).with_holders(holders)
    }

    /// What runs already, with whether the kernel killed it for want of memory.
    pub async fn observe(&self) -> anyhow::Result<Vec<Observed>> {
        let listed = self.runtime.list().await?;
        let observed = |c: super::runtime::ListedContainer| {
            let state = match c.state {
                ObservedState::Exited { code, at, .. } => {
                    let oom_killed = self.cgroups.oom_kills(&c.task, &c.container) > 0;
                    ObservedState::Exited { code, at, oom_killed }
                }
                other => other,
            };
            Observed {
                task: c.task,
                container: c.container,
                attempt: c.attempt,
                state,
            }
        };
        Ok(listed.into_iter().map(observed).collect())
    }

    /// The address that the host routes to each task.
    pub async fn addresses(&self) -> anyhow::Result<BTreeMap<TaskId, Ipv4Addr>> {
        let route = |object| match object {
            network::HostObject::Route {
                address,
                task: Some(task),
                ..
            } => Some((task, address)),
            _ => None,
        };
        Ok(self.network.list().await?.into_iter().filter_map(route).collect())
    }

    /// Performs one effect to its completion.
    pub async fn perform(&self, effect: Effect, cancel: CancellationToken) -> Completion {
        match effect {
            Effect::PrepareHost(prepare) => match self.prepare(&prepare).await {
                Ok((mac_address, warning)) => Completion::HostReady {
                    mac_address,
                    warnings: warning.into_iter().collect(),
                },
                Err(failure) => Completion::Failed(failure),
            },
            Effect::PullImage { image, .. } => match self.images.ensure(&image, cancel).await {
                Ok(image) => Completion::ImageReady(Box::new(image)),
                Err(error) if error.is_cancelled() => Completion::Cancelled,
                Err(error) => Completion::Failed(Failure {
                    kind: error.kind().into(),
                    message: Chain(&error).to_string(),
                    retryable: error.retryable(),
                }),
            },
            Effect::FetchEnvironment(fetch) => tokio::select! {
                () = cancel.cancelled() => Completion::Cancelled,
                fetched = self.environment_files.fetch(&fetch.urls) => match fetched {
                    Ok(files) => Completion::EnvironmentReady(files),
                    Err(error) => Completion::Failed(failure(&error, error.retryable())),
                },
            },
            Effect::Start(start) => self.start_container(&start, cancel).await,
            Effect::Probe(probe) => self.probes.run(&probe, cancel).await,
            Effect::Signal {
                task,
                container,
                attempt,
                kind,
            } => {
                let signalled = self.runtime.signal(&container, attempt, kind).await;
                // A profile of AppArmor may take no signals of the runtime, which runc does not tell; the kernel's own it takes.
                let killed = kind == SignalKind::Kill && self.cgroups.kill_container(&task, &container);
                match signalled {
                    Err(error) if !killed => Completion::Failed(Failure {
                        // What the runtime cannot do to a process it can no more do later.
                        retryable: !error.is_refusal(),
                        ..error.failure()
                    }),
                    _ => Completion::Signalled,
                }
            }
            Effect::Remove {
                task,
                container,
                attempt,
            } => {
                self.cgroups.forget_container(&task, &container);
                let removed = self.runtime.remove(&container, attempt).await;
                self.loggers
                    .forget(&berth_agent_core::ids::runtime_id(&container, attempt));
                match removed {
                    Ok(()) => Completion::Removed,
                    Err(error) => Completion::Failed(error.failure()),
                }
            }
            Effect::ReleaseHost { task, .. } => match self.release(&task).await {
                Ok(()) => Completion::HostReleased,
                Err(failure) => Completion::Failed(failure),
            },
            Effect::RemoveLogs { task } => match logs::remove_task_logs(&self.log_dir, &task) {
                Ok(()) => Completion::LogsRemoved,
                Err(error) => Completion::Failed(failure(&error, true)),
            },
            // The executor keeps cancellations to itself.
            Effect::Cancel(_) => Completion::Cancelled,
        }
    }

    /// Cgroups, directories and volumes beside the network: none needs another.
    async fn prepare(&self, prepare: &PrepareHost) -> Result<(String, Option<String>), Failure> {
        // Before there is anything that would not be counted.
        let warning = self.bound_volumes(prepare)?;
        let network = async {
            match (prepare.network, prepare.address) {
                (NetworkMode::Awsvpc, Some(address)) => {
                    let attached = self.network.attach(&prepare.task, address).await;
                    attached
                        .map(|attached| attached.mac)
                        .map_err(|error| network_failure(&error))
                }
                (NetworkMode::Awsvpc, None) => Err(Failure {
                    kind: "ResourceInitializationError".into(),
                    message: "the task has no address".into(),
                    retryable: false,
                }),
                (NetworkMode::None, _) => {
                    let isolated = self.network.attach_isolated(&prepare.task).await;
                    isolated
                        .map(|_| String::new())
                        .map_err(|error| network_failure(&error))
                }
                (NetworkMode::Host, _) => Ok(String::new()),
            }
        };
        let files = async {
            self.cgroups
                .create_task(
                    &prepare.task,
                    TaskLimits {
                        ceilings: prepare.limits,
                        swap_bytes: prepare.swap_bytes,
                        cpu_shares: prepare.cpu_shares,
                    },
                )
                .map_err(|error| {
                    let retryable = error.retry() == network::Retry::Backoff;
                    failure(&error, retryable)
                })?;
            for (container, memory) in &prepare.running {
                self.cgroups.keep_container(&prepare.task, container, *memory);
            }
            for (_, name) in &prepare.containers {
                let dir = self.log_dir.join(prepare.task.as_str()).join(name);
                let made = std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o750)
                    .create(&dir);
                made.map_err(|source| {
                    let message = format!("create log directory {}: {source}", dir.display());
                    Failure {
                        kind: "ResourceInitializationError".into(),
                        message,
                        retryable: true,
                    }
                })?;
            }
            Ok(())
        };
        let volumes = async {
            let made = self.volumes.prepare(&prepare.task, &prepare.volumes).await;
            made.map_err(|error| volume_failure(&error))
        };
        let (mac, (), ()) = tokio::try_join!(network, files, volumes)?;
        if let Some(shared) = &prepare.shared {
            self.share(&prepare.task, shared, !prepare.running.is_empty())
                .await?;
        }
        self.sampler().register(&prepare.task, &prepare.containers);
        Ok((mac, warning))
    }

    /// Why what the task writes to its volumes is not bounded, if it should be.
    fn bound_volumes(&self, prepare: &PrepareHost) -> Result<Option<String>, Failure> {
        let bytes = prepare.ephemeral_storage_bytes;
        if bytes == 0 {
            return Ok(None);
        }
        let made = self.volumes.make_task(&prepare.task);
        let (directory, all) = made.map_err(|error| volume_failure(&error))?;
        let why = self.quotas.bound(&prepare.task, bytes, &all, &[directory]);
        let why = why.map_err(|error| failure(&error, true))?;
        Ok(why.map(|why| quotas::warning("in the task's volumes", &why)))
    }

    /// What the task's containers have together, in the task's cgroups, which are there.
    async fn share(&self, task: &TaskId, shared: &SharedNamespaces, runs: bool) -> Result<(), Failure> {
        let held = self
            .runtime
            .holder_pid(task)
            .await
            .map_err(|error| error.failure())?;
        if held.is_none() && !runs {
            // What the halt or the try before left in it is nothing to who comes now.
            shared_memory::remove(&self.run_dir, task).map_err(|error| failure(&error, true))?;
        }
        if let Some(bytes) = shared.shared_memory_bytes {
            shared_memory::make(&self.run_dir, task, bytes).map_err(|error| failure(&error, true))?;
        }
        let held = self.runtime.hold(task, &shared.runtime, runs).await;
        held.map_err(|error| Failure {
            kind: "ResourceInitializationError".into(),
            ..error.failure()
        })
    }

    async fn start_container(&self, start: &StartContainer, cancel: CancellationToken) -> Completion {
        let netns = (start.network != NetworkMode::Host).then(|| self.network.netns_path(&start.task));
        match self.runtime.start(start, netns.as_deref(), cancel).await {
            Ok(started) => {
                self.cgroups
                    .keep_container(&start.task, &start.spec.id, start.spec.memory_ceiling());
                // What may have happened to the task's limits since they were set.
                self.cgroups.reassert(&start.task);
                tracing::debug!(task = %start.task, container = %start.spec.name, pid = started.pid, timings = ?started.timings, "started");
                Completion::Started {
                    attempt: start.attempt,
                    pid: started.pid,
                    warnings: started.warnings,
                }
            }
            Err(RuntimeError::Cancelled { .. }) => Completion::Cancelled,
            Err(error) if error.is_image_gone() => Completion::ImageGone(error.failure()),
            Err(error) => Completion::Failed(error.failure()),
        }
    }

    async fn release(&self, task: &TaskId) -> Result<(), Failure> {
        self.sampler().unregister(task);
        let holder = self.runtime.release_holder(task).await;
        holder.map_err(|error| error.failure())?;
        shared_memory::remove(&self.run_dir, task).map_err(|error| failure(&error, true))?;
        let network = async {
            self.network
                .detach(task)
                .await
                .map_err(|error| network_failure(&error))
        };
        let cgroups = async {
            self.cgroups
                .remove_task(task)
                .await
                .map_err(|error| failure(&error, true))
        };
        let volumes = async {
            let removed = self.volumes.remove(task).await;
            removed.map_err(|error| volume_failure(&error))
        };
        let (network, cgroups, volumes) = tokio::join!(network, cgroups, volumes);
        network.and(cgroups).and(volumes)?;
        // Last: as long as something of the task is there, it counts.
        self.quotas.release(task).map_err(|error| failure(&error, true))?;
        remove_directory(&self.run_dir.join("tasks").join(task.as_str()))
            .map_err(|error| failure(&error, true))
    }

    fn sampler(&self) -> MutexGuard<'_, Sampler> {
        self.sampler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything of this instance on the host, as the host says.
    ///
    /// # Errors
    /// When a list cannot be had: never a partial list.
    pub async fn list(&self) -> Result<Vec<HostObject>, ListError> {
        let mut objects = Vec::new();
        let containers = self
            .runtime
            .list()
            .await
            .map_err(|e| list_error("containers", e))?;
        let id =
            |c: &super::runtime::ListedContainer| berth_agent_core::ids::runtime_id(&c.container, c.attempt);
        objects.extend(containers.iter().map(|c| HostObject::Container(id(c))));
        let snapshots = self
            .runtime
            .snapshots()
            .await
            .map_err(|e| list_error("snapshots", e))?;
        objects.extend(snapshots.into_iter().map(|s| HostObject::Snapshot(s.key)));
        let network = self.network.list().await.map_err(|e| list_error("network", e))?;
        objects.extend(network.iter().map(network_object));
        for name in self.cgroups.list().map_err(|e| list_error("cgroups", e))? {
            objects.push(named("cgroup", name));
        }
        let of_run = |task| HostObject::OfTask {
            kind: "run directory".into(),
            task,
        };
        let run = directories(&self.run_dir.join("tasks"), of_run, "run directory");
        objects.extend(run.map_err(|e| list_error("run directories", e))?);
        let bounded = self.quotas.tasks().map_err(|e| list_error("quotas", e))?;
        objects.extend(bounded.into_iter().map(|task| HostObject::OfTask {
            kind: "quota".into(),
            task,
        }));
        objects.extend(self.volumes.list().map_err(|e| list_error("volumes", e))?);
        let of_shared = |task| HostObject::OfTask {
            kind: "shared memory".into(),
            task,
        };
        let shared = directories(
            &shared_memory::directory(&self.run_dir),
            of_shared,
            "shared memory",
        );
        objects.extend(shared.map_err(|e| list_error("shared memory", e))?);
        let holders = self
            .runtime
            .holders()
            .await
            .map_err(|e| list_error("holders", e))?;
        objects.extend(holders.into_iter().map(|task| HostObject::OfTask {
            kind: "holder of namespaces".into(),
            task,
        }));
        let kept = directories(&self.log_dir, HostObject::Logs, "log directory");
        objects.extend(kept.map_err(|e| list_error("log directories", e))?);
        Ok(objects)
    }

    /// Removes what nobody answers for; says what cannot be removed. Strangers in our directories are left alone.
    pub async fn remove_unowned(&self, leaks: &[HostObject]) {
        for leak in leaks {
            let removed: anyhow::Result<()> = match leak {
                HostObject::Container(id) => match berth_agent_core::ids::parse_runtime_id(id) {
                    Some((container, attempt)) => {
                        self.runtime.remove(&container, attempt).await.map_err(Into::into)
                    }
                    None => Ok(()),
                },
                HostObject::Snapshot(key) => self.runtime.remove_snapshot(key).await.map_err(Into::into),
                HostObject::OfTask { task, .. } => self
                    .release(task)
                    .await
                    .map_err(|failure| anyhow::anyhow!(failure.message)),
                HostObject::Logs(task) => logs::remove_task_logs(&self.log_dir, task).map_err(Into::into),
                HostObject::Unnamed { .. } => Ok(()),
            };
            if let Err(error) = removed {
                tracing::error!(object = ?leak, error = %Chain(error.as_ref()), "cannot remove an object that nobody answers for");
            }
        }
    }

    /// Removes what tasks share: for a private agent on its way out.
    pub async fn remove_traces(&self) -> anyhow::Result<()> {
        self.images.close().await;
        self.volumes.remove_all().await?;
        shared_memory::remove_all(&self.run_dir)?;
        self.network.stop().await?;
        self.cgroups.remove_parent()?;
        remove_directory(&self.run_dir).with_context(|| format!("remove {}", self.run_dir.display()))
    }
}

/// A logger that replaces a dead one belongs beside the task's shim, not into the agent's own cgroup.
fn place_logger(runtime: Runtime, cgroups: Cgroups) -> logs::registry::PlaceLogger {
    Arc::new(move |id, pid| {
        let Some(identity) = runtime
            .running()
            .into_iter()
            .find(|identity| identity.runtime_id() == id)
        else {
            return;
        };
        if let Err(error) = cgroups.move_to_rt(&identity.task, pid) {
            tracing::warn!(container = id, pid, error = %Chain(&error), "cannot move the new logger into its task's cgroup");
        }
    })
}

fn images_config(config: &Config) -> anyhow::Result<ImagesConfig> {
    let registries = &config.registries;
    let credential = |c: &crate::config::Credential| -> anyhow::Result<RegistryCredential> {
        let password = crate::config::read_secret(&c.password_file)?;
        Ok(RegistryCredential {
            host: c.host.clone(),
            username: c.username.clone(),
            password,
        })
    };
    Ok(ImagesConfig {
        containerd_namespace: config.instance.clone(),
        instance: config.instance.clone(),
        snapshotter: config.snapshotter.clone(),
        plain_http_hosts: registries.plain_http_hosts.clone(),
        credentials: registries
            .credentials
            .iter()
            .map(credential)
            .collect::<Result<_, _>>()?,
        extra_ca_pem: registries.extra_ca.clone(),
        archives_dir: config.images_dir.clone(),
        platform: Platform::detect(),
        resolve_ttl: std::time::Duration::from_secs(registries.resolve_ttl_s.into()),
        limits: Limits::default(),
    })
}

fn runtime_config(config: &Config, logger: PathBuf, cgroup_version: u8, volumes: Volumes) -> RuntimeConfig {
    RuntimeConfig {
        instance: config.instance.clone(),
        namespace: config.instance.clone(),
        snapshotter: config.snapshotter.clone(),
        runtime: config.runtime.clone(),
        binary_name: config.runtime_binary.clone(),
        runtimes: runtimes(config),
        seccomp_dir: config.seccomp_dir.clone(),
        gpus: config.gpus.gpus(),
        quotas: Quotas::new(&config.state_dir),
        logger,
        init: None,
        logger_socket: config.logger_socket(),
        log_dir: config.log_dir(),
        run_dir: config.run_dir.clone(),
        cgroup_parent: config.cgroup_parent(),
        cgroup_version,
        volumes,
        start_concurrency: config
            .start_concurrency
            .unwrap_or(usize::try_from(sys::cpu_count()).unwrap_or(1) * STARTS_PER_CORE),
    }
}

/// Without it the node takes no tasks that need it, and all others.
fn init_program(config: &Config) -> Option<PathBuf> {
    let path = config.init_path().ok()?;
    match init_usable(&path) {
        Ok(()) => Some(path),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "this node takes no task that needs berth-init");
            None
        }
    }
}

/// Those that tasks may ask for.
fn runtimes(config: &Config) -> BTreeMap<String, OciRuntime> {
    let all = crate::config::runtimes::with_default(&config.runtimes).into_iter();
    all.map(|(name, NamedRuntime { kind, binary })| (name, OciRuntime { kind, binary }))
        .collect()
}

fn failure(error: &(dyn std::error::Error + 'static), retryable: bool) -> Failure {
    Failure {
        kind: "ResourceInitializationError".into(),
        message: Chain(error).to_string(),
        retryable,
    }
}

fn network_failure(error: &network::NetworkError) -> Failure {
    failure(error, error.retry() == network::Retry::Backoff)
}

fn volume_failure(error: &VolumeError) -> Failure {
    failure(error, error.retryable())
}

fn list_error(what: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> ListError {
    ListError {
        what,
        source: Box::new(source),
    }
}

fn named(kind: &str, name: String) -> HostObject {
    match name.parse() {
        Ok(task) => HostObject::OfTask {
            kind: kind.into(),
            task,
        },
        Err(_) => HostObject::Unnamed {
            kind: kind.into(),
            name,
        },
    }
}

fn network_object(object: &network::HostObject) -> HostObject {
    match object.task() {
        Some(task) => HostObject::OfTask {
            kind: "network".into(),
            task: task.clone(),
        },
        None => HostObject::Unnamed {
            kind: "network".into(),
            name: format!("{object:?}"),
        },
    }
}

fn remove_directory(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
