//! Owns mounts that the agent makes for volumes, in the host's own mount namespace. Never mounts into a container: the runtime
//! does.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::nfs;
use crate::effects::network::{Mounted, mounted_under, mounts_under};

/// Words of mount(8) that set a flag, and those that take it back.
const FLAGS: [(&str, MsFlags, bool); 19] = [
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("nodev", MsFlags::MS_NODEV, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("atime", MsFlags::MS_NOATIME, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("nostrictatime", MsFlags::MS_STRICTATIME, false),
];

/// The flags that options of mount(8) mean, and what is left for the file system.
pub(super) fn parse(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(word, ..)| word == option) {
            Some((_, flag, true)) => flags |= *flag,
            Some((_, flag, false)) => flags -= *flag,
            None if option == "defaults" => {}
            None => data.push(option.as_str()),
        }
    }
    (flags, data.join(","))
}

/// A file system in memory at `target`, unless something is mounted there.
pub(in crate::effects) fn memory(target: &Path, options: &[String]) -> io::Result<()> {
    if is_mount_point(target)? {
        return Ok(());
    }
    let (flags, data) = parse(options);
    let kind = Some("tmpfs");
    Ok(mount(kind, target, kind, flags, Some(data.as_str()))?)
}

/// What is open as `source`, with all that is mounted below it, at `target`.
pub(super) fn bind(source: impl AsFd, target: &Path) -> io::Result<()> {
    if is_mount_point(target)? {
        return Ok(());
    }
    let source = format!("/proc/thread-self/fd/{}", source.as_fd().as_raw_fd());
    let none = None::<&str>;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    Ok(mount(Some(source.as_str()), target, none, flags, none)?)
}

pub(super) fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(below(path)?.iter().any(|point| point == path))
}

/// Takes away everything that is mounted at `path` and below it, the last mounted first, also what is in use. Never waits for
/// a server.
pub(in crate::effects) fn unmount_all(path: &Path) -> io::Result<()> {
    for mounted in mounted_under(path).map_err(io::Error::other)?.iter().rev() {
        if is_remote(mounted) {
            nfs::unmount(&mounted.point, false)?;
        } else {
            umount2(&mounted.point, MntFlags::MNT_DETACH)?;
        }
    }
    Ok(())
}

/// Something of a server that is mounted.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) point: PathBuf,
    /// As `server:/path`.
    pub(super) from: String,
}

pub(super) fn remote_below(path: &Path) -> io::Result<Vec<Remote>> {
    let all = mounted_under(path).map_err(io::Error::other)?;
    let remote = all.into_iter().filter(is_remote).map(|mounted| Remote {
        point: mounted.point,
        from: mounted.source,
    });
    Ok(remote.collect())
}

fn is_remote(mounted: &Mounted) -> bool {
    matches!(mounted.kind.as_str(), "nfs" | "nfs4")
}

fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    mounts_under(path).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_and_the_last_of_contraries_counts() {
        let options = ["ro", "noexec", "size=1m", "rw", "defaults", "nodev", "mode=700"].map(str::to_owned);
        let (flags, data) = parse(&options);
        assert_eq!(flags, MsFlags::MS_NOEXEC | MsFlags::MS_NODEV);
        assert_eq!(data, "size=1m,mode=700");
    }
}
