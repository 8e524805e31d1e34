//! What one logger costs: it is built as it is shipped, and measured idle and after a flood.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use common::{Container, Logger, until};

const KIB: usize = 1024;
const PRIVATE_KIB_MAX: usize = 1024;
const BINARY_BYTES_MAX: u64 = 2 << 20;

/// A figure of /proc/PID/smaps_rollup, KiB; private ones are summed.
fn memory(pid: u32) -> (usize, usize, usize) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let sum = |prefix: &str| -> usize {
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines
            .map(|line| line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap())
            .sum()
    };
    (sum("Rss:"), sum("Pss:"), sum("Private_"))
}

/// An ELF file without a program header PT_INTERP (3) needs nothing but the kernel.
fn is_static(binary: &Path) -> bool {
    let bytes = fs::read(binary).unwrap();
    let half = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let start = usize::try_from(u64::from_le_bytes(bytes[32..40].try_into().unwrap())).unwrap();
    let (size, count) = (half(54), half(56));
    (0..count).all(|n| bytes[start + n * size] != 3)
}

#[test]
fn the_shipped_binary_is_static_and_small() {
    let directory = tempfile::tempdir().unwrap();
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts/build-helpers");
    let status = Command::new(&script)
        .args([directory.path().as_os_str(), "berth-logger".as_ref()])
        .status()
        .unwrap();
    assert!(status.success(), "{}: {status}", script.display());
    let binary = directory.path().join("berth-logger");
    let size = fs::metadata(&binary).unwrap().len();
    assert!(is_static(&binary) && size <= BINARY_BYTES_MAX, "{size} bytes");

    let path = directory.path().join("c.log");
    let mut containers: Vec<_> = std::iter::repeat_with(Container::new).take(10).collect();
    let pairs = [
        ("path", path.to_str().unwrap()),
        ("max-size", "10000000"),
        ("max-file", "2"),
    ];
    let mut loggers: Vec<_> = containers
        .iter()
        .map(|container| Logger::spawn_binary(&binary, container, &pairs))
        .collect();
    for logger in &mut loggers {
        logger.wait_ready();
    }
    let (rss, pss, private) = memory(loggers[0].child.id());
    println!(
        "{} KiB static; idle, ten at once: RSS {rss}, PSS {pss}, private {private} KiB",
        size / KIB as u64
    );
    assert!(private < PRIVATE_KIB_MAX && pss < PRIVATE_KIB_MAX);

    let mut stdout = containers[0].stdout.take().unwrap();
    // Six bytes in JSON for each: the worst there is.
    let line = [vec![1; 16 * KIB], b"\n".to_vec()].concat();
    (0..500).for_each(|_| stdout.write_all(&line).unwrap());
    until("the flood is written", || {
        let length = fs::metadata(&path).map(|m| m.len()).unwrap_or(0);
        (length > 100_000).then_some(())
    });
    let (rss, pss, private) = memory(loggers[0].child.id());
    println!("after a flood: RSS {rss}, PSS {pss}, private {private} KiB");
    assert!(private < PRIVATE_KIB_MAX);
    drop(stdout);
    containers.iter_mut().for_each(Container::exit);
}
