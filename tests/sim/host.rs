//! Owns a model of the host: what exists, what runs, and what ever ran. Asserts what may never happen there.

use std::collections::{BTreeMap, BTreeSet};

use berth_agent_core::{
    addresses::{Address, QUARANTINE_MS},
    desired::{Condition, ContainerSpec, IpcMode, Millis, NetworkMode, PidMode, Protocol, TaskSpec},
    effect::{Effect, PrepareHost, SignalKind, StartContainer},
    environment::Variables,
    event::{Completion, Exit, Failure, Observed, ObservedState},
    health::Outcome,
    ids::{Attempt, ContainerId, TaskId, runtime_id},
    image::{ImageConfig, ResolvedImage},
    ledger::HostObject,
};

use crate::random::Random;

pub type Key = (ContainerId, Attempt);

#[derive(Clone, Debug, PartialEq)]
pub enum Process {
    Created,
    Running,
    Exited { code: i32, at: Millis },
}

#[derive(Clone, Debug)]
pub struct Instance {
    pub task: TaskId,
    pub process: Process,
    pid: u32,
    /// Survives SIGTERM.
    stubborn: bool,
}

#[derive(Debug, Default)]
pub struct Host {
    pub prepared: BTreeMap<TaskId, Option<Address>>,
    /// Whom ports of the host lead to.
    published: BTreeMap<(Protocol, u16), TaskId>,
    pub containers: BTreeMap<Key, Instance>,
    pub logs: BTreeSet<TaskId>,
    /// Containers that ever ran, with the exit code once they have one.
    ran: BTreeMap<ContainerId, Option<i32>>,
    starts: BTreeMap<Key, u32>,
    /// Attempts of which a probe said once that they are healthy.
    pub healthy: BTreeSet<Key>,
    /// Attempts that were sent a signal.
    pub signalled: BTreeSet<Key>,
    runs: BTreeMap<ContainerId, Run>,
    /// When an address was last let go, and by whom.
    address_freed: BTreeMap<Address, (Millis, TaskId)>,
    pids: u32,
    fetches: u32,
    /// With what a container was first started: what servers say later is another answer.
    environments: BTreeMap<ContainerId, Vec<(String, String)>>,
    /// Who has a process that holds shared namespaces, and whether it is alive.
    holders: BTreeMap<TaskId, bool>,
}

/// The latest run of a container, and how it ended.
#[derive(Clone, Copy, Debug)]
struct Run {
    began: Millis,
    ended: Option<(Millis, i32)>,
    /// How many before it in a row ended before the policy's period was over.
    early: u32,
}

/// How an effect goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Luck {
    Good,
    /// As good, and what is looked at is healthy.
    Healed,
    /// Fails before it did anything.
    FailsBefore,
    /// Does it, and then fails to say so.
    FailsAfter,
}

fn failed(retryable: bool) -> Completion {
    let message = "the simulator said no".to_owned();
    Completion::Failed(Failure {
        kind: "SimulatedError".into(),
        message,
        retryable,
    })
}

fn unusable(what: &str) -> Failure {
    Failure {
        kind: "ResourceInitializationError".into(),
        message: format!("the simulator's {what} cannot be used"),
        retryable: true,
    }
}

fn image_gone() -> Completion {
    Completion::ImageGone(Failure {
        kind: "CannotCreateContainerError".into(),
        message: "the simulator removed the image".into(),
        retryable: false,
    })
}

