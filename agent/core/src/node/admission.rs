//! Owns who may begin: strict about starvation, free of lost wake-ups. Runs after every event that released something
//! or brought somebody new, over all that wait.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use crate::{
    addresses::Addresses,
    change::Change,
    container::{Container, Retry},
    desired::{Millis, Protocol},
    event::Failure,
    ids::{SubnetId, TaskId},
    ports::{Binding, DynamicPorts},
    report::StopCode,
    resources::Lack,
    task::Phase,
};

/// A task that fits may pass one that does not, this many times; then nobody passes it any more.
pub const OVERTAKEN_MAX: u32 = 16;
/// How many addresses of a network outside a task tries that other hosts turn out to have.
const ADDRESS_TRIES_MAX: u32 = 3;
/// How many of those that hold what is wanted are named in a reason.
const HOLDERS_NAMED_MAX: usize = 3;

impl Node {
    /// Admits whoever fits, in order of arrival. Returns the tasks whose facts changed.
    pub(super) fn admit(&mut self, now: Millis, change: &mut Change) -> BTreeSet<TaskId> {
        let mut waiting: Vec<(u64, TaskId)> = self
            .tasks
            .values()
            .filter(|task| matches!(task.phase, Phase::Waiting { .. }))
            .map(|task| (task.arrival, task.spec.id.clone()))
            .collect();
        waiting.sort();
        let mut changed = BTreeSet::new();
        let mut passed: Vec<TaskId> = Vec::new();
        for (_, id) in waiting {
            match self.try_admit(&id, now, change) {
                Ok(()) => {
                    self.count_overtaken(&passed);
                    changed.insert(id);
                }
                Err(Lack::Never(why)) => {
                    if let Some(task) = self.tasks.get_mut(&id) {
                        task.begin_stop(StopCode::TaskFailedToStart, why, now);
                    }
                    changed.insert(id);
                }
                Err(Lack::Now(why)) => {
                    if self.set_waiting(&id, why) {
                        changed.insert(id.clone());
                    }
                    if self.is_barrier(&id) {
                        break;
                    }
                    passed.push(id);
                }
            }
        }
        changed
    }

    fn try_admit(&mut self, id: &TaskId, now: Millis, change: &mut Change) -> Result<(), Lack> {
        let Some(task) = self.tasks.get_mut(id) else {
            return Ok(());
        };
        self.resources.fits(&task.spec)?;
        if task.wants_address() {
            let addresses = &mut self.record.addresses;
            let subnet = task.spec.subnet.as_ref();
            let Some(address) = addresses.lease(id, subnet, now) else {
                let lack = lack_of_address(addresses, subnet, 1);
                return Err(
                    match subnet.and_then(|subnet| self.applied.problems.get(subnet)) {
                        Some(problem) => Lack::Now(format!("RESOURCE:ENI: {problem}")),
                        None => lack,
                    },
                );
            };
            task.address = Some(address);
            change.node = true;
        }
        for container in task.want_addresses() {
            let addresses = &mut self.record.addresses;
            let Some(address) = addresses.lease_for(id, &container, now) else {
                let lack = lack_of_address(addresses, None, task.want_addresses().len());
                // All or none: what it waits for is not kept from others.
                addresses.forgo(id);
                task.container_addresses.clear();
                return Err(lack);
            };
            task.container_addresses.insert(container, address);
            change.node = true;
        }
        if task.spec.publishes() {
            let (resources, dynamic) = (&self.resources, &self.config.dynamic_ports);
            let held = |protocol, port| resources.is_held(protocol, port);
            let Some(bindings) = self.record.ports.choose(&task.spec, dynamic, &held, now) else {
                self.record.addresses.forgo(id);
                (task.address, task.container_addresses) = (None, BTreeMap::new());
                return Err(Lack::Now(no_ports(dynamic)));
            };
            task.bindings = bindings;
            let ports = task.bindings.iter().flat_map(Binding::host_ports);
            self.resources.hold_ports(id, ports);
            change.node = true;
        }
        self.resources.charge(&task.spec);
        task.phase = Phase::Active;
        Ok(())
    }

