//! Owns what nodes are told of where the tasks of their cluster are reached: all of it, then every change, in the order of
//! the store. A name is there as long as a task has an address and its node has not said that it is stopped; it changes in the
//! same transaction as the task's record. A task without an address of its own, of mode bridge or host, has its node's as long as
//! it runs.

use std::collections::BTreeSet;

use berth_proto::node::v1::{Hello, NAMES_MAX, TaskName, TaskNames};
use futures_util::FutureExt as _;

use super::map::{Progress, RUNNING, STOPPED};
use crate::{
    model::{self, Node, Task, keys},
    pki::Peer,
    store::{
        Change, Committed, Operation, PAGE_ENTRIES_MAX, SharedStore, Store, StoreError, Transaction, Watch,
        typed::{self, RecordError},
    },
    subnets,
};

/// How often all of them are read again because the history was compacted meanwhile.
const ATTEMPTS_MAX: u32 = 5;
/// Names that are changed in one transaction.
const TASKS_AT_ONCE: usize = 60;
/// Revisions told as one message, where they come faster than they are sent.
const REVISIONS_MAX: usize = 256;

/// Where a node is reached, as it says.
#[derive(Clone, Debug, Default)]
pub(super) struct Host {
    ipv4: Option<String>,
    ipv6: Option<String>,
}

impl Host {
    /// What is no address of a host's is none.
    pub(super) fn of(hello: &Hello) -> Self {
        let ipv4 = subnets::node_address(&hello.host_address);
        let ipv6 = subnets::node_ipv6_address(&hello.host_ipv6_address);
        Self {
            ipv4: ipv4.map(|address| address.to_string()),
            ipv6: ipv6.map(|address| address.to_string()),
        }
    }

    fn record(&self) -> Option<model::TaskName> {
        let is_known = self.ipv4.is_some() || self.ipv6.is_some();
        is_known.then(|| model::TaskName {
            ipv4_address: self.ipv4.clone(),
            ipv6_address: self.ipv6.clone(),
            of_node: true,
        })
    }
}

/// It has no address of its own, and is reached at its node's.
fn is_at_node(task: &Task) -> bool {
    !matches!(task.network_mode.as_str(), "awsvpc" | "none")
}

/// What a task's report makes of its name. None: nothing.
pub(super) fn operation(
    task: &Task,
    progress: Progress,
    host: &Host,
) -> Result<Option<Operation>, RecordError> {
    let key = keys::name(&task.cluster, &task.id);
    if task.last_status == STOPPED {
        return Ok(Some(Operation::Delete { key }));
    }
    let record = match (progress.addressed, progress.runs && is_at_node(task)) {
        (true, _) => Some(record(task)),
        (false, true) => host.record(),
        (false, false) => None,
    };
    record.map(|record| typed::put_json(key, &record)).transpose()
}

fn record(task: &Task) -> model::TaskName {
    model::TaskName {
        ipv4_address: task.ipv4_address.clone(),
        ipv6_address: task.ipv6_address.clone(),
        of_node: false,
    }
}

/// Has the tasks that run at a node's own address found where the node is now, or nowhere if it does not say. Beside the link: a
/// node may have many.
pub(super) async fn follow(store: &dyn Store, peer: &Peer, host: &Host) -> Result<(), RecordError> {
    for _ in 0..ATTEMPTS_MAX {
        if follow_once(store, peer, host).await? {
            return Ok(());
        }
    }
    tracing::warn!(node = %peer.node_id, "some tasks are found by their names where their node was; its next link tries again");
    Ok(())
}

/// False: a record was changed by others meanwhile.
async fn follow_once(store: &dyn Store, peer: &Peer, host: &Host) -> Result<bool, RecordError> {
    let record = host.record();
    let node = typed::get_json::<Node>(store, &keys::node(&peer.cluster, &peer.node_id)).await?;
    let tasks: Vec<String> = node
        .into_iter()
        .flat_map(|node| node.value.allocations.into_keys())
        .collect();
    let mut done = true;
    for some in tasks.chunks(TASKS_AT_ONCE) {
        let (mut compare, mut operations) = (vec![], vec![]);
        for id in some {
            let Some(task) = typed::get_json::<Task>(store, &keys::task(&peer.cluster, id)).await? else {
                continue;
            };
            if task.value.last_status != RUNNING || !is_at_node(&task.value) {
                continue;
            }
            let key = keys::name(&peer.cluster, id);
            let known = typed::get_json::<model::TaskName>(store, &key).await?;
            if known.map(|known| known.value) == record {
                continue;
            }
            compare.push(task.unchanged());
            operations.push(match &record {
                Some(record) => typed::put_json(key, record)?,
                None => Operation::Delete { key },
            });
        }
        if !operations.is_empty() {
            let committed = store.commit(Transaction { compare, operations }).await?;
            done &= matches!(committed, Committed::Done(_));
        }
    }
    Ok(done)
}

