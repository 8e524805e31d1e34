//! A disk that is full, and a log that is rotated. Needs root: it mounts a small tmpfs.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Instant,
};

use common::{Container, DEADLINE, Logger, files, records, text, until};

/// A file system of its own, unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Self {
        let options = format!("size={size},mode=0700");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "berth-test"])
            .arg(at)
            .status();
        assert!(
            status.unwrap().success(),
            "mounting needs root, and these tests need to mount"
        );
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Sum of what the log says was dropped.
fn told(path: &Path) -> u64 {
    let notices = records(path)
        .into_iter()
        .filter(|r| r.log.starts_with("berth-logger: "));
    notices
        .map(|notice| {
            assert!(
                notice.log.ends_with(" lines dropped: no space left on device\n"),
                "{}",
                notice.log
            );
            assert_eq!(notice.stream, "stderr");
            notice
                .log
                .split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum()
}

#[test]
fn a_full_disk_never_blocks_the_container_and_every_loss_is_told() {
    const LINES: usize = 100_000;
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(directory.path(), "1m");
    let (path, filler) = (disk.0.join("t/web/c.log"), disk.0.join("filler"));
    fs::write(&filler, vec![0; 700 << 10]).unwrap();

    let mut container = Container::new();
    let mut logger = Logger::spawn(&container, &[("path", path.to_str().unwrap())]);
    logger.wait_ready();
    let mut stdout = container.stdout.take().unwrap();
    let started = Instant::now();
    let writer = thread::spawn(move || {
        (0..LINES).for_each(|n| writeln!(stdout, "line {n}").unwrap());
        stdout
    });
    until("the writer is not blocked", || writer.is_finished().then_some(()));
    assert!(started.elapsed() < DEADLINE);
    let mut stdout = writer.join().unwrap();
    let before = records(&path);
    assert!(!before.is_empty() && before.len() < LINES, "the disk was full");

    fs::remove_file(&filler).unwrap();
    // Told without any further output.
    until("the loss is told", || (told(&path) > 0).then_some(()));
    writeln!(stdout, "line {LINES}").unwrap();
    drop(stdout);
    container.exit();
    assert!(logger.finish().success());

    let records = records(&path);
    let kept = records.iter().filter(|r| r.stream == "stdout").count();
    println!("{kept} lines kept, {} told as dropped", told(&path));
    assert_eq!(kept as u64 + told(&path), LINES as u64 + 1);
    assert_eq!(
        records.last().unwrap().log,
        format!("line {LINES}\n"),
        "and it goes on"
    );
}

#[test]
fn a_disk_full_from_the_start_does_not_keep_the_container_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(directory.path(), "64k");
    let filler = disk.0.join("filler");
    let _ = fs::write(&filler, vec![0; 1 << 20]);
    let path = disk.0.join("c.log");
    let mut container = Container::new();
    let mut logger = Logger::spawn(&container, &[("path", path.to_str().unwrap())]);
    logger.wait_ready();
    container.stdout.as_mut().unwrap().write_all(b"1\n2\n").unwrap();
    until("they are consumed", || {
        let left = fs::metadata(&path).is_ok_and(|m| m.len() == 0);
        left.then_some(())
    });
    thread::sleep(std::time::Duration::from_millis(100));
    fs::remove_file(&filler).unwrap();
    container.stdout.as_mut().unwrap().write_all(b"3\n").unwrap();
    container.exit();
    assert!(logger.finish().success());
    assert_eq!((told(&path), text(&records(&path), "stdout")), (2, "3\n".into()));
}

#[test]
fn files_are_rotated_at_the_byte() {
    use std::os::unix::fs::PermissionsExt;
    const MAX_SIZE: u64 = 100_000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t/web/c.log");
    let pairs = [
        ("path", path.to_str().unwrap()),
        ("max-size", &MAX_SIZE.to_string()),
        ("max-file", "4"),
    ];
    let mut container = Container::new();
    let mut logger = Logger::spawn(&container, &pairs);
    let mut stdout = container.stdout.take().unwrap();
    (0..20_000).for_each(|n| writeln!(stdout, "line {n:05}").unwrap());
    drop(stdout);
    container.exit();
    assert!(logger.finish().success());

    let kept = files(&path);
    assert_eq!(kept.len(), 4);
    let record = fs::read_to_string(&path).unwrap().find('\n').unwrap() as u64 + 1;
    for file in &kept[1..] {
        let size = fs::metadata(file).unwrap().len();
        assert_eq!(
            size,
            MAX_SIZE / record * record,
            "{}: as full as records allow",
            file.display()
        );
    }
    let text = text(&records(&path), "stdout");
    let lines: Vec<&str> = text.lines().collect();
    let first = 20_000 - lines.len();
    assert!(
        (first..20_000)
            .zip(lines)
            .all(|(n, line)| line == format!("line {n:05}")),
        "no gap between files"
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert!(kept.iter().all(|file| mode(file) == 0o640));
    assert_eq!(mode(path.parent().unwrap()), 0o750);
    assert_eq!(mode(path.parent().unwrap().parent().unwrap()), 0o750);
}
