//! Owns what a step of the host's clock does: everything that is waited for keeps the time it had left. What was
//! reported stays as it was said.
//!
//! Deadlines are points in time, so that they survive a restart of the agent; but how long something waits is a
//! duration. Without this a clock that is set forward, as on a host whose clock was wrong at boot, would cut every
//! stop timeout short.

use std::collections::BTreeSet;

use super::Node;
use crate::{
    change::Change,
    container::{Container, StopStage},
    desired::Millis,
    event::TimerKey,
    ids::TaskId,
    task::{Phase, Task},
};

impl Node {
    /// The clock was set by so many milliseconds, forward or back. Returns the tasks that may wait for something.
    pub(super) fn on_clock_stepped(&mut self, by_ms: i64, change: &mut Change) -> BTreeSet<TaskId> {
        self.record.addresses.shift_expiry(by_ms);
        self.record.ports.shift_expiry(by_ms);
        change.node = true;
        self.await_quarantine(change);
        let mut touched = BTreeSet::new();
        for (id, task) in &mut self.tasks {
            if task.phase == Phase::Stopped {
                continue;
            }
            shift(task, by_ms);
            if let Phase::Waiting { since, .. } = task.phase {
                let at = since.plus(self.config.admission_deadline_ms);
                change.timers.push((TimerKey::Admission(id.clone()), at));
            }
            touched.insert(id.clone());
        }
        touched
    }
}

fn shift(task: &mut Task, by_ms: i64) {
    if let Phase::Waiting { since, .. } = &mut task.phase {
        *since = since.plus(by_ms);
    }
    shift_at(&mut task.host_retry.at, by_ms);
    if let Some(awaited) = &mut task.awaited {
        awaited.since = awaited.since.plus(by_ms);
    }
    task.each_container(|container| shift_container(container, by_ms));
}

fn shift_container(container: &mut Container, by_ms: i64) {
    shift_at(&mut container.retry.at, by_ms);
    shift_at(&mut container.waited_for_since, by_ms);
    shift_at(&mut container.running_since, by_ms);
    shift_at(&mut container.restarts.at, by_ms);
    container.health.on_clock_stepped(by_ms);
    match &mut container.stop {
        StopStage::NotAsked => {}
        StopStage::Asked { kill_at: at } | StopStage::Killed { again_at: at, .. } => *at = at.plus(by_ms),
    }
}

fn shift_at(at: &mut Option<Millis>, by_ms: i64) {
    *at = at.map(|at| at.plus(by_ms));
}
