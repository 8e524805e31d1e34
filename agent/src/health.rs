//! Owns what alive and ready mean for this agent. Never mends anything: the service manager restarts what is not alive.
//!
//! *Alive*: the driver got something done within [`PROGRESS_LIMIT`]: it took a round of inputs, or tried to store one
//! and the database answered, with an error too. A pulse goes through its queue every few seconds and has a transaction
//! of its own, so an idle agent makes progress as well. A full disk therefore is no death (a restart would not make
//! room); a hung driver, or a database that never answers, is.
//!
//! *Started*: the database stores, containerd answers, and what ran before is taken up. *Ready*: the link is up as well.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use berth_service::{
    liveness::Pulse,
    notify::Notifier,
    readiness::{Condition, Needed, Readiness},
};
use tokio::sync::{mpsc, watch};

use crate::{driver::Input, effects::runtime::Runtime, link::LinkState, sys::Chain};

/// A driver that got nothing done for so long is stuck.
pub const PROGRESS_LIMIT: Duration = Duration::from_secs(30);
/// Between pulses, unless the watchdog wants them more often.
const PULSE_INTERVAL: Duration = Duration::from_secs(5);
/// Between questions to containerd.
const CONTAINERD_INTERVAL: Duration = Duration::from_secs(10);
/// containerd has so long to answer one.
const CONTAINERD_PATIENCE: Duration = Duration::from_secs(5);

/// The conditions of readiness, and the sign of life. Clones are the same.
#[derive(Clone, Debug)]
pub struct Health {
    pub readiness: Readiness,
    pub pulse: Pulse,
    /// Rises with everything the driver gets done.
    beats: Arc<AtomicU64>,
    driver: Condition,
    store: Condition,
    containerd: Condition,
    tasks: Condition,
    link: Condition,
}

impl Default for Health {
    fn default() -> Self {
        let readiness = Readiness::new();
        let condition = |name, needed, reason: &str| readiness.condition(name, needed, reason);
        Self {
            driver: condition("driver", Needed::ToStart, "not started yet"),
            store: condition("store", Needed::ToStart, "not opened yet"),
            containerd: condition("containerd", Needed::ToStart, "not asked yet"),
            tasks: condition(
                "tasks",
                Needed::ToStart,
                "what ran before this start is not taken up yet",
            ),
            link: condition("link", Needed::ToServe, "not connected yet"),
            pulse: Pulse::new(PROGRESS_LIMIT),
            beats: Arc::default(),
            readiness,
        }
    }
}

impl Health {
    /// The driver got something done.
    pub fn progress(&self) {
        self.pulse.beat();
        self.beats.fetch_add(1, Relaxed);
    }

    /// The driver runs.
    pub fn driver_started(&self) {
        self.pulse.beat();
        self.driver.ok();
    }

    /// How the last try to store ended.
    pub fn stored(&self, problem: Option<&str>) {
        set(&self.store, problem);
    }

    /// Whether containerd answers.
    pub fn containerd(&self, problem: Option<&str>) {
        set(&self.containerd, problem);
    }

    /// What ran before is taken up, and stored as such.
    pub fn taken_up(&self) {
        self.tasks.ok();
    }

    /// Repeats to readiness how the link is, for as long as it is told.
    pub async fn watch_link(self, mut link: watch::Receiver<LinkState>) {
        loop {
            let problem = link.borrow_and_update().problem();
            set(&self.link, problem.as_deref());
            if link.changed().await.is_err() {
                return;
            }
        }
    }

    /// Asks containerd now and then whether it is there.
    pub async fn watch_containerd(self, runtime: Runtime) {
        let mut ticks = tokio::time::interval(CONTAINERD_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let asked = tokio::time::timeout(CONTAINERD_PATIENCE, runtime.version()).await;
            let problem = match asked {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(Chain(&error).to_string()),
                Err(_) => Some(format!("no answer within {} s", CONTAINERD_PATIENCE.as_secs())),
            };
            self.containerd(problem.as_deref());
        }
    }

    /// Sends pulses through the driver, and feeds the service manager's watchdog for each that came through,
    /// until the driver ends.
    pub async fn watch_driver(self, inputs: mpsc::Sender<Input>, notifier: Notifier) {
        let wanted = notifier.keep_alive_interval().unwrap_or(PULSE_INTERVAL);
        let mut ticks = tokio::time::interval(wanted.min(PULSE_INTERVAL));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = 0;
        loop {
            ticks.tick().await;
            let beats = self.beats.load(Relaxed);
            if beats != seen {
                seen = beats;
                notifier.keep_alive();
            }
            let lost = self.pulse.lost();
            let problem = lost.map(|age| format!("no progress for {} s", age.as_secs()));
            set(&self.driver, problem.as_deref());
            // A queue that is full has work enough to show progress.
            if let Err(mpsc::error::TrySendError::Closed(_)) = inputs.try_send(Input::Pulse) {
                return;
            }
        }
    }
}

fn set(condition: &Condition, problem: Option<&str>) {
    match problem {
        None => condition.ok(),
        Some(problem) => condition.fail(problem),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn started_does_not_wait_for_the_link_and_ready_does() {
        let health = Health::default();
        health.driver.ok();
        health.stored(None);
        health.containerd(Some("refused"));
        let report = health.readiness.report();
        assert_eq!(report.first_failure(), Some(("containerd", "refused")));
        health.containerd(None);
        health.taken_up();
        let report = health.readiness.report();
        assert!(report.started() && !report.ready());
        assert_eq!(report.first_failure(), Some(("link", "not connected yet")));
    }

    #[tokio::test]
    async fn the_watchdog_is_fed_for_progress_only() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("notify");
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_nonblocking(true).unwrap();
        let fed = || manager.recv(&mut [0; 64]).is_ok();
        let watchdog = Some(Duration::from_millis(40));
        let notifier = Notifier::new(Some(socket.as_os_str()), watchdog).unwrap();
        let (inputs, mut received) = mpsc::channel(1);
        let health = Health::default();
        let running = tokio::spawn(health.clone().watch_driver(inputs, notifier));
        assert!(matches!(received.recv().await, Some(Input::Pulse)));
        // The pulse was taken, and nothing came of it.
        assert!(matches!(received.recv().await, Some(Input::Pulse)));
        assert!(!fed());
        health.progress();
        assert!(matches!(received.recv().await, Some(Input::Pulse)));
        assert!(matches!(received.recv().await, Some(Input::Pulse)));
        assert!(fed() && !fed(), "once for one progress");
        drop(received);
        running.await.unwrap();
    }
}
