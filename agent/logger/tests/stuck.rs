//! A disk that takes no write: in mode blocking the container waits for it, else it does not. Needs root: it freezes a
//! file system of its own.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use common::{Container, Logger, records, text, until};

/// Far more than pipes hold.
const LINES: usize = 60_000;

/// An ext4 of its own in a file; thawed and unmounted on drop.
struct Disk {
    _directory: tempfile::TempDir,
    at: PathBuf,
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(
        status.unwrap().success(),
        "{program} {arguments:?}: these tests need root"
    );
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (image, at) = (directory.path().join("image"), directory.path().join("disk"));
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        run(
            "mount",
            &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()],
        );
        Self {
            _directory: directory,
            at,
        }
    }

    fn freeze(&self) {
        run("fsfreeze", &["--freeze", self.at.to_str().unwrap()]);
    }

    fn thaw(&self) {
        run("fsfreeze", &["--unfreeze", self.at.to_str().unwrap()]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze")
            .arg("--unfreeze")
            .arg(&self.at)
            .stderr(std::process::Stdio::null())
            .status();
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn write_lines(container: &mut Container) -> JoinHandle<()> {
    let mut stdout = container.stdout.take().unwrap();
    thread::spawn(move || (0..LINES).for_each(|n| writeln!(stdout, "line {n}").unwrap()))
}

/// Sum of what the log says was dropped.
fn told(path: &Path) -> u64 {
    let all = records(path);
    let notices = all.iter().filter(|r| r.log.starts_with("berth-logger: "));
    let count = |log: &str| log.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    notices.map(|notice| count(&notice.log)).sum()
}

#[test]
fn in_mode_blocking_the_container_waits_and_nothing_is_lost() {
    let disk = Disk::new();
    let path = disk.at.join("c.log");
    let mut container = Container::new();
    let pairs = [("path", path.to_str().unwrap()), ("mode", "blocking")];
    let mut logger = Logger::spawn(&container, &pairs);
    logger.wait_ready();
    disk.freeze();
    let writer = write_lines(&mut container);
    thread::sleep(Duration::from_secs(2));
    assert!(!writer.is_finished(), "it waits");
    disk.thaw();
    writer.join().unwrap();
    container.exit();
    assert!(logger.finish().success());
    let kept = text(&records(&path), "stdout");
    assert!(
        (0..LINES)
            .map(|n| format!("line {n}"))
            .eq(kept.lines().map(str::to_owned))
    );
    assert_eq!(told(&path), 0);
}

#[test]
fn else_it_goes_on_and_what_the_buffer_cannot_hold_is_counted() {
    const BUFFER: usize = 300_000;
    let disk = Disk::new();
    let path = disk.at.join("c.log");
    let mut container = Container::new();
    let pairs = [
        ("path", path.to_str().unwrap()),
        ("max-buffer-size", &BUFFER.to_string()),
    ];
    let mut logger = Logger::spawn(&container, &pairs);
    logger.wait_ready();
    disk.freeze();
    let started = Instant::now();
    let writer = write_lines(&mut container);
    until("the writer is not blocked", || writer.is_finished().then_some(()));
    let took = started.elapsed();
    writer.join().unwrap();
    disk.thaw();
    container.exit();
    assert!(logger.finish().success());
    let records = records(&path);
    let kept = records.iter().filter(|r| r.stream == "stdout").count();
    let dropped = told(&path);
    println!("{took:?}: {kept} lines kept, {dropped} told as dropped");
    assert_eq!(kept as u64 + dropped, LINES as u64);
    assert!(dropped > 0 && took < Duration::from_secs(10), "{took:?}");
    // The buffer, and the batch that was with the disk.
    let bytes = kept
        * (r#"{"log":"line 00000\n","stream":"stdout","time":"2006-01-02T15:04:05.123456789Z"}"#.len() + 1);
    assert!(
        (BUFFER * 9 / 10..BUFFER + 600_000).contains(&bytes),
        "{bytes} bytes kept"
    );
    let notice = records.iter().find(|r| r.stream == "stderr").unwrap();
    let says = " lines dropped: the disk is slower than the output, and the buffer was full\n";
    assert!(notice.log.ends_with(says), "{}", notice.log);
}

#[test]
fn a_disk_that_is_stuck_from_the_start_does_not_keep_the_container_from_starting() {
    let disk = Disk::new();
    let path = disk.at.join("c.log");
    disk.freeze();
    let mut container = Container::new();
    let mut logger = Logger::spawn(&container, &[("path", path.to_str().unwrap())]);
    assert!(logger.wait_ready() < Duration::from_secs(5));
    let writer = write_lines(&mut container);
    until("the writer is not blocked", || writer.is_finished().then_some(()));
    disk.thaw();
    container.exit();
    assert!(logger.finish().success());
    let kept = records(&path).iter().filter(|r| r.stream == "stdout").count();
    assert_eq!(kept as u64 + told(&path), LINES as u64);
    assert!(kept > 5_000, "the buffer is kept: {kept}");
}

#[test]
fn in_mode_blocking_a_full_disk_is_waited_for_and_a_container_that_ended_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_str().unwrap().to_owned();
    run("mount", &["-t", "tmpfs", "-o", "size=1m", "berth-test", &at]);
    let (path, filler) = (directory.path().join("c.log"), directory.path().join("filler"));
    fs::write(&filler, vec![0; 700 << 10]).unwrap();
    let mut container = Container::new();
    let pairs = [
        ("path", path.to_str().unwrap()),
        ("mode", "blocking"),
        ("max-size", "300000"),
        ("max-file", "1"),
    ];
    let mut logger = Logger::spawn(&container, &pairs);
    logger.wait_ready();
    let _ = fs::OpenOptions::new()
        .append(true)
        .open(&filler)
        .unwrap()
        .write_all(&vec![0; 1 << 20]);
    let writer = write_lines(&mut container);
    thread::sleep(Duration::from_secs(2));
    let waits = !writer.is_finished();
    fs::remove_file(&filler).unwrap();
    writer.join().unwrap();
    let _ = fs::write(&filler, vec![0; 2 << 20]);
    let mut stderr = container.stderr.take().unwrap();
    // More than the last page of the file has room for.
    (0..500).for_each(|n| writeln!(stderr, "late {n}").unwrap());
    drop(stderr);
    container.exit();
    let ended = Instant::now();
    assert!(logger.finish().success());
    let took = ended.elapsed();
    run("umount", &["-l", &at]);
    assert!(waits && took < Duration::from_secs(20), "{waits} {took:?}");
}
