//! Owns the system calls, each in one small function. Never decides anything.
#![allow(unsafe_code)]

use std::{ffi::CString, io, os::fd::RawFd, ptr};

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
