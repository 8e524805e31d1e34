//! Owns what is known of one container, and which transitions its facts allow. Never decides alone: what a container
//! does next depends on its task (`task::advance`).

use serde::{Deserialize, Serialize};

use crate::{
    desired::{ContainerSpec, Millis, RestartPolicy},
    effect::SignalKind,
    event::{Exit, Failure, ObservedState},
    health::Health,
    ids::{Attempt, runtime_id},
    image::ResolvedImage,
    report::{ContainerState, Status},
    restart::Restarts,
};

/// ECS's words for a container that the kernel killed for want of memory.
pub const OOM_REASON: &str = "OutOfMemoryError: Container killed due to memory usage";

/// One container of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub attempt: Attempt,
    pub image: Image,
    pub life: Life,
    /// The effect under way in the lifecycle lane.
    pub doing: Option<Doing>,
    /// The lifecycle lane was told to give up.
    pub cancelled: bool,
    pub stop: StopStage,
    /// Failures of the current step, and when it is tried again.
    pub retry: Retry,
    /// Something of this attempt may exist in the runtime.
    pub attempted: bool,
    /// A start failed or was given up, and nobody looked since: until it is removed, a process of it may run.
    #[serde(default)]
    pub uncertain: bool,
    /// The image was gone when it was to be started, and is fetched once more.
    #[serde(default)]
    pub image_again: bool,
    /// Observed before the start was confirmed.
    pub early_exit: Option<Exit>,
    pub start_timed_out: bool,
    pub pid: Option<u32>,
    pub started: Option<Millis>,
    /// The first start, moved along when the host's clock is set: `startTimeout` counts from here, also over restarts. None in
    /// a record of an earlier version.
    #[serde(default)]
    pub waited_for_since: Option<Millis>,
    /// As `started`, which was reported, but moved along likewise: how long this attempt ran counts from here.
    #[serde(default)]
    pub running_since: Option<Millis>,
    #[serde(default)]
    pub health: Health,
    pub finished: Option<Millis>,
    pub exit: Option<i32>,
    /// No process ended with that code: it stands for a dependency that failed.
    #[serde(default)]
    pub exit_given: bool,
    /// Why it failed, or ended as it did.
    pub reason: Option<String>,
    #[serde(default)]
    pub restarts: Restarts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Image {
    Wanted,
    Pulling {
        cancelled: bool,
    },
    Ready(Box<ResolvedImage>),
    /// Failed, or no longer needed.
    Abandoned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// Not started yet.
    Waiting,
    Starting,
    Running,
    /// No process is left; the runtime may still hold records.
    Exited,
    /// The host rebooted under this attempt. What the runtime still holds of it is removed, then the next attempt waits for
    /// its start.
    Former,
    /// Nothing is left in the runtime.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doing {
    Start,
    Signal(SignalKind),
    Remove,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopStage {
    NotAsked,
    /// The stop signal was sent; SIGKILL follows at this time.
    Asked {
        kill_at: Millis,
    },
    /// SIGKILL was sent; it is sent again at this time, and the node says that it is impaired.
    Killed {
        again_at: Millis,
        /// How often it was sent.
        times: u32,
    },
}

impl StopStage {
    /// How often SIGKILL was sent.
    pub fn kills(self) -> u32 {
        match self {
            Self::Killed { times, .. } => times,
            Self::NotAsked | Self::Asked { .. } => 0,
        }
    }
}

/// Back-off of a step that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    pub failures: u32,
    pub at: Option<Millis>,
}

impl Retry {
    const FIRST_MS: i64 = 500;
    const LAST_MS: i64 = 30_000;

    /// Counts a failure and returns when to try again: 0.5 s, doubling, at most 30 s.
    pub fn failed(&mut self, now: Millis) -> Millis {
        let delay = (Self::FIRST_MS << self.failures.min(10)).min(Self::LAST_MS);
        self.failures = self.failures.saturating_add(1);
        let at = now.plus(delay);
        self.at = Some(at);
        at
    }

    /// Whether the step may be tried now.
    pub fn due(&self, now: Millis) -> bool {
        self.at.is_none_or(|at| at <= now)
    }
}

impl Container {
    pub fn new() -> Self {
        Self {
            attempt: Attempt::FIRST,
            image: Image::Wanted,
            life: Life::Waiting,
            doing: None,
            cancelled: false,
            stop: StopStage::NotAsked,
            retry: Retry::default(),
            attempted: false,
            uncertain: false,
            image_again: false,
            early_exit: None,
            start_timed_out: false,
            pid: None,
            started: None,
            waited_for_since: None,
            running_since: None,
            health: Health::default(),
            finished: None,
            exit: None,
            exit_given: false,
            reason: None,
            restarts: Restarts::default(),
        }
    }

