//! Owns what a node is told of its desired state: all of it, then every change, in the order of the store. Never
//! decides any of it.

use berth_proto::node::v1::{
    Delta, MESSAGE_BYTES_MAX, Position, Snapshot, TaskSpec, control_message::Message,
};
use prost::Message as _;

use crate::{
    model::{StoreIdentity, keys},
    store::{Change, PAGE_ENTRIES_MAX, SharedStore, StoreError, Watch},
};

/// How often a snapshot is read again because the history was compacted meanwhile.
const ATTEMPTS_MAX: u32 = 5;
/// A message's own tag and length, around the snapshot or delta in it.
const ENVELOPE_BYTES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(super) enum DispatchError {
    #[error("read the node's desired state")]
    Store {
        #[from]
        source: StoreError,
    },
    #[error("{key:?} does not hold a valid task spec")]
    Decode { key: String, source: prost::DecodeError },
    #[error("the desired state of the node takes {bytes} bytes; one message takes {MESSAGE_BYTES_MAX}")]
    TooLarge { bytes: usize },
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
}

pub(super) fn desired_prefix(node: &str) -> String {
    format!("/desired/{node}/")
}

impl Dispatch {
    /// Everything the node is to run, and what follows it.
    pub(super) async fn begin(
        store: SharedStore,
        identity: StoreIdentity,
        node: &str,
    ) -> Result<(Snapshot, Self), DispatchError> {
        let prefix = desired_prefix(node);
        let confirmation = keys::confirmation(node);
        let Everything {
            snapshot,
            watch,
            confirmations,
        } = read(&store, &identity, &prefix, &confirmation).await?;
        Ok((
            snapshot,
            Self {
                store,
                identity,
                prefix,
                confirmation,
                watch,
                confirmations,
                stale: false,
            },
        ))
    }

    /// The next thing to tell. Cancel-safe: what is stale stays stale until it was read whole.
    pub(super) async fn next(&mut self) -> Result<Message, DispatchError> {
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
        (self.watch, self.confirmations) = (all.watch, all.confirmations);
        self.stale = false;
        Ok(Message::Snapshot(all.snapshot))
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
        let bytes = snapshot.encoded_len();
        if !fits(bytes) {
            return Err(DispatchError::TooLarge { bytes });
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
