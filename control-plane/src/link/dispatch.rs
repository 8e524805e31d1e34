//! Owns what a node is told of its desired state: all of it, then every change, in the order of the store. Never
//! decides any of it.

use std::collections::VecDeque;

use berth_proto::node::v1::{
    Delta, MESSAGE_BYTES_MAX, Position, SNAPSHOT_BYTES_MAX, Snapshot, TaskSpec, control_message::Message,
};
use prost::Message as _;

use crate::{
    model::{StoreIdentity, keys},
    store::{Change, PAGE_ENTRIES_MAX, SharedStore, StoreError, Watch, typed::RecordError},
};

/// How often a snapshot is read again because the history was compacted meanwhile.
const ATTEMPTS_MAX: u32 = 5;
/// A message's own tag and length, around the snapshot or delta in it.
const ENVELOPE_BYTES: usize = 16;
/// A flag in a message.
const FLAG_BYTES: usize = 2;

#[derive(Debug, thiserror::Error)]
pub(super) enum DispatchError {
    #[error("read the node's desired state")]
    Store {
        #[from]
        source: StoreError,
    },
    #[error("read the subnets of the node's cluster")]
    Subnet { source: RecordError },
    #[error("{key:?} does not hold a valid task spec")]
    Decode { key: String, source: prost::DecodeError },
    #[error("the desired state of the node takes {bytes} bytes; it takes no more than {limit} at once")]
    TooLarge { bytes: usize, limit: usize },
}

/// Where in the store's history a node is.
#[derive(Debug)]
pub(super) struct Dispatch {
    store: SharedStore,
    identity: StoreIdentity,
    prefix: String,
    confirmation: String,
    watch: Box<dyn Watch>,
    /// An operator's confirmation, which the node has to be told of with everything else.
    confirmations: Box<dyn Watch>,
    /// The node has to be told everything again.
    stale: bool,
    /// It takes a snapshot in parts.
    takes_parts: bool,
    /// What is to be told before anything else.
    parts: VecDeque<Snapshot>,
}

pub(super) fn desired_prefix(node: &str) -> String {
    format!("/desired/{node}/")
}

impl Dispatch {
    /// The first part of everything the node is to run, how many tasks that is in all, and what follows it.
    pub(super) async fn begin(
        store: SharedStore,
        identity: StoreIdentity,
        node: &str,
        takes_parts: bool,
    ) -> Result<(Snapshot, usize, Self), DispatchError> {
        let prefix = desired_prefix(node);
        let confirmation = keys::confirmation(node);
        let Everything {
            snapshot,
            watch,
            confirmations,
        } = read(&store, &identity, &prefix, &confirmation).await?;
        let tasks = snapshot.tasks.len();
        let (first, parts) = in_parts(snapshot, takes_parts)?;
        let dispatch = Self {
            store,
            identity,
            prefix,
            confirmation,
            watch,
            confirmations,
            stale: false,
            takes_parts,
            parts,
        };
        Ok((first, tasks, dispatch))
    }

    /// The next thing to tell. Cancel-safe: what is stale stays stale until it was read whole.
    pub(super) async fn next(&mut self) -> Result<Message, DispatchError> {
        if let Some(part) = self.parts.pop_front() {
            return Ok(Message::Snapshot(part));
        }
        while !self.stale {
            let changes = tokio::select! {
                changes = self.watch.next() => changes,
                confirmed = self.confirmations.next() => {
                    // One that ran out is no news.
                    self.stale = confirmed.is_err()
                        || confirmed.is_ok_and(|changes| changes.iter().any(|change| change.value.is_some()));
                    continue;
                }
            };
            match changes {
                Ok(changes) => {
                    if let Some(delta) = self.delta(changes)? {
                        return Ok(Message::Delta(delta));
                    }
                    // More than a message holds.
                    self.stale = true;
                }
                Err(StoreError::Compacted { .. }) => self.stale = true,
                Err(error) => return Err(error.into()),
            }
        }
        let all = read(&self.store, &self.identity, &self.prefix, &self.confirmation).await?;
        let (first, parts) = in_parts(all.snapshot, self.takes_parts)?;
        (self.watch, self.confirmations, self.parts) = (all.watch, all.confirmations, parts);
        self.stale = false;
        Ok(Message::Snapshot(first))
    }

