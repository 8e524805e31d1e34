//! Reading logs: what real loggers wrote, while they write and rotate, and files that nobody should have written.
#![allow(clippy::unwrap_used)]

mod logs_support;

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use berth_agent::logs::{
    Line, LogQuery, LogReadError, LogStream, LoggerCommand, container_log,
    read::{BATCH_LINES_MAX, Batch},
    stream,
};
use logs_support::{Container, DEADLINE, id, logger_binary};
use tokio::{sync::mpsc::Receiver, time::timeout};

/// Asks for everything of one container, which is gone.
fn query(task_dir: &Path, digit: char) -> LogQuery {
    LogQuery {
        task_dir: task_dir.to_owned(),
        containers: vec![(format!("c{digit}"), id(digit))],
        tail: 0,
        since_ms: 0,
        follow: false,
        alive: Arc::new(|_| false),
    }
}

async fn next(lines: &mut Receiver<Batch>) -> Option<Batch> {
    timeout(DEADLINE, lines.recv()).await.expect("a batch in time")
}

/// To the end; what is wrong stands where it was found.
async fn all(query: LogQuery) -> Vec<Result<Line, LogReadError>> {
    let mut lines = stream(query);
    let mut found = Vec::new();
    while let Some(batch) = next(&mut lines).await {
        match batch {
            Ok(lines) => {
                assert!(!lines.is_empty() && lines.len() <= BATCH_LINES_MAX);
                found.extend(lines.into_iter().map(Ok));
            }
            Err(error) => found.push(Err(error)),
        }
    }
    found
}

async fn texts(query: LogQuery) -> Vec<String> {
    let found = all(query).await;
    found
        .into_iter()
        .map(|line| String::from_utf8(line.unwrap().data).unwrap())
        .collect()
}

fn record(text: &str, second: u32) -> String {
    format!("{{\"log\":\"{text}\",\"stream\":\"stdout\",\"time\":\"2024-03-01T00:00:{second:02}.5Z\"}}\n")
}

fn write(task_dir: &Path, digit: char, suffix: &str, content: &str) {
    let path = container_log(task_dir, &format!("c{digit}"), &id(digit)).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(format!("{}{suffix}", path.display()), content).unwrap();
}

fn command(task_dir: &Path, digit: char, max_size_bytes: u64, max_files: u32) -> LoggerCommand {
    LoggerCommand {
        logger: logger_binary().to_owned(),
        socket: task_dir.join("nobody.sock"),
        runtime_id: format!("{}-1", id(digit)),
        path: container_log(task_dir, &format!("c{digit}"), &id(digit)).unwrap(),
        max_size_bytes,
        max_files,
        blocking: false,
        max_buffer_bytes: 0,
        discard: false,
        attributes: Default::default(),
    }
}

#[tokio::test]
async fn several_containers_and_files_are_merged_by_time() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    write(dir, 'a', ".1", &(record("1\\n", 1) + &record("3\\n", 3)));
    write(dir, 'a', "", &record("6\\n", 6));
    // The pieces of a long line stay together.
    write(
        dir,
        'b',
        "",
        &(record("2\\n", 2) + &record("4 ", 4) + &record("5\\n", 8) + &record("9\\n", 9)),
    );
    let mut both = query(dir, 'a');
    both.containers.push(("cb".into(), id('b')));
    assert_eq!(
        texts(both.clone()).await,
        ["1\n", "2\n", "3\n", "4 ", "5\n", "6\n", "9\n"]
    );

    let found = all(both.clone()).await;
    let Ok(first) = &found[0] else { panic!("{found:?}") };
    assert_eq!(
        (first.container.as_str(), first.stream),
        ("ca", LogStream::Stdout)
    );
    let since = first.time_ms + 2000;
    assert_eq!(first.time_ms, 1_709_251_201_500);
    assert_eq!(
        texts(LogQuery {
            since_ms: since,
            ..both.clone()
        })
        .await[0],
        "3\n"
    );
    assert_eq!(
        texts(LogQuery {
            since_ms: since + 1,
            ..both.clone()
        })
        .await[0],
        "4 "
    );
    assert_eq!(
        texts(LogQuery {
            tail: 2,
            ..both.clone()
        })
        .await,
        ["3\n", "4 ", "5\n", "6\n", "9\n"]
    );
    assert_eq!(texts(LogQuery { tail: 1, ..both }).await, ["6\n", "9\n"]);
}

#[tokio::test]
async fn what_cannot_be_read_is_told_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let good = record("1\\n", 1);
    let end = 2 * good.len() + 5;
    write(
        directory.path(),
        'a',
        "",
        &format!("{good}junk\n{}{{\"log\":\"to", record("2\\n", 2)),
    );
    let found = all(query(directory.path(), 'a')).await;
    assert_eq!(found.len(), 4, "{found:?}");
    let corrupt = |at: usize| match &found[at] {
        Err(error @ LogReadError::Corrupt { offset, bytes, .. }) if !error.ends_stream() => (*offset, *bytes),
        other => panic!("{other:?}"),
    };
    assert_eq!(corrupt(1), (good.len() as u64, 5));
    assert_eq!(
        corrupt(3),
        (end as u64, 10),
        "the torn end of a container that is gone"
    );
    assert!(matches!(&found[2], Ok(line) if line.data == b"2\n"));

    let alive = LogQuery {
        alive: Arc::new(|_| true),
        ..query(directory.path(), 'a')
    };
    assert_eq!(all(alive).await.len(), 3, "it may still be finished");
    let nameless = LogQuery {
        containers: vec![("../x".into(), id('a'))],
        ..query(directory.path(), 'a')
    };
    assert!(matches!(
        &all(nameless).await[..],
        [Err(LogReadError::Name { .. })]
    ));
    assert!(
        all(query(directory.path(), 'b')).await.is_empty(),
        "no log yet is no error"
    );
    fs::create_dir_all(directory.path().join("cc").join(format!("{}-json.log", id('c')))).unwrap();
    let directory_as_log = all(query(directory.path(), 'c')).await;
    assert!(
        matches!(&directory_as_log[..], [Err(LogReadError::Read { .. })]),
        "{directory_as_log:?}"
    );
}