    /// Processes of the host have some of those that were chosen. Its task has not begun; it goes on with others, or ends.
    pub(super) fn choose_other_ports(
        &mut self,
        id: &TaskId,
        taken: Vec<(Protocol, u16)>,
        now: Millis,
        change: &mut Change,
    ) {
        self.record.ports.rest(taken, now);
        change.node = true;
        self.await_quarantine(change);
        let Some(task) = self.tasks.get_mut(id).filter(|task| task.phase == Phase::Active) else {
            return;
        };
        self.resources.release_ports(id);
        // Somebody may wait for what is given up.
        self.admission_due = true;
        let (resources, dynamic) = (&self.resources, &self.config.dynamic_ports);
        let held = |protocol, port| resources.is_held(protocol, port);
        match self.record.ports.choose(&task.spec, dynamic, &held, now) {
            Some(bindings) => task.bindings = bindings,
            None => {
                let reason = format!("ResourceInitializationError: {}", no_ports(dynamic));
                task.begin_stop(StopCode::TaskFailedToStart, reason, now);
            }
        }
        let ports = task.bindings.iter().flat_map(Binding::host_ports);
        self.resources.hold_ports(id, ports);
    }

    /// Another host has the address of a task that has not begun. It goes on with the next, a few times, or ends. One with a
    /// process ends: that knows the address that it has.
    pub(super) fn choose_other_address(
        &mut self,
        id: &TaskId,
        failure: &Failure,
        now: Millis,
        change: &mut Change,
    ) {
        let Some(task) = self.tasks.get_mut(id).filter(|task| task.phase == Phase::Active) else {
            return;
        };
        let has_process = task
            .containers()
            .any(|(_, container)| container.may_have_process());
        let reason = Container::failure_reason(failure);
        task.addresses_tried = task.addresses_tried.saturating_add(1);
        let other = if has_process {
            Err(reason)
        } else if task.addresses_tried >= ADDRESS_TRIES_MAX {
            Err(format!("{reason}; {ADDRESS_TRIES_MAX} addresses were tried"))
        } else {
            let other = self.record.addresses.exchange(id, task.spec.subnet.as_ref(), now);
            other.ok_or_else(|| format!("{reason}; no other address is free"))
        };
        match other {
            Ok(other) => {
                task.address = Some(other);
                change.node = true;
                self.await_quarantine(change);
            }
            // Its address rests once it is released.
            Err(reason) => {
                task.begin_stop(StopCode::TaskFailedToStart, reason, now);
                task.host_retry = Retry::default();
            }
        }
    }

    /// Whether the reason is new.
    fn set_waiting(&mut self, id: &TaskId, why: String) -> bool {
        let stopping: Vec<&str> = self
            .tasks
            .values()
            .filter(|task| matches!(task.phase, Phase::Stopping | Phase::Releasing))
            .map(|task| task.spec.id.as_str())
            .take(HOLDERS_NAMED_MAX)
            .collect();
        let why = match stopping.as_slice() {
            [] => why,
            ids => format!("{why}; stopping now: {}", ids.join(", ")),
        };
        match self.tasks.get_mut(id).map(|task| &mut task.phase) {
            Some(Phase::Waiting { reason, .. }) if *reason != why => {
                *reason = why;
                true
            }
            _ => false,
        }
    }

    fn count_overtaken(&mut self, passed: &[TaskId]) {
        for id in passed {
            if let Some(Phase::Waiting { overtaken, .. }) = self.tasks.get_mut(id).map(|task| &mut task.phase)
            {
                *overtaken += 1;
            }
        }
    }

    fn is_barrier(&self, id: &TaskId) -> bool {
        let phase = self.tasks.get(id).map(|task| &task.phase);
        matches!(phase, Some(Phase::Waiting { overtaken, .. }) if *overtaken >= OVERTAKEN_MAX)
    }
}

fn lack_of_address(addresses: &Addresses, subnet: Option<&SubnetId>, wanted: usize) -> Lack {
    let Some(range) = addresses.range(subnet) else {
        let subnet = subnet.map(ToString::to_string).unwrap_or_default();
        return Lack::Now(format!(
            "RESOURCE:ENI: this node has no part of {subnet} that it can use"
        ));
    };
    let range = range.ipv4;
    let (wanted, capacity) = (u32::try_from(wanted).unwrap_or(u32::MAX), addresses.capacity());
    if subnet.is_none() && capacity == 0 {
        return Lack::Never(format!("RESOURCE:ENI: {range} has no address for a task"));
    }
    if subnet.is_none() && wanted > capacity {
        return Lack::Never(format!(
            "RESOURCE:ENI: wants {wanted} addresses, {range} has {capacity}"
        ));
    }
    let (held, resting) = addresses.counts(range);
    Lack::Now(format!(
        "RESOURCE:ENI: no free address in {range}: {held} are in use, {resting} rest after use"
    ))
}

fn no_ports(dynamic: &DynamicPorts) -> String {
    let (first, last) = (dynamic.range.start(), dynamic.range.end());
    format!("RESOURCE:PORTS: not enough ports of {first}-{last} are free")
}
