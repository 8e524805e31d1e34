//! Owns the question which of several control planes on one store does what needs doing once. Never does it.

use std::time::Duration;

use crate::store::{Committed, Compare, LeaseId, Operation, SharedStore, StoreError, Transaction};

/// How long a leader that died stays one.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(15);

/// A claim to lead in one matter, under `/leaders/{matter}`.
#[derive(Debug)]
pub(super) struct Claim {
    store: SharedStore,
    key: String,
    lease: Option<LeaseId>,
}

impl Claim {
    pub(super) fn new(store: SharedStore, matter: &str) -> Self {
        Self {
            store,
            key: format!("/leaders/{matter}"),
            lease: None,
        }
    }

    /// Takes or keeps the lead, and says whether it has it: good for [`LEASE_TTL`].
    pub(super) async fn hold(&mut self) -> Result<bool, StoreError> {
        if let Some(lease) = self.lease {
            match self.store.keep_alive(lease).await {
                Ok(()) => return Ok(true),
                Err(StoreError::NoLease(_)) => self.lease = None,
                Err(error) => return Err(error),
            }
        }
        if self.store.get(&self.key).await?.is_some() {
            return Ok(false);
        }
        let lease = self.store.grant(LEASE_TTL).await?;
        let claim = Operation::Put {
            key: self.key.clone(),
            value: Default::default(),
            lease: Some(lease),
        };
        let transaction = Transaction {
            compare: vec![Compare::Missing(self.key.clone())],
            operations: vec![claim],
        };
        match self.store.commit(transaction).await? {
            Committed::Done(_) => {
                self.lease = Some(lease);
                Ok(true)
            }
            Committed::Conflict => self.store.revoke(lease).await.map(|()| false),
        }
    }

    /// Lets another one lead at once.
    pub(super) async fn resign(&mut self) -> Result<(), StoreError> {
        match self.lease.take() {
            Some(lease) => self.store.revoke(lease).await,
            None => Ok(()),
        }
    }
}