/// Makes names what the tasks' records say: a version before this one kept none.
pub(super) async fn make_good(store: &dyn Store) -> Result<(), RecordError> {
    let mut wanted = BTreeSet::new();
    let mut after = None::<String>;
    loop {
        let page = store
            .range(keys::ALL_TASKS, after.as_deref(), PAGE_ENTRIES_MAX)
            .await?;
        after = page.entries.last().map(|entry| entry.key.clone());
        for entry in page.entries {
            let task = typed::decode::<Task>(entry)?;
            if task.value.last_status == STOPPED {
                continue;
            }
            let key = keys::name(&task.value.cluster, &task.value.id);
            if is_at_node(&task.value) {
                // Its node says where that is.
                wanted.insert(key);
                continue;
            }
            if task.value.ipv4_address.is_none() {
                continue;
            }
            if store.get(&key).await?.is_none() {
                // A conflict means that somebody else is at work on the record, and on its name.
                let operations = vec![typed::put_json(key.clone(), &record(&task.value))?];
                store
                    .commit(Transaction {
                        compare: vec![task.unchanged()],
                        operations,
                    })
                    .await?;
            }
            wanted.insert(key);
        }
        if !page.more {
            break;
        }
    }
    let mut after = None::<String>;
    loop {
        let page = store
            .range(keys::NAMES, after.as_deref(), PAGE_ENTRIES_MAX)
            .await?;
        after = page.entries.last().map(|entry| entry.key.clone());
        for entry in page.entries {
            if !wanted.contains(&entry.key) {
                let operations = vec![Operation::Delete {
                    key: entry.key.clone(),
                }];
                let compare = vec![crate::store::Compare::Modified(entry.key, entry.modified)];
                store.commit(Transaction { compare, operations }).await?;
            }
        }
        if !page.more {
            return Ok(());
        }
    }
}

/// Where in the store's history of names a node is.
#[derive(Debug)]
pub(super) struct Names {
    store: SharedStore,
    cluster: String,
    prefix: String,
    watch: Box<dyn Watch>,
    /// The node has to be told everything again.
    stale: bool,
}

impl Names {
    /// Every name of a cluster, and what follows.
    pub(super) async fn begin(store: SharedStore, cluster: &str) -> Result<(TaskNames, Self), RecordError> {
        let prefix = keys::names(cluster);
        let (all, watch) = read(&store, cluster, &prefix).await?;
        let names = Self {
            store,
            cluster: cluster.to_owned(),
            prefix,
            watch,
            stale: false,
        };
        Ok((all, names))
    }

    /// The next thing to tell. Cancel-safe: what is stale stays stale until it was read whole.
    pub(super) async fn next(&mut self) -> Result<TaskNames, RecordError> {
        if !self.stale {
            match self.changes().await {
                Ok(names) => return Ok(names),
                Err(RecordError::Store {
                    source: StoreError::Compacted { .. },
                }) => self.stale = true,
                Err(error) => return Err(error),
            }
        }
        let (all, watch) = read(&self.store, &self.cluster, &self.prefix).await?;
        (self.watch, self.stale) = (watch, false);
        Ok(all)
    }

    /// One revision's changes, and those that are there already behind it.
    async fn changes(&mut self) -> Result<TaskNames, RecordError> {
        let mut names = TaskNames {
            cluster: self.cluster.clone(),
            ..TaskNames::default()
        };
        let mut changes = self.watch.next().await?;
        for _ in 0..REVISIONS_MAX {
            changes
                .into_iter()
                .for_each(|change| self.add(&mut names, change));
            changes = match self.watch.next().now_or_never() {
                Some(Ok(more)) => more,
                Some(Err(_)) => {
                    self.stale = true;
                    break;
                }
                None => break,
            };
        }
        Ok(names)
    }

    /// The last change of a task is what counts.
    fn add(&self, names: &mut TaskNames, change: Change) {
        let id = change.key.strip_prefix(&self.prefix).unwrap_or(&change.key);
        names.changed.retain(|name| name.task_id != id);
        names.removed_task_ids.retain(|removed| removed != id);
        let name = change.value.as_deref().and_then(|value| name(id, value));
        match name {
            Some(name) => names.changed.push(name),
            None => names.removed_task_ids.push(id.to_owned()),
        }
    }
}

/// None: it cannot be read, which is as if it were not there.
fn name(id: &str, value: &[u8]) -> Option<TaskName> {
    let record: model::TaskName = serde_json::from_slice(value).ok()?;
    Some(TaskName {
        task_id: id.to_owned(),
        ipv4_address: record.ipv4_address.unwrap_or_default(),
        ipv6_address: record.ipv6_address.unwrap_or_default(),
        of_node: record.of_node,
    })
}

/// All names, as many as are told, and the watch from the revision after them. Pages after the first may show later changes
/// already; the watch shows them once more, which changes nothing.
async fn read(
    store: &SharedStore,
    cluster: &str,
    prefix: &str,
) -> Result<(TaskNames, Box<dyn Watch>), RecordError> {
    let mut attempt = 1;
    loop {
        let mut names = TaskNames {
            cluster: cluster.to_owned(),
            whole: true,
            ..TaskNames::default()
        };
        let mut page = store.range(prefix, None, PAGE_ENTRIES_MAX).await?;
        let revision = page.revision;
        loop {
            for entry in &page.entries {
                let id = entry.key.strip_prefix(prefix).unwrap_or(&entry.key);
                names.changed.extend(name(id, &entry.value));
            }
            match page.entries.last() {
                Some(last) if page.more && names.changed.len() < NAMES_MAX => {
                    page = store.range(prefix, Some(&last.key), PAGE_ENTRIES_MAX).await?;
                }
                _ => break,
            }
        }
        names.changed.truncate(NAMES_MAX);
        match store.watch(prefix, revision + 1).await {
            Ok(watch) => return Ok((names, watch)),
            Err(StoreError::Compacted { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(error.into()),
        }
    }
}
