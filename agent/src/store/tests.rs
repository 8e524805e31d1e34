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
        warnings: Vec::new(),
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
    let (store, loaded) = Store::open(&path).unwrap();
    assert_eq!((loaded.boot_id, loaded.node), (None, None));
    let batch = Batch {
        ledger: vec![
            LedgerWrite::Intend(Owned::Host(task(1))),
            LedgerWrite::Intend(Owned::Logs(task(1))),
        ],
        reports: (1..=5).map(report).collect(),
        boot_id: Some("boot-1".into()),
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

    let (store, loaded) = reopen(&path).await;
    assert_eq!(loaded.boot_id.as_deref(), Some("boot-1"));
    assert_eq!(
        loaded.ledger.entries().collect::<Vec<_>>(),
        [&Owned::Logs(task(1))]
    );
    assert_eq!(loaded.last_reported, 5);
    let sequences = |reports: Vec<Report>| reports.iter().map(|r| r.sequence).collect::<Vec<_>>();
    assert_eq!(sequences(store.outbox(0, 2).await.unwrap()), [3, 4]);
    assert_eq!(sequences(store.outbox(4, 9).await.unwrap()), [5]);
}

#[tokio::test]
async fn a_second_agent_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    let (_store, _) = Store::open(&path).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_set_aside_and_the_rest_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    let (store, _) = Store::open(&path).unwrap();
    let batch = Batch {
        tasks: vec![(task(1), Some("{\"not\": \"a task\"}".into()))],
        ledger: vec![LedgerWrite::Intend(Owned::Logs(task(2)))],
        ..Batch::default()
    };
    store.commit(batch).await.unwrap();
    drop(store);
    let (_store, loaded) = reopen(&path).await;
    assert_eq!((loaded.tasks.len(), loaded.quarantined.len()), (0, 1));
    assert!(loaded.ledger.contains(&Owned::Logs(task(2))));
}

#[tokio::test]
async fn a_damaged_file_is_told_apart_from_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    std::fs::write(&path, vec![7u8; 8192]).unwrap();
    assert!(matches!(
        Store::open(&path).unwrap_err(),
        StoreError::Corrupt { .. }
    ));
}

#[tokio::test]
async fn a_boot_is_known_only_once_its_consequences_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    let boot = |id: &str| Batch {
        boot_id: Some(id.into()),
        ..Batch::default()
    };
    let (store, _) = Store::open(&path).unwrap();
    store.commit(boot("boot-1")).await.unwrap();
    drop(store);
    // A start that ends early, because containerd is not up yet, for example.
    drop(reopen(&path).await);
    let (_store, loaded) = reopen(&path).await;
    assert_eq!(loaded.boot_id.as_deref(), Some("boot-1"));
}

#[tokio::test]
async fn only_its_owner_reads_the_database() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    let (store, _) = Store::open(&path).unwrap();
    store
        .commit(Batch {
            node: Some("{}".into()),
            ..Batch::default()
        })
        .await
        .unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.path().extension().is_some_and(|kind| kind == "reserve") {
            continue;
        }
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
    }
}

/// The thread of a dropped store closes its connection a moment later.
async fn reopen(path: &std::path::Path) -> (Store, Loaded) {
    for _ in 0..100 {
        match Store::open(path) {
            Err(StoreError::InUse { .. }) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            other => return other.unwrap(),
        }
    }
    panic!("the database stays in use");
}
