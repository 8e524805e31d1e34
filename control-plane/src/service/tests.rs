//! What the watchdog hears of a store that hangs, and of one that fails.

use std::os::unix::net::UnixDatagram;

use async_trait::async_trait;

use super::*;
use crate::store::{Committed, Entry, LeaseId, Page, Store, Watch};

/// Reads hang, or fail at once.
#[derive(Debug)]
struct Broken {
    hangs: bool,
}

#[async_trait]
impl Store for Broken {
    async fn get(&self, _: &str) -> Result<Option<Entry>, StoreError> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Err(StoreError::Closed)
    }
    async fn range(&self, _: &str, _: Option<&str>, _: usize) -> Result<Page, StoreError> {
        Err(StoreError::Closed)
    }
    async fn commit(&self, _: Transaction) -> Result<Committed, StoreError> {
        Err(StoreError::Closed)
    }
    async fn watch(&self, _: &str, _: u64) -> Result<Box<dyn Watch>, StoreError> {
        Err(StoreError::Closed)
    }
    async fn compact(&self, _: u64) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    async fn grant(&self, _: Duration) -> Result<LeaseId, StoreError> {
        Err(StoreError::Closed)
    }
    async fn keep_alive(&self, _: LeaseId) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    async fn revoke(&self, _: LeaseId) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
}

/// What `/readyz` says after one proof, and whether the watchdog was fed.
async fn proved(hangs: bool) -> (String, bool) {
    let dir = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_nonblocking(true).unwrap();
    let socket = dir.path().join("notify");
    let notifier = Notifier::new(Some(socket.as_os_str()), Some(Duration::from_secs(1))).unwrap();
    let readiness = Readiness::new();
    let prover = Prover {
        store: Arc::new(Broken { hangs }),
        limit: Duration::from_millis(20),
        condition: readiness.condition("store", Needed::ToStart, "is being opened"),
        pulse: Pulse::new(PULSE_LIMIT),
        notifier,
    };
    prover.prove().await;
    (readiness.report().text(), manager.recv(&mut [0; 64]).is_ok())
}

#[tokio::test]
async fn a_store_that_hangs_starves_the_watchdog() {
    let (ready, fed) = proved(true).await;
    assert!(ready.contains("[-] store: did not answer within 20ms"), "{ready}");
    assert!(!fed);
}

#[tokio::test]
async fn a_store_that_fails_is_not_ready_and_not_restarted() {
    let (ready, fed) = proved(false).await;
    assert!(ready.contains("[-] store: store is closed"), "{ready}");
    assert!(fed);
}
