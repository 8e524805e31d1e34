//! Owns what placement sees of a node. Never more than the control plane's record of it: a heartbeat's usage plays
//! no part, so that a busy minute moves nothing.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::expression::Subject;
use crate::task::Requirements;

/// Whether a node takes tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeStatus {
    Active,
    /// Keeps what it runs and takes nothing new.
    Draining,
    /// Deregistered.
    Inactive,
}

impl NodeStatus {
    /// As ECS spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Draining => "DRAINING",
            Self::Inactive => "INACTIVE",
        }
    }
}

/// A string that is no status of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected one of ACTIVE, DRAINING, INACTIVE; got {0:?}")]
pub struct InvalidStatus(pub String);

impl FromStr for NodeStatus {
    type Err = InvalidStatus;

    fn from_str(s: &str) -> Result<Self, InvalidStatus> {
        let all = [Self::Active, Self::Draining, Self::Inactive];
        let found = all.into_iter().find(|status| status.as_str() == s);
        found.ok_or_else(|| InvalidStatus(s.chars().take(64).collect()))
    }
}

/// One node as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    pub id: String,
    pub status: NodeStatus,
    pub connected: bool,
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    pub agent_version: String,
    pub registered_at_ms: i64,
    /// What the node offers to tasks in all.
    pub cpu_units: u32,
    pub memory_bytes: u64,
    /// How many addresses of the node's own range tasks can have.
    pub task_addresses: u32,
    /// Its parts of the cluster's subnets.
    pub pools: Vec<AddressPool>,
    /// Ports of the host that tasks may not use.
    pub reserved_tcp_ports: Vec<u16>,
    pub reserved_udp_ports: Vec<u16>,
    /// Ids of its GPUs.
    pub gpus: Vec<String>,
    /// What is placed here.
    pub allocations: Vec<Allocation>,
    /// Those of the node and those put by the operator, the latter on top.
    pub attributes: BTreeMap<String, Option<String>>,
    pub features: Vec<String>,
}

/// A node's part of one subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPool {
    pub subnet: String,
    /// How many tasks can have an address of it.
    pub addresses: u32,
    /// Why the node cannot use it, as the node says.
    pub problem: Option<String>,
}

/// What one task holds on its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    pub cpu_units: u32,
    pub memory_bytes: u64,
    pub tcp_ports: Vec<u16>,
    pub udp_ports: Vec<u16>,
    pub addresses: u32,
    /// Where its address comes from; none: from the node's own range.
    pub subnet: Option<String>,
    /// Ids of GPUs, in the order of the containers that have them.
    pub gpus: Vec<String>,
    /// Its desired status is STOPPED.
    pub stopping: bool,
    /// The task's group.
    pub group: String,
}

impl NodeView {
    /// CPU units not charged to any task that is to run.
    pub fn free_cpu_units(&self) -> u32 {
        self.staying()
            .fold(self.cpu_units, |free, a| free.saturating_sub(a.cpu_units))
    }

    /// Bytes not charged to any task that is to run.
    pub fn free_memory_bytes(&self) -> u64 {
        self.staying()
            .fold(self.memory_bytes, |free, a| free.saturating_sub(a.memory_bytes))
    }

    /// Addresses of the node's own range that no task holds, those being stopped included.
    pub fn free_addresses(&self) -> u32 {
        self.task_addresses.saturating_sub(self.held_addresses(None))
    }

    /// Likewise of the node's part of a subnet; none where it has no part, or cannot use it.
    pub(super) fn free_in(&self, subnet: &str) -> u32 {
        let usable = |pool: &&AddressPool| pool.subnet == subnet && pool.problem.is_none();
        let pool = self.pools.iter().find(usable);
        pool.map_or(0, |pool| {
            pool.addresses.saturating_sub(self.held_addresses(Some(subnet)))
        })
    }

    fn held_addresses(&self, subnet: Option<&str>) -> u32 {
        let of = self.allocations.iter().filter(|a| a.subnet.as_deref() == subnet);
        of.fold(0, |held, a| held.saturating_add(a.addresses))
    }

    /// GPUs that no task holds, those being stopped included: a process may be using one to its end.
    pub fn free_gpus(&self) -> impl Iterator<Item = &String> {
        let held = |id: &&String| !self.allocations.iter().any(|a| a.gpus.contains(id));
        self.gpus.iter().filter(held)
    }

    /// What a task that fits is to hold here: it has the first GPUs that are free, and an address of the first of its
    /// subnets that has one.
    pub fn allocate(&self, needs: &Requirements, group: &str) -> Allocation {
        let count = usize::try_from(needs.gpus).unwrap_or(usize::MAX);
        Allocation {
            gpus: self.free_gpus().take(count).cloned().collect(),
            subnet: needs.subnets.iter().find(|id| self.free_in(id) > 0).cloned(),
            ..needs.allocation(group)
        }
    }

    /// The group's tasks here that are not being stopped.
    pub(super) fn tasks_of(&self, group: &str) -> usize {
        self.staying().filter(|a| a.group == group).count()
    }

    /// Tasks here that are not being stopped.
    pub(super) fn tasks(&self) -> usize {
        self.staying().count()
    }

    fn staying(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.iter().filter(|a| !a.stopping)
    }

    /// How many tasks of each group are not being stopped; what [`NodeView::subject`] borrows.
    pub fn groups(&self) -> BTreeMap<String, u32> {
        let mut groups = BTreeMap::new();
        for allocation in self.staying() {
            *groups.entry(allocation.group.clone()).or_insert(0) += 1;
        }
        groups
    }

    /// The node as an expression sees it: for constraints, and for ListContainerInstances' filter.
    pub fn subject<'a>(&'a self, groups: &'a BTreeMap<String, u32>) -> Subject<'a> {
        Subject {
            node_id: &self.id,
            attributes: &self.attributes,
            groups,
            running_tasks: u32::try_from(self.tasks()).unwrap_or(u32::MAX),
            connected: self.connected,
            agent_version: &self.agent_version,
            registered_at_ms: self.registered_at_ms,
        }
    }
}
