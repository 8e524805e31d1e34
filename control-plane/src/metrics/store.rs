//! Owns the measuring of the store. Never changes what it answers.

use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{Metrics, Outcome, metrics};
use crate::store::{Committed, Entry, LeaseId, Page, SharedStore, Store, StoreError, Transaction, Watch};

/// A store whose reads and commits are counted and timed.
#[derive(Debug)]
pub struct MeasuredStore(SharedStore);

impl MeasuredStore {
    pub fn new(store: SharedStore) -> Self {
        Self(store)
    }

    fn read<T>(begun: Instant, read: Result<T, StoreError>) -> Result<T, StoreError> {
        Metrics::observe(&metrics().store_seconds, "read", begun);
        read
    }
}

#[async_trait]
impl Store for MeasuredStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let begun = Instant::now();
        Self::read(begun, self.0.get(key).await)
    }

    async fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let begun = Instant::now();
        Self::read(begun, self.0.range(prefix, after, limit).await)
    }

    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        let begun = Instant::now();
        let committed = self.0.commit(transaction).await;
        Metrics::observe(&metrics().store_seconds, "commit", begun);
        let outcome = match &committed {
            Ok(Committed::Done(_)) => "done",
            Ok(Committed::Conflict) => "conflict",
            Err(_) => "failed",
        };
        metrics().transactions.get_or_create(&Outcome { outcome }).inc();
        committed
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Box<dyn Watch>, StoreError> {
        self.0.watch(prefix, from).await
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        self.0.compact(revision).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.0.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.revoke(lease).await
    }
}
