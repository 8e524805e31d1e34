//! Owns what a task used a moment ago, from which rates are told. Keeps two samples and never more.

use std::time::{Duration, Instant};

use super::TaskUsage;

/// Two samples that make a rate are so far apart at least: the kernel's counters are coarse, and several may ask.
pub const APART: Duration = Duration::from_secs(1);

/// One task at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub at: Instant,
    /// CPU time of all cores of the host, µs.
    pub host_cpu_usec: u64,
    pub usage: TaskUsage,
}

/// The last samples of one task.
#[derive(Debug, Default)]
pub(super) struct History {
    latest: Option<Sample>,
    earlier: Option<Sample>,
}

impl History {
    /// Keeps a sample, unless one was kept a moment ago.
    pub(super) fn note(&mut self, at: Instant, host_cpu_usec: u64, usage: &TaskUsage) {
        let since = |latest: &Sample| at.saturating_duration_since(latest.at);
        if self.latest.as_ref().is_some_and(|latest| since(latest) < APART) {
            return;
        }
        let usage = usage.clone();
        self.earlier = self.latest.replace(Sample {
            at,
            host_cpu_usec,
            usage,
        });
    }

    /// The newest of those that are far enough before `at`.
    pub(super) fn before(&self, at: Instant) -> Option<&Sample> {
        let mut kept = [&self.latest, &self.earlier].into_iter().flatten();
        kept.find(|sample| at.saturating_duration_since(sample.at) >= APART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Usage;

    #[test]
    fn a_rate_is_of_at_least_a_second_however_often_somebody_asks() {
        let begun = Instant::now();
        let usage = TaskUsage {
            task: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            total: Usage::default(),
            containers: vec![],
            overhead: Usage::default(),
            network: None,
        };
        let mut history = History::default();
        let mut ask = |ms: u64| {
            let at = begun + Duration::from_millis(ms);
            history.note(at, ms, &usage);
            history.before(at).map(|sample| sample.host_cpu_usec)
        };
        assert_eq!([0, 400, 999].map(&mut ask), [None; 3]);
        assert_eq!([1_000, 1_001, 1_999].map(&mut ask), [Some(0); 3]);
        assert_eq!([2_000, 61_000].map(&mut ask), [Some(1_000), Some(2_000)]);
    }
}
