//! Owns the decision what a task does next, from its facts. Changes only the facts that say what is under way.

use super::{Host, Logs, Phase, START_TRIES_MAX, Task};
use crate::{
    container::{Container, Doing, Image, Life, StopStage},
    dependency::{self, DEPENDENCY_FAILED_EXIT_CODE, Verdict},
    desired::{ContainerSpec, Millis},
    effect::{Effect, Lane, PrepareHost, SignalKind, StartContainer},
    event::TimerKey,
    ids::ContainerId,
    ledger::{LedgerWrite, Owned},
    report::StopCode,
};

/// SIGKILL is repeated after this time, milliseconds: the process may have been uninterruptible.
const KILL_AGAIN_MS: i64 = 10_000;

/// What to do, in order.
#[derive(Debug, Default)]
pub struct Steps {
    pub effects: Vec<Effect>,
    pub timers: Vec<(TimerKey, Millis)>,
    pub ledger: Vec<LedgerWrite>,
}

impl Task {
    /// Everything that can be begun now. Calling it again without an event in between gives nothing.
    pub fn advance(&mut self, now: Millis) -> Steps {
        let mut steps = Steps::default();
        match self.phase {
            Phase::Waiting { .. } => {}
            Phase::Active => self.advance_active(now, &mut steps),
            Phase::Stopping | Phase::Releasing | Phase::Stopped => {}
        }
        // Not `else`: a failure found on the way up is acted on at once.
        if self.phase == Phase::Stopping {
            self.advance_stopping(now, &mut steps);
        }
        if self.phase == Phase::Releasing {
            self.release_host(now, &mut steps);
        }
        if self.phase == Phase::Stopped {
            self.remove_logs(now, &mut steps);
        }
        steps
    }

    fn advance_active(&mut self, now: Millis, steps: &mut Steps) {
        self.plan_restarts();
        self.prepare_host(now, steps);
        self.fetch_environment(now, steps);
        for id in self.ids() {
            self.pull(&id, now, steps);
        }
        // A container that can never run may make others impossible: look again until nothing changes.
        while self.fail_impossible(now) {}
        for id in self.ids() {
            self.start(&id, now, steps);
            self.remove_exited(&id, now, steps);
        }
        let ended = |c: &&ContainerSpec| c.essential && self.container(&c.id).has_ended();
        if self.phase == Phase::Active && self.spec.containers.iter().any(|c| ended(&c)) {
            self.begin_stop(
                StopCode::EssentialContainerExited,
                "Essential container in task exited".into(),
                now,
            );
        }
        // A task that has begun to end is looked at no more.
        if self.phase == Phase::Active {
            for id in self.ids() {
                self.watch_health(&id, now, steps);
            }
        }
        if self.times.started.is_none() && !self.adopted && self.status() == crate::report::Status::Running {
            self.times.started = Some(now);
        }
    }

    fn ids(&self) -> Vec<ContainerId> {
        self.spec.containers.iter().map(|c| c.id.clone()).collect()
    }

    /// Before anything else is said of a container that ended: one that starts again has not ended.
    fn plan_restarts(&mut self) {
        let Self { spec, containers, .. } = self;
        for spec in &spec.containers {
            if let (Some(policy), Some(container)) = (&spec.restart, containers.get_mut(&spec.id)) {
                container.plan_restart(policy);
            }
        }
    }

    fn prepare_host(&mut self, now: Millis, steps: &mut Steps) {
        if !matches!(self.host, Host::Nothing | Host::HalfMade) {
            return;
        }
        let task = self.spec.id.clone();
        if !self.host_retry.due(now) {
            steps.timers.extend(
                self.host_retry
                    .at
                    .map(|at| (TimerKey::Retry(Lane::Host(task)), at)),
            );
            return;
        }
        self.host = Host::Preparing { cancelled: false };
        self.logs = Logs::Kept;
        steps.ledger.push(LedgerWrite::Intend(Owned::Host(task.clone())));
        steps.ledger.push(LedgerWrite::Intend(Owned::Logs(task.clone())));
        steps.effects.push(Effect::PrepareHost(PrepareHost {
            task,
            limits: self.spec.limits,
            cpu_shares: self.spec.cpu_shares(),
            network: self.spec.network,
            address: self.address,
            lan: self.spec.lan.clone().map(Box::new),
            addresses: self.container_addresses.clone(),
            published: self.published(),
            containers: self
                .spec
                .containers
                .iter()
                .map(|c| (c.id.clone(), c.name.clone()))
                .collect(),
            running: self
                .spec
                .containers
                .iter()
                .filter(|c| self.container(&c.id).life == Life::Running)
                .map(|c| (c.id.clone(), c.memory_ceiling()))
                .collect(),
            volumes: self.spec.volumes.clone(),
            swap_bytes: self.spec.swap_bytes(),
            shared: self.spec.shared(),
            ephemeral_storage_bytes: self.spec.ephemeral_storage_bytes,
        }));
    }

