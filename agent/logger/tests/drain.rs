//! What goes in comes out: in order, whole, up to the end of the stream.
#![allow(unsafe_code, clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::Write,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use common::{Container, Logger, records, text, until};

#[test]
fn every_line_comes_out_in_order() {
    const LINES: usize = 300_000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t/web/c-json.log");
    let mut container = Container::new();
    let mut logger = Logger::spawn(&container, &[("path", path.to_str().unwrap())]);
    logger.wait_ready();

    let mut stderr = container.stderr.take().unwrap();
    let noise = thread::spawn(move || (0..LINES / 10).for_each(|n| writeln!(stderr, "err {n}").unwrap()));
    let mut stdout = std::io::BufWriter::with_capacity(3000, container.stdout.take().unwrap());
    (0..LINES).for_each(|n| writeln!(stdout, "line {n} <é>").unwrap());
    drop(stdout);
    noise.join().unwrap();

    assert!(logger.finish().success());
    let records = records(&path);
    let lines = |stream: &str| records.iter().filter(|r| r.stream == stream).count();
    assert_eq!((lines("stdout"), lines("stderr")), (LINES, LINES / 10));
    let expected: String = (0..LINES).map(|n| format!("line {n} <é>\n")).collect();
    assert!(text(&records, "stdout") == expected);
    let expected: String = (0..LINES / 10).map(|n| format!("err {n}\n")).collect();
    assert!(text(&records, "stderr") == expected);
    assert!(
        records.windows(2).all(|pair| pair[0].time <= pair[1].time),
        "times do not go back"
    );
}

#[test]
fn stop_signals_are_ignored_and_the_pipe_is_drained() {
    const LINES: usize = 60_000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.log");
    let mut container = Container::new();
    let stdout = container.stdout.as_ref().unwrap();
    // SAFETY: no memory is passed.
    assert!(unsafe { libc::fcntl(stdout.as_raw_fd(), libc::F_SETPIPE_SZ, 1 << 20) } >= 1 << 20);
    let expected: String = (0..LINES).map(|n| format!("{n:08} pending\n")).collect();
    container
        .stdout
        .as_mut()
        .unwrap()
        .write_all(expected.as_bytes())
        .unwrap();

    let mut logger = Logger::spawn(&container, &[("path", path.to_str().unwrap())]);
    logger.wait_ready();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        logger.signal(signal);
    }
    thread::sleep(Duration::from_millis(50));
    assert!(logger.child.try_wait().unwrap().is_none(), "it waits for the end");
    container.exit();
    assert!(logger.finish().success());
    assert!(text(&records(&path), "stdout") == expected);
}

#[test]
fn long_lines_are_split_and_the_last_line_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.log");
    let mut container = Container::new();
    let mut logger = Logger::spawn(&container, &[("path", path.to_str().unwrap())]);
    let long = "é".repeat(100_000);
    writeln!(container.stdout.as_mut().unwrap(), "{long}").unwrap();
    write!(container.stdout.as_mut().unwrap(), "no line end").unwrap();
    // Exactly one record, and nothing behind it: the end must still come.
    write!(
        container.stderr.as_mut().unwrap(),
        "{}",
        "x".repeat(16 * 1024 + 1)
    )
    .unwrap();
    container.exit();
    assert!(logger.finish().success());

    let records = records(&path);
    assert!(text(&records, "stdout") == format!("{long}\nno line end\n"));
    assert!(text(&records, "stderr") == "x".repeat(16 * 1024 + 1) + "\n");
    assert!(
        records.iter().all(|r| r.log.len() <= 16 * 1024 + 1),
        "no record is longer"
    );
    assert!(
        records
            .iter()
            .filter(|r| r.stream == "stdout" && !r.log.ends_with('\n'))
            .count()
            >= 12
    );
}

#[test]
fn any_bytes_come_out_as_docker_shows_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.log");
    let mut container = Container::new();
    let mut logger = Logger::spawn(&container, &[("path", path.to_str().unwrap())]);
    let every: Vec<u8> = (0..=255).filter(|&b| b != b'\n').collect();
    for bytes in [
        &every[..],
        b"\n",
        b"\xf0\x9f\x98\n",
        b"\x00\n",
        "\u{2028}\n".as_bytes(),
    ] {
        container.stdout.as_mut().unwrap().write_all(bytes).unwrap();
    }
    container.exit();
    assert!(logger.finish().success());
    let ascii: String = every
        .iter()
        .filter(|b| b.is_ascii())
        .map(|&b| b as char)
        .collect();
    let expected = format!(
        "{ascii}{}\n\u{fffd}\u{fffd}\u{fffd}\n\0\n\u{2028}\n",
        "\u{fffd}".repeat(128)
    );
    assert_eq!(text(&records(&path), "stdout"), expected);
    assert!(fs::read_to_string(&path).unwrap().contains("\\u2028"));
}

