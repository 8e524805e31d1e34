//! Owns one task: its facts, what events do to them, and what is to be done next ([`advance`]).
//!
//! A task is driven by its facts, not by a script: every event updates facts, and `advance` compares them with what is
//! wanted. So an event that comes late, twice, or after a restart finds the same answer.
//!
//! ```text
//! Waiting ──admitted──▶ Active ──stop, failure, essential exit──▶ Stopping ──nothing left in the runtime──▶ Releasing ──▶ Stopped
//!    └──────────────────────────────stop─────────────────────────────▲
//! ```

mod adopt;
mod advance;
mod environment;
mod health;
mod host;

pub use adopt::Stranger;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    addresses::Address,
    container::{Container, Doing, Image, Life, Retry, StopStage},
    dependency::{self, Verdict},
    desired::{ContainerSpec, Millis, NetworkMode, TaskSpec},
    effect::{Lane, SignalKind},
    environment::Fetching,
    event::{Completion, Exit, Failure, ObservedState},
    ids::{Attempt, ContainerId},
    ledger::Owned,
    ports::{Binding, Published},
    report::{ContainerState, Facts, Status, StopCode, TaskState, Times},
    volumes::{self, VolumeMount},
};
pub use advance::Steps;
pub use host::{Awaited, Host, NETWORK_DEADLINE_MS};

/// Why a task ends that its shared namespaces are taken from.
pub const HOLDER_ENDED: &str =
    "The process that holds the namespaces which the task's containers share ended";
/// How often a step that may succeed later is tried before the task fails to start.
pub const START_TRIES_MAX: u32 = 4;
/// Warnings of one task that are kept.
const WARNINGS_MAX: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub spec: TaskSpec,
    /// Order of arrival on this node.
    pub arrival: u64,
    pub phase: Phase,
    pub host: Host,
    pub host_retry: Retry,
    /// The network outside of which it is to be a host is not there yet.
    #[serde(default)]
    pub awaited: Option<Awaited>,
    /// How many addresses it had that another host has.
    #[serde(default)]
    pub addresses_tried: u32,
    pub address: Option<Address>,
    pub mac_address: Option<String>,
    /// Of its containers, in bridge mode.
    #[serde(default)]
    pub container_addresses: BTreeMap<ContainerId, Address>,
    /// Ports of the host that lead to it, as they were chosen at its admission.
    #[serde(default)]
    pub bindings: Vec<Binding>,
    /// Where it did not get what it asked for: for people.
    #[serde(default)]
    pub warnings: Vec<String>,
    containers: BTreeMap<ContainerId, Container>,
    pub stop: Option<(StopCode, String)>,
    pub times: Times,
    /// The last thing said about it.
    pub reported: Option<Facts>,
    /// The control plane no longer has it.
    pub forgotten: bool,
    pub logs: Logs,
    /// It ran before this agent knew of it: when it was started is not known, and not said.
    #[serde(default)]
    pub adopted: bool,
    #[serde(default)]
    pub environment: Fetching,
    #[serde(default)]
    environment_retry: Retry,
    /// Why it is fetched again.
    #[serde(default)]
    environment_failure: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// For resources.
    Waiting {
        reason: String,
        since: Millis,
        overtaken: u32,
    },
    Active,
    Stopping,
    Releasing,
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Logs {
    None,
    Kept,
    Expired,
    Removing,
    Removed,
}

impl Task {
    pub fn new(spec: TaskSpec, arrival: u64, now: Millis) -> Self {
        let containers = spec
            .containers
            .iter()
            .map(|c| (c.id.clone(), Container::new()))
            .collect();
        Self {
            spec,
            arrival,
            phase: Phase::Waiting {
                reason: "waits for admission".into(),
                since: now,
                overtaken: 0,
            },
            host: Host::Nothing,
            host_retry: Retry::default(),
            awaited: None,
            addresses_tried: 0,
            address: None,
            mac_address: None,
            container_addresses: BTreeMap::new(),
            bindings: Vec::new(),
            warnings: Vec::new(),
            containers,
            stop: None,
            times: Times::default(),
            reported: None,
            forgotten: false,
            logs: Logs::None,
            adopted: false,
            environment: Fetching::Wanted,
            environment_retry: Retry::default(),
            environment_failure: None,
        }
    }

