//! Owns what ended between a backup and its restore: tasks that the node had, and has no more. Never touches one that the
//! node may not have heard of.

use std::collections::BTreeSet;

use crate::{
    link::{dispatch::desired_prefix, map::STOPPED, now},
    model::{Millis, Task, keys},
    store::{Committed, PAGE_ENTRIES_MAX, Transaction, typed},
};

use super::{ATTEMPTS_MAX, Applier, ApplyError, Batch, Pins, Progress, back_off};

const REASON: &str = "it ended after the backup that its control plane was restored from; how is not known";
/// What a task is before its node first reports it.
const UNREPORTED: &str = "PROVISIONING";

impl Applier {
    /// For a node that followed this store before it was restored: what the backup has running there, and the node does
    /// not know, is over. It would be run a second time if it stayed wanted. Returns how many there were.
    pub(in crate::link) async fn end_vanished(&self, known: &BTreeSet<String>) -> Result<usize, ApplyError> {
        let prefix = desired_prefix(&self.peer.node_id);
        let (mut ended, mut after) = (0, None::<String>);
        loop {
            let page = self
                .store
                .range(&prefix, after.as_deref(), PAGE_ENTRIES_MAX)
                .await?;
            for entry in &page.entries {
                let id = entry.key.strip_prefix(&prefix).unwrap_or_default();
                if !known.contains(id) && self.end(id).await? {
                    ended += 1;
                }
            }
            after = page.entries.last().map(|entry| entry.key.clone());
            if !page.more {
                return Ok(ended);
            }
        }
    }

    async fn end(&self, id: &str) -> Result<bool, ApplyError> {
        for attempt in 1..=ATTEMPTS_MAX {
            let key = keys::task(&self.peer.cluster, id);
            let Some(mut task) = typed::get_json::<Task>(&*self.store, &key).await? else {
                return Ok(false);
            };
            if [UNREPORTED, STOPPED].contains(&task.value.last_status.as_str()) {
                return Ok(false);
            }
            stop(&mut task.value, now());
            let mut batch = Batch {
                transaction: Transaction::default(),
                released: vec![],
                stopping: vec![],
                pins: Pins::default(),
            };
            let progress = Progress {
                changed: true,
                stopped: true,
                ends_by_itself: false,
                addressed: false,
                runs: false,
                resolved: false,
            };
            self.add_task(&mut batch, task, progress).await?;
            self.add_node(&mut batch).await?;
            if let Committed::Done(_) = self.store.commit(batch.transaction).await? {
                return Ok(true);
            }
            back_off(attempt).await;
        }
        Err(ApplyError::Contended)
    }
}

fn stop(task: &mut Task, now: Millis) {
    task.desired_status = STOPPED.into();
    task.last_status = STOPPED.into();
    task.stopped_reason.get_or_insert_with(|| REASON.into());
    task.stopping_at.get_or_insert(now);
    task.execution_stopped_at.get_or_insert(now);
    task.stopped_at.get_or_insert(now);
    for container in &mut task.containers {
        container.last_status = STOPPED.into();
    }
    task.version += 1;
}