impl Host {
    /// Performs an effect; returns how it completes and what exits it causes.
    pub fn perform(
        &mut self,
        effect: &Effect,
        luck: Luck,
        cancelled: bool,
        specs: &BTreeMap<TaskId, TaskSpec>,
        now: Millis,
        random: &mut Random,
    ) -> (Completion, Vec<Exit>) {
        let retryable = random.percent(70);
        if luck == Luck::FailsBefore && matches!(effect, Effect::Start(_)) && random.percent(30) {
            return (image_gone(), Vec::new());
        }
        if luck == Luck::FailsBefore {
            return (failed(retryable), Vec::new());
        }
        if cancelled && random.percent(60) {
            return (Completion::Cancelled, Vec::new());
        }
        let mut exits = Vec::new();
        let completion = match effect {
            // Nothing gives what runs its namespaces back.
            Effect::PrepareHost(prepare)
                if self.holders.get(&prepare.task) == Some(&false) && !prepare.running.is_empty() =>
            {
                return (failed(false), exits);
            }
            // A host of the network outside has it. What was made is taken away again.
            Effect::PrepareHost(prepare)
                if prepare.address.is_some() && prepare.running.is_empty() && random.percent(5) =>
            {
                self.prepare(&prepare.task, prepare.address, now);
                self.let_go(&prepare.task, now);
                self.prepared.insert(prepare.task.clone(), None);
                Completion::AddressTaken(unusable("address"))
            }
            Effect::PrepareHost(prepare) if prepare.address.is_some() && random.percent(5) => {
                self.prepare(&prepare.task, prepare.address, now);
                Completion::NetworkAwaited(unusable("network"))
            }
            Effect::PrepareHost(prepare) => {
                if prepare.shared.is_some() {
                    self.holders.insert(prepare.task.clone(), true);
                }
                self.prepare(&prepare.task, prepare.address, now);
                let taken = self.publish(prepare, random);
                if !taken.is_empty() {
                    return (Completion::PortsTaken { ports: taken }, exits);
                }
                Completion::HostReady {
                    mac_address: "02:00:00:00:00:01".into(),
                    warnings: vec![],
                }
            }
            Effect::PullImage { image, .. } => Completion::ImageReady(Box::new(ResolvedImage {
                reference: image.clone(),
                digest: "sha256:0".into(),
                resolved: "sha256:0".into(),
                chain_id: "sha256:1".into(),
                config: ImageConfig::default(),
            })),
            Effect::FetchEnvironment(fetch) => {
                self.fetches += 1;
                let variables = |url: &String| Variables(vec![(url.clone(), self.fetches.to_string())]);
                let files = fetch.urls.iter().map(|url| (url.clone(), variables(url)));
                Completion::EnvironmentReady(files.collect())
            }
            Effect::Start(start) if shares(start) && !self.is_held(&start.task) => {
                return (failed(false), exits);
            }
            // Created, and taken away again before it ran anything: that ends a process too.
            Effect::Start(start) if luck == Luck::FailsAfter && random.percent(50) && !self.exists(start) => {
                exits.push(self.undone(start, now));
                return (failed(retryable), exits);
            }
            Effect::Start(start) => {
                self.start(start, specs, now, random);
                if random.percent(10) {
                    exits.extend(self.exit(&(start.spec.id.clone(), start.attempt), code(random), now));
                }
                Completion::Started {
                    attempt: start.attempt,
                    pid: self.containers[&(start.spec.id.clone(), start.attempt)].pid,
                    warnings: vec![],
                }
            }
            Effect::Signal {
                container,
                attempt,
                kind,
                ..
            } => {
                let key = (container.clone(), *attempt);
                let dies = self
                    .containers
                    .get(&key)
                    .is_some_and(|c| *kind == SignalKind::Kill || !c.stubborn);
                if dies {
                    let code = if *kind == SignalKind::Kill { 137 } else { 143 };
                    exits.extend(self.exit(&key, code, now));
                }
                Completion::Signalled
            }
            Effect::Probe(probe) => {
                let key = (probe.container.clone(), probe.attempt);
                let runs = self
                    .containers
                    .get(&key)
                    .is_some_and(|c| c.process == Process::Running);
                if !runs {
                    return (failed(true), exits);
                }
                Completion::Probed {
                    attempt: probe.attempt,
                    outcome: outcome(luck, random),
                }
            }
            Effect::Remove {
                container, attempt, ..
            } => {
                let key = (container.clone(), *attempt);
                exits.extend(self.exit(&key, 137, now));
                self.containers.remove(&key);
                Completion::Removed
            }
            Effect::ReleaseHost { task, shares, .. } => {
                assert!(
                    self.alive_of(task).is_empty(),
                    "cgroups of {task} removed under its processes"
                );
                if *shares {
                    self.holders.remove(task);
                }
                self.published.retain(|_, owner| owner != task);
                self.let_go(task, now);
                Completion::HostReleased
            }
            Effect::RemoveLogs { task } => {
                self.logs.remove(task);
                Completion::LogsRemoved
            }
            Effect::Cancel(_) => unreachable!("cancellations complete nothing"),
        };
        if luck == Luck::FailsAfter {
            return (failed(true), exits);
        }
        (completion, exits)
    }

