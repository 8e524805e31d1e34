//! Owns the core's timers: one per key, setting it again moves it. Never knows what they mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_agent_core::event::{Event, TimerKey};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use crate::driver::{Input, send};

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
    by_key: BTreeMap<TimerKey, Instant>,
    by_time: BTreeSet<(Instant, TimerKey)>,
}

impl Timers {
    /// Fires `key` after `delay`, and not before.
    pub fn set(&self, key: TimerKey, delay: Duration) {
        let at = Instant::now() + delay;
        {
            let mut set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(old) = set.by_key.insert(key.clone(), at) {
                set.by_time.remove(&(old, key.clone()));
            }
            set.by_time.insert((at, key));
        }
        self.0.earlier.notify_one();
    }

    /// Sends what is due, until the receiver of `inputs` is gone.
    pub async fn run(self, inputs: mpsc::Sender<Input>) {
        loop {
            while let Some(key) = self.due(Instant::now()) {
                send(&inputs, Event::Timer(key)).await;
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

    fn due(&self, now: Instant) -> Option<TimerKey> {
        let mut set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, key) = set.by_time.first()?.clone();
        if at > now {
            return None;
        }
        set.by_time.remove(&(at, key.clone()));
        set.by_key.remove(&key);
        Some(key)
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
        timers.set(TimerKey::Admission(task(1)), Duration::from_millis(50));
        timers.set(TimerKey::Quarantine, Duration::from_millis(150));
        timers.set(TimerKey::Admission(task(1)), Duration::from_millis(400));
        let running = tokio::spawn(timers.run(inputs));
        let mut fired = Vec::new();
        for _ in 0..2 {
            let Some(Input::Event(Event::Timer(key))) = received.recv().await else {
                panic!("a timer")
            };
            fired.push(key);
        }
        assert_eq!(fired, [TimerKey::Quarantine, TimerKey::Admission(task(1))]);
        drop(received);
        running.await.unwrap();
    }
}
