//! Owns the way of stored descriptors and the service manager's variables out of the environment and into owners.
//! Never takes them twice.

use std::{
    env, fs, io,
    os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::Variables;

/// The first descriptor that the service manager passes (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

static TAKEN: AtomicBool = AtomicBool::new(false);

/// A descriptor that the former process left with the service manager, or a listener that the unit declares.
#[derive(Debug)]
pub struct StoredFd {
    /// As given with `FDNAME=`. Several may have the same.
    pub name: String,
    /// Closed on exec.
    pub fd: OwnedFd,
}

/// Takes the service manager's variables and descriptors, once in the life of a process.
///
/// # Errors
/// Other threads run, it was done before, or the variables make no sense.
pub fn take_environment() -> io::Result<(Variables, Vec<StoredFd>)> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "the environment can only be taken before other threads run",
        ));
    }
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Err(io::Error::other("the environment was taken before"));
    }
    let variables = Variables::of_process()?;
    let mut fds = Vec::new();
    for (raw, name) in (FIRST..).zip(&variables.fd_names) {
        fds.push(StoredFd {
            name: name.clone(),
            fd: adopt(raw)?,
        });
    }
    clear_environment();
    Ok((variables, fds))
}

/// One of the descriptors that the service manager says it passed.
#[allow(unsafe_code)]
fn adopt(raw: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only borrowed for fcntl(2), which refuses a number that is no descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: open, as fcntl(2) has just said; passed to this process, which is the first in it to take it, and takes
    // it once (`TAKEN`).
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[allow(unsafe_code)]
fn clear_environment() {
    for name in VARIABLES {
        // SAFETY: the caller has seen that this is the only thread, so nobody reads the environment meanwhile.
        unsafe { env::remove_var(name) };
    }
}
