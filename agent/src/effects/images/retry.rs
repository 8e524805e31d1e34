//! Owns waiting between attempts: exponential, with jitter, bounded. Never decides what is worth another attempt;
//! [`Cause::retryable`] does.

use std::time::Duration;

use rand::Rng;
use tracing::debug;

use super::{config::Limits, error::Cause};

/// Counts the attempts of one operation.
#[derive(Debug)]
pub(super) struct Backoff {
    attempts_left: u32,
    attempts: u32,
    next: Duration,
    first: Duration,
    max: Duration,
}

impl Backoff {
    pub fn new(limits: &Limits) -> Self {
        let attempts = limits.attempts.max(1);
        Self {
            attempts_left: attempts,
            attempts,
            next: limits.backoff,
            first: limits.backoff,
            max: limits.backoff_max,
        }
    }

    /// The operation made progress: the next failure is a first one again.
    pub fn reset(&mut self) {
        self.attempts_left = self.attempts;
        self.next = self.first;
    }

    /// Waits before another attempt, or gives the cause back when there is none left or none would help.
    pub async fn wait(&mut self, cause: Cause) -> Result<(), Cause> {
        self.attempts_left = self.attempts_left.saturating_sub(1);
        if self.attempts_left == 0 || !cause.retryable() {
            return Err(cause);
        }
        let asked = match &cause {
            Cause::Unavailable { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let wait = jitter(self.next).max(asked).min(self.max);
        debug!(%cause, wait_ms = wait.as_millis() as u64, left = self.attempts_left, "trying again");
        self.next = (self.next * 2).min(self.max);
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Between half of it and all of it: nodes that failed together do not come back together.
fn jitter(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Runs `operation` until it succeeds, fails for good, or has no attempts left.
pub(super) async fn retry<T, F>(limits: &Limits, mut operation: impl FnMut() -> F) -> Result<T, Cause>
where
    F: Future<Output = Result<T, Cause>>,
{
    let mut backoff = Backoff::new(limits);
    loop {
        match operation().await {
            Ok(value) => return Ok(value),
            Err(cause) => backoff.wait(cause).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            attempts: 3,
            backoff: Duration::from_millis(1),
            backoff_max: Duration::from_millis(2),
            ..Limits::default()
        }
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
        let mut calls = 0;
        let result: Result<(), _> = retry(&limits(), || {
            calls += 1;
            std::future::ready(Err(Cause::Stalled(Duration::ZERO)))
        })
        .await;
        assert!(matches!(result, Err(Cause::Stalled(_))));
        assert_eq!(calls, 3);

        let mut calls = 0;
        let result: Result<(), _> = retry(&limits(), || {
            calls += 1;
            std::future::ready(Err(Cause::Denied {
                status: 401,
                detail: String::new(),
            }))
        })
        .await;
        assert!(matches!(result, Err(Cause::Denied { .. })));
        assert_eq!(calls, 1);
    }
}
