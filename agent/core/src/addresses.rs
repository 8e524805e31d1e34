//! Owns the node's ranges of task addresses: its own, and its parts of the cluster's subnets; who has which, and which rest
//! in quarantine. Never touches an interface.
//!
//! An address that was used is not handed out again for [`QUARANTINE_MS`]: peers may still hold connections or
//! neighbour entries for it.

mod dual;
mod lease;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use self::dual::{Address, InvalidIpv6, PREFIX_LEN_MAX, Range};
use self::lease::{Holder, Lease};
use crate::{
    desired::Millis,
    ids::{ContainerId, SubnetId, TaskId},
};

/// How long an address rests after its task ended, milliseconds.
pub const QUARANTINE_MS: i64 = 30_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The node's own.
    range: Range,
    leases: BTreeMap<Ipv4Addr, Lease>,
    /// Where the search for a free one goes on, so that addresses are used in turn.
    next: u32,
    /// Those that are in use.
    #[serde(default)]
    subnets: BTreeMap<SubnetId, Pool>,
    /// Of the host's present boot.
    #[serde(skip)]
    boot: String,
}

/// The node's part of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pool {
    range: Range,
    next: u32,
}

impl Addresses {
    /// All of `range` but its first and last address. A range of fewer than four addresses has none.
    pub fn new(range: impl Into<Range>) -> Self {
        Self {
            range: range.into(),
            leases: BTreeMap::new(),
            next: 1,
            subnets: BTreeMap::new(),
            boot: String::new(),
        }
    }

    /// Leases say from now on that they are of this boot of the host.
    pub fn on_boot(&mut self, boot: &str) {
        boot.clone_into(&mut self.boot);
    }

    /// How many addresses the node's own range has: for tasks, and in bridge mode for containers.
    pub fn capacity(&self) -> u32 {
        capacity(self.range.ipv4)
    }

    /// The range of a subnet, as far as the node uses it; of none: the node's own.
    pub fn range(&self, subnet: Option<&SubnetId>) -> Option<Range> {
        match subnet {
            None => Some(self.range),
            Some(subnet) => self.subnets.get(subnet).map(|pool| pool.range),
        }
    }

    /// The node's parts of subnets that are in use.
    pub fn subnet_ranges(&self) -> impl Iterator<Item = Range> {
        self.subnets.values().map(|pool| pool.range)
    }

    /// Every range that addresses come from.
    pub fn ranges(&self) -> impl Iterator<Item = Range> {
        std::iter::once(self.range).chain(self.subnet_ranges())
    }

    /// Addresses of subnets come from these, and from no others any more. Who has one keeps it. Whether that is news.
    pub fn use_subnets(&mut self, ranges: &BTreeMap<SubnetId, Range>) -> bool {
        let before = self.subnets.clone();
        self.subnets
            .retain(|subnet, pool| ranges.get(subnet) == Some(&pool.range));
        for (subnet, range) in ranges {
            let fresh = || Pool {
                range: *range,
                next: 1,
            };
            self.subnets.entry(subnet.clone()).or_insert_with(fresh);
        }
        self.subnets != before
    }

    /// As [`Addresses::use_subnets`], but none is added: what is new has to be looked at first.
    pub fn keep_subnets(&mut self, ranges: &BTreeMap<SubnetId, Range>) -> bool {
        let known = ranges
            .iter()
            .filter(|(subnet, _)| self.subnets.contains_key(*subnet));
        let known = known.map(|(subnet, range)| (subnet.clone(), *range)).collect();
        self.use_subnets(&known)
    }

    /// Leases an address of the subnet, or of the node's own range, to `task`: the one it has if it has one. `None` when
    /// none is free.
    pub fn lease(&mut self, task: &TaskId, subnet: Option<&SubnetId>, now: Millis) -> Option<Address> {
        self.lease_as(task, None, subnet, now)
    }

    /// Likewise, of the node's own range, to one container of `task`.
    pub fn lease_for(&mut self, task: &TaskId, container: &ContainerId, now: Millis) -> Option<Address> {
        self.lease_as(task, Some(container), None, now)
    }

