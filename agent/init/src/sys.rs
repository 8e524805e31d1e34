//! Owns the system calls, each in one small function. Never decides anything.
#![allow(unsafe_code)]

use std::{ffi::CString, io, mem::MaybeUninit, os::fd::RawFd, ptr};

const STDIN: RawFd = 0;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Makes standard input a pipe of which this process, and all that come from it, hold both ends: who reads waits, and is
/// never told that it ended. One descriptor, so a program that looks finds no other one open.
pub fn open_stdin() -> io::Result<()> {
    let mut ends = [-1; 2];
    // SAFETY: two numbers are written to an array of two.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    let [read, write] = ends;
    // SAFETY: the numbers were just given to us, and are used nowhere else.
    let both = unsafe {
        // The magic link needs /proc, which may not be there: then both ends are kept.
        let path = CString::new(format!("/proc/self/fd/{read}")).map_err(io::Error::other)?;
        libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC)
    };
    if both < 0 {
        // SAFETY: as above; dup2 and fcntl only change the table of descriptors.
        unsafe {
            check(libc::dup2(read, STDIN))?;
            check(libc::fcntl(write, libc::F_SETFD, 0))?;
            libc::close(read);
        }
        return Ok(());
    }
    // SAFETY: as above; what is closed was ours alone.
    unsafe {
        check(libc::dup2(both, STDIN))?;
        for fd in [read, write, both] {
            libc::close(fd);
        }
    }
    Ok(())
}

/// Stays until it is killed. What is orphaned in its PID namespace comes to it, and the kernel reaps it at once: it is said to
/// be of no interest.
pub fn hold() -> ! {
    // SAFETY: SIG_IGN is a valid disposition and no handler runs.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    loop {
        // SAFETY: it only waits.
        unsafe { libc::pause() };
    }
}

/// As a program expects it: the standard library has it ignored, which would be inherited.
pub fn default_sigpipe() {
    // SAFETY: SIG_DFL is a valid disposition and no handler runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Becomes that program, which is looked for as execvp(3) does. Comes back only with the reason why not.
pub fn execute(command: &[CString]) -> io::Error {
    let Some(program) = command.first() else {
        return io::ErrorKind::InvalidInput.into();
    };
    let mut pointers: Vec<*const libc::c_char> = command.iter().map(|text| text.as_ptr()).collect();
    pointers.push(ptr::null());
    // SAFETY: the texts outlive the call, and the list of pointers to them ends with NULL.
    unsafe { libc::execvp(program.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// What says that a child has ended, or more than one.
pub const CHILD_ENDED: i32 = libc::SIGCHLD;
/// These come of what a process does itself: blocked, they would end it without a word, or make it go on wrongly.
const FAULTS: [i32; 7] = [
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// Where it is not the first process of its namespace, what is orphaned below it still comes to it.
pub fn adopt_orphans() {
    // SAFETY: prctl with these numbers has no memory effects. A kernel that refuses gives the orphans to another.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// The signals that are waited for.
#[derive(Debug)]
pub struct Signals {
    waited: libc::sigset_t,
    before: libc::sigset_t,
}

/// Keeps all signals until [`Signals::next`] takes them. It writes to the terminal from behind if need be.
pub fn block_signals() -> io::Result<Signals> {
    let mut waited = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: both sets are written by the first calls that have them, and live as long as they are used.
    unsafe {
        check(libc::sigfillset(waited.as_mut_ptr()))?;
        for signal in FAULTS.into_iter().chain([libc::SIGTTIN, libc::SIGTTOU]) {
            check(libc::sigdelset(waited.as_mut_ptr(), signal))?;
        }
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            waited.as_ptr(),
            before.as_mut_ptr(),
        ))?;
        libc::signal(libc::SIGTTIN, libc::SIG_IGN);
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        Ok(Signals {
            waited: waited.assume_init(),
            before: before.assume_init(),
        })
    }
}

impl Signals {
    /// Waits for the next one.
    pub fn next(&self) -> io::Result<i32> {
        loop {
            // SAFETY: the set outlives the call, and nothing more is asked to be written.
            match check(unsafe { libc::sigwaitinfo(&raw const self.waited, ptr::null_mut()) }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                signal => return signal,
            }
        }
    }

    /// As it was before, for a program that is about to be executed.
    pub fn restore(&self) {
        // SAFETY: the set is a copy of what the kernel gave; the dispositions are valid and no handler runs.
        unsafe {
            libc::signal(libc::SIGTTIN, libc::SIG_DFL);
            libc::signal(libc::SIGTTOU, libc::SIG_DFL);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut());
        }
    }
}

/// Who comes back from a [`fork`].
#[derive(Clone, Copy, Debug)]
pub enum Child {
    Itself,
    Of(i32),
}

/// This process twice. There is no other thread in it.
pub fn fork() -> io::Result<Child> {
    // SAFETY: with one thread, the child may do all that the parent may.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Child::Itself),
        pid => Ok(Child::Of(pid)),
    }
}

/// A process group of its own; the terminal's, where standard input is one.
pub fn lead_foreground_group() {
    // SAFETY: calls with numbers. Where there is no terminal, or it is another session's, nothing changes.
    unsafe {
        libc::setpgid(0, 0);
        libc::tcsetpgrp(STDIN, libc::getpgrp());
    }
}

/// A process that has ended is none to send to.
pub fn send(pid: i32, signal: i32) {
    // SAFETY: a call with numbers.
    unsafe { libc::kill(pid, signal) };
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Killed(i32),
}

/// Takes one child that has ended, if there is one.
pub fn reap_one() -> io::Result<Option<(i32, Ended)>> {
    let mut status = 0;
    // SAFETY: one number is written to.
    match check(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }) {
        Ok(0) => Ok(None),
        Ok(pid) if libc::WIFSIGNALED(status) => Ok(Some((pid, Ended::Killed(libc::WTERMSIG(status))))),
        Ok(pid) => Ok(Some((pid, Ended::Exited(libc::WEXITSTATUS(status))))),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        Err(error) => Err(error),
    }
}
