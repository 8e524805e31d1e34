//! Owns what is known of one container's health, and when it is looked at next: Docker's rules. Never runs a probe, and
//! never decides what follows from its outcome.
//!
//! Only the status, and what was said when it changed, is stored: a probe that finds what the one before it found changes
//! nothing that an agent must know after its restart. Where it is in its counting is not stored; it begins anew then.

use serde::{Deserialize, Serialize};

use crate::{
    desired::{HealthCheck, Millis},
    ids::Attempt,
};

/// Bytes of a probe's output that are kept, as in Docker.
pub const OUTPUT_BYTES_MAX: usize = 4096;
/// From a container's start to its first probe, milliseconds, if the interval is not shorter.
const FIRST_MS: i64 = 1_000;
/// Between probes that cannot make the container unhealthy yet, milliseconds, if the interval is not shorter.
const EARLY_MS: i64 = 5_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthStatus {
    /// No probe has succeeded, and not enough have failed.
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    /// As ECS spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Healthy => "HEALTHY",
            Self::Unhealthy => "UNHEALTHY",
        }
    }
}

/// What came of one probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// None: it was killed at its timeout, or its program could not be executed; the output says so.
    pub exit_code: Option<i32>,
    /// Its standard output and error, as they came; at most [`OUTPUT_BYTES_MAX`] bytes.
    pub output: String,
}

impl Outcome {
    fn is_success(&self) -> bool {
        self.exit_code == Some(0)
    }
}

/// What is told of a container's health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthState {
    pub status: HealthStatus,
    /// Since when it is that. None: since its start.
    pub since: Option<Millis>,
    /// Of the probe that said so.
    pub probe: Option<Outcome>,
}

/// A probe that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UnderWay {
    attempt: Attempt,
    began: Millis,
    cancelled: bool,
}

/// The health of one attempt of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    status: HealthStatus,
    since: Option<Millis>,
    /// Of the probe that changed the status.
    probe: Option<Outcome>,
    /// Failures in a row that count.
    #[serde(skip)]
    failures: u32,
    #[serde(skip)]
    under_way: Option<UnderWay>,
    #[serde(skip)]
    next: Option<Millis>,
    /// Of the latest probe.
    #[serde(skip)]
    latest: Option<Outcome>,
}

impl Health {
    pub fn status(&self) -> HealthStatus {
        self.status
    }

    /// A new process, of which nothing is known yet.
    pub fn begin(&mut self) {
        *self = Self {
            under_way: self.under_way,
            ..Self::default()
        };
    }

    /// The lane is busy.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// For a report. Only while it runs a container can be healthy; that it was unhealthy remains worth knowing.
    pub fn state(&self, runs: bool) -> HealthState {
        if !runs && self.status != HealthStatus::Unhealthy {
            return HealthState::default();
        }
        HealthState {
            status: self.status,
            since: self.since,
            probe: self.probe.clone(),
        }
    }

    /// The latest probe's; after a restart of the agent, of the last one that changed the status.
    pub fn latest(&self) -> Option<&Outcome> {
        self.latest.as_ref().or(self.probe.as_ref())
    }

    /// When the next probe of a process that began at `started` is due, if none is under way.
    pub fn due(&mut self, check: &HealthCheck, started: Millis, now: Millis) -> Option<Millis> {
        if self.is_under_way() {
            return None;
        }
        let first = match self.status {
            HealthStatus::Unknown => started.plus(FIRST_MS.min(check.interval_ms.into())),
            // A restart of the agent: it begins again at once.
            HealthStatus::Healthy | HealthStatus::Unhealthy => now,
        };
        Some(*self.next.get_or_insert(first))
    }

    /// A probe begins.
    pub fn on_begun(&mut self, attempt: Attempt, now: Millis) {
        self.next = None;
        self.under_way = Some(UnderWay {
            attempt,
            began: now,
            cancelled: false,
        });
    }

    /// Whether the probe under way is to be told to give up now; it is told once.
    pub fn cancel(&mut self) -> bool {
        match &mut self.under_way {
            Some(under_way) => !std::mem::replace(&mut under_way.cancelled, true),
            None => false,
        }
    }

