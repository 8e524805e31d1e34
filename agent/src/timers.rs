//! Owns the core's timers: one per key, setting it again moves it. Never knows what they mean.
//!
//! Delays are measured on the monotonic clock. What fires carries the time it was set for, so that it is due for the core
//! too when the host's clock was set back meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_agent_core::{desired::Millis, event::TimerKey};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use crate::driver::Input;

/// A handle for setting timers.
#[derive(Clone, Debug, Default)]
pub struct Timers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    set: Mutex<Set>,
    earlier: Notify,
}

#[derive(Debug, Default)]
struct Set {
    by_key: BTreeMap<TimerKey, (Instant, Millis)>,
    by_time: BTreeSet<(Instant, TimerKey)>,
}

impl Timers {
    /// Fires `key` after `delay`, and not before; what fires carries `due`.
    pub fn set(&self, key: TimerKey, delay: Duration, due: Millis) {
        let at = Instant::now() + delay;
        {
            let mut set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((old, _)) = set.by_key.insert(key.clone(), (at, due)) {
                set.by_time.remove(&(old, key.clone()));
            }
            set.by_time.insert((at, key));
        }
        self.0.earlier.notify_one();
    }

    /// Sends what is due, until the receiver of `inputs` is gone.
    pub async fn run(self, inputs: mpsc::Sender<Input>) {
        loop {
            while let Some((key, due)) = self.due(Instant::now()) {
                if inputs.send(Input::Timer { key, due }).await.is_err() {
                    return;
                }
            }
            let next = self.next();
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.0.earlier.notified() => {}
                () = inputs.closed() => return,
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        self.0
            .set
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .by_time
            .first()
            .map(|(at, _)| *at)
    }

    fn due(&self, now: Instant) -> Option<(TimerKey, Millis)> {
        let mut set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, key) = set.by_time.first()?.clone();
        if at > now {
            return None;
        }
        set.by_time.remove(&(at, key.clone()));
        let (_, due) = set.by_key.remove(&key)?;
        Some((key, due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn setting_a_timer_again_moves_it() {
        let (inputs, mut received) = mpsc::channel(8);
        let timers = Timers::default();
        let task = |n: u8| -> berth_agent_core::ids::TaskId { format!("{n:032x}").parse().unwrap() };
        timers.set(
            TimerKey::Admission(task(1)),
            Duration::from_millis(50),
            Millis(50),
        );
        timers.set(TimerKey::Quarantine, Duration::from_millis(150), Millis(150));
        timers.set(
            TimerKey::Admission(task(1)),
            Duration::from_millis(400),
            Millis(400),
        );
        let running = tokio::spawn(timers.run(inputs));
        let mut fired = Vec::new();
        for _ in 0..2 {
            let Some(Input::Timer { key, due }) = received.recv().await else {
                panic!("a timer")
            };
            fired.push((key, due.0));
        }
        assert_eq!(
            fired,
            [(TimerKey::Quarantine, 150), (TimerKey::Admission(task(1)), 400)]
        );
        drop(received);
        running.await.unwrap();
    }
}
