//! Owns network namespaces as files. A namespace lives by its bind mount (as `ip netns` does it), not by a process.
//! Entering one changes the calling thread: only for `threads`.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use super::error::NetworkError;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, statfs},
};

/// The mount table is read up to here, bytes: about 100,000 mounts.
const MOUNTINFO_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The calling thread's own namespace (`/proc/self` would be the main thread's).
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// Makes the directory that holds namespace files, as a shared mount of its own: a containerd in another mount
/// namespace whose mounts are slaves of ours then sees what is mounted later. Idempotent.
pub(super) fn prepare_directory(dir: &Path) -> Result<PathBuf, NetworkError> {
    fs::create_dir_all(dir).map_err(NetworkError::directory("create", dir))?;
    let dir = fs::canonicalize(dir).map_err(NetworkError::directory("resolve", dir))?;
    let none = None::<&str>;
    if !mounts_under(&dir)?.contains(&dir) {
        mount(Some(&dir), &dir, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .map_err(|e| NetworkError::directory("bind mount", &dir)(e.into()))?;
    }
    mount(none, &dir, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none)
        .map_err(|e| NetworkError::directory("share the mount", &dir)(e.into()))?;
    Ok(dir)
}

/// Undoes [`prepare_directory`]. Idempotent.
pub(super) fn remove_directory(dir: &Path) -> Result<(), NetworkError> {
    while mounts_under(dir)?.iter().any(|mount| mount == dir) {
        umount2(dir, MntFlags::MNT_DETACH).map_err(|e| NetworkError::directory("unmount", dir)(e.into()))?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(NetworkError::directory("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// An entered namespace.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) file: File,
    /// It was made by this call and is empty.
    pub(super) fresh: bool,
}

/// Enters the namespace at `path`, made now if there is none. Changes the calling thread.
pub(super) fn enter_or_create(path: &Path) -> Result<Entered, NetworkError> {
    let failed = |step| {
        move |source: io::Error| NetworkError::Namespace {
            step,
            netns: path.to_owned(),
            source,
        }
    };
    if let Some(entered) = enter(path)? {
        return Ok(entered);
    }
    File::create(path).map_err(failed("create the file of"))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("create")(e.into()))?;
    let none = None::<&str>;
    mount(Some(OWN_NETNS), path, none, MsFlags::MS_BIND, none).map_err(|e| failed("mount")(e.into()))?;
    let file = File::open(path).map_err(failed("open"))?;
    Ok(Entered { file, fresh: true })
}

/// Makes one that has no place, and lives as long as somebody has the file. Enters it: changes the calling thread.
pub(super) fn unnamed() -> Result<File, NetworkError> {
    let failed = |step| {
        move |source: io::Error| NetworkError::Namespace {
            step,
            netns: OWN_NETNS.into(),
            source,
        }
    };
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("create")(e.into()))?;
    File::open(OWN_NETNS).map_err(failed("open"))
}

/// Gives the namespace of `file` its place, where there is none, and enters it. Changes the calling thread.
pub(super) fn settle(file: File, path: &Path) -> Result<Entered, NetworkError> {
    let failed = |step| {
        move |source: io::Error| NetworkError::Namespace {
            step,
            netns: path.to_owned(),
            source,
        }
    };
    File::create(path).map_err(failed("create the file of"))?;
    let none = None::<&str>;
    let source = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
    mount(Some(source.as_str()), path, none, MsFlags::MS_BIND, none)
        .map_err(|e| failed("mount")(e.into()))?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| failed("enter")(e.into()))?;
    Ok(Entered { file, fresh: false })
}

/// Enters the namespace at `path`. Changes the calling thread. None: there is no namespace.
pub(super) fn enter(path: &Path) -> Result<Option<Entered>, NetworkError> {
    let failed = |step| {
        move |source: io::Error| NetworkError::Namespace {
            step,
            netns: path.to_owned(),
            source,
        }
    };
    if !is_namespace(path) {
        return Ok(None);
    }
    let file = File::open(path).map_err(failed("open"))?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| failed("enter")(e.into()))?;
    Ok(Some(Entered { file, fresh: false }))
}

/// Unmounts and unlinks. The namespace goes when its last process and socket are gone. Idempotent; true when there was
/// one.
pub(super) fn remove(path: &Path) -> Result<bool, NetworkError> {
    let failed = |step| {
        move |source: io::Error| NetworkError::Namespace {
            step,
            netns: path.to_owned(),
            source,
        }
    };
    let mut mounted = false;
    // More than one mount on one file can only come from outside; each is taken off.
    while is_namespace(path) {
        umount2(path, MntFlags::MNT_DETACH).map_err(|e| failed("unmount")(e.into()))?;
        mounted = true;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("unlink")(e)),
        _ => Ok(mounted),
    }
}

/// A namespace is mounted at `path`.
pub(super) fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}

/// Something that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) point: PathBuf,
    /// Of the file system, as in /proc/filesystems.
    pub(crate) kind: String,
    pub(crate) source: String,
}

/// The mount points at `dir` and below it, as the kernel lists them.
pub(crate) fn mounts_under(dir: &Path) -> Result<Vec<PathBuf>, NetworkError> {
    let mounted = mounted_under(dir)?.into_iter();
    Ok(mounted.map(|mounted| mounted.point).collect())
}

/// What is mounted at `dir` and below it, as the kernel lists it.
pub(crate) fn mounted_under(dir: &Path) -> Result<Vec<Mounted>, NetworkError> {
    const PATH: &str = "/proc/thread-self/mountinfo";
    let table = read_bounded(Path::new(PATH), MOUNTINFO_BYTES_MAX)
        .map_err(NetworkError::directory("read", Path::new(PATH)))?;
    Ok(mounted(&table)
        .filter(|mounted| mounted.point.starts_with(dir))
        .collect())
}

/// Field 5 of each line of proc_pid_mountinfo(5), and the first two after the hyphen.
fn mounted(table: &[u8]) -> impl Iterator<Item = Mounted> {
    use std::os::unix::ffi::OsStringExt;
    table.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let point = fields.by_ref().nth(4)?;
        let mut after = fields.skip_while(|field| *field != b"-").skip(1);
        let mut text = || String::from_utf8_lossy(&unescape(after.next().unwrap_or_default())).into_owned();
        Some(Mounted {
            point: PathBuf::from(std::ffi::OsString::from_vec(unescape(point))),
            kind: text(),
            source: text(),
        })
    })
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    out
}

/// Reads a file that must not be longer than `max` bytes.
fn read_bounded(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut content = Vec::new();
    File::open(path)?.take(max as u64 + 1).read_to_end(&mut content)?;
    if content.len() > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("over {max} bytes"),
        ));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        let table = b"22 27 0:21 / /proc rw - proc proc rw\n23 27 0:4 net:[1] /run/a\\040b/c\\134d rw - nsfs nsfs rw\n\
            24 27 0:9 / /n rw shared:1 master:2 - nfs4 vm:/a\\040b rw,vers=4.2\n";
        let all: Vec<_> = mounted(table).collect();
        let expected = [
            ("/proc", "proc", "proc"),
            ("/run/a b/c\\d", "nsfs", "nsfs"),
            ("/n", "nfs4", "vm:/a b"),
        ];
        let expected = expected.map(|(point, kind, source)| Mounted {
            point: point.into(),
            kind: kind.into(),
            source: source.into(),
        });
        assert_eq!(all, expected);
    }

    #[test]
    fn a_file_over_its_bound_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert!(read_bounded(&path, 4).is_err());
    }
}