    /// The task has no network any more.
    fn let_go(&mut self, task: &TaskId, now: Millis) {
        if let Some(Some(address)) = self.prepared.remove(task) {
            self.address_freed.insert(address, (now, task.clone()));
        }
    }

    /// Some ports are those of processes of the host, but none that leads to the task already.
    fn publish(&mut self, prepare: &PrepareHost, random: &mut Random) -> Vec<(Protocol, u16)> {
        let mut taken = Vec::new();
        for port in &prepare.published {
            let key = (port.protocol, port.host_port);
            match self.published.get(&key) {
                Some(owner) => assert_eq!(*owner, prepare.task, "{key:?} leads to two tasks"),
                None if random.percent(5) => taken.push(key),
                None => {}
            }
        }
        if taken.is_empty() {
            let ports = prepare
                .published
                .iter()
                .map(|port| (port.protocol, port.host_port));
            self.published
                .extend(ports.map(|key| (key, prepare.task.clone())));
        }
        taken
    }

    fn is_held(&self, task: &TaskId) -> bool {
        self.holders.get(task) == Some(&true)
    }

    /// The tasks whose shared namespaces somebody holds.
    pub fn held(&self) -> Vec<TaskId> {
        let alive = self.holders.iter().filter(|(_, alive)| **alive);
        alive.map(|(task, _)| task.clone()).collect()
    }

    /// The holder of a task dies; with a PID namespace, all that are in it do.
    pub fn lose_holder(&mut self, task: &TaskId, pid: PidMode, now: Millis) -> Vec<Exit> {
        self.holders.insert(task.clone(), false);
        let all = self.running().into_iter();
        let own = all.filter(|key| pid == PidMode::Task && self.containers[key].task == *task);
        let own: Vec<Key> = own.collect();
        let exits = own.iter().filter_map(|key| self.exit(key, 137, now));
        let told = exits.map(|exit| Exit {
            holder_ended: true,
            ..exit
        });
        told.collect()
    }

    fn prepare(&mut self, task: &TaskId, address: Option<Address>, now: Millis) {
        self.logs.insert(task.clone());
        if let Some(address) = address {
            let other = self
                .prepared
                .iter()
                .find(|(owner, a)| **a == Some(address) && *owner != task);
            assert_eq!(other, None, "address {address:?} given to two tasks");
            if !self.prepared.contains_key(task)
                && let Some((freed, by)) = self.address_freed.get(&address)
                && by != task
            {
                let rested = now.0 - freed.0;
                assert!(
                    rested >= QUARANTINE_MS,
                    "address {address:?} rested only {rested} ms"
                );
            }
        }
        self.prepared.insert(task.clone(), address);
    }