    /// Something of this task is on the host, from a time of which this agent has no record, and how far it came is not
    /// certain (else see [`Task::adopt`]). It ends, all of it, and only then the task is STOPPED.
    pub fn found(&mut self, remains: &[&Owned], now: Millis) {
        for owned in remains {
            match owned {
                Owned::Host(_) => self.host = Host::HalfMade,
                Owned::Logs(_) => self.logs = Logs::Kept,
                Owned::Attempt(_, id, attempt) => {
                    if let Some(container) = self.container_mut(id) {
                        (container.attempt, container.attempted) = (*attempt, true);
                    }
                }
            }
        }
        let reason = "the agent lost its record of this task, and ends what was left of it".to_owned();
        self.begin_stop(StopCode::TaskFailedToStart, reason, now);
    }

    /// The container of that id.
    ///
    /// # Panics
    /// When the spec has no such container: ids come from the same spec.
    pub fn container(&self, id: &ContainerId) -> &Container {
        &self.containers[id]
    }

    fn container_mut(&mut self, id: &ContainerId) -> Option<&mut Container> {
        self.containers.get_mut(id)
    }

    pub(crate) fn each_container(&mut self, change: impl FnMut(&mut Container)) {
        self.containers.values_mut().for_each(change);
    }

    pub fn containers(&self) -> impl Iterator<Item = (&ContainerId, &Container)> {
        self.containers.iter()
    }

    /// Processes of it may be alive, so its CPU and memory are in use.
    pub fn may_have_process(&self) -> bool {
        match self.phase {
            Phase::Waiting { .. } | Phase::Releasing | Phase::Stopped => false,
            Phase::Active => true,
            Phase::Stopping => self.containers.values().any(Container::may_have_process),
        }
    }

    /// Something of it may exist on the host.
    pub fn holds_host(&self) -> bool {
        !matches!(self.phase, Phase::Waiting { .. } | Phase::Stopped)
    }

    /// How far it is.
    pub fn status(&self) -> Status {
        match self.phase {
            Phase::Waiting { .. } => Status::Pending,
            Phase::Active => {
                let done = |c: &Container| c.has_started() || matches!(c.life, Life::Exited | Life::Gone);
                if self.containers.values().all(done) {
                    Status::Running
                } else {
                    Status::Pending
                }
            }
            Phase::Stopping if self.may_have_process() => Status::Stopping,
            Phase::Stopping | Phase::Releasing => Status::Deprovisioning,
            Phase::Stopped => Status::Stopped,
        }
    }

    /// What a report would say.
    pub fn state(&self) -> TaskState {
        let containers = self
            .spec
            .containers
            .iter()
            .map(|spec| {
                let container = self.container(&spec.id);
                ContainerState {
                    bindings: self.bindings_of(spec, container),
                    ..container.state(spec)
                }
            })
            .collect();
        let facts = Facts {
            status: self.status(),
            stop: self.stop.clone(),
            waiting: self.waiting(),
            address: self.address,
            mac_address: self.mac_address.clone(),
            warnings: self.warnings.clone(),
            containers,
        };
        TaskState {
            id: self.spec.id.clone(),
            facts,
            times: self.times.clone(),
        }
    }

    /// Said once a container was started: until then they may be chosen anew.
    fn bindings_of(&self, spec: &ContainerSpec, container: &Container) -> Vec<Binding> {
        if !container.attempted && !matches!(container.life, Life::Exited | Life::Gone) {
            return Vec::new();
        }
        let own = self
            .bindings
            .iter()
            .filter(|binding| binding.container == spec.id);
        own.cloned().collect()
    }

