//! The log as its readers see it: whole, in order, bounded, and never behind what was answered.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::json;

use super::*;

fn event(operation: &str) -> Event {
    Event::new("AKIDEXAMPLE00001", operation).target("cluster", "default")
}

fn all(max: usize) -> Listing {
    Listing {
        before: None,
        since_ms: 0,
        max,
    }
}

async fn operations(audit: &Audit) -> Vec<String> {
    let page = audit.list(all(1_000)).await.unwrap();
    let name = |event: &Value| {
        format!(
            "{} {}",
            event["operation"].as_str().unwrap(),
            event["outcome"].as_str().unwrap()
        )
    };
    page.events.iter().map(name).collect()
}

#[tokio::test]
async fn a_change_is_written_before_it_is_made_and_listed_when_it_is_concluded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(AUDIT_FILE);
    let audit = Audit::open(&path).unwrap();
    let mut intent = audit.intend(event("CreateCluster").request("r-1")).await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"started\"") && text.ends_with('\n'), "{text}");
    assert_eq!(operations(&audit).await, [""; 0]);
    intent.target("task", "arn");
    intent.conclude(Outcome::Done).await;
    audit
        .record(event("RunTask"), Outcome::refused("AccessDeniedException"))
        .await
        .unwrap();
    let page = audit.list(all(10)).await.unwrap();
    assert_eq!(
        (&page.events[0]["code"], page.next),
        (&json!("AccessDeniedException"), None)
    );
    let done = &page.events[1];
    assert_eq!(done["targets"], json!({"cluster": "default", "task": "arn"}));
    assert_eq!(
        (&done["sequence"], &done["of"], &done["requestId"]),
        (&json!(2), &json!(1), &json!("r-1"))
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn what_nobody_concluded_is_concluded_as_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(AUDIT_FILE);
    let audit = Audit::open(&path).unwrap();
    drop(audit.intend(event("StopTask")).await.unwrap());
    let lost = audit.intend(event("RunTask")).await.unwrap();
    audit.close().await;
    assert!(matches!(
        audit.intend(event("RunTask")).await,
        Err(AuditError::Closed)
    ));
    // As if the process had died: nothing more is written for it.
    drop(lost);
    let again = Audit::open(&path).unwrap();
    assert_eq!(operations(&again).await, ["RunTask unknown", "StopTask unknown"]);
    again.record(event("Register"), Outcome::Done).await.unwrap();
    again.close().await;
    assert_eq!(
        operations(&Audit::open(&path).unwrap()).await.len(),
        3,
        "concluded once"
    );
}

#[tokio::test]
async fn pages_meet_across_rotated_files_and_old_files_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(AUDIT_FILE);
    let limits = Limits {
        file_bytes_max: 2_000,
        rotated_max: 2,
    };
    let audit = Audit::open_with(&path, limits).unwrap();
    for number in 0..100 {
        audit
            .record(event(&format!("Op{number:03}")), Outcome::Done)
            .await
            .unwrap();
    }
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap()).collect();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|file| file.metadata().unwrap().len() <= 2_000));
    for max in [1, 3, 7] {
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let page = audit.list(Listing { before, ..all(max) }).await.unwrap();
            assert!(page.events.len() <= max);
            seen.extend(
                page.events
                    .iter()
                    .map(|event| event["sequence"].as_u64().unwrap()),
            );
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        assert!(seen.len() > 10, "{seen:?}");
        let newest_first: Vec<u64> = (0..seen.len() as u64).map(|n| 100 - n).collect();
        assert_eq!(seen, newest_first);
    }
    audit.close().await;
    let again = Audit::open_with(&path, limits).unwrap();
    again.record(event("Later"), Outcome::Done).await.unwrap();
    assert_eq!(again.list(all(1)).await.unwrap().events[0]["sequence"], 101);
}

#[tokio::test]
async fn time_bounds_a_listing() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(&dir.path().join(AUDIT_FILE)).unwrap();
    audit.record(event("Early"), Outcome::Done).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    audit.record(event("Late"), Outcome::Done).await.unwrap();
    let late = audit.list(all(1)).await.unwrap().events[0]["timeMs"]
        .as_i64()
        .unwrap();
    let listing = Listing {
        since_ms: late,
        ..all(10)
    };
    assert_eq!(audit.list(listing).await.unwrap().events.len(), 1);
}

#[tokio::test]
async fn a_torn_line_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(AUDIT_FILE);
    let audit = Audit::open(&path).unwrap();
    audit.record(event("One"), Outcome::Done).await.unwrap();
    audit.close().await;
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"sequence\":2,\"timeMs\":17");
    fs::write(&path, text).unwrap();
    let audit = Audit::open(&path).unwrap();
    audit.record(event("Two"), Outcome::Done).await.unwrap();
    assert_eq!(operations(&audit).await, ["Two done", "One done"]);
}

