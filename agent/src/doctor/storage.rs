//! Room and rights where the agent and containerd keep things.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::Finding;
use crate::{config::Config, effects::runtime::init_usable, sys::Chain};

/// Below this an image of usual size does not fit.
const FREE_BYTES_MIN: u64 = 1 << 30;
const FREE_BYTES_WANTED: u64 = 5 << 30;
/// Of all inodes, per cent.
const FREE_INODES_PERCENT_MIN: u64 = 5;
/// Where containerd keeps images unless told otherwise.
const CONTAINERD_ROOT: &str = "/var/lib/containerd";

pub(super) fn check(config: &Config) -> Vec<Finding> {
    vec![
        room("state", &config.state_dir),
        room("images", Path::new(CONTAINERD_ROOT)),
        overlay(),
        logger(config),
        init(config),
    ]
}

/// What statvfs(3) says of a file system, as far as it matters here.
#[derive(Clone, Copy, Debug)]
struct Space {
    free_bytes: u64,
    inodes: u64,
    free_inodes: u64,
    read_only: bool,
}

fn room(check: &'static str, path: &Path) -> Finding {
    let there = nearest(path);
    match statvfs(&there) {
        Ok(found) => {
            let space = Space {
                free_bytes: found.blocks_available() * found.fragment_size(),
                inodes: found.files(),
                free_inodes: found.files_available(),
                read_only: found.flags().contains(FsFlags::ST_RDONLY),
            };
            judge(check, path, space)
        }
        Err(errno) => Finding::problem(
            check,
            format!("{}: {}", there.display(), errno.desc()),
            "make the directory readable for root",
        ),
    }
}

/// The deepest part of a path that exists.
fn nearest(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|part| part.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

fn judge(check: &'static str, path: &Path, space: Space) -> Finding {
    let path = path.display();
    let found = format!("{path}: {} MiB free", space.free_bytes >> 20);
    if space.read_only {
        return Finding::problem(check, format!("{path} is read-only"), "mount it read-write");
    }
    if space.free_bytes < FREE_BYTES_MIN {
        return Finding::problem(
            check,
            found,
            format!(
                "at least {} MiB are needed: make room, or mount a larger disk there",
                FREE_BYTES_MIN >> 20
            ),
        );
    }
    // Some file systems (btrfs) count no inodes.
    if space.inodes > 0 && space.free_inodes * 100 < space.inodes * FREE_INODES_PERCENT_MIN {
        return Finding::problem(
            check,
            format!("{found}, but only {} inodes", space.free_inodes),
            "remove small files (unused images, logs) or make the file system anew with more inodes",
        );
    }
    if space.free_bytes < FREE_BYTES_WANTED {
        return Finding::warning(
            check,
            found,
            "a few images fill that: make room, or mount a larger disk there",
        );
    }
    Finding::ok(check, found)
}

fn overlay() -> Finding {
    const CHECK: &str = "overlayfs";
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let loadable = || {
        let modprobe = std::process::Command::new("modprobe")
            .args(["-n", "-q", "overlay"])
            .status();
        modprobe.is_ok_and(|status| status.success())
    };
    if known
        .lines()
        .any(|line| line.trim_start_matches("nodev").trim() == "overlay")
        || loadable()
    {
        return Finding::ok(CHECK, "the kernel has it");
    }
    Finding::problem(
        CHECK,
        "the kernel has no overlay file system",
        "images are unpacked on it: load the module (`modprobe overlay`), or set `snapshotter` to one that containerd has",
    )
}

fn logger(config: &Config) -> Finding {
    const CHECK: &str = "logger";
    match config.logger_path() {
        Ok(path) if path.is_file() => Finding::ok(CHECK, path.display().to_string()),
        Ok(path) => Finding::problem(
            CHECK,
            format!("{} is missing", path.display()),
            "install the whole package again, or set `logger`",
        ),
        Err(error) => Finding::problem(CHECK, error.to_string(), "is /proc mounted?"),
    }
}

fn init(config: &Config) -> Finding {
    const CHECK: &str = "init";
    let path = match config.init_path() {
        Ok(path) => path,
        Err(error) => return Finding::problem(CHECK, error.to_string(), "is /proc mounted?"),
    };
    match init_usable(&path) {
        Ok(()) => Finding::ok(CHECK, path.display().to_string()),
        Err(error) => Finding::warning(
            CHECK,
            Chain(&error).to_string(),
            "tasks that need berth-init are not placed here: install the whole package again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    fn outcome(change: fn(&mut Space)) -> Outcome {
        let mut space = Space {
            free_bytes: 50 << 30,
            inodes: 1_000,
            free_inodes: 900,
            read_only: false,
        };
        change(&mut space);
        judge("state", Path::new("/var/lib/berth"), space).outcome
    }

    #[test]
    fn room_is_judged_in_bytes_and_inodes() {
        assert_eq!(outcome(|_| {}), Outcome::Ok);
        assert_eq!(outcome(|space| space.free_bytes = 2 << 30), Outcome::Warning);
        assert_eq!(outcome(|space| space.free_bytes = 1 << 20), Outcome::Problem);
        assert_eq!(outcome(|space| space.free_inodes = 10), Outcome::Problem);
        assert_eq!(
            outcome(|space| (space.inodes, space.free_inodes) = (0, 0)),
            Outcome::Ok
        );
        assert_eq!(outcome(|space| space.read_only = true), Outcome::Problem);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nearest(&dir.path().join("a/b")), dir.path());
    }
}
