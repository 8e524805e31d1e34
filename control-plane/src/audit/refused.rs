//! Owns how attempts of strangers are counted, so that they cannot fill the log. Never sees one that was proved.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::event::Event;

/// One line for so long of attempts alike.
const WINDOW: Duration = Duration::from_secs(60);
/// Different origins that are told apart; the rest is counted together.
const ORIGINS_MAX: usize = 1_024;
const ACTOR: &str = "unauthenticated";
const OPERATION: &str = "Authenticate";

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    pub from: Option<IpAddr>,
    pub code: &'static str,
    /// An access key that exists, named with a wrong signature.
    pub claimed_key: Option<String>,
}

impl Attempt {
    pub fn event(&self, count: u64) -> Event {
        let mut event = Event::new(ACTOR, OPERATION).from(self.from);
        if let Some(key) = &self.claimed_key {
            event = event.target("accessKeyId", key.as_str());
        }
        event.count = Some(count);
        event
    }
}

#[derive(Debug)]
struct Tally {
    since: Instant,
    /// Not written yet.
    count: u64,
}

#[derive(Debug, Default)]
pub(super) struct Refused(HashMap<Attempt, Tally>);

impl Refused {
    /// Counts one. Some: the first of its kind, to be written now.
    pub fn count(&mut self, attempt: Attempt, now: Instant) -> Option<Attempt> {
        let room = self.0.len() < ORIGINS_MAX;
        let attempt = if room || self.0.contains_key(&attempt) {
            attempt
        } else {
            many()
        };
        match self.0.get_mut(&attempt) {
            Some(tally) => {
                tally.count += 1;
                None
            }
            None => {
                self.0.insert(attempt.clone(), Tally { since: now, count: 0 });
                Some(attempt)
            }
        }
    }

    /// Counts those that were not even looked at.
    pub fn overlooked(&mut self, count: u64, now: Instant) {
        if count > 0 {
            let tally = self.0.entry(many()).or_insert(Tally { since: now, count: 0 });
            tally.count += count;
        }
    }

    /// What is to be written now, with how many; all of it when `all`.
    pub fn due(&mut self, now: Instant, all: bool) -> Vec<(Attempt, u64)> {
        let mut due = Vec::new();
        self.0.retain(|attempt, tally| {
            if !all && now.duration_since(tally.since) < WINDOW {
                return true;
            }
            if tally.count > 0 {
                due.push((attempt.clone(), tally.count));
            }
            let goes_on = tally.count > 0;
            *tally = Tally { since: now, count: 0 };
            goes_on
        });
        due
    }
}

/// Stands for all that are not told apart.
fn many() -> Attempt {
    Attempt {
        from: None,
        code: "Various",
        claimed_key: None,
    }
}
