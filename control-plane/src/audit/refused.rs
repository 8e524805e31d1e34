//! Owns how refused calls are counted, so that they cannot fill the log: those of strangers, and those of callers who
//! are known and keep trying. Never decides what is refused.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::event::Event;
use crate::link::source;

/// One line for so long of attempts alike.
const WINDOW: Duration = Duration::from_secs(60);
/// Kinds that are told apart, of strangers and of callers each; the rest is counted together.
const KINDS_MAX: usize = 1_024;
const STRANGER: &str = "unauthenticated";
const OPERATION: &str = "Authenticate";

/// One attempt: who, what, from where.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    event: Event,
    code: &'static str,
    /// An access key that exists, named by a stranger with a wrong signature.
    claimed_key: Option<String>,
}

impl Attempt {
    /// Of somebody who could not prove who they are.
    pub fn stranger(from: Option<IpAddr>, code: &'static str, claimed_key: Option<String>) -> Self {
        Self {
            event: claimed(Event::new(STRANGER, OPERATION).from(from), claimed_key.as_deref()),
            code,
            claimed_key,
        }
    }

    /// Of a caller who is known.
    pub fn call(event: Event, code: &'static str) -> Self {
        Self {
            event,
            code,
            claimed_key: None,
        }
    }

    fn kind(&self) -> Kind {
        Kind {
            actor: self.event.actor.clone(),
            role: self.event.role.clone(),
            operation: self.event.operation.clone(),
            source: self.event.from.map(source),
            code: self.code,
            claimed_key: self.claimed_key.clone(),
        }
    }

    fn is_stranger(&self) -> bool {
        self.event.actor == STRANGER
    }
}

/// What makes attempts alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    actor: String,
    role: Option<String>,
    operation: String,
    /// As limits count it: an IPv6 network of one customer is one.
    source: Option<IpAddr>,
    code: &'static str,
    claimed_key: Option<String>,
}

impl Kind {
    /// Stands for all that are not told apart.
    fn many() -> Self {
        Self {
            actor: STRANGER.into(),
            role: None,
            operation: OPERATION.into(),
            source: None,
            code: "Various",
            claimed_key: None,
        }
    }

    /// What those that followed have in common, with the address of the last.
    fn event(&self, count: u64, last: Option<IpAddr>) -> Event {
        let event = Event::new(self.actor.as_str(), self.operation.as_str()).from(last);
        let mut event = claimed(event, self.claimed_key.as_deref());
        event.role.clone_from(&self.role);
        event.count = Some(count);
        event
    }
}

fn claimed(event: Event, key: Option<&str>) -> Event {
    match key {
        Some(key) => event.target("accessKeyId", key),
        None => event,
    }
}

#[derive(Debug)]
struct Tally {
    since: Instant,
    /// Not written yet.
    count: u64,
    last: Option<IpAddr>,
}

impl Tally {
    fn new(since: Instant, last: Option<IpAddr>) -> Self {
        Self {
            since,
            count: 0,
            last,
        }
    }
}

/// Counts by kind. Strangers have tallies of their own: they cannot hide what a caller did.
#[derive(Debug, Default)]
pub(super) struct Refused {
    strangers: HashMap<Kind, Tally>,
    callers: HashMap<Kind, Tally>,
}

impl Refused {
    /// Counts one. Some: the first of its kind, to be written now.
    pub fn count(&mut self, mut attempt: Attempt, now: Instant) -> Option<(Event, &'static str)> {
        let tallies = match attempt.is_stranger() {
            true => &mut self.strangers,
            false => &mut self.callers,
        };
        let mut kind = attempt.kind();
        let from = attempt.event.from;
        if tallies.len() >= KINDS_MAX && !tallies.contains_key(&kind) {
            kind = Kind::many();
            attempt = Attempt::stranger(None, kind.code, None);
        }
        if let Some(tally) = tallies.get_mut(&kind) {
            tally.count += 1;
            tally.last = from.filter(|_| kind.source.is_some());
            return None;
        }
        tallies.insert(kind, Tally::new(now, from));
        attempt.event.count = Some(1);
        Some((attempt.event, attempt.code))
    }

    /// Counts those that were not even looked at.
    pub fn overlooked(&mut self, count: u64, now: Instant) {
        if count > 0 {
            let tallies = &mut self.strangers;
            let tally = tallies.entry(Kind::many()).or_insert(Tally::new(now, None));
            tally.count += count;
        }
    }

    /// What is to be written now; all of it when `all`.
    pub fn due(&mut self, now: Instant, all: bool) -> Vec<(Event, &'static str)> {
        let mut due = Vec::new();
        for tallies in [&mut self.strangers, &mut self.callers] {
            tallies.retain(|kind, tally| {
                if !all && now.duration_since(tally.since) < WINDOW {
                    return true;
                }
                if tally.count > 0 {
                    due.push((kind.event(tally.count, tally.last), kind.code));
                }
                let goes_on = tally.count > 0;
                *tally = Tally::new(now, tally.last);
                goes_on
            });
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(address: &str) -> Attempt {
        Attempt::stranger(Some(address.parse().unwrap()), "X", None)
    }

    #[test]
    fn one_customers_network_is_one_source() {
        let (mut refused, now) = (Refused::default(), Instant::now());
        let first = refused.count(stranger("2001:db8::1"), now).unwrap().0;
        assert_eq!(first.from, Some("2001:db8::1".parse().unwrap()));
        for last in 2..1_000 {
            assert!(
                refused
                    .count(stranger(&format!("2001:db8::{last:x}")), now)
                    .is_none()
            );
        }
        assert!(refused.count(stranger("2001:db8:0:1::1"), now).is_some());
        let due = refused.due(now + WINDOW, false);
        assert_eq!(due.len(), 1);
        assert_eq!(
            (due[0].0.count, due[0].0.from),
            (Some(998), Some("2001:db8::3e7".parse().unwrap()))
        );
    }

    #[test]
    fn a_caller_is_counted_by_what_it_tries_and_strangers_do_not_hide_it() {
        let (mut refused, now) = (Refused::default(), Instant::now());
        for number in 0..2 * KINDS_MAX {
            let number = u32::try_from(number).unwrap();
            let from = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
            refused.count(Attempt::stranger(Some(from), "X", None), now);
        }
        let call = |operation: &str, request: &str| {
            let event = Event::new("AKIDREADER", operation)
                .role("read-only")
                .request(request);
            Attempt::call(event.target("cluster", request), "AccessDeniedException")
        };
        let (first, code) = refused.count(call("CreateCluster", "r-1"), now).unwrap();
        assert_eq!(
            (first.request_id.as_deref(), code),
            (Some("r-1"), "AccessDeniedException")
        );
        assert!(refused.count(call("CreateCluster", "r-2"), now).is_none());
        assert!(refused.count(call("RunTask", "r-3"), now).is_some());
        let due = refused.due(now + WINDOW, false);
        let of = |actor: &str| {
            due.iter()
                .filter(|(event, _)| event.actor == actor)
                .collect::<Vec<_>>()
        };
        let repeated = &of("AKIDREADER")[..];
        assert_eq!(repeated.len(), 1);
        let event = &repeated[0].0;
        assert_eq!(
            (event.operation.as_str(), event.count),
            ("CreateCluster", Some(1))
        );
        assert_eq!(
            (event.role.as_deref(), event.request_id.as_deref()),
            (Some("read-only"), None)
        );
        assert!(event.targets.is_empty(), "those differ");
        let strangers: u64 = of(STRANGER).iter().filter_map(|(event, _)| event.count).sum();
        assert_eq!(strangers, KINDS_MAX as u64 - 1);
    }
}
