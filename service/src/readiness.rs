//! Owns which conditions a daemon's readiness depends on, and how each stands. Never checks one: their owners say.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokio::sync::watch;

/// What depends on a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// The daemon has not started before it holds once (`READY=1`), and is not ready while it fails.
    ToStart,
    /// The daemon starts without it, and is not ready while it fails.
    ToServe,
}

/// How a condition stands.
#[derive(Clone, Debug)]
pub struct State {
    pub name: &'static str,
    pub needed: Needed,
    /// Why it fails; none: it holds.
    pub failure: Option<String>,
    /// When it began to hold or to fail.
    pub since: SystemTime,
    began: Instant,
}

/// All conditions, in the order in which they were named.
#[derive(Clone, Debug, Default)]
pub struct Report(Vec<State>);

impl Report {
    /// Every condition holds.
    pub fn ready(&self) -> bool {
        self.0.iter().all(|state| state.failure.is_none())
    }

    /// Every condition holds without which the daemon has not started.
    pub fn started(&self) -> bool {
        let starts = |state: &&State| state.needed == Needed::ToStart;
        self.0.iter().filter(starts).all(|state| state.failure.is_none())
    }

    pub fn states(&self) -> &[State] {
        &self.0
    }

    /// The first failing condition and its reason, for one line of status.
    pub fn first_failure(&self) -> Option<(&'static str, &str)> {
        self.0
            .iter()
            .find_map(|state| Some((state.name, state.failure.as_deref()?)))
    }

    /// A line for each condition, and the sum: what `/readyz?verbose` answers.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for State {
            name, failure, began, ..
        } in &self.0
        {
            let seconds = began.elapsed().as_secs();
            // Writing to a string does not fail.
            let _ = match failure {
                None => writeln!(text, "[+] {name}: ok for {seconds} s"),
                Some(reason) => writeln!(text, "[-] {name}: {reason} (for {seconds} s)"),
            };
        }
        text.push_str(if self.ready() { "ready\n" } else { "not ready\n" });
        text
    }

    /// The same for programs: `{"ready": …, "conditions": [{"name", "ok", "reason", "since"}]}`, `since` in seconds
    /// since the Unix epoch.
    pub fn json(&self) -> Value {
        let condition = |state: &State| {
            let since = state.since.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            json!({"name": state.name, "ok": state.failure.is_none(), "reason": state.failure, "since": since})
        };
        let conditions: Vec<Value> = self.0.iter().map(condition).collect();
        json!({"ready": self.ready(), "conditions": conditions})
    }
}

/// The conditions of one daemon. Clones share them.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Report>>);

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Without conditions: ready.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Report::default())))
    }

    /// Names a condition; it fails, with this reason, until its owner says otherwise.
    pub fn condition(&self, name: &'static str, needed: Needed, reason: impl Into<String>) -> Condition {
        let mut index = 0;
        let failure = Some(reason.into());
        self.0.send_modify(|report| {
            index = report.0.len();
            report.0.push(State {
                name,
                needed,
                failure,
                since: SystemTime::now(),
                began: Instant::now(),
            });
        });
        let all = self.clone();
        Condition { all, index }
    }

    /// How all stand now.
    pub fn report(&self) -> Report {
        self.0.borrow().clone()
    }

    /// Sees every change.
    pub fn subscribe(&self) -> watch::Receiver<Report> {
        self.0.subscribe()
    }

    /// Waits until every condition needed to start holds; says how they stand if that takes longer than `limit`.
    pub async fn started(&self, limit: Duration) -> Result<(), Report> {
        let mut receiver = self.subscribe();
        let waited = tokio::time::timeout(limit, receiver.wait_for(Report::started)).await;
        match waited {
            Ok(_) => Ok(()),
            Err(_) => Err(self.report()),
        }
    }
}

/// One condition, for its owner. Cheap to set from anywhere; saying the same again changes nothing.
#[derive(Clone, Debug)]
pub struct Condition {
    all: Readiness,
    index: usize,
}

impl Condition {
    pub fn ok(&self) {
        self.set(None);
    }

    /// Not for secrets: whoever asks sees the reason.
    pub fn fail(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, failure: Option<String>) {
        self.all.0.send_if_modified(|report| {
            let Some(state) = report.0.get_mut(self.index) else {
                return false;
            };
            if state.failure == failure {
                return false;
            }
            // Another reason is not another failure.
            if state.failure.is_none() != failure.is_none() {
                (state.since, state.began) = (SystemTime::now(), Instant::now());
            }
            state.failure = failure;
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_starts_without_its_link_and_is_not_ready_without_it() {
        let readiness = Readiness::new();
        assert!(readiness.report().ready());
        let store = readiness.condition("store", Needed::ToStart, "being opened");
        let link = readiness.condition("link", Needed::ToServe, "not connected yet");
        assert!(!readiness.report().started());
        store.ok();
        assert!(readiness.report().started() && !readiness.report().ready());
        assert_eq!(
            readiness.report().text(),
            "[+] store: ok for 0 s\n[-] link: not connected yet (for 0 s)\nnot ready\n"
        );
        link.ok();
        assert!(readiness.report().ready());
        assert_eq!(readiness.report().first_failure(), None);
    }

    #[test]
    fn saying_the_same_again_wakes_nobody_and_keeps_the_time() {
        let readiness = Readiness::new();
        let link = readiness.condition("link", Needed::ToServe, "refused");
        let since = readiness.report().states()[0].since;
        let watcher = readiness.subscribe();
        link.fail("refused");
        assert!(!watcher.has_changed().unwrap());
        link.fail("no route");
        assert!(watcher.has_changed().unwrap());
        assert_eq!(readiness.report().states()[0].since, since);
        assert_eq!(readiness.report().json()["conditions"][0]["reason"], "no route");
    }

    #[tokio::test]
    async fn waiting_ends_with_the_last_condition_or_says_what_is_missing() {
        let readiness = Readiness::new();
        let store = readiness.condition("store", Needed::ToStart, "being opened");
        let late = readiness.started(Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(late.first_failure(), Some(("store", "being opened")));
        store.ok();
        readiness.started(Duration::from_secs(5)).await.unwrap();
    }
}
