//! Owns how a node goes on after its agent, or its host, was started again: from what is known and from what was found.

use std::collections::{BTreeMap, BTreeSet};

use super::{Node, SEQUENCES_LOST_MAX, deadlines};
use crate::{
    change::Change,
    desired::Millis,
    event::Restarted,
    ids::TaskId,
    ledger::{LedgerWrite, Owned},
    task::Phase,
};

impl Node {
    pub(super) fn on_restarted(
        &mut self,
        restarted: &Restarted,
        now: Millis,
        change: &mut Change,
    ) -> BTreeSet<TaskId> {
        let mut observed: BTreeMap<&TaskId, BTreeMap<_, _>> = BTreeMap::new();
        for seen in &restarted.containers {
            let of_task = observed.entry(&seen.task).or_default();
            of_task.insert((seen.container.clone(), seen.attempt), seen.state.clone());
        }
        self.answer_for_strangers(restarted, change);
        // Also before a first snapshot, and where an earlier version wrote the record: a later registration is to be seen.
        if self.record.identity.is_none() && self.identity.is_some() {
            self.record.identity.clone_from(&self.identity);
            change.node = true;
        }
        let none = BTreeMap::new();
        for (id, task) in &mut self.tasks {
            // First: what the runtime lists after a boot says nothing about how its processes ended.
            if restarted.host_rebooted {
                task.on_host_rebooted(now);
                if task.phase == Phase::Active {
                    let (addresses, subnet) = (&mut self.record.addresses, task.spec.subnet.as_ref());
                    task.address = addresses.begin_anew(id, subnet, now).or(task.address);
                    for (container, address) in &mut task.container_addresses {
                        if let Some(inside) = addresses.begin_anew_for(id, container, now) {
                            *address = inside;
                        }
                    }
                }
            }
            task.on_agent_restarted(observed.get(id).unwrap_or(&none), now);
            // Deadlines are in the tasks; the timers were in memory.
            change.timers.extend(deadlines(task, &self.config));
        }
        self.await_quarantine(change);
        if restarted.host_rebooted {
            for task in self.record.addresses.of_earlier_boots() {
                // Of a task that began anew, or whose release is under way, it says so itself.
                if !self.tasks.contains_key(&task) {
                    self.release(&task, now, change);
                }
            }
            self.record.last_sequence += SEQUENCES_LOST_MAX;
            change.node = true;
        }
        self.admission_due = true;
        self.tasks.keys().cloned().collect()
    }

    /// Containers of tasks whose records are lost. No leaks yet: the control plane may want them, and whether anything of
    /// such a task is left is asked before it is said to be stopped. The next snapshot decides.
    fn answer_for_strangers(&mut self, restarted: &Restarted, change: &mut Change) {
        for seen in &restarted.containers {
            let task = &seen.task;
            if self.tasks.contains_key(task) {
                continue;
            }
            let stranger = self.strangers.entry(task.clone()).or_default();
            stranger
                .containers
                .insert((seen.container.clone(), seen.attempt), seen.state.clone());
            stranger.address = restarted.addresses.get(task).copied();
            for owned in [
                Owned::Host(task.clone()),
                Owned::Logs(task.clone()),
                Owned::Attempt(task.clone(), seen.container.clone(), seen.attempt),
            ] {
                if !self.ledger.contains(&owned) {
                    self.write_ledger(LedgerWrite::Intend(owned), change);
                }
            }
        }
    }
}
