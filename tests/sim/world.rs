//! Owns one run: the core, its disk, the host, the control plane, and time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use berth_agent_core::{
    addresses::Range,
    change::Change,
    container::{Life, StopStage},
    dependency,
    desired::{DesiredStatus, Millis, TaskSpec},
    effect::{Effect, Lane},
    event::{Completion, Event, Restarted, TimerKey},
    ids::TaskId,
    ledger::{Ledger, Owned},
    node::{Node, NodeConfig, NodeRecord, OVERTAKEN_MAX},
    ports::DynamicPorts,
    report::{Report, Status, StopCode},
    resources::Capacity,
    task::{Phase, Task},
};

use crate::{
    control_plane::ControlPlane,
    host::{Host, Luck, code},
    journal::Journal,
    random::Random,
    specs,
};

const TASKS_AT_ONCE: usize = 12;
/// Steps after healing within which everything must have come to rest.
const QUIET_STEPS: usize = 20_000;
const LOG_RETENTION_MS: i64 = 60_000;

/// What survives a crash: what was committed.
#[derive(Debug, Default)]
struct Disk {
    node: Option<String>,
    tasks: BTreeMap<TaskId, String>,
    ledger: Ledger,
    outbox: VecDeque<Report>,
}

#[derive(Debug)]
struct UnderWay {
    effect: Effect,
    due: Millis,
    cancelled: bool,
}

#[derive(Debug)]
pub struct World {
    random: Random,
    now: Millis,
    node: Node,
    disk: Disk,
    host: Host,
    control_plane: ControlPlane,
    specs: BTreeMap<TaskId, TaskSpec>,
    under_way: BTreeMap<Lane, UnderWay>,
    timers: BTreeMap<TimerKey, Millis>,
    /// Exits and desired state on their way to the agent.
    in_flight: Vec<(Millis, Event)>,
    link_up: bool,
    faults: bool,
    tasks_made: u64,
    history: Vec<String>,
    journal: Journal,
    trace: bool,
}

pub fn config() -> NodeConfig {
    NodeConfig {
        capacity: Capacity {
            cpu_units: 2048,
            memory_bytes: 2 << 30,
            reserved_ports: [(berth_agent_core::desired::Protocol::Tcp, 8003)].into(),
        },
        task_range: Range::below("10.0.0.0/28".parse().unwrap(), "fd00::/64".parse().ok()).unwrap(),
        boot_id: "boot".into(),
        dynamic_ports: DynamicPorts {
            range: 8_000..=8_009,
            avoided: [8_004].into(),
        },
        log_retention_ms: LOG_RETENTION_MS,
        admission_deadline_ms: 600_000,
    }
}

