//! Owns how often something may happen: attempts to join from one source, lines in the log about one peer. Never
//! decides what it is.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many one has at once, and how long until it has one more.
const AT_ONCE_MAX: u32 = 10;
const REGAINED: Duration = Duration::from_secs(6);
const LINES_WINDOW: Duration = Duration::from_secs(60);
/// Sources and peers remembered; beyond it the whole memory begins anew, rather than grow.
pub(super) const REMEMBERED_MAX: usize = 4_096;

/// Counts what each may do only so often: failed attempts to join by source, renewals by node.
#[derive(Debug)]
pub(super) struct Bucket<K>(Mutex<HashMap<K, (u32, Instant)>>);

impl<K> Default for Bucket<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> Bucket<K> {
    /// How long this one has to wait before it may try again, if it has to.
    pub(super) fn wait(&self, key: &K) -> Option<Duration> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (counted, since) = known.get_mut(key)?;
        let regained = since.elapsed().as_secs() / REGAINED.as_secs();
        if regained > 0 {
            *counted = counted.saturating_sub(u32::try_from(regained).unwrap_or(u32::MAX));
            *since = Instant::now();
        }
        (*counted >= AT_ONCE_MAX).then(|| REGAINED.saturating_sub(since.elapsed()))
    }

    /// Counts one.
    pub(super) fn count(&self, key: &K) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        let (counted, _) = known.entry(key.clone()).or_insert((0, Instant::now()));
        *counted = counted.saturating_add(1);
    }
}

/// Lines in the log, by whom they are about: who can make us write must not fill the disk.
#[derive(Debug)]
pub(super) struct LogLimit {
    /// In one window, about one peer.
    lines_max: u32,
    known: Mutex<HashMap<String, (u32, Instant)>>,
}

impl LogLimit {
    /// So many lines in a minute about each.
    pub(super) fn new(lines_max: u32) -> Self {
        Self {
            lines_max,
            known: Mutex::default(),
        }
    }

    /// Whether one more line is fit to print.
    pub(super) fn allows(&self, about: &str) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        let (lines, since) = known.entry(about.to_owned()).or_insert((0, Instant::now()));
        if since.elapsed() >= LINES_WINDOW {
            (*lines, *since) = (0, Instant::now());
        }
        *lines = lines.saturating_add(1);
        *lines <= self.lines_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_it_too_often_waits_and_others_do_not() {
        let bucket = Bucket::default();
        for _ in 0..AT_ONCE_MAX {
            assert_eq!(bucket.wait(&"a"), None);
            bucket.count(&"a");
        }
        assert!(bucket.wait(&"a").is_some_and(|wait| wait <= REGAINED));
        assert_eq!(bucket.wait(&"b"), None);
    }

    #[test]
    fn the_log_has_so_many_lines_about_one_peer() {
        let limit = LogLimit::new(10);
        assert_eq!((0..1_000).filter(|_| limit.allows("a")).count(), 10);
        assert!(limit.allows("b"));
    }
}