    fn lease_as(
        &mut self,
        task: &TaskId,
        container: Option<&ContainerId>,
        subnet: Option<&SubnetId>,
        now: Millis,
    ) -> Option<Address> {
        if let Some(held) = self.held_by(task, container) {
            return Some(held);
        }
        let (range, next) = match subnet {
            None => (self.range, &mut self.next),
            Some(subnet) => {
                let pool = self.subnets.get_mut(subnet)?;
                (pool.range, &mut pool.next)
            }
        };
        let first = u32::from(range.ipv4.network());
        let count = capacity(range.ipv4);
        let start = (*next).max(1) - 1;
        let free = (0..count).map(|i| (start + i) % count + 1).find(|offset| {
            match self.leases.get(&Ipv4Addr::from(first + offset)) {
                None => true,
                Some(Lease::Held(_)) => false,
                Some(Lease::Quarantined { until }) => *until <= now,
            }
        })?;
        *next = free + 1;
        let address = range.address(Ipv4Addr::from(first + free));
        let holder = Holder {
            task: task.clone(),
            container: container.cloned(),
            subnet: subnet.cloned(),
            ipv6: address.ipv6,
            boot: self.boot.clone(),
        };
        self.leases.insert(address.ipv4, Lease::Held(holder));
        Some(address)
    }

    /// Notes that `task` has an address, from before this record began.
    pub fn hold(&mut self, address: Address, task: &TaskId) {
        self.hold_as(address, task, None);
    }

    /// Likewise of one container.
    pub fn hold_for(&mut self, address: Address, task: &TaskId, container: &ContainerId) {
        self.hold_as(address, task, Some(container));
    }

    fn hold_as(&mut self, address: Address, task: &TaskId, container: Option<&ContainerId>) {
        let holder = Holder {
            task: task.clone(),
            container: container.cloned(),
            subnet: self.subnet_of(address.ipv4),
            ipv6: address.ipv6,
            boot: self.boot.clone(),
        };
        self.leases.insert(address.ipv4, Lease::Held(holder));
    }

    fn subnet_of(&self, address: Ipv4Addr) -> Option<SubnetId> {
        let mut pools = self.subnets.iter();
        let found = pools.find(|(_, pool)| pool.range.ipv4.contains(&address));
        found.map(|(subnet, _)| subnet.clone())
    }

    /// Whether a task that is found with this address can keep it: it is in a range, and nobody else's.
    pub fn may_hold(&self, address: Address, task: &TaskId) -> bool {
        let free = match self.leases.get(&address.ipv4) {
            None | Some(Lease::Quarantined { .. }) => true,
            Some(Lease::Held(owner)) => owner.task == *task && owner.container.is_none(),
        };
        let inside = self.ranges().any(|range| range.contains(address));
        let held = self.held_by(task, None);
        free && inside && held.is_none_or(|held| held.ipv4 == address.ipv4)
    }

    /// Who has one.
    pub fn holders(&self) -> impl Iterator<Item = &TaskId> {
        self.leases.values().filter_map(|lease| match lease {
            Lease::Held(holder) => Some(&holder.task),
            Lease::Quarantined { .. } => None,
        })
    }

    /// Held addresses that are in none of `ranges`: these were changed while tasks ran, who keep theirs.
    pub fn held_outside(&self, ranges: &[Range]) -> Vec<IpAddr> {
        let inside = |address: &IpAddr| match address {
            IpAddr::V4(address) => ranges.iter().any(|range| range.ipv4.contains(address)),
            IpAddr::V6(address) => {
                let mut ranges = ranges.iter().filter_map(Range::ipv6);
                ranges.any(|range| range.contains(address))
            }
        };
        let held = |(address, lease): (&Ipv4Addr, &Lease)| match lease {
            Lease::Held(holder) => vec![Some((*address).into()), holder.ipv6.map(IpAddr::from)],
            Lease::Quarantined { .. } => vec![],
        };
        let held = self.leases.iter().flat_map(held).flatten();
        held.filter(|address| !inside(address)).collect()
    }

    /// For a task that begins anew: one in the ranges instead of one outside, where there is one, and the IPv6 address that
    /// the range has for it now. None: it keeps what it has. Its lease is of this boot.
    pub fn begin_anew(&mut self, task: &TaskId, subnet: Option<&SubnetId>, now: Millis) -> Option<Address> {
        self.begin_anew_as(task, None, subnet, now)
    }

    /// Likewise for one container of the task.
    pub fn begin_anew_for(&mut self, task: &TaskId, container: &ContainerId, now: Millis) -> Option<Address> {
        self.begin_anew_as(task, Some(container), None, now)
    }

    fn begin_anew_as(
        &mut self,
        task: &TaskId,
        container: Option<&ContainerId>,
        subnet: Option<&SubnetId>,
        now: Millis,
    ) -> Option<Address> {
        let old = self.held_by(task, container)?;
        let Some(range) = self.range(subnet) else {
            self.renew(old);
            return None;
        };
        if range.ipv4.contains(&old.ipv4) {
            let new = range.address(old.ipv4);
            self.renew(new);
            return (new != old).then_some(new);
        }
        let new = self.replace(old, task, container, subnet, now);
        if new.is_none() {
            self.renew(old);
        }
        new
    }

