//! Owns how often each may ask: a bucket of tokens each, as in ECS. Never knows what is asked.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// A bucket that has not been asked for so long is full again, and forgotten.
const FULL_AFTER: Duration = Duration::from_secs(2);
/// Buckets before those that are full are looked for.
const TIDY_ABOVE: usize = 64;

/// What each has to itself. A bucket must be full again after [`FULL_AFTER`]: at once at most what comes in that time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) per_second: u32,
    /// At once, after a pause.
    pub(crate) burst: u32,
}

/// Who asked lately, by `K`.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    limit: Limit,
    buckets: HashMap<K, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Clone + Eq + Hash> Rates<K> {
    pub(crate) fn new(limit: Limit) -> Self {
        Self {
            limit,
            buckets: HashMap::new(),
        }
    }

    /// Whether one more may be answered now.
    pub(crate) fn allow(&mut self, who: &K, now: Instant) -> bool {
        let Limit { per_second, burst } = self.limit;
        if self.buckets.len() > TIDY_ABOVE {
            self.buckets
                .retain(|_, bucket| now.saturating_duration_since(bucket.at) < FULL_AFTER);
        }
        let bucket = self.buckets.entry(who.clone()).or_insert(Bucket {
            tokens: burst.into(),
            at: now,
        });
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * f64::from(per_second);
        bucket.tokens = (bucket.tokens + gained).min(burst.into());
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
        let limit = Limit {
            per_second: 40,
            burst: 60,
        };
        let tasks = [1, 2];
        let (mut rates, start) = (Rates::new(limit), Instant::now());
        let mut allowed = |task: &i32, at_ms: u64, asks: u32| {
            let at = start + Duration::from_millis(at_ms);
            (0..asks).filter(|_| rates.allow(task, at)).count()
        };
        assert_eq!(allowed(&tasks[0], 0, 100), 60);
        assert_eq!(allowed(&tasks[1], 0, 10), 10);
        assert_eq!(allowed(&tasks[0], 500, 100), 20);
        assert_eq!(allowed(&tasks[0], 60_000, 100), 60);
        let mut rates = Rates::new(limit);
        for n in 0..1_000 {
            rates.allow(&n, start);
        }
        rates.allow(&0, start + FULL_AFTER);
        assert_eq!(rates.buckets.len(), 1);
    }
}