    /// One revision's changes; None if they do not fit into a message.
    fn delta(&self, changes: Vec<Change>) -> Result<Option<Delta>, DispatchError> {
        let revision = changes.first().map_or(0, |change| change.revision);
        let mut delta = Delta {
            position: Some(position(&self.identity, revision)),
            ..Delta::default()
        };
        for change in changes {
            match change.value {
                Some(value) => delta.changed.push(decode(&change.key, &value)?),
                None => {
                    let id = change.key.strip_prefix(&self.prefix).unwrap_or(&change.key);
                    delta.removed_task_ids.push(id.to_owned());
                }
            }
        }
        Ok(Some(delta).filter(|delta| fits(delta.encoded_len())))
    }
}

fn position(identity: &StoreIdentity, revision: u64) -> Position {
    Position {
        store_id: identity.store_id.clone(),
        epoch: identity.epoch,
        revision,
    }
}

fn fits(bytes: usize) -> bool {
    bytes + ENVELOPE_BYTES <= MESSAGE_BYTES_MAX
}

/// The snapshot as the node takes it: the first part, and those that follow.
fn in_parts(snapshot: Snapshot, takes_parts: bool) -> Result<(Snapshot, VecDeque<Snapshot>), DispatchError> {
    let bytes = snapshot.encoded_len();
    if fits(bytes) {
        return Ok((snapshot, VecDeque::new()));
    }
    let limit = if takes_parts {
        SNAPSHOT_BYTES_MAX
    } else {
        MESSAGE_BYTES_MAX
    };
    // The parts' own positions come on top.
    if !takes_parts || bytes + bytes / 8 > limit {
        return Err(DispatchError::TooLarge { bytes, limit });
    }
    let mut first = snapshot;
    let mut tasks = std::mem::take(&mut first.tasks).into_iter().peekable();
    let mut filled = |part: &mut Snapshot| {
        let mut bytes = part.encoded_len() + FLAG_BYTES;
        while let Some(task) = tasks.next_if(|task| fits(bytes + task.encoded_len() + ENVELOPE_BYTES)) {
            bytes += task.encoded_len() + ENVELOPE_BYTES;
            part.tasks.push(task);
        }
        part.more = !part.tasks.is_empty() && tasks.peek().is_some();
    };
    let empty = first.clone();
    filled(&mut first);
    let mut parts = VecDeque::new();
    let mut more = first.more;
    while more {
        let mut part = empty.clone();
        filled(&mut part);
        more = part.more;
        parts.push_back(part);
    }
    if tasks.peek().is_some() {
        // One task alone: the store takes none so large.
        let limit = MESSAGE_BYTES_MAX;
        return Err(DispatchError::TooLarge { bytes, limit });
    }
    Ok((first, parts))
}

fn decode(key: &str, value: &[u8]) -> Result<TaskSpec, DispatchError> {
    TaskSpec::decode(value).map_err(|source| DispatchError::Decode {
        key: key.to_owned(),
        source,
    })
}

/// A snapshot, and what follows it.
struct Everything {
    snapshot: Snapshot,
    watch: Box<dyn Watch>,
    confirmations: Box<dyn Watch>,
}

/// A snapshot and the watches from the revision after it.
///
/// Pages after the first may show later changes already; the watch shows them once more, which changes nothing:
/// a spec always is the whole spec.
async fn read(
    store: &SharedStore,
    identity: &StoreIdentity,
    prefix: &str,
    confirmation: &str,
) -> Result<Everything, DispatchError> {
    let mut attempt = 1;
    loop {
        let first = store.range(prefix, None, PAGE_ENTRIES_MAX).await?;
        let revision = first.revision;
        let mut snapshot = Snapshot {
            position: Some(position(identity, revision)),
            tasks: vec![],
            removals_confirmed: store.get(confirmation).await?.is_some(),
            more: false,
        };
        let mut page = first;
        loop {
            for entry in &page.entries {
                snapshot.tasks.push(decode(&entry.key, &entry.value)?);
            }
            match page.entries.last() {
                Some(last) if page.more => {
                    page = store.range(prefix, Some(&last.key), PAGE_ENTRIES_MAX).await?;
                }
                _ => break,
            }
        }
        let watches = async {
            let watch = store.watch(prefix, revision + 1).await?;
            Ok((watch, store.watch(confirmation, revision + 1).await?))
        };
        match watches.await {
            Ok((watch, confirmations)) => {
                return Ok(Everything {
                    snapshot,
                    watch,
                    confirmations,
                });
            }
            Err(StoreError::Compacted { .. }) if attempt < ATTEMPTS_MAX => attempt += 1,
            Err(error) => return Err(error.into()),
        }
    }
}