    /// It ran, whether or not it still does.
    pub fn has_started(&self) -> bool {
        self.started.is_some()
    }

    /// Since when its process runs, as far as is known.
    pub(crate) fn runs_since(&self, now: Millis) -> Millis {
        self.running_since.or(self.started).unwrap_or(now)
    }

    /// When those that wait for its end have waited long enough, while it runs.
    pub fn start_timeout_at(&self, spec: &ContainerSpec) -> Option<Millis> {
        let since = self.waited_for_since.or(self.started);
        since
            .filter(|_| self.life == Life::Running || self.restarts.at.is_some())
            .map(|since| since.plus(i64::from(spec.start_timeout_ms)))
    }

    /// It ended for good without ever having run, or without having run again.
    pub fn never_ran(&self) -> bool {
        self.has_ended() && (!self.has_started() || self.exit.is_none() || self.exit_given)
    }

    /// No process of it is left, and none will be.
    pub fn has_ended(&self) -> bool {
        matches!(self.life, Life::Exited | Life::Gone) && self.restarts.at.is_none()
    }

    /// The code of a container that ran to its end, and is not to run again.
    pub fn exit_code(&self) -> Option<i32> {
        self.exit
            .filter(|_| self.has_started() && !self.exit_given && self.restarts.at.is_none())
    }

    /// It ended: decides by its policy whether it starts again. Asking again changes nothing.
    pub fn plan_restart(&mut self, policy: &RestartPolicy) {
        if self.life != Life::Exited || self.restarts.at.is_some() {
            return;
        }
        if let (Some(code), Some(started), Some(finished)) = (self.exit, self.ran_since(), self.finished) {
            self.restarts.on_ended(policy, code, started, finished);
        }
    }

    /// Its start, as a clock that was set meanwhile has it.
    fn ran_since(&self) -> Option<Millis> {
        self.running_since.or(self.started)
    }

    /// Started, or about to be, as far as is known.
    pub fn is_up(&self) -> bool {
        matches!(self.life, Life::Starting | Life::Running)
    }

    /// A process of it may be alive.
    pub fn may_have_process(&self) -> bool {
        self.is_up() || self.uncertain
    }

    /// Nothing is left of it and nothing is under way.
    pub fn is_settled(&self) -> bool {
        self.life == Life::Gone
            && self.doing.is_none()
            && !matches!(self.image, Image::Pulling { .. })
            && !self.health.is_under_way()
    }

    /// The start was confirmed.
    pub fn on_started(&mut self, pid: u32, now: Millis) {
        (self.life, self.pid, self.started) = (Life::Running, Some(pid), Some(now));
        self.waited_for_since.get_or_insert(now);
        self.running_since = Some(now);
        self.health.begin();
        (self.retry, self.reason, self.uncertain) = (Retry::default(), None, false);
        // The exit of an earlier try, which was undone, is no exit of this process.
        if let Some(exit) = self.early_exit.take() {
            self.on_exited(&exit);
        }
    }

    /// Whether `exit` is the end of the process that runs now.
    fn is_of_process(&self, exit: &Exit) -> bool {
        exit.pid == 0 || self.pid.is_none_or(|pid| pid == 0 || pid == exit.pid)
    }

    /// The process ended. A container that is starting keeps this until its start is confirmed.
    pub fn on_exited(&mut self, exit: &Exit) {
        match self.life {
            // A start that seemed to fail may have happened: the next try finds the same attempt.
            Life::Waiting if self.attempted => self.early_exit = Some(exit.clone()),
            Life::Starting => self.early_exit = Some(exit.clone()),
            Life::Running if !self.is_of_process(exit) => {}
            Life::Running => {
                (self.life, self.exit, self.finished) = (Life::Exited, Some(exit.code), Some(exit.at));
                self.pid = None;
                self.retry = Retry::default();
                if exit.oom_killed && exit.code == 137 {
                    self.reason = Some(OOM_REASON.into());
                }
            }
            Life::Waiting | Life::Exited | Life::Former | Life::Gone => {}
        }
    }

    /// It will never run (again): a failed start, a failed dependency, a stop before the start.
    pub fn give_up(&mut self, exit: Option<i32>, reason: Option<String>) {
        self.life = if self.attempted { Life::Exited } else { Life::Gone };
        self.exit_given |= self.exit.is_none() && exit.is_some();
        self.exit = self.exit.or(exit);
        self.reason = self.reason.take().or(reason);
        self.retry = Retry::default();
        if self.image == Image::Wanted {
            self.image = Image::Abandoned;
        }
    }

