//! Owns the node's range of task addresses: who has which, and which rest in quarantine. Never touches an interface.
//!
//! An address that was used is not handed out again for [`QUARANTINE_MS`]: peers may still hold connections or
//! neighbour entries for it.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{desired::Millis, ids::TaskId};

/// How long an address rests after its task ended, milliseconds.
pub const QUARANTINE_MS: i64 = 30_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    range: Ipv4Net,
    leases: BTreeMap<Ipv4Addr, Lease>,
    /// Where the search for a free one goes on, so that addresses are used in turn.
    next: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Lease {
    Held(TaskId),
    Quarantined { until: Millis },
}

impl Addresses {
    /// All of `range` but its first and last address. A range of fewer than four addresses has none.
    pub fn new(range: Ipv4Net) -> Self {
        Self {
            range,
            leases: BTreeMap::new(),
            next: 1,
        }
    }

    /// How many tasks can have an address.
    pub fn capacity(&self) -> u32 {
        size(self.range).saturating_sub(2)
    }

    /// The range they come from.
    pub fn range(&self) -> Ipv4Net {
        self.range
    }

    /// Leases an address to `task`, the one it has if it has one; `None` when none is free.
    pub fn lease(&mut self, task: &TaskId, now: Millis) -> Option<Ipv4Addr> {
        if let Some(held) = self.held_by(task) {
            return Some(held);
        }
        let first = u32::from(self.range.network());
        let count = self.capacity();
        let free = (0..count)
            .map(|i| (self.next.max(1) - 1 + i) % count + 1)
            .find(|offset| match self.leases.get(&Ipv4Addr::from(first + offset)) {
                None => true,
                Some(Lease::Held(_)) => false,
                Some(Lease::Quarantined { until }) => *until <= now,
            })?;
        self.next = free + 1;
        let address = Ipv4Addr::from(first + free);
        self.leases.insert(address, Lease::Held(task.clone()));
        Some(address)
    }

    /// Notes that `task` has an address, from before this record began.
    pub fn hold(&mut self, address: Ipv4Addr, task: &TaskId) {
        self.leases.insert(address, Lease::Held(task.clone()));
    }

    /// Whether a task that is found with this address can keep it: it is in the range, and nobody else's.
    pub fn may_hold(&self, address: Ipv4Addr, task: &TaskId) -> bool {
        let free = match self.leases.get(&address) {
            None | Some(Lease::Quarantined { .. }) => true,
            Some(Lease::Held(owner)) => owner == task,
        };
        free && self.range.contains(&address) && self.held_by(task).is_none_or(|held| held == address)
    }

    /// Who has one.
    pub fn holders(&self) -> impl Iterator<Item = &TaskId> {
        self.leases.values().filter_map(|lease| match lease {
            Lease::Held(task) => Some(task),
            Lease::Quarantined { .. } => None,
        })
    }

    /// Held addresses that are not in the range: it was changed while tasks ran, who keep theirs.
    pub fn held_outside(&self, range: Ipv4Net) -> Vec<Ipv4Addr> {
        let held = |(address, lease): (&Ipv4Addr, &Lease)| {
            let outside = matches!(lease, Lease::Held(_)) && !range.contains(address);
            outside.then_some(*address)
        };
        self.leases.iter().filter_map(held).collect()
    }

    /// For a task that begins anew: one in the range instead of one outside, where there is one. None: it keeps what it has.
    pub fn move_inside(&mut self, task: &TaskId, now: Millis) -> Option<Ipv4Addr> {
        let old = self
            .held_by(task)
            .filter(|address| !self.range.contains(address))?;
        self.release(task, now);
        let new = self.lease(task, now);
        if new.is_none() {
            self.hold(old, task);
        }
        new
    }

    /// Ends the lease of `task`; its address rests. Returns until when.
    pub fn release(&mut self, task: &TaskId, now: Millis) -> Option<Millis> {
        let address = self.held_by(task)?;
        let until = now.plus(QUARANTINE_MS);
        self.leases.insert(address, Lease::Quarantined { until });
        Some(until)
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

    /// How many are held and how many rest: for messages.
    pub fn counts(&self) -> (usize, usize) {
        let held = self
            .leases
            .values()
            .filter(|lease| matches!(lease, Lease::Held(_)))
            .count();
        (held, self.leases.len() - held)
    }

    /// Takes over what an earlier run leased. Leases outside a changed range are kept until they end.
    pub fn adopt(&mut self, earlier: Self) {
        self.leases = earlier.leases;
        self.next = if earlier.range == self.range {
            earlier.next
        } else {
            1
        };
    }

    fn held_by(&self, task: &TaskId) -> Option<Ipv4Addr> {
        let held = |lease: &Lease| matches!(lease, Lease::Held(owner) if owner == task);
        self.leases
            .iter()
            .find(|(_, lease)| held(lease))
            .map(|(address, _)| *address)
    }
}

fn size(range: Ipv4Net) -> u32 {
    1u32.checked_shl(32 - u32::from(range.prefix_len()))
        .unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(n: u8) -> TaskId {
        format!("{n:032x}").parse().unwrap()
    }

    #[test]
    fn addresses_are_used_in_turn_and_rest_after_use() {
        let mut pool = Addresses::new("10.0.0.0/29".parse().unwrap());
        assert_eq!(pool.capacity(), 6);
        let given: Vec<_> = (0..6)
            .map(|n| pool.lease(&task(n), Millis(0)).unwrap().octets()[3])
            .collect();
        assert_eq!(given, [1, 2, 3, 4, 5, 6]);
        assert_eq!(pool.lease(&task(9), Millis(0)), None, "all are held");
        assert_eq!(
            pool.lease(&task(3), Millis(0)).unwrap().octets()[3],
            4,
            "asking again gives the same"
        );

        pool.release(&task(2), Millis(1_000));
        assert_eq!(
            pool.lease(&task(9), Millis(1_000 + QUARANTINE_MS - 1)),
            None,
            "it rests"
        );
        assert_eq!(
            pool.lease(&task(9), Millis(1_000 + QUARANTINE_MS))
                .unwrap()
                .octets()[3],
            3
        );
    }

    #[test]
    fn a_task_outside_a_changed_range_keeps_its_address_until_it_begins_anew() {
        let mut old = Addresses::new("10.0.0.0/29".parse().unwrap());
        let first = old.lease(&task(1), Millis(0)).unwrap();
        let new_range = "10.9.0.0/30".parse().unwrap();
        let mut pool = Addresses::new(new_range);
        pool.adopt(old);
        assert_eq!(pool.held_outside(new_range), [first]);
        assert_eq!(pool.lease(&task(1), Millis(0)), Some(first));
        let inside: Ipv4Addr = "10.9.0.1".parse().unwrap();
        assert_eq!(pool.move_inside(&task(1), Millis(0)), Some(inside));
        assert_eq!(
            (pool.held_outside(new_range), pool.next_expiry()),
            (vec![], Some(Millis(QUARANTINE_MS)))
        );
        assert_eq!(pool.move_inside(&task(1), Millis(0)), None, "it is inside");
    }

    #[test]
    fn a_range_too_small_has_no_address() {
        for range in ["10.0.0.0/31", "10.0.0.0/32"] {
            let mut pool = Addresses::new(range.parse().unwrap());
            assert_eq!(
                (pool.capacity(), pool.lease(&task(1), Millis(0))),
                (0, None),
                "{range}"
            );
        }
    }
}