    fn start(
        &mut self,
        start: &StartContainer,
        specs: &BTreeMap<TaskId, TaskSpec>,
        now: Millis,
        random: &mut Random,
    ) {
        let key = (start.spec.id.clone(), start.attempt);
        if self
            .containers
            .get(&key)
            .is_some_and(|c| c.process != Process::Created)
        {
            return; // idempotent: it was started before
        }
        assert!(
            self.prepared.contains_key(&start.task),
            "started without its host side"
        );
        assert!(
            !shares(start) || self.holders.contains_key(&start.task),
            "started without what it shares"
        );
        assert_eq!(
            matches!(start.network, NetworkMode::Awsvpc | NetworkMode::Bridge),
            start.address.is_some(),
            "awsvpc and bridge, and only they, have addresses"
        );
        for dependency in &start.spec.depends_on {
            let other = specs[&start.task].container_named(&dependency.container).unwrap();
            let ran = self.ran.get(&other.id);
            let satisfied = match dependency.condition {
                Condition::Start => ran.is_some(),
                Condition::Complete => matches!(ran, Some(Some(code)) if is_final(other, *code)),
                Condition::Success => matches!(ran, Some(Some(0))) && is_final(other, 0),
                Condition::Healthy => self.healthy.iter().any(|(id, _)| *id == other.id),
            };
            assert!(
                satisfied,
                "{} started before {:?} held: {ran:?}",
                start.spec.name, dependency
            );
        }
        let starts = self.starts.entry(key.clone()).or_default();
        *starts += 1;
        assert_eq!(*starts, 1, "attempt {key:?} was started twice");
        let twin = self
            .containers
            .iter()
            .find(|((id, _), c)| *id == key.0 && c.process == Process::Running);
        assert!(twin.is_none(), "two processes of one container");
        let former = self
            .containers
            .keys()
            .find(|(id, attempt)| *id == key.0 && *attempt != key.1);
        assert!(former.is_none(), "{former:?} is left while {key:?} starts");
        self.check_pause(start, now);
        self.check_environment(start, &specs[&start.task]);
        self.ran.insert(key.0.clone(), None);
        self.pids += 1;
        let instance = Instance {
            task: start.task.clone(),
            process: Process::Running,
            pid: self.pids,
            stubborn: random.percent(30),
        };
        self.containers.insert(key, instance);
    }

    /// A container that ended starts again only if its policy says so, and not before its pause is over.
    fn check_pause(&mut self, start: &StartContainer, now: Millis) {
        let id = &start.spec.id;
        let mut early = 0;
        if let Some(run) = self.runs.get(id)
            && let Some((ended, code)) = run.ended
        {
            let policy = start.spec.restart.as_ref();
            let policy = policy.unwrap_or_else(|| panic!("{id} started again without a policy"));
            let ignored = policy.ignored_exit_codes.contains(&code);
            assert!(!ignored, "{id} started again after the ignored {code}");
            let period = i64::from(policy.attempt_period_ms);
            if ended.0 - run.began.0 < period {
                early = run.early + 1;
                let pause = (1_000 << run.early.min(10)).min(period);
                let waited = now.0 - ended.0;
                assert!(waited >= pause, "{id} waited {waited} ms, not {pause}");
            }
        }
        let run = Run {
            began: now,
            ended: None,
            early,
        };
        self.runs.insert(id.clone(), run);
    }

    /// A container has what all its files hold, and when it starts again what they held at first.
    fn check_environment(&mut self, start: &StartContainer, task: &TaskSpec) {
        let names: BTreeSet<&String> = start.spec.environment.iter().map(|(name, _)| name).collect();
        let urls = task.container(&start.spec.id).unwrap().environment_urls();
        assert_eq!(names, urls.collect(), "environment of {}", start.spec.id);
        let first = self
            .environments
            .entry(start.spec.id.clone())
            .or_insert_with(|| start.spec.environment.clone());
        assert_eq!(*first, start.spec.environment, "of {}", start.spec.id);
    }

    fn exists(&self, start: &StartContainer) -> bool {
        self.containers
            .contains_key(&(start.spec.id.clone(), start.attempt))
    }

    /// The end of a process that was created for a start which was then given up.
    fn undone(&mut self, start: &StartContainer, now: Millis) -> Exit {
        self.pids += 1;
        Exit {
            task: start.task.clone(),
            container: start.spec.id.clone(),
            attempt: start.attempt,
            pid: self.pids,
            code: 137,
            at: now,
            oom_killed: false,
            holder_ended: false,
        }
    }

