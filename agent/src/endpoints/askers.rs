//! Owns how often who may ask for task metadata: each task so often, and each address so often for what is not its own, so
//! that guessing costs the agent no more than asking does. Pure.

use std::{collections::HashSet, net::Ipv4Addr, time::Instant};

use berth_agent_core::ids::TaskId;

use crate::rate::{Limit, Rates};

/// Endpoints that were found; above, all are looked for anew. As containers of a large node, many times over.
const KNOWN_MAX: usize = 16_384;

#[derive(Debug)]
pub(super) struct Askers {
    tasks: Rates<TaskId>,
    strangers: Rates<Ipv4Addr>,
    /// By who asks, for another's name is no name to it.
    known: HashSet<(Ipv4Addr, String)>,
}

impl Askers {
    pub(super) fn new(limit: Limit) -> Self {
        Self {
            tasks: Rates::new(limit),
            strangers: Rates::new(limit),
            known: HashSet::new(),
        }
    }

    /// Whether it is looked at all whose name that is.
    pub(super) fn may_look(&mut self, from: Ipv4Addr, name: &str, now: Instant) -> bool {
        self.known.contains(&(from, name.to_owned())) || self.strangers.allow(&from, now)
    }

    /// It is one of the task's, who asks: whether it is answered.
    pub(super) fn found(&mut self, from: Ipv4Addr, name: &str, task: &TaskId, now: Instant) -> bool {
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert((from, name.to_owned()));
        self.tasks.allow(task, now)
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

    #[test]
    fn guesses_are_bounded_and_keep_nobody_from_what_is_its_own() {
        let (mut askers, now) = (Askers::new(LIMIT), Instant::now());
        let (one, other) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 89, 0, 2));
        let task: TaskId = format!("{:032x}", 1).parse().unwrap();
        assert!(askers.may_look(one, "own", now) && askers.found(one, "own", &task, now));
        let guess = |askers: &mut Askers, from, name: &str| {
            let may = askers.may_look(from, name, now);
            if may {
                askers.missed(from, name);
            }
            may
        };
        let guessed = (0..100).filter(|n| guess(&mut askers, one, &format!("guess{n}")));
        assert_eq!(
            guessed.count(),
            5,
            "one went for its own, which was not known yet"
        );
        // What is one's own is no other's.
        let guessed = (0..100).filter(|_| guess(&mut askers, other, "own"));
        assert_eq!(guessed.count(), 6);
        for _ in 0..5 {
            assert!(askers.may_look(one, "own", now) && askers.found(one, "own", &task, now));
        }
        assert!(askers.may_look(one, "own", now) && !askers.found(one, "own", &task, now));
        // Its task has ended.
        askers.missed(one, "own");
        assert!(!askers.may_look(one, "own", now));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut askers, now) = (Askers::new(LIMIT), Instant::now());
        let task: TaskId = format!("{:032x}", 1).parse().unwrap();
        for n in 0..=KNOWN_MAX {
            askers.found(Ipv4Addr::LOCALHOST, &n.to_string(), &task, now);
        }
        assert_eq!(askers.known.len(), 1);
    }
}
