//! Owns how often a task may ask: a bucket of tokens each, as in ECS. Never knows what is asked.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use berth_agent_core::ids::TaskId;

/// The ECS agent's defaults (`ECS_TASK_METADATA_RPS_LIMIT`).
pub(super) const PER_SECOND: u32 = 40;
const BURST: u32 = 60;
/// A bucket that has not been asked for so long is full again, and forgotten.
const FULL_AFTER: Duration = Duration::from_secs(2);
/// Buckets before those that are full are looked for.
const TIDY_ABOVE: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Rates(HashMap<TaskId, Bucket>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rates {
    /// Whether one more may be answered now.
    pub(super) fn allow(&mut self, task: &TaskId, now: Instant) -> bool {
        if self.0.len() > TIDY_ABOVE {
            self.0
                .retain(|_, bucket| now.saturating_duration_since(bucket.at) < FULL_AFTER);
        }
        let bucket = self.0.entry(task.clone()).or_insert(Bucket {
            tokens: BURST.into(),
            at: now,
        });
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * f64::from(PER_SECOND);
        bucket.tokens = (bucket.tokens + gained).min(BURST.into());
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_so_many_a_second_and_each_task_its_own() {
        let tasks: [TaskId; 2] = [1, 2].map(|n| format!("{n:032x}").parse().unwrap());
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut allowed = |task: &TaskId, at_ms: u64, asks: u32| {
            let at = start + Duration::from_millis(at_ms);
            (0..asks).filter(|_| rates.allow(task, at)).count()
        };
        assert_eq!(allowed(&tasks[0], 0, 100), 60);
        assert_eq!(allowed(&tasks[1], 0, 10), 10);
        assert_eq!(allowed(&tasks[0], 500, 100), 20);
        assert_eq!(allowed(&tasks[0], 60_000, 100), 60);
        let mut rates = Rates::default();
        for n in 0..1_000 {
            rates.allow(&format!("{n:032x}").parse().unwrap(), start);
        }
        rates.allow(&tasks[0], start + FULL_AFTER);
        assert_eq!(rates.0.len(), 1);
    }
}
