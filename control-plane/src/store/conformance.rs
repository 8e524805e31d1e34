//! Owns the suite that every implementation of the store passes. Knows no implementation.

use std::{future::Future, sync::Arc, time::Duration};

use super::{
    Change, Committed, Compare, LeaseId, Operation, SharedStore, Store, StoreError,
    TRANSACTION_OPERATIONS_MAX, Transaction, VALUE_BYTES_MAX, Watch,
};

/// Longest wait for something that is to happen at once.
const SOON: Duration = Duration::from_secs(10);
/// How long nothing must happen where nothing is to happen.
const QUIET: Duration = Duration::from_millis(200);

/// Runs all of it, each part on a store of its own.
pub(super) async fn run<F, O>(fresh: F)
where
    F: Fn() -> O,
    O: Future<Output = SharedStore>,
{
    revisions_rise_with_changes(&*fresh().await).await;
    compares_decide(&*fresh().await).await;
    bounds_are_kept(&*fresh().await).await;
    ranges_page_in_key_order(&*fresh().await).await;
    watches_see_each_revision_whole_and_in_order(&*fresh().await).await;
    watches_begin_where_they_are_told(&*fresh().await).await;
    compaction_forgets_the_past_only(&*fresh().await).await;
    a_quiet_watch_outlives_compaction(&*fresh().await).await;
    a_dropped_wait_loses_nothing(&*fresh().await).await;
    leases_take_their_keys_along(&*fresh().await).await;
    concurrent_compares_lose_no_update(fresh().await).await;
}

pub(super) fn put(key: &str, value: &str) -> Operation {
    Operation::Put {
        key: key.into(),
        value: value.to_owned().into(),
        lease: None,
    }
}

fn delete(key: &str) -> Operation {
    Operation::Delete { key: key.into() }
}

pub(super) async fn commit(store: &dyn Store, operations: Vec<Operation>) -> u64 {
    match store
        .commit(Transaction {
            compare: vec![],
            operations,
        })
        .await
        .unwrap()
    {
        Committed::Done(revision) => revision,
        Committed::Conflict => panic!("conflict without a compare"),
    }
}

async fn compare(store: &dyn Store, compare: Compare, operation: Operation) -> Committed {
    store
        .commit(Transaction {
            compare: vec![compare],
            operations: vec![operation],
        })
        .await
        .unwrap()
}

async fn value(store: &dyn Store, key: &str) -> Option<String> {
    let entry = store.get(key).await.unwrap()?;
    Some(String::from_utf8(entry.value.to_vec()).unwrap())
}

async fn next(watch: &mut Box<dyn Watch>) -> Vec<(String, Option<String>, u64)> {
    let text = |c: Change| {
        (
            c.key,
            c.value.map(|v| String::from_utf8(v.to_vec()).unwrap()),
            c.revision,
        )
    };
    let changes = tokio::time::timeout(SOON, watch.next())
        .await
        .expect("a change was due")
        .unwrap();
    changes.into_iter().map(text).collect()
}

async fn quiet(watch: &mut Box<dyn Watch>) {
    assert!(
        tokio::time::timeout(QUIET, watch.next()).await.is_err(),
        "a change where none was due"
    );
}

async fn revisions_rise_with_changes(store: &dyn Store) {
    let first = commit(store, vec![put("/a", "1")]).await;
    let second = commit(store, vec![put("/a", "2"), put("/b", "2")]).await;
    assert_eq!(second, first + 1);
    let entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!(
        (entry.created, entry.modified, &entry.value[..]),
        (first, second, &b"2"[..])
    );
    assert_eq!(
        commit(store, vec![delete("/none")]).await,
        second,
        "nothing changed"
    );
    assert_eq!(commit(store, vec![]).await, second, "nothing changed");
    let third = commit(store, vec![delete("/a")]).await;
    assert_eq!((third, value(store, "/a").await), (second + 1, None));
    let again = commit(store, vec![put("/a", "3")]).await;
    assert_eq!(
        store.get("/a").await.unwrap().unwrap().created,
        again,
        "a new life"
    );
}

