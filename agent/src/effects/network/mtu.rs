//! Owns how large a packet of a task may be: as large as the uplink takes, so that none is split or lost on its way out.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What the links of new tasks are made with; those that are there keep theirs.
#[derive(Debug)]
pub(super) struct Mtu {
    /// By the operator.
    set: Option<u32>,
    /// Of the uplink; zero: there is none.
    learned: AtomicU32,
}

impl Mtu {
    pub(super) fn new(set: Option<u32>) -> Self {
        Self {
            set,
            learned: AtomicU32::new(0),
        }
    }

    /// Bytes. None: the kernel's default, 1500.
    pub(super) fn get(&self) -> Option<u32> {
        let learned = self.learned.load(Relaxed);
        self.set.or((learned != 0).then_some(learned))
    }

    /// Of the link of the default route. None: there is none, and what is known stays.
    pub(super) fn learn(&self, uplink: Option<u32>) {
        let Some(uplink) = uplink else { return };
        let before = self.learned.swap(uplink, Relaxed);
        if before != uplink && self.set.is_none() {
            tracing::info!(
                bytes = uplink,
                "MTU of new tasks' links, from the default route's"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_is_before_the_uplinks_and_a_lost_uplink_changes_nothing() {
        let mtu = Mtu::new(None);
        assert_eq!(mtu.get(), None);
        mtu.learn(Some(9001));
        mtu.learn(None);
        assert_eq!(mtu.get(), Some(9001));
        let mtu = Mtu::new(Some(1400));
        mtu.learn(Some(9001));
        assert_eq!(mtu.get(), Some(1400));
    }
}