    /// The probe ended. Whether the status changed; none of another attempt does that.
    pub fn on_probed(
        &mut self,
        check: &HealthCheck,
        attempt: Attempt,
        started: Millis,
        outcome: Outcome,
        now: Millis,
    ) -> bool {
        let Some(probe) = self.under_way.take().filter(|probe| probe.attempt == attempt) else {
            return false;
        };
        // A failure counts by when its probe began.
        let early = self.status == HealthStatus::Unknown && probe.began < grace_end(check, started);
        if outcome.is_success() {
            self.failures = 0;
        } else if !early {
            self.failures = self.failures.saturating_add(1);
        }
        let status = if outcome.is_success() {
            HealthStatus::Healthy
        } else if self.failures >= check.retries {
            HealthStatus::Unhealthy
        } else {
            self.status
        };
        let changed = status != self.status;
        if changed {
            (self.status, self.since) = (status, Some(now));
            self.probe = Some(outcome.clone());
        }
        self.latest = Some(outcome);
        self.schedule(check, started, now);
        changed
    }

    /// The probe was given up, or could not be made: that says nothing of the container.
    pub fn on_not_probed(&mut self, check: &HealthCheck, started: Millis, why: Option<String>, now: Millis) {
        self.under_way = None;
        if let Some(output) = why {
            self.latest = Some(Outcome {
                exit_code: None,
                output,
            });
        }
        self.schedule(check, started, now);
    }

    fn schedule(&mut self, check: &HealthCheck, started: Millis, now: Millis) {
        let grace_end = grace_end(check, started);
        let interval = now.plus(check.interval_ms.into());
        self.next = Some(if self.status == HealthStatus::Unknown && now < grace_end {
            interval.min(now.plus(EARLY_MS)).min(grace_end)
        } else {
            interval
        });
    }

    /// The host's clock was set.
    pub fn on_clock_stepped(&mut self, by_ms: i64) {
        self.next = self.next.map(|at| at.plus(by_ms));
        if let Some(under_way) = &mut self.under_way {
            under_way.began = under_way.began.plus(by_ms);
        }
    }
}