async fn compares_decide(store: &dyn Store) {
    let missing = || Compare::Missing("/a".into());
    let Committed::Done(first) = compare(store, missing(), put("/a", "1")).await else {
        panic!()
    };
    assert_eq!(
        compare(store, missing(), put("/a", "2")).await,
        Committed::Conflict
    );
    assert_eq!(
        compare(store, Compare::Exists("/b".into()), put("/a", "2")).await,
        Committed::Conflict
    );
    assert!(matches!(
        compare(store, Compare::Exists("/a".into()), put("/b", "1")).await,
        Committed::Done(_)
    ));
    let unchanged = || Compare::Modified("/a".into(), first);
    assert!(matches!(
        compare(store, unchanged(), put("/a", "2")).await,
        Committed::Done(_)
    ));
    assert_eq!(
        compare(store, unchanged(), put("/a", "3")).await,
        Committed::Conflict
    );
    assert_eq!(
        compare(store, Compare::Modified("/z".into(), 0), put("/a", "3")).await,
        Committed::Conflict
    );
    let mixed = Transaction {
        compare: vec![Compare::Exists("/a".into()), Compare::Exists("/none".into())],
        operations: vec![put("/a", "4"), put("/c", "4")],
    };
    assert_eq!(store.commit(mixed).await.unwrap(), Committed::Conflict);
    assert_eq!(
        (value(store, "/a").await.as_deref(), value(store, "/c").await),
        (Some("2"), None)
    );
}

async fn bounds_are_kept(store: &dyn Store) {
    let largest = "x".repeat(VALUE_BYTES_MAX);
    let before = commit(store, vec![put("/large", &largest)]).await;
    let refused = |operations| {
        store.commit(Transaction {
            compare: vec![],
            operations,
        })
    };
    let too_large = refused(vec![put("/fine", ""), put("/large", &format!("{largest}x"))]).await;
    assert!(
        matches!(too_large, Err(StoreError::ValueTooLarge { bytes, .. }) if bytes == VALUE_BYTES_MAX + 1)
    );
    let many = |n: usize| (0..n).map(|i| put(&format!("/many/{i}"), "")).collect();
    let too_many = refused(many(TRANSACTION_OPERATIONS_MAX + 1)).await;
    assert!(matches!(too_many, Err(StoreError::TooManyOperations(_))));
    let twice = refused(vec![put("/fine", "1"), delete("/fine")]).await;
    assert!(matches!(twice, Err(StoreError::DuplicateKey(key)) if key == "/fine"));
    let long = refused(vec![put(&"k".repeat(2_000), "")]).await;
    assert!(matches!(long, Err(StoreError::KeyTooLong { bytes: 2_000, .. })));
    assert_eq!(
        commit(store, many(TRANSACTION_OPERATIONS_MAX)).await,
        before + 1,
        "nothing was done before"
    );
    assert_eq!(value(store, "/fine").await, None);
}

async fn ranges_page_in_key_order(store: &dyn Store) {
    for i in (0..25).rev() {
        commit(
            store,
            vec![put(&format!("/t/{i:02}"), "v"), put(&format!("/u/{i:02}"), "v")],
        )
        .await;
    }
    let revision = commit(
        store,
        vec![put("/t", "not below /t/"), put("/t0", "not below /t/")],
    )
    .await;
    let (mut keys, mut after, mut pages) = (Vec::new(), None::<String>, 0);
    loop {
        let page = store.range("/t/", after.as_deref(), 10).await.unwrap();
        assert_eq!(page.revision, revision);
        pages += 1;
        keys.extend(page.entries.iter().map(|e| e.key.clone()));
        after = keys.last().cloned();
        if !page.more {
            break;
        }
    }
    let expected: Vec<String> = (0..25).map(|i| format!("/t/{i:02}")).collect();
    assert_eq!((keys, pages), (expected, 3));
    assert_eq!(store.range("", None, 1_000).await.unwrap().entries.len(), 52);
    assert!(
        !store.range("/t/", None, 25).await.unwrap().more,
        "exactly full is not more"
    );
    assert!(store.range("/none/", None, 10).await.unwrap().entries.is_empty());
    assert_eq!(
        store.range("/t/", Some("/a"), 1).await.unwrap().entries[0].key,
        "/t/00"
    );
}

