//! Owns the copy of a directory of an image into a volume, as it is: owners, modes, links, attributes. Never follows a link in
//! either, and replaces what an earlier copy that was cut off had made.

use std::{
    collections::HashMap,
    ffi::CStr,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, chownat,
        fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat,
        openat2, readlinkat, statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

/// Directories inside each other.
const DEPTH_MAX: usize = 256;
const BUFFER_BYTES: usize = 256 * 1024;
/// Of one attribute, and of the list of their names: the kernel's own limits.
const XATTR_BYTES_MAX: usize = 64 * 1024;
/// The file system's own, and what the node's policy gives by place.
const XATTRS_LEFT_OUT: [&[u8]; 2] = [b"trusted.overlay.", b"security.selinux"];

/// When a copy ends in any case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until<'a> {
    pub(super) deadline: Instant,
    pub(super) given_up: &'a AtomicBool,
}

impl Until<'_> {
    fn check(self) -> io::Result<()> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

/// Copies what is in the directory `from` into the directory `to`, and what `from` itself is like.
///
/// # Errors
/// TimedOut at the deadline, Interrupted when given up; anything the file systems say.
pub(super) fn copy(from: OwnedFd, to: OwnedFd, until: Until<'_>) -> io::Result<()> {
    let mut copy = Copy {
        top: to.as_fd(),
        until,
        links: HashMap::new(),
        buffer: vec![0; BUFFER_BYTES],
    };
    let way = PathBuf::new();
    copy.directory(from.as_fd(), to.as_fd(), &way, 0)
}

struct Copy<'a> {
    top: BorrowedFd<'a>,
    until: Until<'a>,
    /// Files of more than one name, by device and inode: the first one that was copied, from the top.
    links: HashMap<(u64, u64), PathBuf>,
    buffer: Vec<u8>,
}

impl Copy<'_> {
    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        way: &Path,
        depth: usize,
    ) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("more than {DEPTH_MAX} directories inside each other"),
            ));
        }
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.until.check()?;
            self.entry(from, to, name, &way.join(os_str(name)), depth)?;
        }
        attributes(from, to, &fstat(from)?)
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        way: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            match mkdirat(to, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let (from, to) = (
                openat(from, name, flags, Mode::empty())?,
                openat(to, name, flags, Mode::empty())?,
            );
            return self.directory(from.as_fd(), to.as_fd(), way, depth + 1);
        }
        match unlinkat(to, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let identity = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&identity) {
                return self.link(first, to, name);
            }
            self.links.insert(identity, way.to_owned());
        }
        match kind {
            FileType::RegularFile => self.file(from, to, name, &stat),
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new())?;
                symlinkat(&target, to, name)?;
                by_name(to, name, &stat)
            }
            // A mark of overlayfs where an image has one layer; no device has this number.
            FileType::CharacterDevice if stat.st_rdev == 0 => Ok(()),
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {
                mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev)?;
                by_name(to, name, &stat)
            }
            FileType::Directory | FileType::Unknown => Ok(()),
        }
    }

    fn file(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut from = File::from(openat(from, name, read, Mode::empty())?);
        let mut to = File::from(openat(to, name, make, Mode::RUSR | Mode::WUSR)?);
        loop {
            self.until.check()?;
            let length = from.read(&mut self.buffer)?;
            if length == 0 {
                break;
            }
            to.write_all(&self.buffer[..length])?;
        }
        attributes(from.as_fd(), to.as_fd(), stat)
    }

    /// The first name may be another file by now: only what lies below the top is linked.
    fn link(&self, first: &Path, to: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let first = openat2(self.top, first, flags, Mode::empty(), resolve)?;
        Ok(linkat(&first, c"", to, name, AtFlags::EMPTY_PATH)?)
    }
}

/// Owner, mode, extended attributes and times, in the order in which none undoes another.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    extended(from, to)?;
    Ok(futimens(to, &times(stat))?)
}

/// Of what cannot be opened.
fn by_name(to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // mknod(2) leaves out what the umask holds. Nobody else has the new name yet, and a link is not followed into it.
        let node = openat(
            to,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let itself = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&node));
        rustix::fs::chmod(itself, Mode::from_raw_mode(stat.st_mode))?;
    }
    Ok(utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(stat: &Stat) -> Timestamps {
    // Their types differ between machines.
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime as _,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime as _,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}

/// A file system that has no such attributes is none to keep them in.
fn extended(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0_u8; XATTR_BYTES_MAX];
    let length = match flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut value = Vec::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if XATTRS_LEFT_OUT.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        value.resize(XATTR_BYTES_MAX, 0);
        let length = fgetxattr(from, name, &mut value[..])?;
        match fsetxattr(to, name, &value[..length], rustix::fs::XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn os_str(name: &CStr) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes())
}

#[cfg(test)]
mod tests;