/// Until then failures of a container that has not been healthy do not count. Docker makes its first probe one interval
/// after the start: what an earlier one finds may only be good news.
fn grace_end(check: &HealthCheck, started: Millis) -> Millis {
    started.plus(check.interval_ms.max(check.start_period_ms).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Millis = Millis(1_000_000);

    fn check(retries: u32, start_period_ms: u32) -> HealthCheck {
        HealthCheck {
            command: vec!["true".into()],
            interval_ms: 10_000,
            timeout_ms: 2_000,
            retries,
            start_period_ms,
        }
    }

    fn exit(code: i32) -> Outcome {
        Outcome {
            exit_code: Some(code),
            output: format!("said {code}"),
        }
    }

    /// Probes when due, each taking `took_ms`; the times at which each probe began and the status after it.
    fn run(check: &HealthCheck, codes: &[i32], took_ms: i64) -> Vec<(i64, HealthStatus)> {
        let (mut health, mut now, mut seen) = (Health::default(), START, Vec::new());
        for code in codes {
            now = health.due(check, START, now).unwrap();
            health.on_begun(Attempt::FIRST, now);
            assert_eq!(health.due(check, START, now), None, "one at a time");
            let before = health.status();
            let end = now.plus(took_ms);
            let changed = health.on_probed(check, Attempt::FIRST, START, exit(*code), end);
            assert_eq!(changed, before != health.status());
            seen.push((now.0 - START.0, health.status()));
            now = end;
        }
        seen
    }

    use HealthStatus::{Healthy, Unhealthy, Unknown};

    #[test]
    fn the_first_probes_come_early_and_only_their_success_counts() {
        assert_eq!(
            run(&check(2, 0), &[1, 1, 1, 1, 1, 0], 0),
            [
                (1_000, Unknown),
                (6_000, Unknown),
                (10_000, Unknown),
                (20_000, Unhealthy),
                (30_000, Unhealthy),
                (40_000, Healthy)
            ]
        );
        assert_eq!(
            run(&check(1, 0), &[0, 1], 0),
            [(1_000, Healthy), (11_000, Unhealthy)]
        );
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_and_a_success_ends_it() {
        let early = run(&check(1, 25_000), &[1; 6], 0);
        assert_eq!(early.last(), Some(&(25_000, Unhealthy)));
        assert!(
            early[..5].iter().all(|(_, status)| *status == Unknown),
            "{early:?}"
        );
        assert_eq!(
            run(&check(1, 300_000), &[0, 1], 0),
            [(1_000, Healthy), (11_000, Unhealthy)]
        );
    }

    #[test]
    fn a_failure_counts_by_when_its_probe_began_and_the_interval_by_when_it_ended() {
        assert_eq!(
            run(&check(1, 0), &[1, 1, 1], 1_500),
            [(1_000, Unknown), (7_500, Unknown), (10_000, Unhealthy)]
        );
        assert_eq!(run(&check(1, 0), &[0, 0], 1_500)[1], (12_500, Healthy));
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let after = run(&check(3, 0), &[0, 1, 1, 0, 1, 1, 1, 0], 0);
        let statuses: Vec<_> = after.iter().map(|(_, status)| *status).collect();
        assert_eq!(
            statuses,
            [
                Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Unhealthy, Healthy
            ]
        );
    }

    #[test]
    fn a_probe_that_was_given_up_or_is_of_another_attempt_says_nothing() {
        let (check, mut health) = (check(1, 0), Health::default());
        health.on_begun(Attempt::FIRST, START.plus(20_000));
        assert!(!health.on_probed(&check, Attempt(2), START, exit(1), START.plus(21_000)));
        assert_eq!((health.status(), health.latest()), (Unknown, None));
        assert!(!health.is_under_way());
        health.on_begun(Attempt::FIRST, START.plus(22_000));
        assert!(health.cancel() && !health.cancel(), "told once");
        health.on_not_probed(&check, START, None, START.plus(23_000));
        assert!(!health.is_under_way() && !health.cancel());
        assert_eq!((health.status(), health.latest()), (Unknown, None));
        assert_eq!(health.due(&check, START, START), Some(START.plus(33_000)));
        health.on_not_probed(&check, START, Some("no answer".into()), START.plus(40_000));
        assert_eq!(health.latest().unwrap().output, "no answer");
        // Not asked for.
        assert!(!health.on_probed(&check, Attempt::FIRST, START, exit(0), START));
    }

    #[test]
    fn what_is_stored_is_the_change_and_what_is_told_is_of_a_process_that_runs() {
        let (check, mut health) = (check(2, 0), Health::default());
        for (at, code) in [(1_000, 0), (11_000, 1)] {
            health.on_begun(Attempt::FIRST, START.plus(at));
            health.on_probed(&check, Attempt::FIRST, START, exit(code), START.plus(at));
        }
        assert_eq!(health.latest(), Some(&exit(1)));
        let told = HealthState {
            status: Healthy,
            since: Some(START.plus(1_000)),
            probe: Some(exit(0)),
        };
        assert_eq!(health.state(true), told);
        assert_eq!(health.state(false), HealthState::default());
        let mut stored: Health = serde_json::from_str(&serde_json::to_string(&health).unwrap()).unwrap();
        assert_eq!(stored.state(true), told);
        assert_eq!(stored.latest(), Some(&exit(0)));
        // Probing begins again at once, and the count too.
        let now = START.plus(12_000);
        assert_eq!(stored.due(&check, START, now), Some(now));
        stored.on_begun(Attempt::FIRST, now);
        assert!(!stored.on_probed(&check, Attempt::FIRST, START, exit(1), now));
        stored.on_begun(Attempt::FIRST, now);
        assert!(stored.on_probed(&check, Attempt::FIRST, START, exit(1), now));
        assert_eq!(stored.state(false).status, Unhealthy);
        stored.on_begun(Attempt::FIRST, now);
        stored.begin();
        assert!(stored.is_under_way() && stored.status() == Unknown && stored.latest().is_none());
    }

    #[test]
    fn a_clock_that_is_set_moves_what_is_waited_for() {
        let (check, mut health) = (check(1, 0), Health::default());
        assert_eq!(health.due(&check, START, START), Some(START.plus(1_000)));
        health.on_clock_stepped(-500_000);
        assert_eq!(
            health.due(&check, START, START),
            Some(START.plus(1_000 - 500_000))
        );
        health.on_begun(Attempt::FIRST, START.plus(9_999));
        health.on_clock_stepped(5_000);
        // It began late enough by the clock as it is now, which its start was moved by, too.
        let changed = health.on_probed(&check, Attempt::FIRST, START, exit(1), START.plus(15_000));
        assert!(changed, "{health:?}");
    }
}