#[tokio::test]
async fn strangers_are_counted_and_do_not_fill_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(AUDIT_FILE);
    let audit = Audit::open(&path).unwrap();
    for last in 0..=255u8 {
        for _ in 0..20 {
            audit.refused(
                Some([10, 0, 0, last % 2].into()),
                "UnrecognizedClientException",
                None,
            );
        }
        // The queue is bounded; what finds no place is counted elsewhere.
        audit.record(event("Tick"), Outcome::Done).await.unwrap();
    }
    audit.close().await;
    let events = Audit::open(&path).unwrap().list(all(1_000)).await.unwrap().events;
    let strangers: Vec<_> = events
        .iter()
        .filter(|event| event["actor"] == "unauthenticated")
        .collect();
    assert!(strangers.len() <= 6, "{}", strangers.len());
    let count: u64 = strangers
        .iter()
        .map(|event| event["count"].as_u64().unwrap())
        .sum();
    assert_eq!(count, 256 * 20);
    assert_eq!(strangers[0]["outcome"], "refused");
}

#[tokio::test]
async fn a_listing_has_what_nobody_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(&dir.path().join(AUDIT_FILE)).unwrap();
    for number in 1..=200u8 {
        let from = Some([10, 0, 0, number].into());
        audit.refused(from, "UnrecognizedClientException", None);
        assert_eq!(operations(&audit).await.len(), usize::from(number));
    }
    drop(audit.intend(event("RunTask")).await.unwrap());
    assert_eq!(operations(&audit).await[0], "RunTask unknown");
    audit.close().await;
    assert_eq!(operations(&audit).await.len(), 201, "and when it is closed");
}

#[tokio::test]
async fn a_full_disk_lets_no_change_through_and_keeps_outcomes() {
    // Linux answers every write to it with ENOSPC.
    let audit = Audit::open(Path::new("/dev/full")).unwrap();
    let error = audit.intend(event("RunTask")).await.unwrap_err();
    assert!(error.to_string().contains("/dev/full"), "{error}");
    assert!(audit.list(all(1)).await.unwrap().events.is_empty());

    // An outcome that cannot be written is kept, and written before anything else.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(AUDIT_FILE);
    let mut writer = thread::Writer::new(Log::open(&path, Limits::default()).unwrap(), Arc::default());
    writer.keep(Concluded {
        event: event("RunTask"),
        outcome: Outcome::Done,
        of: 7,
        _place: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
    });
    let (jobs, queue) = channel();
    drop(jobs);
    writer.run(&queue);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"of\":7"), "{text}");
}

#[tokio::test]
async fn a_flood_of_refused_attempts_takes_no_outcome_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(&dir.path().join(AUDIT_FILE)).unwrap();
    let mut intents = Vec::new();
    for _ in 0..PLACES_MAX - 1 {
        intents.push(audit.intend(event("RunTask")).await.unwrap());
    }
    let last = audit.intend(event("RunTask")).await.unwrap();
    assert!(
        matches!(audit.intend(event("RunTask")).await, Err(AuditError::Busy)),
        "as many as can be concluded, and no more"
    );
    for number in 0..20 * REFUSED_MAX {
        let from = IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        audit.refused(Some(from), "UnrecognizedClientException", None);
    }
    // Nobody waits for these, so that they come at once.
    drop(intents);
    last.conclude(Outcome::Done).await;
    let events = audit.list(all(10_000)).await.unwrap().events;
    let of = |outcome: &str| events.iter().filter(|event| event["outcome"] == outcome).count();
    assert_eq!((of("unknown"), of("done")), (PLACES_MAX - 1, 1));
    audit
        .intend(event("RunTask"))
        .await
        .expect("the places are free again");
}

#[tokio::test]
async fn an_intent_that_nobody_waits_for_any_more_is_concluded() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(&dir.path().join(AUDIT_FILE)).unwrap();
    for _ in 0..100 {
        let mut intend = Box::pin(audit.intend(event("RunTask")));
        // Asked, and not waited for: it was not written yet, or on a busy machine it was, and is dropped as it is.
        let _ = futures_util::poll!(&mut intend);
    }
    // The thread gives the last one back, and it is told in turn that nobody took it.
    while operations(&audit).await.len() < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        operations(&audit)
            .await
            .iter()
            .all(|one| one == "RunTask unknown")
    );
}

#[test]
fn an_event_is_a_line_of_bounded_length() {
    let mut event = Event::new("a", "b");
    for number in 0..50 {
        let long: Vec<Value> = vec![json!("\u{1}\"ü".repeat(1_000)); 50];
        event.add_target(&format!("list{number:02}"), long.into());
        event.add_target(&format!("text{number:02}"), json!("\u{1}".repeat(1_000)));
    }
    let text = serde_json::to_string(&event).unwrap();
    assert!(text.len() < 4 << 10, "{}", text.len());
    let mut event = Event::new("a", "b").target("tasks", vec![json!("t"); 17]);
    assert_eq!(event.targets["tasks"].as_array().unwrap().len(), 17);
    assert_eq!(event.targets["tasks"][16], "…", "that there are more is told");
    event.add_target("tasks", json!("one"));
    assert_eq!(event.targets["tasks"], "one");
}

#[test]
fn values_are_names_and_bounded() {
    let event = Event::new("a", "b")
        .target("object", json!({"environment": "secret"}))
        .target("long", "x".repeat(10_000))
        .target("many", vec![json!("y"); 1_000])
        .target("mixed", vec![json!({"secret": 1}), json!("z")]);
    let text = serde_json::to_string(&event).unwrap();
    assert!(text.len() < 2_000 && !text.contains("secret"), "{text}");
    assert_eq!(event.targets["mixed"], json!(["z"]));
}
