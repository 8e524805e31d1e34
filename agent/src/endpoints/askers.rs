//! Owns how often who may ask for task metadata: each task so often, and each address so often for what is not known to be its
//! own, so that guessing costs the agent no more than asking does. Pure.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use berth_agent_core::ids::TaskId;

use crate::rate::{Limit, Rates};

/// Endpoints that were found; above, all are looked for anew. As containers of a large node, many times over.
const KNOWN_MAX: usize = 16_384;
/// Between two looks at all names of tasks on the host's network, while somebody there guesses.
const LEARNED_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Askers {
    tasks: Rates<TaskId>,
    strangers: Rates<Ipv4Addr>,
    /// By who asks, for another's name is no name to it.
    known: HashMap<(Ipv4Addr, String), TaskId>,
    learned: Option<Instant>,
}

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// Whose name it is, is looked for.
    May,
    /// Others of the address asked for too much that is nobody's: all names of the address are to be learned first.
    Learn,
    TooOften,
}

impl Askers {
    pub(super) fn new(limit: Limit) -> Self {
        Self {
            tasks: Rates::new(limit),
            strangers: Rates::new(limit),
            known: HashMap::new(),
            learned: None,
        }
    }

    /// Of a known name its task is asked; an unknown one is somebody's guess until it is found.
    pub(super) fn ask(&mut self, from: Ipv4Addr, name: &str, now: Instant) -> Asks {
        let known = self.known.get(&(from, name.to_owned()));
        let may = known.map_or_else(
            || self.strangers.allow(&from, now),
            |task| self.tasks.allow(task, now),
        );
        // There many tasks have one address.
        if !may && known.is_none() && from.is_loopback() && self.is_learning_due(now) {
            return Asks::Learn;
        }
        if may { Asks::May } else { Asks::TooOften }
    }

    fn is_learning_due(&mut self, now: Instant) -> bool {
        let due = |at: Instant| now.saturating_duration_since(at) >= LEARNED_AFTER;
        let is_due = self.learned.is_none_or(due);
        if is_due {
            self.learned = Some(now);
        }
        is_due
    }

    /// It is the task's.
    pub(super) fn learn(&mut self, from: Ipv4Addr, name: String, task: TaskId) {
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert((from, name), task);
    }

    /// It is nobody's, any more.
    pub(super) fn missed(&mut self, from: Ipv4Addr, name: &str) {
        self.known.remove(&(from, name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit {
        per_second: 4,
        burst: 6,
    };
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 2);

    fn task() -> TaskId {
        format!("{:032x}", 1).parse().unwrap()
    }

    /// How many of 100 guesses are looked for.
    fn guess(askers: &mut Askers, from: Ipv4Addr, name: &str, now: Instant) -> usize {
        let looked = |n: &i32| {
            let name = format!("{name}{n}");
            let may = askers.ask(from, &name, now) == Asks::May;
            askers.missed(from, &name);
            may
        };
        (0..100).filter(looked).count()
    }

    #[test]
    fn guesses_are_bounded_and_cost_nobody_what_is_known_to_be_its_own() {
        let (mut askers, now) = (Askers::new(LIMIT), Instant::now());
        assert_eq!(askers.ask(OTHER, "own", now), Asks::May);
        askers.learn(OTHER, "own".into(), task());
        assert_eq!(guess(&mut askers, OTHER, "guess", now), 5, "one went for its own");
        for _ in 0..6 {
            assert_eq!(askers.ask(OTHER, "own", now), Asks::May);
        }
        assert_eq!(askers.ask(OTHER, "own", now), Asks::TooOften);
        // What is one's own is no other's, and nobody's when its task has ended.
        assert_eq!(guess(&mut askers, Ipv4Addr::new(10, 89, 0, 3), "own", now), 6);
        askers.missed(OTHER, "own");
        assert_eq!(askers.ask(OTHER, "own", now), Asks::TooOften);
    }

    #[test]
    fn one_who_guesses_on_loopback_keeps_no_task_there_from_its_own() {
        let (mut askers, now) = (Askers::new(LIMIT), Instant::now());
        assert_eq!(guess(&mut askers, Ipv4Addr::LOCALHOST, "guess", now), 6);
        let later = now + LEARNED_AFTER / 8;
        assert_eq!(
            askers.ask(Ipv4Addr::LOCALHOST, "own", later),
            Asks::TooOften,
            "it was due a moment ago"
        );
        let later = now + LEARNED_AFTER;
        assert_eq!(guess(&mut askers, Ipv4Addr::LOCALHOST, "guess", later), 4);
        let later = later + LEARNED_AFTER;
        for _ in 0..4 {
            assert_eq!(askers.ask(Ipv4Addr::LOCALHOST, "guess", later), Asks::May);
        }
        assert_eq!(askers.ask(Ipv4Addr::LOCALHOST, "own", later), Asks::Learn);
        askers.learn(Ipv4Addr::LOCALHOST, "own".into(), task());
        assert_eq!(askers.ask(Ipv4Addr::LOCALHOST, "own", later), Asks::May);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut askers = Askers::new(LIMIT);
        for n in 0..=KNOWN_MAX {
            askers.learn(OTHER, n.to_string(), task());
        }
        assert_eq!(askers.known.len(), 1);
    }
}
