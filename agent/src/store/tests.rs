use berth_agent_core::{
    ledger::{LedgerWrite, Owned},
    report::{Facts, Report, Status, TaskState, Times},
};

use super::*;

fn report(sequence: u64) -> Report {
    let facts = Facts {
        status: Status::Stopped,
        stop: None,
        waiting: None,
        address: None,
        mac_address: None,
        containers: Vec::new(),
    };
    Report {
        sequence,
        task: TaskState {
            id: task(1),
            facts,
            times: Times::default(),
        },
    }
}

fn task(n: u8) -> TaskId {
    format!("{n:032x}").parse().unwrap()
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    let (store, loaded) = Store::open(&path, "boot-1").unwrap();
    assert_eq!((loaded.boot_id, loaded.node), (None, None));
    let batch = Batch {
        ledger: vec![
            LedgerWrite::Intend(Owned::Host(task(1))),
            LedgerWrite::Intend(Owned::Logs(task(1))),
        ],
        reports: (1..=5).map(report).collect(),
        promise: true,
        ..Batch::default()
    };
    store.commit(batch).await.unwrap();
    let release = vec![LedgerWrite::Release(Owned::Host(task(1)))];
    store
        .commit(Batch {
            ledger: release,
            acknowledged: Some(2),
            ..Batch::default()
        })
        .await
        .unwrap();
    drop(store);

    let (store, loaded) = reopen(&path, "boot-2").await;
    assert_eq!(loaded.boot_id.as_deref(), Some("boot-1"));
    assert_eq!(
        loaded.ledger.entries().collect::<Vec<_>>(),
        [&Owned::Logs(task(1))]
    );
    let sequences = |reports: Vec<Report>| reports.iter().map(|r| r.sequence).collect::<Vec<_>>();
    assert_eq!(sequences(store.outbox(0, 2).await.unwrap()), [3, 4]);
    assert_eq!(sequences(store.outbox(4, 9).await.unwrap()), [5]);
}

#[tokio::test]
async fn a_second_agent_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    let (_store, _) = Store::open(&path, "boot").unwrap();
    let error = Store::open(&path, "boot").unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_set_aside_and_the_rest_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    let (store, _) = Store::open(&path, "boot").unwrap();
    let batch = Batch {
        tasks: vec![(task(1), Some("{\"not\": \"a task\"}".into()))],
        ledger: vec![LedgerWrite::Intend(Owned::Logs(task(2)))],
        ..Batch::default()
    };
    store.commit(batch).await.unwrap();
    drop(store);
    let (_store, loaded) = reopen(&path, "boot").await;
    assert_eq!((loaded.tasks.len(), loaded.quarantined.len()), (0, 1));
    assert!(loaded.ledger.contains(&Owned::Logs(task(2))));
}

#[tokio::test]
async fn a_damaged_file_is_told_apart_from_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    std::fs::write(&path, vec![7u8; 8192]).unwrap();
    assert!(matches!(
        Store::open(&path, "boot").unwrap_err(),
        StoreError::Corrupt { .. }
    ));
}

/// The thread of a dropped store closes its connection a moment later.
async fn reopen(path: &std::path::Path, boot: &str) -> (Store, Loaded) {
    for _ in 0..100 {
        match Store::open(path, boot) {
            Err(StoreError::InUse { .. }) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            other => return other.unwrap(),
        }
    }
    panic!("the database stays in use");
}