impl World {
    pub fn new(seed: u64, trace: bool) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            now: Millis(1_000_000),
            node: Node::new(config()),
            disk: Disk::default(),
            host: Host::default(),
            control_plane: ControlPlane::new(),
            specs: BTreeMap::new(),
            under_way: BTreeMap::new(),
            timers: BTreeMap::new(),
            in_flight: Vec::new(),
            link_up: true,
            faults: true,
            tasks_made: 0,
            history: Vec::new(),
            journal: Journal::of(&Node::new(config())),
            trace,
        };
        world.apply(Event::Restarted(Restarted::default()));
        world
    }

    pub fn history(self) -> Vec<String> {
        self.history
    }

    pub fn run_steps(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }

    pub fn heal(&mut self) {
        self.faults = false;
        self.link_up = true;
        let snapshot = self.control_plane.snapshot();
        self.apply(snapshot);
        let running: Vec<_> = self.control_plane.desired.keys().cloned().collect();
        for id in running {
            if self.random.percent(60) {
                let stop = self.control_plane.stop(&id);
                stop.into_iter().for_each(|event| self.apply(event));
            }
        }
    }

    fn step(&mut self) {
        self.now = self.now.plus(i64::try_from(self.random.up_to(400)).unwrap());
        match self.random.up_to(99) {
            0..=11 if self.faults => self.want_another(),
            12..=17 if self.faults => self.stop_one(),
            18..=22 if self.faults => self.one_exits(),
            23 if self.faults => self.crash(false),
            24 if self.faults && self.random.percent(10) => self.crash(true),
            25..=26 if self.faults => self.toggle_link(),
            27 if self.faults => self.repeat_an_exit(),
            28 if self.faults => self.one_holder_dies(),
            _ => {}
        }
        self.deliver();
        self.fire_timers();
        self.complete_effects();
        self.send_reports();
        self.check();
    }

    fn want_another(&mut self) {
        if self.control_plane.desired.len() >= TASKS_AT_ONCE || !self.link_up {
            return;
        }
        self.tasks_made += 1;
        let spec = specs::task(self.tasks_made, &mut self.random);
        self.specs.insert(spec.id.clone(), spec.clone());
        let event = self.control_plane.want(spec);
        self.apply(event);
    }

    fn stop_one(&mut self) {
        let ids: Vec<_> = self.control_plane.desired.keys().cloned().collect();
        let Some(id) = self.random.pick(&ids).cloned() else {
            return;
        };
        let event = self.control_plane.stop(&id);
        if self.link_up {
            event.into_iter().for_each(|event| self.apply(event));
        }
    }

    fn one_exits(&mut self) {
        let running = self.host.running();
        let Some(key) = self.random.pick(&running).cloned() else {
            return;
        };
        let code = code(&mut self.random);
        if let Some(exit) = self.host.exit(&key, code, self.now) {
            self.observe(Event::Exited(exit));
        }
    }

    fn one_holder_dies(&mut self) {
        let held = self.host.held();
        let Some(task) = self.random.pick(&held).cloned() else {
            return;
        };
        let pid = self.specs[&task].pid;
        for exit in self.host.lose_holder(&task, pid, self.now) {
            self.observe(Event::Exited(exit));
        }
        self.observe(Event::HolderEnded { task });
    }

    fn repeat_an_exit(&mut self) {
        let Some((_, event)) = self.random.pick(&self.in_flight).cloned() else {
            return;
        };
        self.observe(event);
    }

    fn observe(&mut self, event: Event) {
        let delay = i64::try_from(self.random.up_to(300)).unwrap();
        self.in_flight.push((self.now.plus(delay), event));
    }

    fn toggle_link(&mut self) {
        self.link_up = !self.link_up;
        if self.link_up {
            let applied = self.control_plane.applied;
            self.apply(Event::Acknowledged { sequence: applied });
            let snapshot = self.control_plane.snapshot();
            self.apply(snapshot);
        }
    }

    /// The agent dies and starts again; with `reboot`, the host does.
    fn crash(&mut self, reboot: bool) {
        // What was under way may have been done, or not.
        for (_, under_way) in std::mem::take(&mut self.under_way) {
            if self.random.percent(50) {
                let specs = &self.specs;
                self.host.perform(
                    &under_way.effect,
                    Luck::Good,
                    false,
                    specs,
                    self.now,
                    &mut self.random,
                );
            }
        }
        self.timers.clear();
        self.in_flight.clear();
        if reboot {
            self.host.reboot(self.now, &mut self.random);
            self.control_plane.gaps_allowed += 1;
        }
        let tasks = self
            .disk
            .tasks
            .values()
            .map(|json| serde_json::from_str::<Task>(json).unwrap());
        let record = self
            .disk
            .node
            .as_ref()
            .map(|json| serde_json::from_str::<NodeRecord>(json).unwrap());
        let fresh = Node::new(config()).record().clone();
        self.journal.replays_to(&self.node);
        self.node = Node::load(config(), record.unwrap_or(fresh), tasks, self.disk.ledger.clone());
        self.journal = Journal::of(&self.node);
        self.log(format!("crash, reboot {reboot}"));
        let active = |task: &&Task| task.phase == Phase::Active;
        let ran: Vec<TaskId> = self
            .node
            .tasks()
            .filter(active)
            .map(|task| task.spec.id.clone())
            .collect();
        self.apply(Event::Restarted(Restarted {
            host_rebooted: reboot,
            containers: self.host.observe(),
            ..Restarted::default()
        }));
        if reboot {
            self.check_after_reboot(&ran);
        }
        // The control plane may be away for a while yet.
        self.link_up = !reboot || self.random.percent(50);
        if !self.link_up {
            return;
        }
        let snapshot = self.control_plane.snapshot();
        self.apply(snapshot);
    }

    /// Of what ran, tasks that are to start again do so, and no other.
    fn check_after_reboot(&mut self, ran: &[TaskId]) {
        for id in ran {
            let again = self.specs[id].restart_after_reboot;
            let Some(task) = self.node.task(id) else {
                assert!(!again, "{id} is forgotten instead of started again");
                continue;
            };
            assert_eq!(
                task.phase == Phase::Active,
                again,
                "{id} after a reboot: {:?}",
                task.phase
            );
            if again {
                assert_eq!(task.status(), Status::Pending, "{id} waits for its start");
                *self.control_plane.restarts.entry(id.clone()).or_default() += 1;
            } else {
                let code = task.stop.as_ref().map(|(code, _)| *code);
                assert_eq!(code, Some(StopCode::HostRestarted), "{id}");
            }
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.in_flight = later;
        let due: Vec<(Millis, Event)> = due;
        for (_, event) in due {
            self.apply(event);
        }
    }

    fn fire_timers(&mut self) {
        let now = self.now;
        let due: Vec<_> = self
            .timers
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            self.timers.remove(&key);
            self.apply(Event::Timer(key));
        }
    }

    fn complete_effects(&mut self) {
        let now = self.now;
        let due: Vec<_> = self
            .under_way
            .iter()
            .filter(|(_, u)| u.due <= now)
            .map(|(l, _)| l.clone())
            .collect();
        for lane in due {
            let Some(UnderWay {
                effect, cancelled, ..
            }) = self.under_way.remove(&lane)
            else {
                continue;
            };
            let luck = match self.random.up_to(99) {
                0..=5 if self.faults => Luck::FailsBefore,
                6..=8 if self.faults => Luck::FailsAfter,
                _ if self.faults => Luck::Good,
                _ => Luck::Healed,
            };
            let (completion, exits) =
                self.host
                    .perform(&effect, luck, cancelled, &self.specs, now, &mut self.random);
            for exit in exits {
                self.observe(Event::Exited(exit));
            }
            if let (Effect::Probe(probe), Completion::Probed { outcome, .. }) = (&effect, &completion)
                && outcome.exit_code == Some(0)
            {
                let key = (probe.container.clone(), probe.attempt);
                self.host.healthy.insert(key);
            }
            self.apply(Event::Completed { lane, completion });
        }
    }

    fn send_reports(&mut self) {
        if !self.link_up || self.random.percent(30) {
            return;
        }
        for report in self.disk.outbox.clone() {
            if let Some(removed) = self.control_plane.report(&report) {
                self.apply(removed);
            }
        }
        // The acknowledgement may be lost: the reports come again.
        if self.random.percent(80) {
            let applied = self.control_plane.applied;
            self.apply(Event::Acknowledged { sequence: applied });
        }
    }

    /// As the driver does: apply, commit, act.
    fn apply(&mut self, event: Event) {
        self.log(format!("{event:?}"));
        let change = self.node.apply(self.now, event.clone());
        self.journal.entries.push((self.now, event, change.clone()));
        assert!(change.anomalies.is_empty(), "anomalies: {:?}", change.anomalies);
        self.check_probes_write_only_news(&change);
        for id in &change.tasks {
            match self.node.task(id) {
                Some(task) => self
                    .disk
                    .tasks
                    .insert(id.clone(), serde_json::to_string(task).unwrap()),
                None => self.disk.tasks.remove(id),
            };
        }
        if change.node {
            self.disk.node = Some(serde_json::to_string(self.node.record()).unwrap());
        }
        change
            .ledger
            .iter()
            .for_each(|write| self.disk.ledger.apply(write));
        self.disk.outbox.extend(change.reports.iter().cloned());
        if let Some(sequence) = change.acknowledged {
            self.disk.outbox.retain(|report| report.sequence > sequence);
        }
        if let Some(ack) = change.desired_ack {
            assert_eq!(ack.refused, None, "an honest control plane is never refused");
        }
        for report in &change.reports {
            if report.task.facts.status == Status::Stopped {
                let id = &report.task.id;
                assert!(
                    self.host.is_clean_of(id),
                    "{id} reported STOPPED, but something of it is left"
                );
            }
        }
        self.timers.extend(change.timers);
        for effect in change.effects {
            self.submit(effect);
        }
    }

    fn submit(&mut self, effect: Effect) {
        self.log(format!("  {effect:?}"));
        let lane = effect.lane();
        if matches!(effect, Effect::Cancel(_)) {
            let now = self.now;
            if let Some(under_way) = self.under_way.get_mut(&lane) {
                under_way.cancelled = true;
                under_way.due = under_way.due.min(now.plus(100));
            }
            return;
        }
        self.check_effect(&effect);
        let due = self.now.plus(i64::try_from(self.random.up_to(2_000)).unwrap());
        let before = self.under_way.insert(
            lane,
            UnderWay {
                effect,
                due,
                cancelled: false,
            },
        );
        assert!(before.is_none(), "lane is busy with {before:?}");
    }

    fn log(&mut self, line: String) {
        let line = format!("{} {line}", self.now.0);
        if self.trace {
            eprintln!("{line}");
        }
        self.history.push(line);
    }

    /// What must hold at every moment.
    fn check(&self) {
        let leaks = self.disk.ledger.unowned(self.host.objects());
        assert!(leaks.is_empty(), "nobody answers for {leaks:?}");
        let charged = self.host.running().len();
        let used = self.node.resources().used();
        let capacity = self.node.resources().capacity();
        assert!(
            used.cpu_units <= capacity.cpu_units,
            "CPU is overcommitted with {charged} containers"
        );
        assert!(
            used.memory_bytes <= capacity.memory_bytes,
            "memory is overcommitted with {charged} containers"
        );
        self.check_what_runs_fits();
        self.check_nobody_sleeps_through_a_release();
        self.check_no_live_process_is_taken_for_ended();
        self.check_no_stop_waits_for_a_probe();
        let mut ports = BTreeMap::new();
        for (key, instance) in self
            .host
            .containers
            .iter()
            .filter(|(_, c)| c.process == crate::host::Process::Running)
        {
            for port in self.specs[&instance.task].host_ports() {
                let owner = ports.insert(port, instance.task.clone());
                assert!(
                    owner.is_none_or(|o| o == instance.task),
                    "{port:?} is held twice, by {key:?} too"
                );
            }
        }
    }

    /// What is really alive fits, whatever the node believes of it.
    fn check_what_runs_fits(&self) {
        let alive = self.host.containers.values();
        let alive = alive.filter(|c| c.process == crate::host::Process::Running);
        let tasks: BTreeSet<&TaskId> = alive.map(|c| &c.task).collect();
        let cpu: u32 = tasks.iter().map(|id| self.specs[*id].charge.cpu_units).sum();
        let capacity = self.node.resources().capacity();
        assert!(
            cpu <= capacity.cpu_units,
            "{cpu} CPU units are in use by {tasks:?}"
        );
    }

    /// An exit ends the process it is of, and no other.
    fn check_no_live_process_is_taken_for_ended(&self) {
        for (id, attempt) in self.host.running() {
            let task = self.node.task(&self.host.containers[&(id.clone(), attempt)].task);
            let Some(container) = task.map(|task| task.container(&id)) else {
                continue;
            };
            let ended = container.has_started() && container.exit.is_some() && !container.is_up();
            assert!(!ended, "{id} runs and is taken for ended: {container:?}");
        }
    }

    /// What is asked of the host, when it is asked.
    fn check_effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Signal {
                container, attempt, ..
            } => {
                self.host.signalled.insert((container.clone(), *attempt));
            }
            Effect::Probe(probe) => {
                let key = (probe.container.clone(), probe.attempt);
                assert!(
                    !self.host.signalled.contains(&key),
                    "{key:?} is being stopped, and probed"
                );
                let task = self.node.task(&probe.task).unwrap();
                let container = task.container(&probe.container);
                assert_eq!(
                    (&task.phase, container.life, container.attempt),
                    (&Phase::Active, Life::Running, probe.attempt),
                    "{key:?} is probed"
                );
            }
            Effect::Remove { task, container, .. } => {
                let lane = Lane::Probe(task.clone(), container.clone());
                assert!(
                    !self.under_way.contains_key(&lane),
                    "{container} is removed under its probe"
                );
            }
            _ => {}
        }
    }

    /// A node with many health checks does not write for each probe.
    fn check_probes_write_only_news(&self, change: &Change) {
        let (_, event, _) = self.journal.entries.last().unwrap();
        let (task, container) = match event {
            Event::Timer(TimerKey::Probe(task, container)) => (task, container),
            Event::Completed {
                lane: Lane::Probe(task, container),
                ..
            } => (task, container),
            _ => return,
        };
        let runs = self
            .node
            .task(task)
            .is_some_and(|t| t.phase == Phase::Active && t.container(container).life == Life::Running);
        let writes = !change.tasks.is_empty() || change.node;
        assert!(!runs || !writes || !change.reports.is_empty(), "{change:?}");
    }

    /// Whoever may be told to stop has been told, whatever else goes on in it.
    fn check_no_stop_waits_for_a_probe(&self) {
        for task in self.node.tasks().filter(|task| task.phase == Phase::Stopping) {
            for (id, container) in task.containers() {
                let idle = container.life == Life::Running
                    && container.doing.is_none()
                    && container.retry.due(self.now)
                    && container.retry.at.is_none();
                assert!(
                    !idle || container.stop != StopStage::NotAsked || !dependency::may_stop(task, id),
                    "{id} is not told to stop: {container:?}"
                );
            }
        }
    }

    /// No wake-up is lost: who waits does not fit, or may not pass somebody.
    fn check_nobody_sleeps_through_a_release(&self) {
        if let Some(at) = self.node.record().addresses.next_expiry() {
            let timer = self.timers.get(&TimerKey::Quarantine);
            assert!(
                timer.is_some_and(|timer| *timer <= at),
                "an address leaves its quarantine at {at:?} and the timer is at {timer:?}"
            );
        }
        let waiting = |task: &&Task| matches!(task.phase, Phase::Waiting { .. });
        let barrier = |task: &Task| matches!(task.phase, Phase::Waiting { overtaken, .. } if overtaken >= OVERTAKEN_MAX);
        if self.node.tasks().any(barrier) {
            return;
        }
        for task in self
            .node
            .tasks()
            .filter(waiting)
            .filter(|task| !task.wants_address() && task.want_addresses().is_empty())
        {
            let fits = self.node.resources().fits(&task.spec);
            assert!(fits.is_err(), "{} waits, and fits", task.spec.id);
        }
    }

    pub fn run_until_quiet(&mut self) {
        for _ in 0..QUIET_STEPS {
            self.step();
            // Probes go on for as long as their containers.
            let is_probe = |key: &TimerKey| matches!(key, TimerKey::Probe(..));
            let far = |at: &Millis| at.0 > self.now.0 + 1_000_000;
            let timers_far = self.timers.iter().all(|(key, at)| is_probe(key) || far(at));
            if self.under_way.keys().all(|lane| matches!(lane, Lane::Probe(..)))
                && self.in_flight.is_empty()
                && self.disk.outbox.is_empty()
                && timers_far
            {
                return;
            }
        }
        panic!("still busy: {:?}; timers {:?}", self.under_way, self.timers);
    }

    pub fn assert_converged(&self) {
        self.journal.replays_to(&self.node);
        for (id, spec) in &self.control_plane.desired {
            let task = self
                .node
                .task(id)
                .unwrap_or_else(|| panic!("{id} is wanted and not known"));
            assert_eq!(
                spec.desired,
                DesiredStatus::Running,
                "{id} is to be stopped and is {:?}",
                task.status()
            );
            assert_eq!(task.status(), Status::Running, "{id} waits: {:?}", task.waiting());
        }
        for task in self.node.tasks() {
            let wanted = self.control_plane.desired.contains_key(&task.spec.id);
            assert!(
                wanted,
                "{} is kept for nobody: {:?} {:?}",
                task.spec.id, task.phase, task.logs
            );
        }
        for owned in self.disk.ledger.entries() {
            let (Owned::Host(task) | Owned::Attempt(task, _, _) | Owned::Logs(task)) = owned;
            assert!(
                self.control_plane.desired.contains_key(task),
                "ledger still has {owned:?}"
            );
        }
        assert_eq!(self.disk.tasks.len(), self.control_plane.desired.len());
    }
}