/// Follows one container from before its start to after its end, across hundreds of rotations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn following_across_rotations_loses_and_repeats_nothing() {
    const LINES: usize = 120_000;
    let directory = tempfile::tempdir().unwrap();
    let alive = Arc::new(AtomicBool::new(true));
    let seen = alive.clone();
    let mut lines = stream(LogQuery {
        follow: true,
        alive: Arc::new(move |_| seen.load(Ordering::SeqCst)),
        ..query(directory.path(), 'a')
    });
    let mut container = Container::start(&command(directory.path(), 'a', 50_000, 1000));
    let mut stdout = container.stdout.take().unwrap();
    let writer = thread::spawn(move || {
        for n in 0..LINES {
            writeln!(stdout, "line {n}").unwrap();
            if n % 1000 == 0 {
                thread::sleep(Duration::from_millis(5));
            }
        }
    });
    let mut count = 0;
    let mut closing = Some((writer, container));
    while let Some(batch) = next(&mut lines).await {
        for line in batch.unwrap() {
            assert_eq!(String::from_utf8(line.data).unwrap(), format!("line {count}\n"));
            count += 1;
        }
        if let Some((writer, mut container)) = closing.take_if(|(writer, _)| writer.is_finished()) {
            writer.join().unwrap();
            container.exit();
            // Gone, with output that the follower did not see yet.
            alive.store(false, Ordering::SeqCst);
        }
    }
    assert_eq!(count, LINES, "and the stream ends when the container is gone");
    let files = fs::read_dir(directory.path().join("ca")).unwrap().count();
    assert!(files > 100, "{files} files");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_too_slow_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let mut container = Container::start(&command(directory.path(), 'a', 2_000_000, 3));
    let alive = Arc::new(AtomicBool::new(true));
    let seen = alive.clone();
    let mut stdout = container.stdout.take().unwrap();
    writeln!(stdout, "first").unwrap();
    let mut lines = stream(LogQuery {
        follow: true,
        alive: Arc::new(move |_| seen.load(Ordering::SeqCst)),
        ..query(directory.path(), 'a')
    });
    // It holds the first file open, and then reads no more than fits into its channel.
    let first = next(&mut lines).await.unwrap().unwrap();
    assert_eq!(first[0].data, b"first\n");
    let text = (0..200_000).fold(String::new(), |mut text, n| {
        writeln!(text, "{n}").unwrap();
        text
    });
    stdout.write_all(text.as_bytes()).unwrap();
    drop(stdout);
    container.exit();
    alive.store(false, Ordering::SeqCst);

    let (mut last, mut skipped) = (None, 0);
    while let Some(batch) = next(&mut lines).await {
        match batch {
            Ok(lines) => {
                for line in lines {
                    let number: usize = String::from_utf8(line.data).unwrap().trim().parse().unwrap();
                    let expected = last.map_or(0, |last: usize| last + 1);
                    assert!(
                        number == expected || (skipped > 0 && number > expected),
                        "{number} after {last:?}"
                    );
                    last = Some(number);
                }
            }
            Err(error) => {
                assert!(matches!(error, LogReadError::Skipped { .. }), "{error:?}");
                skipped += 1;
            }
        }
    }
    assert_eq!((last, skipped), (Some(199_999), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_kept_file_that_starts_over_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let mut container = Container::start(&command(directory.path(), 'a', 400, 1));
    let mut stdout = container.stdout.take().unwrap();
    let mut lines = stream(LogQuery {
        follow: true,
        alive: Arc::new(|_| true),
        ..query(directory.path(), 'a')
    });
    let (mut found, mut started_over) = (Vec::new(), false);
    for n in 0..8 {
        writeln!(stdout, "{n}").unwrap();
        while found.last() != Some(&n.to_string()) {
            match next(&mut lines).await.unwrap() {
                Ok(lines) => found.extend(
                    lines
                        .into_iter()
                        .map(|line| String::from_utf8(line.data).unwrap().trim().to_owned()),
                ),
                Err(error) => {
                    assert!(matches!(error, LogReadError::Skipped { .. }));
                    started_over = true;
                }
            }
        }
    }
    assert!(started_over);
    assert_eq!(found, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    drop((stdout, lines));
    container.exit();
}

#[tokio::test]
async fn nobody_reads_for_a_receiver_that_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 'a', "", &record("x\\n", 1).repeat(100_000));
    let asked = Arc::new(AtomicBool::new(false));
    let seen = asked.clone();
    let mut lines = stream(LogQuery {
        follow: true,
        alive: Arc::new(move |_| {
            seen.store(true, Ordering::SeqCst);
            true
        }),
        ..query(directory.path(), 'a')
    });
    assert!(next(&mut lines).await.unwrap().is_ok());
    drop(lines);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!asked.load(Ordering::SeqCst), "it stopped long before the end");
}
