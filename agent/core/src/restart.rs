//! Owns what a restart policy means: whether a container that ended starts again, and when. Never starts it: a restart is a
//! new attempt, which begins once nothing is left of the one before (`task::advance`).
//!
//! ECS restarts a container that ran for its `restartAttemptPeriod`, and gives up one that ended earlier. Berth restarts that
//! one, too, but makes it wait: longer with each time in a row, and never longer than the period. So a container that fails
//! once soon after its start is back in a second, and one that always fails is tried once in a period, as in ECS.

use serde::{Deserialize, Serialize};

use crate::desired::{Millis, RestartPolicy};

/// How long the first one that ended early waits, milliseconds; it doubles with each in a row.
pub const FIRST_DELAY_MS: i64 = 1_000;
/// Doubles at most so often: well beyond the longest period.
const DOUBLINGS_MAX: u32 = 20;

/// How a container's restarts stand. Kept while its task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// How often it was started again.
    pub count: u32,
    /// How often in a row it ended before its period was over.
    pub early: u32,
    /// It ended, and starts again at this time.
    pub at: Option<Millis>,
}

impl Restarts {
    /// A container that ran from `started` to `finished` ended with this code: decides whether and when it starts again.
    pub fn on_ended(&mut self, policy: &RestartPolicy, code: i32, started: Millis, finished: Millis) {
        if policy.ignored_exit_codes.contains(&code) {
            return;
        }
        let period = i64::from(policy.attempt_period_ms);
        if finished.0.saturating_sub(started.0) >= period {
            self.early = 0;
            self.at = Some(finished);
            return;
        }
        let delay = (FIRST_DELAY_MS << self.early.min(DOUBLINGS_MAX)).min(period);
        self.early = self.early.saturating_add(1);
        self.at = Some(finished.plus(delay));
    }

    /// The next attempt began to start.
    pub fn on_start(&mut self) {
        if self.at.take().is_some() {
            self.count = self.count.saturating_add(1);
        }
    }

    /// After a restart of the agent, which may have missed that the clock was set back: none waits longer than the period.
    pub fn on_agent_restarted(&mut self, policy: &RestartPolicy, now: Millis) {
        let latest = now.plus(i64::from(policy.attempt_period_ms));
        self.at = self.at.map(|at| at.min(latest));
    }

    /// Whether the next attempt may start now.
    pub fn due(&self, now: Millis) -> bool {
        self.at.is_none_or(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD_MS: u32 = 60_000;

    fn policy() -> RestartPolicy {
        RestartPolicy {
            ignored_exit_codes: vec![0, 42],
            attempt_period_ms: PERIOD_MS,
        }
    }

    /// How long a container that ran from 0 to `ran_ms` waits.
    fn ended(restarts: &mut Restarts, code: i32, ran_ms: i64) -> Option<i64> {
        restarts.on_ended(&policy(), code, Millis(0), Millis(ran_ms));
        let waits = restarts.at.map(|at| at.0 - ran_ms);
        restarts.on_start();
        waits
    }

    #[test]
    fn an_early_end_waits_longer_each_time_but_never_longer_than_the_period() {
        let mut restarts = Restarts::default();
        let waits: Vec<_> = (0..9).filter_map(|_| ended(&mut restarts, 1, 10)).collect();
        assert_eq!(
            waits,
            [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]
        );
        assert_eq!((restarts.count, restarts.early), (9, 9));
        restarts.early = u32::MAX;
        assert_eq!(ended(&mut restarts, 1, 10), Some(60_000));
        assert_eq!(restarts.early, u32::MAX);
    }

    #[test]
    fn one_that_ran_for_its_period_starts_again_at_once_and_begins_anew() {
        let mut restarts = Restarts {
            early: 5,
            ..Restarts::default()
        };
        let period = i64::from(PERIOD_MS);
        assert_eq!(ended(&mut restarts, 1, period), Some(0));
        assert_eq!(ended(&mut restarts, 1, period - 1), Some(1_000));
    }

    #[test]
    fn an_ignored_code_is_the_end() {
        let mut restarts = Restarts::default();
        assert_eq!(ended(&mut restarts, 42, 10), None);
        assert_eq!(ended(&mut restarts, 0, i64::from(PERIOD_MS)), None);
        assert_eq!(restarts, Restarts::default());
    }

    #[test]
    fn a_clock_set_back_while_the_agent_was_away_does_not_make_it_wait_longer_than_the_period() {
        let waiting = |at| Restarts {
            at,
            ..Restarts::default()
        };
        let period = i64::from(PERIOD_MS);
        for (at, expected) in [
            (Some(Millis(9_000_000)), Some(Millis(100 + period))),
            (Some(Millis(100 + period)), Some(Millis(100 + period))),
            (Some(Millis(7)), Some(Millis(7))),
            (None, None),
        ] {
            let mut restarts = waiting(at);
            restarts.on_agent_restarted(&policy(), Millis(100));
            assert_eq!(restarts, waiting(expected));
        }
    }

    #[test]
    fn it_is_due_from_its_time_on() {
        let restarts = Restarts {
            at: Some(Millis(10)),
            ..Restarts::default()
        };
        assert!(!restarts.due(Millis(9)) && restarts.due(Millis(10)));
        assert!(Restarts::default().due(Millis(0)));
    }
}
