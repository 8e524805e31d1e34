//! Owns the question whether the daemon still moves. Never restarts it: the service manager does, by its watchdog.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A sign of life that the daemon's own work gives, not a timer: whoever proves the work beats it.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    epoch: Instant,
    /// Milliseconds since the epoch.
    beat: AtomicU64,
    limit: Duration,
}

impl Pulse {
    /// Counts as alive for `limit` from now.
    pub fn new(limit: Duration) -> Self {
        Self(Arc::new(Inner {
            epoch: Instant::now(),
            beat: AtomicU64::new(0),
            limit,
        }))
    }

    /// Alive now.
    pub fn beat(&self) {
        self.0.beat.store(self.now(), Ordering::Relaxed);
    }

    /// How long ago the last beat was, if that is too long.
    pub fn lost(&self) -> Option<Duration> {
        let silent = Duration::from_millis(self.now().saturating_sub(self.0.beat.load(Ordering::Relaxed)));
        (silent > self.0.limit).then_some(silent)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_is_lost_when_nobody_beats_it() {
        let pulse = Pulse::new(Duration::from_millis(20));
        assert_eq!(pulse.lost(), None);
        std::thread::sleep(Duration::from_millis(40));
        assert!(pulse.lost().unwrap() > Duration::from_millis(20));
        pulse.beat();
        assert_eq!(pulse.lost(), None);
    }
}
