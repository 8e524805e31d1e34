//! Owns the numbers that tell tasks of one family apart in metrics. A task id as a label would make a new series for
//! every task that ever ran; a slot is the lowest number that no living task of the family on this node has, so there
//! are as many as ran at one time. A slot's counters start anew with its next task, as after a restart of a process:
//! `rate()` knows that.
//!
//! They are given when somebody looks, and kept in the run directory, so that they outlive the agent as tasks do: a
//! living task that changed its slot would look like a jump.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// Longest file that is read, bytes: a few thousand tasks.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Slots {
    /// By task id.
    taken: BTreeMap<String, Slot>,
    #[serde(skip)]
    path: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    family: String,
    number: u32,
}

/// A task that is alive.
#[derive(Clone, Copy, Debug)]
pub struct Living<'a> {
    pub task: &'a str,
    pub family: &'a str,
    pub arrival: u64,
}

impl Slots {
    /// Goes on with what an earlier agent gave; a file that cannot be read is none.
    pub fn load(path: PathBuf) -> Self {
        let small = fs::metadata(&path).is_ok_and(|meta| meta.len() <= FILE_BYTES_MAX);
        let text = small.then(|| fs::read(&path).ok()).flatten();
        let slots: Option<Self> = text.and_then(|text| serde_json::from_slice(&text).ok());
        Self {
            path,
            ..slots.unwrap_or_default()
        }
    }

    /// Gives the living their numbers, earlier arrivals lower ones, and takes those of the dead.
    pub fn assign(&mut self, living: &[Living<'_>]) {
        let before = self.taken.clone();
        let alive: BTreeSet<&str> = living.iter().map(|task| task.task).collect();
        self.taken.retain(|task, _| alive.contains(task.as_str()));
        let mut used: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
        for task in living {
            if let Some(slot) = self.taken.get(task.task) {
                used.entry(task.family).or_default().insert(slot.number);
            }
        }
        let mut new: Vec<_> = living
            .iter()
            .filter(|t| !self.taken.contains_key(t.task))
            .collect();
        new.sort_by_key(|task| task.arrival);
        for task in new {
            let used = used.entry(task.family).or_default();
            let number = (0..).find(|number| !used.contains(number)).unwrap_or(u32::MAX);
            used.insert(number);
            let family = task.family.to_owned();
            self.taken.insert(task.task.to_owned(), Slot { family, number });
        }
        if self.taken != before {
            self.save();
        }
    }

    /// The number of a task that was alive at the last look.
    pub fn of(&self, task: &str) -> Option<u32> {
        self.taken.get(task).map(|slot| slot.number)
    }

    /// Without the file, numbers are given anew after a restart: a blemish, no reason to fail.
    fn save(&self) {
        let partial = self.path.with_extension("partial");
        let saved = serde_json::to_vec(self)
            .map_err(std::io::Error::other)
            .and_then(|json| {
                let mut file = fs::OpenOptions::new()
                    .create(true)
                    .truncate(true)
                    .write(true)
                    .mode(0o600)
                    .open(&partial)?;
                std::io::Write::write_all(&mut file, &json)?;
                fs::rename(&partial, &self.path)
            });
        if let Err(error) = saved {
            tracing::debug!(path = %self.path.display(), %error, "cannot keep the numbers of tasks in metrics");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn living<'a>(task: &'a str, family: &'a str, arrival: u64) -> Living<'a> {
        Living {
            task,
            family,
            arrival,
        }
    }

    #[test]
    fn the_lowest_free_number_is_given_and_kept_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slots.json");
        let mut slots = Slots::load(path.clone());
        slots.assign(&[living("b", "web", 2), living("a", "web", 1), living("c", "db", 3)]);
        assert_eq!(
            ["a", "b", "c"].map(|task| slots.of(task)),
            [Some(0), Some(1), Some(0)]
        );
        slots.assign(&[living("b", "web", 2), living("c", "db", 3)]);
        let mut slots = Slots::load(path);
        assert_eq!(["a", "b"].map(|task| slots.of(task)), [None, Some(1)]);
        slots.assign(&[
            living("b", "web", 2),
            living("d", "web", 4),
            living("e", "web", 5),
        ]);
        assert_eq!(
            ["b", "d", "e"].map(|task| slots.of(task)),
            [Some(1), Some(0), Some(2)]
        );
        assert_eq!(slots.taken.len(), 3, "nothing is kept of the dead");
    }
}