    fn pull(&mut self, id: &ContainerId, now: Millis, steps: &mut Steps) {
        let Some(image) = self.spec.container(id).map(ContainerSpec::wanted_image) else {
            return;
        };
        let task = self.spec.id.clone();
        let Some(container) = self.container_mut(id) else {
            return;
        };
        if container.image != Image::Wanted || matches!(container.life, Life::Exited | Life::Gone) {
            return;
        }
        container.image = Image::Pulling { cancelled: false };
        self.times.pull_started.get_or_insert(now);
        steps.effects.push(Effect::PullImage {
            task,
            container: id.clone(),
            image,
        });
    }

    /// Gives up containers whose dependencies can never be satisfied. Whether there was one.
    fn fail_impossible(&mut self, now: Millis) -> bool {
        let impossible = self.spec.containers.iter().find_map(|spec| {
            let waits = self.container(&spec.id).life == Life::Waiting;
            match dependency::verdict(self, spec) {
                Verdict::Impossible(why) if waits => Some((spec.id.clone(), spec.essential, why)),
                _ => None,
            }
        });
        let Some((id, essential, why)) = impossible else {
            return false;
        };
        if let Some(container) = self.container_mut(&id) {
            container.give_up(Some(DEPENDENCY_FAILED_EXIT_CODE), Some(why.clone()));
        }
        if essential {
            self.begin_stop(StopCode::TaskFailedToStart, why, now);
        }
        true
    }

    fn start(&mut self, id: &ContainerId, now: Millis, steps: &mut Steps) {
        if self.phase != Phase::Active || self.host != Host::Ready {
            return;
        }
        let Some(spec) = self.spec.container(id) else {
            return;
        };
        let container = self.container(id);
        let Image::Ready(image) = &container.image else {
            return;
        };
        if container.life != Life::Waiting || container.doing.is_some() {
            return;
        }
        if dependency::verdict(self, spec) != Verdict::Satisfied {
            return;
        }
        let lane = Lane::Lifecycle(self.spec.id.clone(), id.clone());
        if !container.retry.due(now) || !container.restarts.due(now) {
            let at = container.retry.at.max(container.restarts.at);
            steps.timers.extend(at.map(|at| (TimerKey::Retry(lane), at)));
            return;
        }
        let Some(environment) = spec.merged_environment(self.environment.files()) else {
            return;
        };
        let start = StartContainer {
            task: self.spec.id.clone(),
            attempt: container.attempt,
            spec: ContainerSpec {
                environment,
                environment_files: vec![],
                ..spec.clone()
            },
            image: (**image).clone(),
            network: self.spec.network,
            address: self.address_of(id),
            task_limits: self.spec.limits,
            task_privileged: self.spec.containers.iter().any(|c| c.linux.privileged),
            task_sysctls: {
                let sysctls = self.spec.containers.iter().map(|c| &c.linux.sysctls);
                sysctls.flat_map(|sysctls| sysctls.keys().cloned()).collect()
            },
            mounts: self.mounts_of(spec),
            task_swaps: self.spec.swap_bytes() != 0,
            pid: self.spec.pid,
            ipc: self.spec.ipc,
            runtime: self.spec.runtime.clone(),
            ephemeral_storage_bytes: self.spec.ephemeral_storage_bytes,
            task_arn: self.spec.arn.clone(),
            cluster: self.spec.cluster.clone(),
            family: self.spec.family.clone(),
            revision: self.spec.revision,
        };
        let timeout = i64::from(spec.start_timeout_ms);
        // Those that wait have waited since the first start, also over restarts.
        let since = container.waited_for_since.unwrap_or(now);
        if dependency::is_waited_for(&self.spec, &spec.name) {
            steps.timers.push((
                TimerKey::StartTimeout(self.spec.id.clone(), id.clone()),
                since.plus(timeout),
            ));
        }
        let owned = Owned::Attempt(self.spec.id.clone(), id.clone(), start.attempt);
        steps.ledger.push(LedgerWrite::Intend(owned));
        steps.effects.push(Effect::Start(Box::new(start)));
        if let Some(container) = self.container_mut(id) {
            container.life = Life::Starting;
            container.doing = Some(Doing::Start);
            container.attempted = true;
            container.cancelled = false;
            // What is said of a container is said of its last attempt.
            (container.exit, container.finished) = (None, None);
            container.exit_given = false;
            container.restarts.on_start();
        }
    }

