//! Owns the thread that writes the audit log. Never lets a change through while an outcome waits to be written.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Instant,
};

use tokio::sync::oneshot;

use super::{
    AuditError, SYNC,
    event::{Event, Outcome},
    file::Log,
    refused::{Attempt, Refused},
};

/// Outcomes kept while the file cannot be written: as many as there can be changes under way.
const KEPT_MAX: usize = 1_024;

/// What can be asked.
#[derive(Debug)]
pub(super) enum Job {
    Write {
        event: Event,
        outcome: Outcome,
        of: Option<u64>,
        answer: Option<oneshot::Sender<Result<u64, AuditError>>>,
    },
    Refused(Attempt),
    /// Answered when everything before it was tried to be written.
    Flush(oneshot::Sender<()>),
    Close,
}

#[derive(Debug)]
pub(super) struct Writer {
    log: Log,
    refused: Refused,
    overlooked: Arc<AtomicU64>,
    /// Outcomes of what was let through, oldest first.
    kept: VecDeque<(Event, Outcome, u64)>,
}

impl Writer {
    pub(super) fn new(log: Log, overlooked: Arc<AtomicU64>) -> Self {
        Self {
            log,
            refused: Refused::default(),
            overlooked,
            kept: VecDeque::new(),
        }
    }

    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        let mut next_tick = Instant::now() + SYNC;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            match jobs.recv_timeout(wait) {
                Ok(Job::Write {
                    event,
                    outcome,
                    of,
                    answer,
                }) => {
                    let written = self.write(event, outcome, of);
                    if let Some(answer) = answer {
                        answer.send(written).ok();
                    }
                }
                Ok(Job::Refused(attempt)) => self.count(attempt),
                Ok(Job::Flush(answer)) => {
                    answer.send(()).ok();
                }
                Ok(Job::Close) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= next_tick {
                self.tick(false);
                next_tick = Instant::now() + SYNC;
            }
        }
        self.tick(true);
    }

    fn write(&mut self, event: Event, outcome: Outcome, of: Option<u64>) -> Result<u64, AuditError> {
        let written = self
            .write_kept()
            .and_then(|()| self.log.append(&event, outcome.clone(), of));
        if let (Err(_), Some(of)) = (&written, of) {
            self.keep(event, outcome, of);
        }
        written
    }

    pub(super) fn keep(&mut self, event: Event, outcome: Outcome, of: u64) {
        if self.kept.len() < KEPT_MAX {
            self.kept.push_back((event, outcome, of));
        }
    }

    fn write_kept(&mut self) -> Result<(), AuditError> {
        while let Some((event, outcome, of)) = self.kept.front() {
            self.log.append(event, outcome.clone(), Some(*of))?;
            self.kept.pop_front();
        }
        Ok(())
    }

    fn count(&mut self, attempt: Attempt) {
        if let Some(first) = self.refused.count(attempt, Instant::now()) {
            self.note(&first, 1);
        }
    }

    fn note(&mut self, attempt: &Attempt, count: u64) {
        let written = self
            .log
            .append(&attempt.event(count), Outcome::refused(attempt.code), None);
        if let Err(error) = written {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                count,
                "refused attempts are not in the audit log"
            );
        }
    }

    fn tick(&mut self, last: bool) {
        if let Err(error) = self.write_kept() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                outcomes = self.kept.len(),
                "the audit log cannot be written: calls that change something are refused"
            );
        }
        let now = Instant::now();
        self.refused
            .overlooked(self.overlooked.swap(0, Ordering::Relaxed), now);
        for (attempt, count) in self.refused.due(now, last) {
            self.note(&attempt, count);
        }
        self.log.sync();
    }
}