    /// Ends a process, if it runs.
    pub fn exit(&mut self, key: &Key, code: i32, now: Millis) -> Option<Exit> {
        let instance = self.containers.get_mut(key)?;
        if instance.process != Process::Running {
            return None;
        }
        instance.process = Process::Exited { code, at: now };
        self.ran.insert(key.0.clone(), Some(code));
        if let Some(run) = self.runs.get_mut(&key.0) {
            run.ended = Some((now, code));
        }
        let (container, attempt) = key.clone();
        Some(Exit {
            task: instance.task.clone(),
            container,
            attempt,
            pid: instance.pid,
            code,
            at: now,
            oom_killed: false,
            holder_ended: false,
        })
    }

    pub fn running(&self) -> Vec<Key> {
        let running = |(_, c): &(&Key, &Instance)| c.process == Process::Running;
        self.containers
            .iter()
            .filter(running)
            .map(|(key, _)| key.clone())
            .collect()
    }

    pub fn alive_of(&self, task: &TaskId) -> Vec<Key> {
        let alive = |(_, c): &(&Key, &Instance)| c.task == *task && c.process == Process::Running;
        self.containers
            .iter()
            .filter(alive)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Nothing of the task is left but its logs.
    pub fn is_clean_of(&self, task: &TaskId) -> bool {
        !self.prepared.contains_key(task) && self.containers.values().all(|c| c.task != *task)
    }

    pub fn objects(&self) -> Vec<HostObject> {
        let containers = self
            .containers
            .keys()
            .map(|(id, attempt)| HostObject::Container(runtime_id(id, *attempt)));
        let hosts = self.prepared.keys().map(|t| HostObject::OfTask {
            kind: "cgroup".into(),
            task: t.clone(),
        });
        containers
            .chain(hosts)
            .chain(self.logs.iter().cloned().map(HostObject::Logs))
            .collect()
    }

    /// What an agent that starts would find.
    pub fn observe(&self) -> Vec<Observed> {
        let observed = |((id, attempt), c): (&Key, &Instance)| Observed {
            task: c.task.clone(),
            container: id.clone(),
            attempt: *attempt,
            state: match c.process {
                Process::Created => ObservedState::Created,
                Process::Running => ObservedState::Running { pid: c.pid },
                Process::Exited { code, at } => ObservedState::Exited {
                    code,
                    at,
                    oom_killed: false,
                },
            },
        };
        self.containers.iter().map(observed).collect()
    }

    /// The power fails: processes, cgroups and namespaces are gone, records on disk are not. The runtime knows how a
    /// process ended only if it saw that before the end of everything.
    pub fn reboot(&mut self, now: Millis, random: &mut Random) {
        self.published.clear();
        for key in self.running() {
            if random.percent(50) {
                self.exit(&key, 137, now);
            } else if let Some(instance) = self.containers.get_mut(&key) {
                instance.process = Process::Created;
            }
        }
        self.holders.clear();
        self.ran.clear();
        self.healthy.clear();
        self.runs.clear();
        for (task, address) in std::mem::take(&mut self.prepared) {
            if let Some(address) = address {
                self.address_freed.insert(address, (now, task));
            }
        }
    }
}

fn shares(start: &StartContainer) -> bool {
    start.pid == PidMode::Task || start.ipc == IpcMode::Task
}

/// Healthy, unhealthy, or hung.
fn outcome(luck: Luck, random: &mut Random) -> Outcome {
    let exit_code = match random.up_to(9) {
        0..=1 if luck != Luck::Healed => Some(1),
        2 if luck != Luck::Healed => None,
        _ => Some(0),
    };
    Outcome {
        exit_code,
        output: "looked".into(),
    }
}

/// Whether this end of a container is its last.
fn is_final(spec: &ContainerSpec, code: i32) -> bool {
    let policy = spec.restart.as_ref();
    policy.is_none_or(|policy| policy.ignored_exit_codes.contains(&code))
}

pub fn code(random: &mut Random) -> i32 {
    if random.percent(60) {
        0
    } else {
        i32::try_from(random.up_to(254)).unwrap() + 1
    }
}