async fn watches_see_each_revision_whole_and_in_order(store: &dyn Store) {
    let first = commit(store, vec![put("/w/a", "1")]).await;
    let mut watch = store.watch("/w/", first).await.unwrap();
    let second = commit(
        store,
        vec![
            put("/w/a", "2"),
            put("/x/other", "-"),
            delete("/w/none"),
            put("/w/b", "2"),
        ],
    )
    .await;
    commit(store, vec![put("/x/other", "-")]).await;
    let third = commit(store, vec![delete("/w/a")]).await;
    let text = |s: &str| Some(s.to_owned());
    assert_eq!(next(&mut watch).await, [("/w/a".into(), text("1"), first)]);
    assert_eq!(
        next(&mut watch).await,
        [
            ("/w/a".into(), text("2"), second),
            ("/w/b".into(), text("2"), second)
        ]
    );
    assert_eq!(next(&mut watch).await, [("/w/a".into(), None, third)]);
    quiet(&mut watch).await;
    let fourth = commit(store, vec![put("/w/c", "4")]).await;
    assert_eq!(next(&mut watch).await, [("/w/c".into(), text("4"), fourth)]);
    // More than any internal page of history.
    let mut revision = 0;
    for i in 0..12 {
        let burst = (0..100).map(|j| put(&format!("/w/{i}/{j}"), "v")).collect();
        revision = commit(store, burst).await;
    }
    for i in (0..12).rev() {
        let changes = next(&mut watch).await;
        assert!(
            changes.len() == 100 && changes.iter().all(|c| c.2 == revision - i),
            "{}",
            changes.len()
        );
    }
    quiet(&mut watch).await;
}

async fn watches_begin_where_they_are_told(store: &dyn Store) {
    let first = commit(store, vec![put("/w", "1")]).await;
    let mut later = store.watch("/w", first + 2).await.unwrap();
    commit(store, vec![put("/w", "2")]).await;
    quiet(&mut later).await;
    commit(store, vec![put("/w", "3")]).await;
    assert_eq!(next(&mut later).await[0].2, first + 2);
    let mut earlier = store.watch("/w", first + 1).await.unwrap();
    assert_eq!(next(&mut earlier).await[0].2, first + 1);
    assert_eq!(next(&mut earlier).await[0].2, first + 2);
}

async fn compaction_forgets_the_past_only(store: &dyn Store) {
    let first = commit(store, vec![put("/a", "1")]).await;
    let mut slow = store.watch("/a", first).await.unwrap();
    commit(store, vec![put("/a", "2")]).await;
    let third = commit(store, vec![put("/a", "3")]).await;
    store.compact(third).await.unwrap();
    let compacted = store.watch("/a", third - 1).await;
    assert!(
        matches!(compacted, Err(StoreError::Compacted { wanted, oldest }) if wanted == third - 1 && oldest == third)
    );
    assert!(matches!(slow.next().await, Err(StoreError::Compacted { .. })));
    assert_eq!(value(store, "/a").await.as_deref(), Some("3"));
    let mut watch = store.watch("/a", third).await.unwrap();
    assert_eq!(next(&mut watch).await[0].2, third);
    // Further than the present is as far as the present.
    store.compact(third + 1_000).await.unwrap();
    let mut watch = store.watch("/a", third + 1).await.unwrap();
    assert_eq!(commit(store, vec![put("/a", "4")]).await, third + 1);
    assert_eq!(next(&mut watch).await[0].2, third + 1);
}

