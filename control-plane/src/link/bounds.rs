//! Owns how much of what a node says is kept, and how fast it may make the store write. A node with a good certificate
//! may still be hostile: what is beyond the bounds is cut off, and it waits.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use berth_control_plane_core::subnets::SUBNETS_MAX;
use berth_proto::node::v1::{Heartbeat, NetworkAck, Pulls, RangeProblem};

use crate::subnets::Said;

use super::{join::clipped, limits::REMEMBERED_MAX};

pub(super) const IMPAIRMENTS_MAX: usize = 32;
/// More tasks than a node runs.
const TASKS_MAX: usize = 4_096;
const CONTAINERS_PER_TASK_MAX: usize = 64;
const PULLS_MAX: usize = 256;
const LAYERS_MAX: usize = 256;
/// Transactions that one node may cause at once, and how long until it may cause one more. A transaction takes up to 62
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

/// What is kept of what a node says of its parts of subnets.
pub(super) fn ranges(mut ack: NetworkAck) -> Said {
    ack.problems.truncate(SUBNETS_MAX);
    ack.limits.truncate(SUBNETS_MAX);
    let kept = |problem: RangeProblem| (problem.subnet_id, clipped(&problem.reason));
    Said {
        problems: ack.problems.into_iter().map(kept).collect(),
        limits: ack
            .limits
            .into_iter()
            .map(|limit| (limit.subnet_id, limit.tasks))
            .collect(),
    }
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

/// Each node's share of the store, over all of its links: while it is spent, the node is not read from.
#[derive(Debug, Default)]
pub(super) struct Paces(Mutex<HashMap<String, Share>>);

#[derive(Debug)]
struct Share {
    /// Below zero: several of its links were let in at once, and what they caused beyond the share is owed.
    left: i64,
    since: Instant,
}

impl Paces {
    /// How long until the node may cause one more transaction, if not now.
    pub(super) fn wait(&self, node: &str) -> Option<Duration> {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let share = shares.get_mut(node)?;
        share.regain();
        let owed = u32::try_from(1 - share.left).ok().filter(|owed| *owed > 0)?;
        Some((TRANSACTION_REGAINED * owed).saturating_sub(share.since.elapsed()))
    }

    /// Counts transactions.
    pub(super) fn spend(&self, node: &str, transactions: u32) {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.len() >= REMEMBERED_MAX && !shares.contains_key(node) {
            // Who has all of its share is as good as unknown.
            shares.retain(|_, share| {
                share.regain();
                share.left < TRANSACTIONS_MAX.into()
            });
            if shares.len() >= REMEMBERED_MAX {
                shares.clear();
            }
        }
        let share = shares.entry(node.to_owned()).or_insert_with(|| Share {
            left: TRANSACTIONS_MAX.into(),
            since: Instant::now(),
        });
        share.regain();
        share.left = share.left.saturating_sub(transactions.into());
    }
}

impl Share {
    fn regain(&mut self) {
        let regained = self.since.elapsed().as_millis() / TRANSACTION_REGAINED.as_millis();
        let regained = i64::try_from(regained).unwrap_or(i64::MAX);
        if regained > 0 {
            self.left = self.left.saturating_add(regained).min(TRANSACTIONS_MAX.into());
            self.since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_is_let_in_at_a_pace() {
        let paces = Paces::default();
        let started = Instant::now();
        for _ in 0..TRANSACTIONS_MAX + 50 {
            while let Some(wait) = paces.wait("a") {
                tokio::time::sleep(wait).await;
            }
            paces.spend("a", 1);
        }
        // At least so long: what is left over of a pause is not given back.
        assert!(
            started.elapsed() >= TRANSACTION_REGAINED * 48,
            "{:?}",
            started.elapsed()
        );
        assert_eq!(paces.wait("b"), None, "others have theirs");
    }

    #[test]
    fn what_was_caused_beyond_the_share_is_owed() {
        let paces = Paces::default();
        paces.spend("a", TRANSACTIONS_MAX + 50);
        let wait = paces.wait("a").unwrap();
        assert!(wait > TRANSACTION_REGAINED * 25, "{wait:?}");
        assert!(wait <= TRANSACTION_REGAINED * 51, "{wait:?}");
    }

    #[test]
    fn nodes_at_rest_are_forgotten_and_those_in_debt_are_not() {
        let paces = Paces::default();
        paces.spend("busy", TRANSACTIONS_MAX * 2);
        for number in 1..REMEMBERED_MAX {
            paces.spend(&number.to_string(), 0);
        }
        paces.spend("more", 1);
        assert!(paces.wait("busy").is_some());
        assert_eq!(paces.0.lock().unwrap().len(), 2);
    }
}