    fn remove_exited(&mut self, id: &ContainerId, now: Millis, steps: &mut Steps) {
        let task = self.spec.id.clone();
        let Some(container) = self.container_mut(id) else {
            return;
        };
        if !matches!(container.life, Life::Exited | Life::Former) || container.doing.is_some() {
            return;
        }
        // It is being killed, and may be making something of this attempt yet.
        if container.health.is_under_way() {
            return;
        }
        if !container.retry.due(now) {
            let lane = Lane::Lifecycle(task, id.clone());
            steps
                .timers
                .extend(container.retry.at.map(|at| (TimerKey::Retry(lane), at)));
            return;
        }
        container.doing = Some(Doing::Remove);
        steps.effects.push(Effect::Remove {
            task,
            container: id.clone(),
            attempt: container.attempt,
        });
    }

    fn advance_stopping(&mut self, now: Millis, steps: &mut Steps) {
        if self.host == (Host::Preparing { cancelled: false }) {
            self.host = Host::Preparing { cancelled: true };
            steps
                .effects
                .push(Effect::Cancel(Lane::Host(self.spec.id.clone())));
        }
        self.cancel_environment(steps);
        for id in self.ids() {
            self.cancel(&id, steps);
            self.watch_health(&id, now, steps);
        }
        for id in self.ids() {
            self.stop_container(&id, now, steps);
            self.remove_exited(&id, now, steps);
        }
        let containers_alive = self
            .spec
            .containers
            .iter()
            .any(|c| self.container(&c.id).may_have_process());
        if !containers_alive && self.times.execution_stopped.is_none() {
            self.times.execution_stopped = Some(now);
        }
        let settled = self
            .spec
            .containers
            .iter()
            .all(|c| self.container(&c.id).is_settled());
        let fetching = self.environment.is_under_way();
        if settled && !fetching && !matches!(self.host, Host::Preparing { .. }) {
            self.phase = Phase::Releasing;
        }
    }

    /// Tells lanes that are busy on the way up to give up.
    fn cancel(&mut self, id: &ContainerId, steps: &mut Steps) {
        let task = self.spec.id.clone();
        let Some(container) = self.container_mut(id) else {
            return;
        };
        match container.image {
            Image::Wanted => container.image = Image::Abandoned,
            Image::Pulling { cancelled: false } => {
                container.image = Image::Pulling { cancelled: true };
                steps
                    .effects
                    .push(Effect::Cancel(Lane::Pull(task.clone(), id.clone())));
            }
            Image::Pulling { cancelled: true } | Image::Ready(_) | Image::Abandoned => {}
        }
        if container.doing == Some(Doing::Start) && !container.cancelled {
            container.cancelled = true;
            steps
                .effects
                .push(Effect::Cancel(Lane::Lifecycle(task, id.clone())));
        }
        container.restarts.at = None;
        if container.life == Life::Waiting && container.doing.is_none() {
            container.give_up(None, None);
        }
        // There is no next attempt.
        if container.life == Life::Former {
            container.life = Life::Exited;
        }
    }