    /// After a restart of the agent: no effect is under way, and the runtime says what is.
    pub fn on_agent_restarted(
        &mut self,
        observed: Option<&ObservedState>,
        exit: impl FnOnce(i32, Millis, bool) -> Exit,
        now: Millis,
    ) {
        // A stop signal under way may not have been sent.
        if self.doing.take() == Some(Doing::Signal(SignalKind::Stop)) {
            self.stop = StopStage::NotAsked;
        }
        self.cancelled = false;
        self.uncertain &= matches!(observed, Some(ObservedState::Running { .. }));
        if matches!(self.image, Image::Pulling { .. }) {
            self.image = Image::Wanted;
        }
        match (self.life, observed) {
            (Life::Starting, Some(ObservedState::Running { pid })) => self.on_started(*pid, now),
            // Also one whose start seemed to fail: it ran to its end.
            (Life::Starting | Life::Waiting, Some(ObservedState::Exited { code, at, oom_killed }))
                if self.attempted =>
            {
                self.life = Life::Starting;
                self.on_started(0, *at);
                self.on_exited(&exit(*code, *at, *oom_killed));
            }
            // The same attempt is started again; nothing of it ever ran.
            (Life::Starting, Some(ObservedState::Created) | None) => self.life = Life::Waiting,
            (Life::Running, Some(ObservedState::Exited { code, at, oom_killed })) => {
                self.on_exited(&exit(*code, *at, *oom_killed));
            }
            (Life::Running, Some(ObservedState::Created) | None) => {
                self.on_exited(&exit(255, now, false));
                self.reason = Some("container vanished from the runtime while the agent was away".into());
            }
            (Life::Running, Some(ObservedState::Running { .. }))
            | (Life::Starting, Some(ObservedState::Exited { .. }))
            | (Life::Waiting | Life::Exited | Life::Former | Life::Gone, _) => {}
        }
    }

    /// After a boot of the host: its process is gone with all others.
    pub fn on_host_rebooted(&mut self, now: Millis) {
        self.doing = None;
        self.cancelled = false;
        if matches!(self.image, Image::Pulling { .. }) {
            self.image = Image::Abandoned;
        }
        self.uncertain = false;
        if self.is_up() {
            self.life = Life::Exited;
            self.finished = Some(now);
            self.reason = Some("host restarted".into());
        }
    }

    /// After a boot of the host, in a task that starts again: it has not run yet, whatever it did before. An image that was
    /// resolved stays: the same content starts again, also while no registry answers.
    pub fn start_anew(&mut self) {
        let used = self.attempted || self.life == Life::Gone;
        let image = match std::mem::replace(&mut self.image, Image::Wanted) {
            Image::Ready(image) => Image::Ready(image),
            Image::Wanted | Image::Pulling { .. } | Image::Abandoned => Image::Wanted,
        };
        let life = if self.attempted {
            Life::Former
        } else {
            Life::Waiting
        };
        *self = Self {
            attempt: if used && life == Life::Waiting {
                self.attempt.next()
            } else {
                self.attempt
            },
            attempted: self.attempted,
            image,
            life,
            ..Self::new()
        };
    }

    /// What the runtime held of its attempt is gone.
    pub fn on_removed(&mut self) {
        (self.attempted, self.uncertain) = (false, false);
        self.retry = Retry::default();
        if self.life == Life::Former || self.restarts.at.is_some() {
            (self.life, self.attempt) = (Life::Waiting, self.attempt.next());
            self.image_again = false;
        } else {
            self.life = Life::Gone;
        }
    }

    /// What to say of a start that failed.
    pub fn failure_reason(failure: &Failure) -> String {
        format!("{}: {}", failure.kind, failure.message)
    }

    /// As it looks from outside.
    pub fn state(&self, spec: &ContainerSpec) -> ContainerState {
        let status = match self.life {
            Life::Waiting | Life::Starting | Life::Former => Status::Pending,
            Life::Running => Status::Running,
            Life::Exited | Life::Gone => Status::Stopped,
        };
        let image = match &self.image {
            Image::Ready(image) => Some(image),
            _ => None,
        };
        ContainerState {
            id: spec.id.clone(),
            name: spec.name.clone(),
            status,
            exit_code: self.exit,
            reason: self.reason.clone(),
            runtime_id: self.attempted.then(|| runtime_id(&spec.id, self.attempt)),
            image_digest: image.map(|image| image.digest.clone()),
            resolved_digest: image
                .map(|image| image.resolved.clone())
                .filter(|digest| !digest.is_empty()),
            started: self.started,
            finished: self.finished,
            pid: self.pid,
            restart_count: self.restarts.count,
            health: spec
                .health_check
                .is_some()
                .then(|| self.health.state(self.life == Life::Running)),
            // Its task's to say.
            bindings: Vec::new(),
        }
    }
}

impl Default for Container {
    fn default() -> Self {
        Self::new()
    }
}
