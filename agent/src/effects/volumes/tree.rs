//! Owns the removal of a directory that a container could write to, whatever it planted there. Never follows a link, never
//! leaves the mount it began in, and needs no more descriptors for a deep tree than for a shallow one.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use rustix::{
    fs::{
        AtFlags, Dir, IFlags, Mode, OFlags, RenameFlags, ResolveFlags, ioctl_getflags, ioctl_setflags,
        openat, openat2, renameat_with, unlinkat,
    },
    io::Errno,
};

/// Directories deeper than that are moved up and removed from there.
const DEPTH_MAX: usize = 32;

/// Removes `name` and all that is in it. What is gone is a success.
///
/// # Errors
/// TimedOut at the deadline, with less of it left; another mount below it, which stays; anything the file system says.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &CStr, deadline: Instant) -> io::Result<()> {
    let mut moved = 0_u64;
    loop {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Directories: by the standard, and as Linux has it.
            Err(Errno::PERM | Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        let top = open(parent, name)?;
        let mut removal = Removal {
            top: top.as_fd(),
            deadline,
            moved,
        };
        removal.empty(top.as_fd(), 1)?;
        moved = removal.moved;
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // What was moved up, or made meanwhile.
            Err(Errno::NOTEMPTY | Errno::EXIST) => check(deadline)?,
            Err(error) => return Err(error.into()),
        }
    }
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    deadline: Instant,
    /// How many directories were moved to the top.
    moved: u64,
}

impl Removal<'_> {
    fn empty(&mut self, dir: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            check(self.deadline)?;
            self.remove(dir, name, depth)?;
        }
        Ok(())
    }

    fn remove(&mut self, dir: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(Errno::PERM) => {
                make_mutable(dir, name);
                match unlinkat(dir, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => return Ok(()),
                    Err(Errno::ISDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
        if depth == DEPTH_MAX {
            return self.move_up(dir, name);
        }
        let child = open(dir, name)?;
        let mut emptied = self.empty(child.as_fd(), depth + 1);
        if emptied.is_ok() {
            emptied = match unlinkat(dir, name, AtFlags::REMOVEDIR) {
                // Nobody writes there any more but this removal: the rest is done in the next round.
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
                Err(Errno::PERM) => {
                    make_mutable(dir, name);
                    unlinkat(dir, name, AtFlags::REMOVEDIR).map_err(Into::into)
                }
                Err(error) => Err(error.into()),
            };
        }
        emptied
    }

    /// Under a name that nothing else has there.
    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        loop {
            check(self.deadline)?;
            self.moved += 1;
            let to = CString::new(format!(".moved-{}", self.moved))?;
            match renameat_with(dir, name, self.top, &to, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                Err(Errno::PERM) => {
                    make_mutable(dir, name);
                    return renameat_with(dir, name, self.top, &to, RenameFlags::NOREPLACE)
                        .map_err(Into::into);
                }
                done => return done.map_err(Into::into),
            }
        }
    }
}

/// A directory, if `name` is one itself and no other mount.
fn open(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    Ok(openat2(parent, name, flags, Mode::empty(), resolve)?)
}

/// Takes back `chattr +i` and `+a` of an entry and of the directory it is in. What cannot be taken back is said by the removal.
fn make_mutable(dir: BorrowedFd<'_>, name: &CStr) {
    let clear = |fd: BorrowedFd<'_>| {
        if let Ok(flags) = ioctl_getflags(fd) {
            let _ = ioctl_setflags(fd, flags - (IFlags::IMMUTABLE | IFlags::APPEND));
        }
    };
    clear(dir);
    // Never waits for the other end of a pipe.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let regular = |fd: &OwnedFd| {
        rustix::fs::fstat(fd).is_ok_and(|stat| {
            let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            kind.is_file() || kind.is_dir()
        })
    };
    // Not a device, whose driver would take the request.
    if let Ok(path) = openat(
        dir,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) && regular(&path)
        && let Ok(entry) = openat(dir, name, flags, Mode::empty())
        && regular(&entry)
    {
        clear(entry.as_fd());
    }
}

fn check(deadline: Instant) -> io::Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests;
