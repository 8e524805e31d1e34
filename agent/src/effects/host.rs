//! Owns the host as the executor sees it: each effect of the core, made of calls to the modules beside this one. Never
//! decides.

mod objects;
mod settings;
mod shared;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use berth_agent_core::{
    addresses::{Address, Range},
    container::Life,
    desired::{ContainerSpec, NetworkMode, Protocol},
    effect::{Effect, PrepareHost, SignalKind, StartContainer},
    event::{Completion, Exit, Failure, Observed, ObservedState},
    ids::{ContainerId, TaskId},
    node::NodeRecord,
    ports::Published,
    task::Task,
};
use berth_service::notify::Notifier;
use ipnet::Ipv4Net;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::settings::{images_config, init_program, runtime_config};
use super::{
    cgroups::{Cgroups, TaskLimits},
    connection::{self, Unconnected, Unpublished},
    environment::EnvironmentFiles,
    images::Images,
    network::{self, Network, NetworkConfig, Owner},
    probes::Probes,
    quotas::{self, Quotas},
    runtime::{Runtime, RuntimeConfig, RuntimeError},
    shared_memory, shims,
    volumes::{Places, VolumeError, Volumes},
};
use crate::{
    config::Config,
    dial::FirstHop,
    dns,
    endpoints::{self, Endpoints, OnHost},
    logs::{self, AdoptError, LoggerRegistry, RegistryConfig},
    observe::{Observer, OomCounter},
    sys::Chain,
    telemetry::Sampler,
};

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
    /// None: tasks ask the host's servers.
    pub names: Option<dns::Listeners>,
    /// All but the loggers', which is no port.
    pub ports: Vec<(Protocol, u16)>,
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

/// Where addresses of tasks come from besides `task_cidr`.
#[derive(Clone, Debug, Default)]
pub struct Given {
    ranges: BTreeSet<Range>,
    /// Parts of networks outside.
    lans: BTreeSet<Ipv4Net>,
    /// Held by tasks, of no range any more.
    kept: Vec<IpAddr>,
    /// Ports of the host that lead to tasks.
    published: Vec<(TaskId, Published)>,
}

impl Given {
    pub fn of(node: &NodeRecord, own: Range) -> Self {
        let addresses = &node.addresses;
        let all: Vec<Range> = addresses.subnet_ranges().chain([own]).collect();
        let lans = node.network.iter().flat_map(|network| {
            let part = |subnet| network.ranges.get(subnet).map(|range| range.ipv4);
            network.lans.keys().filter_map(part)
        });
        let lans: BTreeSet<Ipv4Net> = lans.collect();
        Self {
            kept: addresses.held_outside(&all),
            ranges: addresses
                .subnet_ranges()
                .filter(|range| !lans.contains(&range.ipv4))
                .collect(),
            lans,
            published: Vec::new(),
        }
    }

    #[must_use]
    pub fn with_published(self, published: Vec<(TaskId, Published)>) -> Self {
        Self { published, ..self }
    }
}