    /// Another address of the same subnet for a task that cannot use the one it has, which rests. None: none is free, and it
    /// keeps that.
    pub fn exchange(&mut self, task: &TaskId, subnet: Option<&SubnetId>, now: Millis) -> Option<Address> {
        let old = self.held_by(task, None)?;
        self.replace(old, task, None, subnet, now)
    }

    fn replace(
        &mut self,
        old: Address,
        task: &TaskId,
        container: Option<&ContainerId>,
        subnet: Option<&SubnetId>,
        now: Millis,
    ) -> Option<Address> {
        let before = self.leases.get(&old.ipv4).cloned();
        let until = now.plus(QUARANTINE_MS);
        self.leases.insert(old.ipv4, Lease::Quarantined { until });
        let new = self.lease_as(task, container, subnet, now);
        if let (None, Some(before)) = (new, before) {
            self.leases.insert(old.ipv4, before);
        }
        new
    }

    fn renew(&mut self, address: Address) {
        if let Some(Lease::Held(holder)) = self.leases.get_mut(&address.ipv4) {
            holder.ipv6 = address.ipv6;
            self.boot.clone_into(&mut holder.boot);
        }
    }

    /// Tasks that hold an address since an earlier boot of the host: nothing there has it any more.
    pub fn of_earlier_boots(&self) -> Vec<TaskId> {
        let earlier = |lease: &Lease| match lease {
            Lease::Held(holder) if holder.boot != self.boot && !holder.boot.is_empty() => {
                Some(holder.task.clone())
            }
            _ => None,
        };
        self.leases.values().filter_map(earlier).collect()
    }

    /// Ends the leases of `task`, those of its containers too; the addresses rest. Returns until when, if there were any.
    pub fn release(&mut self, task: &TaskId, now: Millis) -> Option<Millis> {
        let until = now.plus(QUARANTINE_MS);
        let mut released = false;
        for lease in self.leases.values_mut() {
            if matches!(lease, Lease::Held(holder) if holder.task == *task) {
                *lease = Lease::Quarantined { until };
                released = true;
            }
        }
        released.then_some(until)
    }

    /// Gives back what `task` has not used yet: none of it needs a rest.
    pub fn forgo(&mut self, task: &TaskId) {
        self.leases
            .retain(|_, lease| !matches!(lease, Lease::Held(holder) if holder.task == *task));
    }

    /// Forgets what has rested long enough.
    pub fn expire(&mut self, now: Millis) {
        self.leases
            .retain(|_, lease| !matches!(lease, Lease::Quarantined { until } if *until <= now));
    }

    /// The clock was set: quarantines last as long as they would have.
    pub fn shift_expiry(&mut self, by_ms: i64) {
        for lease in self.leases.values_mut() {
            if let Lease::Quarantined { until } = lease {
                *until = until.plus(by_ms);
            }
        }
    }

    /// When the next address comes out of quarantine.
    pub fn next_expiry(&self) -> Option<Millis> {
        let until = |lease: &Lease| match lease {
            Lease::Held(_) => None,
            Lease::Quarantined { until } => Some(*until),
        };
        self.leases.values().filter_map(until).min()
    }

    /// How many of a range are held and how many rest: for messages.
    pub fn counts(&self, range: Ipv4Net) -> (usize, usize) {
        let of = self.leases.iter().filter(|(address, _)| range.contains(*address));
        let (held, resting): (Vec<_>, Vec<_>) = of.partition(|(_, lease)| matches!(lease, Lease::Held(_)));
        (held.len(), resting.len())
    }

    /// Takes over what an earlier run leased. Leases outside a changed range are kept until they end.
    pub fn adopt(&mut self, earlier: Self) {
        self.leases = earlier.leases;
        self.subnets = earlier.subnets;
        self.next = if earlier.range.ipv4 == self.range.ipv4 {
            earlier.next
        } else {
            1
        };
    }

    fn held_by(&self, task: &TaskId, container: Option<&ContainerId>) -> Option<Address> {
        self.leases.iter().find_map(|(address, lease)| match lease {
            Lease::Held(holder) if holder.task == *task && holder.container.as_ref() == container => {
                Some(Address {
                    ipv4: *address,
                    ipv6: holder.ipv6,
                })
            }
            _ => None,
        })
    }
}

/// All but the first and the last.
fn capacity(range: Ipv4Net) -> u32 {
    1u32.checked_shl(32 - u32::from(range.prefix_len()))
        .unwrap_or(u32::MAX)
        .saturating_sub(2)
}
