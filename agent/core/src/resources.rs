//! Owns the node's accounts: what tasks hold and whether another fits. Never starts or stops anything.
//!
//! CPU and memory are held until a task has no process left; host ports and GPUs until nothing of it is left.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    cdi::DeviceName,
    desired::{Limits, Protocol, TaskSpec},
    ids::TaskId,
};

/// What the node offers to tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub cpu_units: u32,
    pub memory_bytes: u64,
    pub reserved_ports: BTreeSet<(Protocol, u16)>,
}

/// What is held. Derived from the tasks' states, so never stored.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    capacity: Capacity,
    charges: BTreeMap<TaskId, Limits>,
    ports: BTreeMap<(Protocol, u16), TaskId>,
    gpus: BTreeMap<DeviceName, TaskId>,
}

/// Why a task does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It would not fit on the empty node either.
    Never(String),
    /// It fits when others have ended.
    Now(String),
}

impl Resources {
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            ..Self::default()
        }
    }

    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Whether `spec` fits beside what is held.
    pub fn fits(&self, spec: &TaskSpec) -> Result<(), Lack> {
        self.fits_cpu(spec)?;
        self.fits_memory(spec)?;
        for port in spec.host_ports() {
            let name = port_name(port);
            if self.capacity.reserved_ports.contains(&port) {
                return Err(Lack::Never(format!(
                    "RESOURCE:PORTS: {name} is reserved on this node"
                )));
            }
            if let Some(owner) = self.ports.get(&port) {
                return Err(Lack::Now(format!(
                    "RESOURCE:PORTS: {name} is held by task {owner}"
                )));
            }
        }
        let mut held = spec
            .gpus()
            .filter_map(|gpu| self.gpus.get(gpu).map(|owner| (gpu, owner)));
        match held.next() {
            Some((gpu, owner)) => Err(Lack::Now(format!("RESOURCE:GPU: {gpu} is held by task {owner}"))),
            None => Ok(()),
        }
    }

    fn fits_cpu(&self, spec: &TaskSpec) -> Result<(), Lack> {
        let (wanted, all) = (spec.charge.cpu_units, self.capacity.cpu_units);
        let used: u32 = self.charges.values().map(|c| c.cpu_units).sum();
        if wanted > all {
            return Err(Lack::Never(format!(
                "RESOURCE:CPU: wants {wanted} CPU units, the node has {all}"
            )));
        }
        let free = all.saturating_sub(used);
        if wanted > free {
            return Err(Lack::Now(format!(
                "RESOURCE:CPU: wants {wanted} CPU units, {free} of {all} are free"
            )));
        }
        Ok(())
    }

    fn fits_memory(&self, spec: &TaskSpec) -> Result<(), Lack> {
        let (wanted, all) = (spec.charge.memory_bytes, self.capacity.memory_bytes);
        let used: u64 = self.charges.values().map(|c| c.memory_bytes).sum();
        let mib = |bytes: u64| bytes >> 20;
        if wanted > all {
            let text = format!(
                "RESOURCE:MEMORY: wants {} MiB, the node has {} MiB",
                mib(wanted),
                mib(all)
            );
            return Err(Lack::Never(text));
        }
        let free = all.saturating_sub(used);
        if wanted > free {
            let text = format!(
                "RESOURCE:MEMORY: wants {} MiB, {} of {} MiB are free",
                mib(wanted),
                mib(free),
                mib(all)
            );
            return Err(Lack::Now(text));
        }
        Ok(())
    }

    /// Charges a task. Does not ask whether it fits: a task that runs already is charged whatever the accounts say.
    pub fn charge(&mut self, spec: &TaskSpec) {
        self.charges.insert(spec.id.clone(), spec.charge);
        for port in spec.host_ports() {
            self.ports.insert(port, spec.id.clone());
        }
        for gpu in spec.gpus() {
            self.gpus.insert(gpu.clone(), spec.id.clone());
        }
    }

    /// Ports that were chosen for it.
    pub fn hold_ports(&mut self, task: &TaskId, ports: impl IntoIterator<Item = (Protocol, u16)>) {
        for port in ports {
            self.ports.insert(port, task.clone());
        }
    }

    /// Gives up all its ports, for others to be chosen.
    pub fn release_ports(&mut self, task: &TaskId) {
        self.ports.retain(|_, owner| owner != task);
    }

    /// Whether a port is a task's, or nobody's to have.
    pub fn is_held(&self, protocol: Protocol, port: u16) -> bool {
        let port = (protocol, port);
        self.capacity.reserved_ports.contains(&port) || self.ports.contains_key(&port)
    }

    /// Its processes are gone: CPU and memory are free. Whether it held any.
    pub fn release_processes(&mut self, task: &TaskId) -> bool {
        self.charges.remove(task).is_some()
    }

    /// Nothing of it is left. Whether it held anything.
    pub fn release_all(&mut self, task: &TaskId) -> bool {
        let held = self.ports.len() + self.gpus.len();
        self.ports.retain(|_, owner| owner != task);
        self.gpus.retain(|_, owner| owner != task);
        self.release_processes(task) || self.ports.len() + self.gpus.len() < held
    }

    /// CPU units and memory bytes held now.
    pub fn used(&self) -> Limits {
        let add = |sum: Limits, charge: &Limits| Limits {
            cpu_units: sum.cpu_units.saturating_add(charge.cpu_units),
            memory_bytes: sum.memory_bytes.saturating_add(charge.memory_bytes),
        };
        self.charges.values().fold(Limits::default(), add)
    }
}

/// As people name it.
pub fn port_name((protocol, port): (Protocol, u16)) -> String {
    match protocol {
        Protocol::Tcp => format!("host port {port}/tcp"),
        Protocol::Udp => format!("host port {port}/udp"),
    }
}
