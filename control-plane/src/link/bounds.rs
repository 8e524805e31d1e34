//! Owns how much of what a node says is kept, and how fast it may make the store write. A node with a good certificate
//! may still be hostile: what is beyond the bounds is cut off, and it waits.

use std::time::Duration;

use berth_proto::node::v1::{Heartbeat, Pulls};
use tokio::time::{Instant, sleep_until};

use super::join::clipped;

pub(super) const IMPAIRMENTS_MAX: usize = 32;
/// More tasks than a node runs.
const TASKS_MAX: usize = 4_096;
const CONTAINERS_PER_TASK_MAX: usize = 64;
const PULLS_MAX: usize = 256;
const LAYERS_MAX: usize = 256;
/// Transactions that one link may cause at once, and how long until it may cause one more. A transaction takes up to 62
/// reports, so that an honest node does not notice.
const TRANSACTIONS_MAX: u32 = 200;
const TRANSACTION_REGAINED: Duration = Duration::from_millis(20);

/// What is kept of a heartbeat.
pub(super) fn heartbeat(mut heartbeat: Heartbeat) -> Heartbeat {
    heartbeat.impairments.truncate(IMPAIRMENTS_MAX);
    for impairment in &mut heartbeat.impairments {
        *impairment = clipped(impairment);
    }
    heartbeat.tasks.truncate(TASKS_MAX);
    for task in &mut heartbeat.tasks {
        task.task_id = clipped(&task.task_id);
        task.containers.truncate(CONTAINERS_PER_TASK_MAX);
        for container in &mut task.containers {
            container.name = clipped(&container.name);
            container.container_id = clipped(&container.container_id);
        }
    }
    heartbeat
}

/// What is kept of downloads.
pub(super) fn pulls(mut pulls: Pulls) -> Pulls {
    pulls.images.truncate(PULLS_MAX);
    for image in &mut pulls.images {
        image.reference = image.reference.chars().take(1_024).collect();
        image.layers.truncate(LAYERS_MAX);
        for layer in &mut image.layers {
            layer.digest = clipped(&layer.digest);
        }
    }
    pulls
}

/// A link's share of the store: while it is spent, the node is not read from.
#[derive(Debug)]
pub(super) struct Pace {
    left: u32,
    since: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            left: TRANSACTIONS_MAX,
            since: Instant::now(),
        }
    }
}

impl Pace {
    pub(super) fn is_open(&self) -> bool {
        self.left > 0
    }

    /// Counts one transaction.
    pub(super) fn spend(&mut self) {
        self.regain();
        self.left = self.left.saturating_sub(1);
    }

    /// Returns when there is one more. Cancel-safe.
    pub(super) async fn opens(&mut self) {
        sleep_until(self.since + TRANSACTION_REGAINED).await;
        self.regain();
    }

    fn regain(&mut self) {
        let regained = self.since.elapsed().as_millis() / TRANSACTION_REGAINED.as_millis();
        let regained = u32::try_from(regained).unwrap_or(u32::MAX);
        if regained > 0 {
            self.left = self.left.saturating_add(regained).min(TRANSACTIONS_MAX);
            self.since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_is_let_in_at_a_pace() {
        let mut pace = Pace::default();
        let started = Instant::now();
        for _ in 0..TRANSACTIONS_MAX + 50 {
            while !pace.is_open() {
                pace.opens().await;
            }
            pace.spend();
        }
        // At least so long: what is left over of a pause is not given back.
        assert!(
            started.elapsed() >= TRANSACTION_REGAINED * 48,
            "{:?}",
            started.elapsed()
        );
    }
}