    /// The ports of the host that lead to it, each with where it leads.
    pub fn published(&self) -> Vec<Published> {
        let of = |binding: &Binding| {
            let (protocol, address) = (binding.protocol, self.address_of(&binding.container));
            let ports = binding.ports().filter_map(move |(host_port, port)| {
                Some(Published {
                    protocol,
                    host_port,
                    address: address?,
                    port,
                })
            });
            ports.collect::<Vec<_>>()
        };
        self.bindings.iter().flat_map(of).collect()
    }

    /// Whether ports of the host were led to it, and nobody took that away since.
    pub fn is_published(&self) -> bool {
        let begun = self.containers.values().any(|container| container.attempted);
        self.host == Host::Ready || self.holds_host() && begun
    }

    /// The address that a container has, its own or its task's.
    pub fn address_of(&self, container: &ContainerId) -> Option<Address> {
        self.container_addresses.get(container).copied().or(self.address)
    }

    /// What is mounted into a container, as far as images are known.
    pub fn mounts_of(&self, container: &ContainerSpec) -> Vec<VolumeMount> {
        volumes::mounts(
            &self.spec,
            container,
            &|container| match &self.container(&container.id).image {
                Image::Ready(image) => &image.config.volumes,
                Image::Wanted | Image::Pulling { .. } | Image::Abandoned => &[],
            },
        )
    }

    /// Why it is not further, for people.
    pub fn waiting(&self) -> Option<String> {
        match &self.phase {
            Phase::Waiting { reason, .. } => Some(reason.clone()),
            Phase::Active => {
                let network = self.awaited.as_ref().map(Awaited::waiting);
                let mut containers = self.spec.containers.iter();
                network.or_else(|| containers.find_map(|spec| self.container_waits_for(spec)))
            }
            Phase::Stopping => self.containers.values().find_map(|c| match c.stop {
                StopStage::Killed { .. } if c.retry.failures > 0 || c.may_have_process() => {
                    Some("SIGKILL was sent; waits for the kernel to end the process".into())
                }
                _ => None,
            }),
            Phase::Releasing if self.host_retry.failures > 0 => Some(format!(
                "removal from the host failed {} times; it goes on",
                self.host_retry.failures
            )),
            Phase::Releasing | Phase::Stopped => None,
        }
    }

    fn container_waits_for(&self, spec: &crate::desired::ContainerSpec) -> Option<String> {
        let container = self.container(&spec.id);
        if container.life != Life::Waiting {
            return None;
        }
        if let (Some(_), Some(code)) = (container.restarts.at, container.exit) {
            let name = &spec.name;
            return Some(format!(
                "container {name} exited with {code} and waits for its restart"
            ));
        }
        if container.retry.failures > 0 {
            return container.reason.clone();
        }
        match &container.image {
            Image::Wanted | Image::Pulling { .. } => Some(format!("pulls {}", spec.image)),
            Image::Abandoned => None,
            Image::Ready(_) if spec.merged_environment(self.environment.files()).is_none() => {
                self.environment_waits_for()
            }
            Image::Ready(_) => match dependency::verdict(self, spec) {
                Verdict::Waiting(reason) => Some(format!("container {} {reason}", spec.name)),
                Verdict::Satisfied | Verdict::Impossible(_) => None,
            },
        }
    }

    /// Wants it stopped. The first cause wins; a task that is stopping goes on stopping.
    pub fn begin_stop(&mut self, code: StopCode, reason: String, now: Millis) {
        if matches!(self.phase, Phase::Stopping | Phase::Releasing | Phase::Stopped) {
            return;
        }
        self.stop = Some((code, reason));
        self.times.stopping = Some(now);
        self.phase = Phase::Stopping;
    }