/// A pipe whose slots are full blocks its writer, however few bytes are in it.
#[test]
fn a_pipe_that_is_full_without_a_line_end_does_not_stall() {
    for (what, capacity, packets) in [
        ("one page", 4096, false),
        ("one-byte packets", 65_536, true),
        ("three packets and more", 16_384, true),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.log");
        let mut container = Container::new();
        let mut stdout = container.stdout.take().unwrap();
        // SAFETY: no memory is passed.
        unsafe {
            assert!(libc::fcntl(stdout.as_raw_fd(), libc::F_SETPIPE_SZ, capacity) >= capacity);
            let flags = if packets { libc::O_DIRECT } else { 0 };
            assert_eq!(libc::fcntl(stdout.as_raw_fd(), libc::F_SETFL, flags), 0);
        }
        let mut logger = Logger::spawn(&container, &[("path", path.to_str().unwrap())]);
        // In the last slot that a pipe has, a character may have to be cut; with more slots, none is.
        let line = if packets {
            "é1".repeat(50)
        } else {
            "12".repeat(6000)
        } + "\n";
        let bytes = line.clone().into_bytes();
        let writer = thread::spawn(move || {
            if packets {
                bytes.iter().for_each(|byte| stdout.write_all(&[*byte]).unwrap());
            } else {
                stdout.write_all(&bytes).unwrap();
            }
        });
        until(what, || writer.is_finished().then_some(()));
        container.exit();
        assert!(logger.finish().success());
        let text = text(&records(&path), "stdout");
        assert!(text == line, "{what}: {} bytes of {}", text.len(), line.len());
    }
}

#[test]
fn an_unfinished_line_costs_no_processor_time_and_is_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.log");
    let mut container = Container::new();
    let mut logger = Logger::spawn(&container, &[("path", path.to_str().unwrap())]);
    logger.wait_ready();
    let mut stdout = container.stdout.take().unwrap();
    stdout.write_all(b"password: ").unwrap();
    let ticks = |pid: u32| -> u64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (before, started) = (ticks(logger.child.id()), Instant::now());
    thread::sleep(Duration::from_millis(1500));
    assert!(
        ticks(logger.child.id()) - before <= 2,
        "it waits, it does not spin"
    );
    assert_eq!(records(&path), []);
    // Every later write wakes it, although the pipe never was empty.
    stdout.write_all(b"secret\n").unwrap();
    until("the line is written", || {
        (!records(&path).is_empty()).then_some(())
    });
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(text(&records(&path), "stdout"), "password: secret\n");
    drop(stdout);
    container.exit();
    assert!(logger.finish().success());
}

#[test]
fn what_is_to_be_discarded_is_taken_and_kept_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t/c.log");
    let mut container = Container::new();
    let pairs = [("path", path.to_str().unwrap()), ("discard", "yes")];
    let mut logger = Logger::spawn(&container, &pairs);
    logger.wait_ready();
    // Many times what a pipe holds: nobody is kept waiting.
    let line = "x".repeat(1023) + "\n";
    let stdout = container.stdout.as_mut().unwrap();
    (0..4_096).for_each(|_| stdout.write_all(line.as_bytes()).unwrap());
    container.exit();
    assert!(logger.finish().success());
    assert!(!path.exists() && !path.parent().unwrap().exists());
}

#[test]
fn attributes_are_in_every_record() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.log");
    let mut container = Container::new();
    let pairs = [("path", path.to_str().unwrap()), ("attrs", r#"{"team":"a"}"#)];
    let mut logger = Logger::spawn(&container, &pairs);
    logger.wait_ready();
    container.stdout.as_mut().unwrap().write_all(b"one\ntwo").unwrap();
    container.exit();
    assert!(logger.finish().success());
    let text = fs::read_to_string(&path).unwrap();
    let with = text
        .lines()
        .filter(|line| line.contains(r#""stream":"stdout","attrs":{"team":"a"},"time":"#));
    assert_eq!((with.count(), text.lines().count()), (2, 2), "{text}");
}
