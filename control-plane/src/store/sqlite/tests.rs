//! What only this implementation promises: durability, group commit, bounded history, honest errors.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use super::{Limits, SqliteStore};
use crate::store::{
    SharedStore, Store, StoreError, Transaction, conformance,
    conformance::{commit, put},
};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn conforms() {
    let directory = directory();
    let count = std::cell::Cell::new(0);
    let fresh = || async {
        count.set(count.get() + 1);
        let path = directory.path().join(format!("{}.db", count.get()));
        Arc::new(SqliteStore::open(path).unwrap()) as SharedStore
    };
    conformance::run(fresh).await;
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_reopen() {
    let directory = directory();
    let path = directory.path().join("db");
    let store = SqliteStore::open(&path).unwrap();
    let first = commit(&store, vec![put("/a", "1"), put("/b", "1")]).await;
    let second = commit(&store, vec![put("/a", "2")]).await;
    let lease = store.grant(Duration::from_millis(300)).await.unwrap();
    let leased = crate::store::Operation::Put {
        key: "/l".into(),
        value: "v".into(),
        lease: Some(lease),
    };
    commit(&store, vec![leased]).await;
    let mut watch = store.watch("/", 99).await.unwrap();
    store.close().await;
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));
    assert!(matches!(store.get("/a").await, Err(StoreError::Closed)));

    let store = SqliteStore::open(&path).unwrap();
    let entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!(
        (entry.created, entry.modified, &entry.value[..]),
        (first, second, &b"2"[..])
    );
    let mut watch = store.watch("/", first).await.unwrap();
    assert_eq!(watch.next().await.unwrap().len(), 2);
    assert_eq!(watch.next().await.unwrap()[0].revision, second);
    watch.next().await.unwrap();
    let expired = tokio::time::timeout(Duration::from_secs(5), watch.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (expired[0].key.as_str(), expired[0].value.is_none()),
        ("/l", true),
        "a lease runs out after a restart"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_commits_share_syncs_and_all_are_there() {
    let directory = directory();
    let store = Arc::new(SqliteStore::open(directory.path().join("db")).unwrap());
    let writer = |w: u32| {
        let store = store.clone();
        async move {
            let mut last = 0;
            for i in 0..40 {
                let revision = commit(&*store, vec![put(&format!("/{w}/{i}"), "v")]).await;
                assert!(revision > last);
                last = revision;
            }
        }
    };
    let writers: Vec<_> = (0..32).map(|w| tokio::spawn(writer(w))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.range("", None, 1).await.unwrap().revision, 32 * 40);
}

#[tokio::test]
async fn history_is_bounded_without_being_asked() {
    let directory = directory();
    let limits = Limits {
        revisions_kept: 50,
        history_bytes_max: 1 << 20,
    };
    let store = SqliteStore::open_with(directory.path().join("db"), limits).unwrap();
    for i in 0..300 {
        commit(&store, vec![put("/a", &i.to_string())]).await;
    }
    wait_for_compaction(&store, 249).await;
    assert!(store.watch("/", 250).await.is_ok(), "what is to be kept is kept");
    let large = "x".repeat(1 << 19);
    for _ in 0..6 {
        commit(&store, vec![put("/large", &large)]).await;
    }
    wait_for_compaction(&store, 300).await;
}

async fn wait_for_compaction(store: &SqliteStore, revision: u64) {
    for _ in 0..100 {
        if matches!(
            store.watch("/", revision).await,
            Err(StoreError::Compacted { .. })
        ) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("revision {revision} is still there");
}

#[tokio::test]
async fn a_full_disk_is_reported_and_undoes_nothing_else() {
    let directory = directory();
    let path = directory.path().join("db");
    let hub: Arc<super::Hub> = Arc::default();
    let mut writer = super::writer::Writer::open(&path, Limits::default(), hub.clone()).unwrap();
    writer.limit_pages(64);
    let store = SqliteStore::start(path.clone(), writer, hub).unwrap();
    let large = "x".repeat(100_000);
    let mut written = 0;
    let error = loop {
        let operations = vec![put(&format!("/{written}"), &large)];
        match store
            .commit(Transaction {
                compare: vec![],
                operations,
            })
            .await
        {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100);
    };
    assert!(
        matches!(&error, StoreError::Backend { source, .. } if source.to_string().contains("full")),
        "{error:?}"
    );
    let page = store.range("/", None, 100).await.unwrap();
    assert_eq!(
        page.entries.len(),
        written,
        "all that was acknowledged, and nothing else"
    );
    assert_eq!(page.revision, written as u64);
    store.close().await;
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(
        commit(&store, vec![put("/after", "room again")]).await,
        written as u64 + 1
    );
}

#[tokio::test]
async fn damage_is_told_apart() {
    let directory = directory();
    let path = directory.path().join("db");
    std::fs::write(
        &path,
        "this is no database, however long one looks at it".repeat(100),
    )
    .unwrap();
    assert!(matches!(
        SqliteStore::open(&path),
        Err(StoreError::Corrupt { .. })
    ));

    let path = directory.path().join("damaged");
    let store = SqliteStore::open(&path).unwrap();
    for i in 0..100 {
        commit(&store, vec![put(&format!("/{i}"), &"x".repeat(2_000))]).await;
    }
    store.close().await;
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[8_192..end].fill(0xA5);
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(
        SqliteStore::open(&path),
        Err(StoreError::Corrupt { .. })
    ));
}

#[tokio::test]
async fn tables_of_a_newer_version_are_left_alone() {
    let directory = directory();
    let path = directory.path().join("db");
    rusqlite::Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    let StoreError::Backend { source, .. } = error else {
        panic!("{error:?}")
    };
    assert!(source.to_string().contains("version 99"));
}

/// Set for the child of the test below: where it is to commit until it is killed.
const CHILD_DATABASE: &str = "BERTH_TEST_STORE_CHILD";

#[test]
fn an_acknowledged_commit_survives_sigkill() {
    let directory = directory();
    let path = directory.path().join("db");
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::sqlite::tests::child_that_commits_until_killed",
                "--nocapture",
            ])
            .env(CHILD_DATABASE, &path)
            .env("BERTH_TEST_STORE_ROUND", round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let keys = lines
            .by_ref()
            .map(Result::unwrap)
            .filter(|line| line.starts_with("/k/"));
        acknowledged.extend(keys.take(300));
        child.kill().unwrap();
        child.wait().unwrap();
        // What was said before the end counts as well.
        let rest = lines
            .map_while(Result::ok)
            .filter(|l| l.starts_with("/k/") && l.ends_with('.'));
        acknowledged.extend(rest);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(&path).unwrap();
        for key in &acknowledged {
            assert!(
                store.get(key).await.unwrap().is_some(),
                "{key} was acknowledged and is lost"
            );
        }
    });
    assert!(acknowledged.len() >= 900);
}

/// Not a test by itself: does nothing unless it is the child.
#[tokio::test]
async fn child_that_commits_until_killed() {
    let Some(path) = std::env::var_os(CHILD_DATABASE) else {
        return;
    };
    let round = std::env::var("BERTH_TEST_STORE_ROUND").unwrap();
    let store = SqliteStore::open(path).unwrap();
    for i in 0.. {
        let keys: Vec<String> = (0..4).map(|w| format!("/k/{round}/{i}/{w}.")).collect();
        let commits = keys.iter().map(|key| commit(&store, vec![put(key, "v")]));
        futures_util::future::join_all(commits).await;
        println!("\n{}", keys.join("\n"));
    }
}