    /// Each is kept once.
    fn warn(&mut self, warnings: Vec<String>) {
        for warning in warnings {
            if self.warnings.len() < WARNINGS_MAX && !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }

    /// An effect ended. Says what was impossible.
    pub fn on_completed(&mut self, lane: &Lane, completion: Completion, now: Millis) -> Result<(), String> {
        match lane {
            Lane::Probe(_, id) => self.on_probed(id, completion, now).map(drop),
            Lane::Host(_) => self.on_host(completion, now),
            Lane::Environment(_) => self.on_fetched(completion, now),
            Lane::Pull(_, id) => self.on_pulled(id, completion, now),
            Lane::Lifecycle(_, id) => self.on_lifecycle(id, completion, now),
        }
    }

    fn on_pulled(&mut self, id: &ContainerId, completion: Completion, now: Millis) -> Result<(), String> {
        let Some(container) = self.container_mut(id) else {
            return Err(format!("no container {id}"));
        };
        if !matches!(container.image, Image::Pulling { .. }) {
            return Err(format!("image is {:?} at {completion:?}", container.image));
        }
        match completion {
            Completion::ImageReady(image) => container.image = Image::Ready(image),
            Completion::Cancelled => container.image = Image::Abandoned,
            Completion::Failed(failure) => {
                container.image = Image::Abandoned;
                self.on_cannot_start(id, failure, now);
            }
            other => return Err(format!("pull completed with {other:?}")),
        }
        let pulling = |c: &Container| matches!(c.image, Image::Wanted | Image::Pulling { .. });
        if !self.containers.values().any(pulling) {
            self.times.pull_stopped = Some(now);
        }
        Ok(())
    }

    fn on_lifecycle(&mut self, id: &ContainerId, completion: Completion, now: Millis) -> Result<(), String> {
        let active = self.phase == Phase::Active;
        let Some(container) = self.container_mut(id) else {
            return Err(format!("no container {id}"));
        };
        let Some(doing) = container.doing.take() else {
            return Err(format!("nothing under way at {completion:?}"));
        };
        match (doing, completion) {
            (Doing::Start, Completion::Started { pid, warnings, .. }) => {
                container.on_started(pid, now);
                self.warn(warnings);
            }
            (Doing::Start, Completion::Cancelled) => {
                container.uncertain = true;
                container.give_up(None, None);
            }
            // Removed by somebody since it was fetched.
            (Doing::Start, Completion::ImageGone(_)) if active && !container.image_again => {
                container.image_again = true;
                (container.image, container.life) = (Image::Wanted, Life::Waiting);
            }
            (Doing::Start, Completion::ImageGone(failure)) => {
                container.life = Life::Waiting;
                self.on_cannot_start(id, failure, now);
            }
            (Doing::Start, Completion::Failed(failure)) => {
                container.retry.failed(now);
                (container.life, container.uncertain) = (Life::Waiting, true);
                if failure.retryable && container.retry.failures < START_TRIES_MAX && active {
                    container.reason = Some(Container::failure_reason(&failure));
                } else {
                    self.on_cannot_start(id, failure, now);
                }
            }
            // The runtime answers that it cannot, and would again: SIGKILL follows when the time is over.
            (Doing::Signal(SignalKind::Stop), Completion::Failed(failure)) if !failure.retryable => {}
            // A container that never heard of its stop gets another chance to end by itself.
            (Doing::Signal(SignalKind::Stop), Completion::Failed(_) | Completion::Cancelled)
                if container.life == Life::Running =>
            {
                container.stop = StopStage::NotAsked;
                container.retry.failed(now);
            }
            // The exit itself arrives as an observation; a SIGKILL that failed is repeated by the stop timer.
            (Doing::Signal(_), Completion::Signalled | Completion::Failed(_) | Completion::Cancelled) => {}
            (Doing::Remove, Completion::Removed) => container.on_removed(),
            (Doing::Remove, Completion::Failed(_) | Completion::Cancelled) => {
                container.retry.failed(now);
            }
            (doing, other) => return Err(format!("{doing:?} completed with {other:?}")),
        }
        Ok(())
    }

    /// A container can never run. Stops the task when the container is essential.
    fn on_cannot_start(&mut self, id: &ContainerId, failure: Failure, now: Millis) {
        let reason = Container::failure_reason(&failure);
        if let Some(container) = self.container_mut(id) {
            container.reason = None;
            container.give_up(None, Some(reason.clone()));
        }
        if self.is_essential(id) {
            self.begin_stop(StopCode::TaskFailedToStart, reason, now);
        }
    }

    fn is_essential(&self, id: &ContainerId) -> bool {
        self.spec.container(id).is_some_and(|c| c.essential)
    }

    /// A container's process ended. Repeats, and exits of other attempts, change nothing.
    pub fn on_exited(&mut self, exit: &Exit, now: Millis) {
        if exit.holder_ended {
            // First: that is why it ended, and why none may be started again.
            self.on_holder_ended(now);
        }
        if let Some(container) = self.container_mut(&exit.container)
            && container.attempt == exit.attempt
        {
            container.on_exited(exit);
        }
    }

    /// What its containers share is gone: with a PID namespace they are too, and none can be started.
    pub fn on_holder_ended(&mut self, now: Millis) {
        if self.host == Host::Ready && self.spec.shared().is_some() {
            self.begin_stop(StopCode::EssentialContainerExited, HOLDER_ENDED.into(), now);
        }
    }

    /// The agent started again: no effect is under way.
    pub fn on_agent_restarted(
        &mut self,
        observed: &BTreeMap<(ContainerId, Attempt), ObservedState>,
        now: Millis,
    ) {
        self.host = match self.host {
            Host::Preparing { .. } | Host::Releasing => Host::HalfMade,
            other => other,
        };
        if self.logs == Logs::Removing {
            self.logs = Logs::Expired;
        }
        if self.environment.is_under_way() {
            self.environment = Fetching::Wanted;
        }
        let task = self.spec.id.clone();
        for (id, container) in &mut self.containers {
            let attempt = container.attempt;
            let seen = observed.get(&(id.clone(), attempt));
            let exit = |code, at, oom_killed| Exit {
                task: task.clone(),
                container: id.clone(),
                attempt,
                pid: 0,
                code,
                at,
                oom_killed,
                holder_ended: false,
            };
            container.on_agent_restarted(seen, exit, now);
        }
        for spec in &self.spec.containers {
            if let (Some(policy), Some(container)) = (&spec.restart, self.containers.get_mut(&spec.id)) {
                container.restarts.on_agent_restarted(policy, now);
            }
        }
    }

    /// The host booted: what was made in memory is gone, what was made on disk is not. A task that is to start again does
    /// so from its beginning, in its order of dependencies, with the address that it has; any other ends.
    pub fn on_host_rebooted(&mut self, now: Millis) {
        if !self.holds_host() {
            return;
        }
        self.host = if self.host == Host::Nothing {
            Host::Nothing
        } else {
            Host::HalfMade
        };
        if self.spec.restart_after_reboot && self.phase == Phase::Active {
            (self.host_retry, self.awaited) = (Retry::default(), None);
            self.addresses_tried = 0;
            (self.times.started, self.adopted) = (None, false);
            self.containers.values_mut().for_each(Container::start_anew);
            return;
        }
        for container in self.containers.values_mut() {
            container.on_host_rebooted(now);
        }
        self.begin_stop(StopCode::HostRestarted, "host restarted".into(), now);
    }

    /// Whether it needs an address of its own.
    pub fn wants_address(&self) -> bool {
        self.spec.network == NetworkMode::Awsvpc
    }

    /// The containers that need one each.
    pub fn want_addresses(&self) -> Vec<ContainerId> {
        let bridge = self.spec.network == NetworkMode::Bridge;
        let containers = self.spec.containers.iter();
        let own = containers.filter(|container| bridge && !container.networking.disabled);
        own.map(|container| container.id.clone()).collect()
    }
}
