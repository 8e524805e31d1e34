//! The handshake with the agent, and starting without one.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    thread,
    time::Duration,
};

use common::{Container, Logger, records, text};

/// The time is the logger's own, not the machine's: how late a busy machine may be.
const SLACK: Duration = Duration::from_millis(800);

fn pairs<'a>(path: &'a str, socket: &'a str) -> [(&'a str, &'a str); 2] {
    [("path", path), ("socket", socket)]
}

fn works(mut container: Container, mut logger: Logger, path: &std::path::Path) {
    container.stdout.as_mut().unwrap().write_all(b"alive\n").unwrap();
    container.exit();
    assert!(logger.finish().success());
    assert_eq!(text(&records(path), "stdout"), "alive\n");
}

#[test]
fn it_is_ready_only_after_the_answer_and_stays_connected() {
    let directory = tempfile::tempdir().unwrap();
    let (path, socket) = (directory.path().join("c.log"), directory.path().join("s"));
    let listener = UnixListener::bind(&socket).unwrap();
    let mut container = Container::new();
    let mut logger = Logger::spawn(
        &container,
        &pairs(path.to_str().unwrap(), socket.to_str().unwrap()),
    );
    let (mut link, _) = listener.accept().unwrap();
    let mut head = [0; 8];
    link.read_exact(&mut head).unwrap();
    assert_eq!(&head[..4], b"BLG1");
    let mut body = vec![0; u32::from_le_bytes(head[4..].try_into().unwrap()) as usize];
    link.read_exact(&mut body).unwrap();
    assert!(body.starts_with(b"id\0c-1\0path\0/"), "{body:?}");

    let answering = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        link.write_all(b"+").unwrap();
        link
    });
    assert!(
        logger.wait_ready() >= Duration::from_millis(250),
        "not before the answer"
    );
    let mut link = answering.join().unwrap();
    link.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(link.read(&mut head).is_err(), "open while the logger lives");
    link.set_read_timeout(Some(common::DEADLINE)).unwrap();
    container.exit();
    assert!(logger.finish().success());
    assert_eq!(link.read(&mut head).unwrap(), 0, "closed when it is gone");
}

#[test]
fn without_an_agent_it_starts_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (path, socket) = (directory.path().join("c.log"), directory.path().join("s"));
    // No socket, and one that nobody listens on.
    for listened in [false, true] {
        if listened {
            drop(UnixListener::bind(&socket).unwrap());
        }
        let container = Container::new();
        let mut logger = Logger::spawn(
            &container,
            &pairs(path.to_str().unwrap(), socket.to_str().unwrap()),
        );
        assert!(logger.wait_ready() < SLACK);
    }
    let container = Container::new();
    let mut logger = Logger::spawn(
        &container,
        &pairs(path.to_str().unwrap(), socket.to_str().unwrap()),
    );
    assert!(logger.wait_ready() < SLACK);
    works(container, logger, &path);
}

#[test]
fn an_agent_that_never_answers_delays_it_by_two_seconds_at_most() {
    let directory = tempfile::tempdir().unwrap();
    let (path, socket) = (directory.path().join("c.log"), directory.path().join("s"));
    let _listener = UnixListener::bind(&socket).unwrap();
    let pairs = pairs(path.to_str().unwrap(), socket.to_str().unwrap());
    let container = Container::new();
    let mut logger = Logger::spawn(&container, &pairs);
    let took = logger.wait_ready();
    assert!(
        took > Duration::from_millis(1500) && took < Duration::from_secs(2) + SLACK,
        "{took:?}"
    );
    works(container, logger, &path);

    // So many wait already that not even connecting is possible.
    let waiting: Vec<_> = std::iter::repeat_with(|| connect_now(&socket))
        .map_while(|stream| stream)
        .collect();
    let container = Container::new();
    let mut logger = Logger::spawn(&container, &pairs);
    let took = logger.wait_ready();
    assert!(
        took < Duration::from_secs(2) + SLACK,
        "{took:?} with {} waiting",
        waiting.len()
    );
}

/// Connects; gives up when the listener's queue is full.
fn connect_now(path: &std::path::Path) -> Option<UnixStream> {
    let path = path.to_owned();
    let (done, wait) = std::sync::mpsc::channel();
    thread::spawn(move || done.send(UnixStream::connect(path).ok()));
    wait.recv_timeout(Duration::from_millis(300)).ok().flatten()
}

#[test]
fn an_agent_that_hangs_up_does_not_matter() {
    let directory = tempfile::tempdir().unwrap();
    let (path, socket) = (directory.path().join("c.log"), directory.path().join("s"));
    let listener = UnixListener::bind(&socket).unwrap();
    let container = Container::new();
    let mut logger = Logger::spawn(
        &container,
        &pairs(path.to_str().unwrap(), socket.to_str().unwrap()),
    );
    drop(listener.accept().unwrap());
    assert!(logger.wait_ready() < SLACK);
    works(container, logger, &path);
}

#[test]
fn bad_arguments_end_it_before_it_is_ready() {
    let container = Container::new();
    for pairs in [
        &[("path", "relative.log")][..],
        &[("path", "/tmp/x"), ("colour", "red")],
        &[],
    ] {
        let mut logger = Logger::spawn(&container, pairs);
        assert_eq!(logger.finish().code(), Some(2));
    }
}
