//! Owns the names of a cluster's tasks as the control plane said them last: in memory, and in the store for the time when the
//! control plane is away. Never decides which there are.

use std::sync::{
    Arc, PoisonError, RwLock, RwLockReadGuard,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use berth_proto::node::v1::NAMES_MAX;

use super::zone::{Addresses, Key, Names};
use crate::{
    store::{NamesWrite, Store},
    sys::Chain,
};

/// What the control plane says of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamesChange {
    pub cluster: String,
    /// What is not named here is gone.
    pub whole: bool,
    pub changed: Vec<(Key, Addresses)>,
    pub removed: Vec<Key>,
}

/// Clones are the same.
#[derive(Clone, Debug)]
pub struct NameTable(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    names: RwLock<Names>,
    store: Store,
    /// The store has not got all of it.
    unsaved: AtomicBool,
}

impl NameTable {
    /// With what an earlier run kept.
    pub fn new(store: Store, kept: NamesWrite) -> Self {
        let mut names = Names::default();
        take(&mut names, from_store(kept));
        Self(Arc::new(Inner {
            names: RwLock::new(names),
            store,
            unsaved: AtomicBool::new(false),
        }))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    // Nothing panics while it holds the lock, so a poisoned one guards sound data.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Names> {
        self.0.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it over, and stores what is another than before. To be called for one change at a time.
    pub async fn apply(&self, change: NamesChange) {
        let write = {
            let mut names = self.0.names.write().unwrap_or_else(PoisonError::into_inner);
            let taken = take(&mut names, change);
            if taken.refused > 0 {
                let (refused, limit) = (taken.refused, NAMES_MAX);
                tracing::warn!(
                    refused,
                    limit,
                    "the cluster has more tasks than names are kept of"
                );
            }
            if self.0.unsaved.load(Relaxed) {
                everything(&names)
            } else {
                taken.write
            }
        };
        if write.is_empty() {
            return;
        }
        let stored = self.0.store.write_names(write).await;
        if let Err(error) = &stored {
            tracing::warn!(error = %Chain(error), "names of tasks are not stored; they are known until the agent ends");
        }
        self.0.unsaved.store(stored.is_err(), Relaxed);
    }
}

struct Taken {
    write: NamesWrite,
    /// Names beyond the bound.
    refused: usize,
}

/// Makes `names` what the change says, and tells what that changed.
fn take(names: &mut Names, change: NamesChange) -> Taken {
    let mut write = NamesWrite {
        cluster: change.cluster,
        ..NamesWrite::default()
    };
    if names.cluster() != write.cluster {
        *names = Names::new(write.cluster.clone());
        write.whole = true;
    }
    let mut removed = change.removed;
    if change.whole {
        let mut named: Vec<Key> = change.changed.iter().map(|(key, _)| *key).collect();
        named.sort_unstable();
        removed.extend(names.keys().filter(|key| named.binary_search(key).is_err()));
    }
    for key in removed {
        if names.get(key).is_some() {
            names.remove(key);
            write.removed.push(key);
        }
    }
    let mut refused = 0;
    for (key, addresses) in change.changed {
        match names.get(key) {
            Some(known) if known == addresses => {}
            None if names.len() >= NAMES_MAX => refused += 1,
            _ => {
                names.insert(key, addresses);
                write.changed.push((key, addresses));
            }
        }
    }
    Taken { write, refused }
}

fn everything(names: &Names) -> NamesWrite {
    NamesWrite {
        cluster: names.cluster().to_owned(),
        whole: true,
        changed: names.iter().collect(),
        removed: vec![],
    }
}

fn from_store(kept: NamesWrite) -> NamesChange {
    NamesChange {
        cluster: kept.cluster,
        whole: true,
        changed: kept.changed,
        removed: vec![],
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn key(n: u32) -> Key {
        Key::parse(&format!("{n:032x}")).unwrap()
    }

    fn named(n: u32) -> (Key, Addresses) {
        let ipv4 = Some(Ipv4Addr::from(n));
        (
            key(n),
            Addresses {
                ipv4,
                of_node: n == 7,
                ..Addresses::default()
            },
        )
    }

    fn whole(cluster: &str, tasks: impl Iterator<Item = u32>) -> NamesChange {
        NamesChange {
            cluster: cluster.into(),
            whole: true,
            changed: tasks.map(named).collect(),
            removed: vec![],
        }
    }

    #[tokio::test]
    async fn only_what_changed_is_written_and_the_next_run_has_it_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.db");
        let (store, loaded) = Store::open(&path).unwrap();
        let table = NameTable::new(store.clone(), loaded.names);
        table.apply(whole("a", 0..3)).await;
        let delta = NamesChange {
            cluster: "a".into(),
            whole: false,
            changed: vec![named(7)],
            removed: vec![key(1), key(9)],
        };
        table.apply(delta).await;
        let taken = take(&mut table.read().clone(), whole("a", [0, 2, 7, 8].into_iter()));
        assert_eq!(
            (taken.write.changed, taken.write.removed),
            (vec![named(8)], vec![])
        );
        let before = table.read().clone();
        drop((store, table));
        let (store, loaded) = reopen(&path).await;
        let table = NameTable::new(store, loaded.names);
        assert_eq!(*table.read(), before);
        assert_eq!(before.iter().collect::<Vec<_>>(), [named(0), named(2), named(7)]);
        // Another cluster's are others.
        table.apply(whole("b", 5..6)).await;
        assert_eq!(table.read().iter().collect::<Vec<_>>(), [named(5)]);
        drop(table);
        let (_, loaded) = reopen(&path).await;
        assert_eq!(
            (loaded.names.cluster.as_str(), loaded.names.changed),
            ("b", vec![named(5)])
        );
    }

    /// The thread of the database before may still be on its way out.
    async fn reopen(path: &std::path::Path) -> (Store, crate::store::Loaded) {
        loop {
            match Store::open(path) {
                Ok(opened) => return opened,
                Err(crate::store::StoreError::InUse { .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn there_are_never_more_than_the_bound() {
        let bound = u32::try_from(NAMES_MAX).unwrap();
        let mut names = Names::default();
        let taken = take(&mut names, whole("a", 0..bound + 5));
        assert_eq!((names.len(), taken.refused), (NAMES_MAX, 5));
        // A snapshot makes room first.
        let taken = take(&mut names, whole("a", bound..2 * bound));
        assert_eq!((names.len(), taken.refused), (NAMES_MAX, 0));
    }
}
