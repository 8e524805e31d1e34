//! Owns forgetting: tasks that stopped a while ago, or whose node was revoked a while ago, answers to client tokens that
//! are no longer repeated, join tokens that expired, and what nodes that are gone had of subnets. Never touches anything
//! else, and runs in one control plane at a time. Revocations stay: a clock that is years ahead for a minute would bring back who was shut out.

use std::{collections::BTreeSet, time::Duration};

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::leader::{Claim, LEASE_TTL};
use crate::{
    link::now,
    model::{Idempotent, JoinToken, Millis, Revocation, Task, keys},
    store::{
        Operation, PAGE_ENTRIES_MAX, SharedStore, StoreError, Transaction,
        typed::{self, RecordError},
    },
    subnets,
};

/// How long the answer to a client token is kept: AWS's 24 h.
const TOKEN_RETENTION: Duration = Duration::from_secs(24 * 3_600);
/// How long an expired join token is kept: who comes with it is told that it expired, and when.
const JOIN_TOKEN_RETENTION: Duration = Duration::from_secs(24 * 3_600);
/// Longest and shortest time between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The lead is renewed well before it runs out.
const RENEW: Duration = Duration::from_secs(LEASE_TTL.as_secs() / 3);

#[derive(Debug)]
pub(super) struct Retention {
    store: SharedStore,
    claim: Claim,
    stopped_task: Duration,
}

impl Retention {
    pub(super) fn new(store: SharedStore, stopped_task: Duration) -> Self {
        let claim = Claim::new(store.clone(), "retention");
        Self {
            store,
            claim,
            stopped_task,
        }
    }

    /// Until told to stop. Failures are told, and met again next time.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let pause = (self.stopped_task / 4).clamp(PAUSE_MIN, PAUSE_MAX);
        let mut look = tokio::time::Instant::now();
        loop {
            let next = (tokio::time::Instant::now() + RENEW).min(look);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(next) => {}
            }
            let due = look <= tokio::time::Instant::now();
            if due {
                look = tokio::time::Instant::now() + pause;
            }
            let done = match self.claim.hold().await {
                Ok(true) if due => self.sweep().await,
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = done {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "old records are not deleted"
                );
            }
        }
        if let Err(error) = self.claim.resign().await {
            tracing::debug!(%error, "the lead in retention runs out by itself");
        }
    }

    async fn sweep(&mut self) -> Result<(), RecordError> {
        let tasks = before(self.stopped_task);
        let revoked = self.long_revoked(tasks).await?;
        // Nobody will ever say what became of a revoked node's tasks.
        let stopped = move |task: &Task| {
            let stopped = task.last_status == "STOPPED" && task.stopped_at.is_some_and(|at| at <= tasks);
            stopped || revoked.contains(&task.node)
        };
        let tasks = self.delete("/tasks/", stopped).await?;
        let answers = before(TOKEN_RETENTION);
        let tokens = self
            .delete("/idempotency/", move |token: &Idempotent| {
                token.created_at <= answers
            })
            .await?;
        let expired = before(JOIN_TOKEN_RETENTION);
        let joins = self
            .delete(keys::JOIN_TOKENS, move |token: &JoinToken| {
                token.expires_at <= expired
            })
            .await?;
        // Parts of subnets that rested, and those of nodes that were revoked long ago.
        if let Err(error) = subnets::settle_all(&*self.store, now()).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "parts of subnets are not given back"
            );
        }
        if tasks + tokens + joins > 0 {
            tracing::debug!(tasks, tokens, joins, "old records deleted");
        }
        Ok(())
    }

    /// Nodes that were revoked before; what they were to run is deleted.
    async fn long_revoked(&self, before: Millis) -> Result<BTreeSet<String>, RecordError> {
        let mut nodes = BTreeSet::new();
        for revocation in typed::all_json::<Revocation>(&*self.store, keys::REVOCATIONS).await? {
            let Revocation { node, revoked_at, .. } = revocation.value;
            if revoked_at > before {
                continue;
            }
            let desired = self
                .store
                .range(&keys::desired(&node, ""), None, PAGE_ENTRIES_MAX)
                .await?;
            for entry in desired.entries {
                let transaction = Transaction {
                    compare: vec![],
                    operations: vec![Operation::Delete { key: entry.key }],
                };
                self.store.commit(transaction).await?;
            }
            nodes.insert(node);
        }
        Ok(nodes)
    }

    /// Deletes the records under `prefix` that are old, as long as they stay as they were read. Returns how many.
    async fn delete<T: DeserializeOwned>(
        &mut self,
        prefix: &str,
        old: impl Fn(&T) -> bool,
    ) -> Result<usize, RecordError> {
        let (mut deleted, mut after) = (0, None::<String>);
        loop {
            let page = self
                .store
                .range(prefix, after.as_deref(), PAGE_ENTRIES_MAX)
                .await?;
            after = page.entries.last().map(|entry| entry.key.clone());
            for entry in page.entries {
                // One record that cannot be read must not keep all others for ever.
                let record = match typed::decode::<T>(entry) {
                    Ok(record) => record,
                    Err(error) => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "a record is passed over"
                        );
                        continue;
                    }
                };
                if old(&record.value) {
                    let operations = vec![Operation::Delete {
                        key: record.key.clone(),
                    }];
                    self.store
                        .commit(Transaction {
                            compare: vec![record.unchanged()],
                            operations,
                        })
                        .await?;
                    deleted += 1;
                }
            }
            if !page.more || !self.still_leads().await? {
                return Ok(deleted);
            }
        }
    }

    async fn still_leads(&mut self) -> Result<bool, StoreError> {
        self.claim.hold().await
    }
}

/// The time so long ago.
fn before(age: Duration) -> Millis {
    now().saturating_sub(Millis::try_from(age.as_millis()).unwrap_or(Millis::MAX))
}
