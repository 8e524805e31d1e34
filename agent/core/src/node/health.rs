//! Owns probes as the node sees them. Most of them find what the one before found: those change nothing that is stored
//! or reported, and a node with many of them must not write for each.

use std::collections::BTreeSet;

use super::Node;
use crate::{
    change::Change,
    desired::Millis,
    event::Completion,
    ids::{ContainerId, TaskId},
    task::Steps,
};

impl Node {
    /// A probe ended. Returns its task where that changed anything but the time of the next probe.
    pub(super) fn on_probed(
        &mut self,
        id: &TaskId,
        container: &ContainerId,
        completion: Completion,
        now: Millis,
        change: &mut Change,
    ) -> BTreeSet<TaskId> {
        let Some(task) = self.tasks.get_mut(id) else {
            let what = format!("a probe of {container} completed, but task {id} is not known");
            change.anomalies.push(what);
            return BTreeSet::new();
        };
        match task.on_probed(container, completion, now) {
            Ok(true) => return BTreeSet::from([id.clone()]),
            Ok(false) => self.watch_health(id, container, now, change),
            Err(what) => change.anomalies.push(format!("task {id}: {what}")),
        }
        BTreeSet::new()
    }

    /// The next probe, or the timer for it; nothing of it is stored.
    pub(super) fn watch_health(
        &mut self,
        id: &TaskId,
        container: &ContainerId,
        now: Millis,
        change: &mut Change,
    ) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        let mut steps = Steps::default();
        task.watch_health(container, now, &mut steps);
        change.effects.extend(steps.effects);
        change.timers.extend(steps.timers);
    }
}
