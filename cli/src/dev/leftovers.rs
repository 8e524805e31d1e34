//! Owns the last look at the host: is anything of this instance left? Looks at the host itself, never at what the
//! agent believes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Takes away mounts below the state directory, the innermost first. Only for when no container runs any more.
pub fn unmount(state_dir: &Path) {
    for mount in mounts_below(state_dir).iter().rev() {
        if let Err(errno) = umount2(mount, MntFlags::MNT_DETACH) {
            tracing::warn!(mount = %mount.display(), %errno, "cannot unmount");
        }
    }
}

/// Names what is left; empty is good.
pub fn find(state_dir: &Path, instance: &str) -> Vec<String> {
    let mut left = processes(state_dir);
    left.extend(
        mounts_below(state_dir)
            .iter()
            .map(|mount| format!("mount {}", mount.display())),
    );
    left.extend(links(instance));
    left.extend(cgroups(instance));
    left.extend(table(instance));
    left
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    parse_mounts(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
        .into_iter()
        .filter(|mount| mount.starts_with(dir))
        .collect()
}

/// The fifth field of proc_pid_mountinfo(5), in the order of mounting.
fn parse_mounts(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .collect()
}

/// Spaces and the like are octal there: `\040`.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
            .filter(|_| *first == b'\\')
        {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

/// Shims and loggers have the state directory in their command lines. So does this process: left out.
fn processes(state_dir: &Path) -> Vec<String> {
    let needle = state_dir.as_os_str().as_bytes();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let ours = is_runtime(&line) && line.windows(needle.len()).any(|window| window == needle);
            ours.then(|| {
                format!(
                    "process {pid}: {}",
                    String::from_utf8_lossy(&line).replace('\0', " ").trim()
                )
            })
        })
        .collect()
}

/// Somebody's editor with a file of ours open is no leftover.
fn is_runtime(command_line: &[u8]) -> bool {
    let program = command_line.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    [&b"containerd"[..], b"berth-logger", b"runc", b"crun"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn links(instance: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    let prefix = format!("{instance}/");
    entries
        .flatten()
        .filter(|entry| {
            std::fs::read_to_string(entry.path().join("ifalias"))
                .is_ok_and(|alias| alias.starts_with(&prefix))
        })
        .map(|entry| format!("link {}", entry.file_name().to_string_lossy()))
        .collect()
}

/// On version 1 (and hybrid) every hierarchy is a directory of its own.
fn cgroups(instance: &str) -> Vec<String> {
    let hierarchies = std::fs::read_dir(CGROUPS)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    std::iter::once(PathBuf::from(CGROUPS))
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join(format!("{instance}.slice")))
        // cpu and cpu,cpuacct are one.
        .filter(|path| path.is_dir() && !path.parent().is_some_and(Path::is_symlink))
        .map(|path| format!("cgroup {}", path.display()))
        .collect()
}

fn table(instance: &str) -> Option<String> {
    let listed = Command::new("nft")
        .args(["list", "table", "inet", instance])
        .output()
        .ok()?;
    listed
        .status
        .success()
        .then(|| format!("nftables table inet {instance}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_spaces() {
        let text =
            "24 1 0:22 / /proc rw - proc proc rw\n31 24 0:4 net:[1] /run/a\\040b/\\134x rw - nsfs nsfs rw\n";
        assert_eq!(
            parse_mounts(text),
            [PathBuf::from("/proc"), PathBuf::from("/run/a b/\\x")]
        );
    }

    #[test]
    fn only_programs_of_the_runtime_count() {
        assert!(is_runtime(b"/usr/bin/containerd-shim-runc-v2\0-namespace\0x"));
        assert!(is_runtime(b"berth-logger\0"));
        assert!(!is_runtime(b"vim\0/var/lib/berth-dev/keys.env"));
    }

    #[test]
    fn a_host_without_the_instance_is_clean() {
        assert_eq!(
            find(Path::new("/nonexistent/berth"), "no-such-berth"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_mount_is_found_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("mount point");
        std::fs::create_dir(&point).unwrap();
        let none: Option<&str> = None;
        nix::mount::mount(
            Some("tmpfs"),
            &point,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            none,
        )
        .unwrap();
        assert_eq!(
            find(dir.path(), "no-such-berth"),
            [format!("mount {}", point.display())]
        );
        unmount(dir.path());
        assert_eq!(find(dir.path(), "no-such-berth"), Vec::<String>::new());
    }
}