    fn stop_container(&mut self, id: &ContainerId, now: Millis, steps: &mut Steps) {
        let may_stop = dependency::may_stop(self, id);
        let task = self.spec.id.clone();
        let timeout = self
            .spec
            .container(id)
            .map_or(0, |c| i64::from(c.stop_timeout_ms));
        let Some(container) = self.container_mut(id) else {
            return;
        };
        if container.life != Life::Running {
            return;
        }
        let (kind, at) = match container.stop {
            StopStage::NotAsked if !container.retry.due(now) => {
                let lane = Lane::Lifecycle(task, id.clone());
                steps
                    .timers
                    .extend(container.retry.at.map(|at| (TimerKey::Retry(lane), at)));
                return;
            }
            StopStage::NotAsked if may_stop => (SignalKind::Stop, now.plus(timeout)),
            StopStage::NotAsked => return,
            StopStage::Asked { kill_at: at } | StopStage::Killed { again_at: at, .. } if now < at => {
                steps.timers.push((TimerKey::Stop(task, id.clone()), at));
                return;
            }
            StopStage::Asked { .. } | StopStage::Killed { .. } => (SignalKind::Kill, now.plus(KILL_AGAIN_MS)),
        };
        steps.timers.push((TimerKey::Stop(task.clone(), id.clone()), at));
        if container.doing.is_some() {
            return;
        }
        container.stop = match kind {
            SignalKind::Stop => StopStage::Asked { kill_at: at },
            SignalKind::Kill => StopStage::Killed {
                again_at: at,
                times: container.stop.kills() + 1,
            },
        };
        container.doing = Some(Doing::Signal(kind));
        let attempt = container.attempt;
        steps.effects.push(Effect::Signal {
            task,
            container: id.clone(),
            attempt,
            kind,
        });
    }

    fn release_host(&mut self, now: Millis, steps: &mut Steps) {
        let task = self.spec.id.clone();
        match self.host {
            Host::Nothing | Host::Released => {
                if self.host == Host::Released {
                    steps.ledger.push(LedgerWrite::Release(Owned::Host(task)));
                }
                self.phase = Phase::Stopped;
                self.times.stopped = Some(now);
            }
            Host::Ready | Host::HalfMade if self.host_retry.due(now) => {
                self.host = Host::Releasing;
                steps.effects.push(Effect::ReleaseHost {
                    task,
                    network: self.spec.network,
                    shares: self.spec.shared().is_some(),
                    containers: self.container_addresses.keys().cloned().collect(),
                });
            }
            Host::Ready | Host::HalfMade => {
                steps.timers.extend(
                    self.host_retry
                        .at
                        .map(|at| (TimerKey::Retry(Lane::Host(task)), at)),
                );
            }
            Host::Preparing { .. } | Host::Releasing => {}
        }
    }

    fn remove_logs(&mut self, now: Millis, steps: &mut Steps) {
        let task = self.spec.id.clone();
        match self.logs {
            Logs::Expired if self.host_retry.due(now) => {
                self.logs = Logs::Removing;
                steps.effects.push(Effect::RemoveLogs { task });
            }
            Logs::Expired => {
                steps.timers.extend(
                    self.host_retry
                        .at
                        .map(|at| (TimerKey::Retry(Lane::Host(task)), at)),
                );
            }
            Logs::Removed => {
                self.logs = Logs::None;
                steps.ledger.push(LedgerWrite::Release(Owned::Logs(task)));
            }
            Logs::None | Logs::Kept | Logs::Removing => {}
        }
    }

    /// The startTimeout of a container passed: whoever waits for its end has waited long enough.
    pub fn on_start_timeout(&mut self, id: &ContainerId) {
        if let Some(container) = self.container_mut(id)
            && container.exit_code().is_none()
        {
            container.start_timed_out = true;
        }
    }

    /// Whether its removal from the host is in trouble, and what an operator should know of it.
    pub fn impairment(&self) -> Option<String> {
        // The first one has a moment to work.
        let stuck = |c: &Container| c.stop.kills() > 1 && c.may_have_process();
        let failing = |c: &Container| {
            matches!(c.life, Life::Exited | Life::Former) && c.retry.failures >= START_TRIES_MAX
        };
        let task = &self.spec.id;
        if self.containers.values().any(stuck) {
            return Some(format!("task {task}: a process survives SIGKILL"));
        }
        if self.containers.values().any(failing) || self.host_retry.failures >= START_TRIES_MAX {
            return Some(format!("task {task}: removal from the host keeps failing"));
        }
        None
    }
}