async fn a_quiet_watch_outlives_compaction(store: &dyn Store) {
    let first = commit(store, vec![put("/w", "1")]).await;
    let mut watch = store.watch("/w", first + 1).await.unwrap();
    for _ in 0..5 {
        commit(store, vec![put("/other", "-")]).await;
    }
    store.compact(first + 5).await.unwrap();
    let seventh = commit(store, vec![put("/w", "2")]).await;
    assert_eq!(next(&mut watch).await[0].2, seventh);
}

async fn a_dropped_wait_loses_nothing(store: &dyn Store) {
    let mut watch = store.watch("/w", 1).await.unwrap();
    for i in 0..50 {
        let revision = commit(store, vec![put("/w", "v")]).await;
        // Given up at any point of its way.
        let _ = tokio::time::timeout(Duration::from_micros(i * 20), std::future::pending::<()>()).await;
        let early = tokio::time::timeout(Duration::from_micros(i * 4), watch.next()).await;
        match early {
            Ok(changes) => assert_eq!(changes.unwrap()[0].revision, revision),
            Err(_) => assert_eq!(next(&mut watch).await[0].2, revision),
        }
    }
}

async fn leases_take_their_keys_along(store: &dyn Store) {
    let leased = |key: &str, lease| Operation::Put {
        key: key.into(),
        value: "v".into(),
        lease: Some(lease),
    };
    let unknown = LeaseId(4_711);
    let refused = store
        .commit(Transaction {
            compare: vec![],
            operations: vec![leased("/l/x", unknown)],
        })
        .await;
    assert!(matches!(refused, Err(StoreError::NoLease(lease)) if lease == unknown));
    assert!(matches!(
        store.keep_alive(unknown).await,
        Err(StoreError::NoLease(_))
    ));
    let short = store.grant(Duration::from_millis(700)).await.unwrap();
    let long = store.grant(Duration::from_secs(600)).await.unwrap();
    assert_ne!(short, long);
    commit(
        store,
        vec![
            leased("/l/a", short),
            leased("/l/b", short),
            leased("/l/c", long),
            leased("/l/d", short),
        ],
    )
    .await;
    let from = commit(store, vec![put("/l/d", "without a lease now")]).await;
    let mut watch = store.watch("/l/", from + 1).await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        store.keep_alive(short).await.unwrap();
    }
    assert!(value(store, "/l/a").await.is_some(), "kept alive beyond its time");
    let gone = next(&mut watch).await;
    assert_eq!(
        gone,
        [("/l/a".into(), None, from + 1), ("/l/b".into(), None, from + 1)]
    );
    assert!(matches!(
        store.keep_alive(short).await,
        Err(StoreError::NoLease(_))
    ));
    store.revoke(long).await.unwrap();
    assert_eq!(next(&mut watch).await, [("/l/c".into(), None, from + 2)]);
    assert!(value(store, "/l/d").await.is_some());
}

async fn concurrent_compares_lose_no_update(store: SharedStore) {
    commit(&*store, vec![put("/n", "0")]).await;
    let increment = |store: Arc<dyn Store>| async move {
        for _ in 0..25 {
            loop {
                let entry = store.get("/n").await.unwrap().unwrap();
                let n: u32 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                let unchanged = Compare::Modified("/n".into(), entry.modified);
                if compare(&*store, unchanged, put("/n", &(n + 1).to_string())).await != Committed::Conflict {
                    break;
                }
            }
        }
    };
    let workers: Vec<_> = (0..8).map(|_| tokio::spawn(increment(store.clone()))).collect();
    for worker in workers {
        worker.await.unwrap();
    }
    assert_eq!(value(&*store, "/n").await.as_deref(), Some("200"));
    assert_eq!(
        store.get("/n").await.unwrap().unwrap().modified,
        201,
        "a revision for each"
    );
}