impl Host {
    /// Sets up what all tasks share. `notifier` keeps containers' pipes for the next agent; `given` is what
    /// tasks have of the network from before, `control_plane` what the host needs its own way to.
    ///
    /// # Errors
    /// What is missing on this host, and what to do about it.
    pub async fn start(
        config: &Config,
        channel: tonic::transport::Channel,
        notifier: Notifier,
        given: Given,
        control_plane: FirstHop,
    ) -> anyhow::Result<(Self, Listening)> {
        let logger = config.logger_path().context("find the agent's own executable")?;
        anyhow::ensure!(
            logger.is_file(),
            "the logger {} is missing: it is installed beside berth-agent, or named by `logger` in the configuration",
            logger.display()
        );
        let cgroups = Cgroups::new(&config.cgroup_parent())?.task_pids_max(config.task_pids_max);
        let (endpoints, listeners) = Endpoints::bind(&config.run_dir)?;
        let names = match config.dns.enabled {
            true => Some(dns::listen(&config.run_dir)?),
            false => None,
        };
        let network = Network::start(NetworkConfig {
            instance: config.instance.clone(),
            run_dir: config.run_dir.clone(),
            task_cidr: config.task_range()?,
            ranges: given.ranges,
            lans: given.lans,
            kept: given.kept,
            endpoint_port: endpoints.port(),
            mtu: config.network.mtu,
            ready: config.network.ready_namespaces.into(),
            pass_other_firewalls: config.network.pass_other_firewalls,
            published: given.published,
            resolver_port: names.as_ref().map(|(_, port)| *port),
            instance_metadata: config.network.instance_metadata,
            interfaces: config.network.task_interfaces.clone(),
            control_plane,
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
        let of_names = names.as_ref().map(|(_, port)| *port);
        let of_names = of_names.map(|port| [(Protocol::Tcp, port), (Protocol::Udp, port)]);
        let listening = Listening {
            ports: of_names
                .into_iter()
                .flatten()
                .chain([(Protocol::Tcp, host.endpoints.port())])
                .collect(),
            loggers: server,
            endpoints: listeners,
            names: names.map(|(listeners, _)| listeners),
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
        match (task.address, &spec.lan) {
            (Some(address), None) => self.network.take_up(&spec.id, address),
            (Some(address), Some(lan)) => self.network.take_up_on_lan(&spec.id, address.ipv4, lan.clone()),
            (None, _) => {}
        }
        for (container, address) in &task.container_addresses {
            self.network
                .take_up(Owner::container(&spec.id, container), *address);
        }
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

    /// The addresses that the host routes to each task.
    pub async fn addresses(&self) -> anyhow::Result<BTreeMap<TaskId, Address>> {
        let route = |object| match object {
            network::HostObject::Route {
                address,
                owner:
                    Some(Owner {
                        task,
                        container: None,
                    }),
                ..
            } => Some((task, address)),
            _ => None,
        };
        let routes: Vec<_> = self.network.list().await?.into_iter().filter_map(route).collect();
        let ipv4 = routes.iter().filter_map(|(task, address)| match address {
            IpAddr::V4(address) => Some((task.clone(), Address::from(*address))),
            IpAddr::V6(_) => None,
        });
        let mut addresses: BTreeMap<_, _> = ipv4.collect();
        for (task, address) in routes {
            if let (IpAddr::V6(address), Some(own)) = (address, addresses.get_mut(&task)) {
                own.ipv6 = Some(address);
            }
        }
        Ok(addresses)
    }

    /// Performs one effect to its completion.
    pub async fn perform(&self, effect: Effect, cancel: CancellationToken) -> Completion {
        match effect {
            Effect::PrepareHost(prepare) => match self.prepare(&prepare).await {
                Ok((mac_address, warning)) => match connection::publish(&self.network, &prepare).await {
                    Ok(()) => Completion::HostReady {
                        mac_address,
                        warnings: warning.into_iter().collect(),
                    },
                    Err(Unpublished::Taken(ports)) => Completion::PortsTaken { ports },
                    Err(Unpublished::Failed(failure)) => Completion::Failed(failure),
                },
                Err(Unconnected::AddressTaken(failure)) => Completion::AddressTaken(failure),
                Err(Unconnected::NetworkAwaited(failure)) => Completion::NetworkAwaited(failure),
                Err(Unconnected::Failed(failure)) => Completion::Failed(failure),
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
            Effect::ReleaseHost {
                task,
                shares,
                containers,
                ..
            } => match self.release(&task, shares, &containers).await {
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
    async fn prepare(&self, prepare: &PrepareHost) -> Result<(String, Option<String>), Unconnected> {
        // Before there is anything that would not be counted.
        let warning = self.bound_volumes(prepare).map_err(Unconnected::Failed)?;
        let network = connection::connect(&self.network, prepare);
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
        let rest = async { tokio::try_join!(files, volumes).map_err(Unconnected::Failed) };
        let (mac, _) = tokio::try_join!(network, rest)?;
        if let Some(shared) = &prepare.shared {
            let shared = self.share(&prepare.task, shared, !prepare.running.is_empty());
            shared.await.map_err(Unconnected::Failed)?;
        }
        self.sampler().register(&prepare.task, &prepare.containers);
        Ok((mac, warning))
    }

    async fn start_container(&self, start: &StartContainer, cancel: CancellationToken) -> Completion {
        let owner = match start.network {
            NetworkMode::Host => None,
            NetworkMode::Bridge => Some(Owner::container(&start.task, &start.spec.id)),
            NetworkMode::Awsvpc | NetworkMode::None => Some(Owner::from(&start.task)),
        };
        let netns = owner.map(|owner| self.network.netns_path(&owner));
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

    /// `shares`: its containers do, or that is not known. `containers`: those with a network of their own.
    async fn release(&self, task: &TaskId, shares: bool, containers: &[ContainerId]) -> Result<(), Failure> {
        self.sampler().unregister(task);
        if shares {
            self.unshare(task).await?;
        }
        let network = async {
            let disconnected = connection::disconnect(&self.network, task, containers).await;
            disconnected.map_err(|error| network_failure(&error))
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

    /// Where task metadata looks.
    pub fn on_host(&self) -> OnHost {
        let runtime = self.runtime.config();
        OnHost {
            run_dir: self.run_dir.clone(),
            volumes: self.volumes.clone(),
            quotas: self.quotas.clone(),
            snapshotter: runtime.snapshotter.clone(),
            names: runtime.name_server.is_some(),
        }
    }

    fn sampler(&self) -> MutexGuard<'_, Sampler> {
        self.sampler.lock().unwrap_or_else(PoisonError::into_inner)
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

fn failure(error: &(dyn std::error::Error + 'static), retryable: bool) -> Failure {
    Failure {
        kind: "ResourceInitializationError".into(),
        message: Chain(error).to_string(),
        retryable,
    }
}

pub(super) fn network_failure(error: &network::NetworkError) -> Failure {
    failure(error, error.retry() == network::Retry::Backoff)
}

fn volume_failure(error: &VolumeError) -> Failure {
    failure(error, error.retryable())
}

fn remove_directory(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
