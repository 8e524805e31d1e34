//! SIGKILL of the logger, again and again, while a process writes: nothing is lost, little is repeated.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use common::{BATCH_BYTES_MAX, Container, Logger, records, until};

const LINES: u64 = 4_000_000;
const KILLS_MIN: usize = 20;
/// Enough on the slowest machine: more means that no logger comes forward.
const KILLS_MAX: usize = 2000;

/// How the numbers in the log differ from `1 … last`.
struct Seen {
    lost: u64,
    repeats: Vec<usize>,
}

fn compare(path: &Path, last: u64) -> Seen {
    let (mut next, mut lost, mut repeats, mut repeating) = (1, 0, Vec::new(), false);
    for record in records(path) {
        let number: u64 = record.log.trim_end().parse().expect("no line is broken");
        if number < next {
            if !repeating {
                repeats.push(0);
            }
            *repeats.last_mut().unwrap() += record.log.len();
        } else {
            lost += number - next;
            next = number + 1;
        }
        repeating = number < next - 1;
    }
    lost += last + 1 - next;
    Seen { lost, repeats }
}

#[test]
fn killed_loggers_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.log");
    // Rotates while it is killed, too.
    let pairs = [
        ("path", path.to_str().unwrap()),
        ("max-size", "20000000"),
        ("max-file", "1000"),
    ];
    let mut container = Container::new();
    let mut logger = Logger::spawn(&container, &pairs);
    logger.wait_ready();
    let mut writer = Command::new("seq")
        .args(["1", &LINES.to_string()])
        .stdout(container.stdout.take().unwrap())
        .stderr(Stdio::from(container.stderr.take().unwrap()))
        .spawn()
        .unwrap();

    let mut kills = 0;
    let status = loop {
        if let Some(status) = writer.try_wait().unwrap() {
            break status;
        }
        // Not in step with anything the logger does.
        thread::sleep(Duration::from_micros(8_000 + (kills as u64 * 7_919) % 20_000));
        logger.signal(libc::SIGKILL);
        logger.child.wait().unwrap();
        kills += 1;
        assert!(kills < KILLS_MAX, "the resumed loggers do not come forward");
        logger = Logger::resume(&container, &pairs);
    };
    assert!(status.success(), "the writer saw no SIGPIPE: {status}");
    assert!(logger.finish().success());

    let seen = compare(&path, LINES);
    let most = seen.repeats.iter().copied().max().unwrap_or(0);
    println!(
        "{kills} kills, {} lost, {} repeats, most {most} bytes",
        seen.lost,
        seen.repeats.len()
    );
    assert!(
        kills >= KILLS_MIN,
        "only {kills} kills while {LINES} lines were written"
    );
    assert_eq!(seen.lost, 0);
    assert!(
        seen.repeats.len() <= kills && most <= BATCH_BYTES_MAX,
        "{:?}",
        seen.repeats
    );
}

#[test]
fn a_resumed_logger_is_found_like_a_first_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.log");
    let mut container = Container::new();
    let logger = Logger::resume(&container, &[("path", path.to_str().unwrap())]);
    let link = |fd: u32| std::fs::read_link(format!("/proc/{}/fd/{fd}", logger.child.id())).unwrap();
    until("the pipes are at 3 and 4", || {
        let null = link(0) == Path::new("/dev/null") && link(1) == Path::new("/dev/null");
        null.then_some(())
    });
    for fd in [3, 4] {
        assert!(
            link(fd).to_string_lossy().starts_with("pipe:"),
            "{fd}: {:?}",
            link(fd)
        );
    }
    container.exit();
}
