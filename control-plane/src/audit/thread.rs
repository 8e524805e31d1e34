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

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    AuditError, Intent, SYNC,
    event::{Event, Outcome},
    file::Log,
    refused::{Attempt, Refused},
};

/// Holds a place among those that may wait, as long as it is there.
pub(super) type Place = OwnedSemaphorePermit;

/// What can be asked.
#[derive(Debug)]
pub(super) enum Job {
    /// Written down, the intent is given back; nobody there to take it, it is dropped, which concludes it.
    Intend {
        intent: Intent,
        answer: oneshot::Sender<Result<Intent, AuditError>>,
    },
    Conclude {
        outcome: Concluded,
        answer: Option<oneshot::Sender<Result<(), AuditError>>>,
    },
    Record {
        event: Event,
        outcome: Outcome,
        place: Place,
        answer: oneshot::Sender<Result<(), AuditError>>,
    },
    Refused {
        attempt: Attempt,
        place: Place,
    },
    /// Answered when everything before it was tried to be written.
    Flush {
        place: Place,
        answer: oneshot::Sender<()>,
    },
    Close,
}

/// How a change that was let through ended. It has its place from the intent, so that it always can be told.
#[derive(Debug)]
pub(super) struct Concluded {
    pub event: Event,
    pub outcome: Outcome,
    pub of: u64,
    pub _place: Place,
}

#[derive(Debug)]
pub(super) struct Writer {
    log: Log,
    refused: Refused,
    overlooked: Arc<AtomicU64>,
    /// Outcomes that could not be written, oldest first. Bounded by their places.
    kept: VecDeque<Concluded>,
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
                Ok(Job::Close) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(job) => self.work(job),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= next_tick {
                self.tick(false);
                next_tick = Instant::now() + SYNC;
            }
        }
        self.tick(true);
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Intend { intent, answer } => {
                let intent = intent.begun(|event| self.write(event, Outcome::Started));
                answer.send(intent).ok();
            }
            Job::Conclude { outcome, answer } => {
                self.keep(outcome);
                let written = self.write_kept();
                if let Some(answer) = answer {
                    answer.send(written).ok();
                }
            }
            Job::Record {
                event,
                outcome,
                place,
                answer,
            } => {
                let written = self.write(&event, outcome).map(|_| ());
                drop(place);
                answer.send(written).ok();
            }
            Job::Refused { attempt, place } => {
                drop(place);
                if let Some((event, code)) = self.refused.count(attempt, Instant::now()) {
                    self.note(&event, code);
                }
            }
            Job::Flush { place, answer } => {
                drop(place);
                answer.send(()).ok();
            }
            Job::Close => {}
        }
    }

    /// The line's sequence. Outcomes that wait come first.
    fn write(&mut self, event: &Event, outcome: Outcome) -> Result<u64, AuditError> {
        self.write_kept()?;
        self.log.append(event, outcome, None)
    }

    pub(super) fn keep(&mut self, outcome: Concluded) {
        self.kept.push_back(outcome);
    }

    fn write_kept(&mut self) -> Result<(), AuditError> {
        while let Some(kept) = self.kept.front() {
            self.log
                .append(&kept.event, kept.outcome.clone(), Some(kept.of))?;
            self.kept.pop_front();
        }
        Ok(())
    }

    fn note(&mut self, event: &Event, code: &'static str) {
        if let Err(error) = self.log.append(event, Outcome::refused(code), None) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                count = event.count,
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
        for (event, code) in self.refused.due(now, last) {
            self.note(&event, code);
        }
        self.log.sync();
    }
}
