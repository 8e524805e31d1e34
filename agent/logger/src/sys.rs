//! Owns the system calls that the standard library does not have, each in one small function. Never decides anything.
#![allow(unsafe_code)]

use std::{
    io,
    mem::{self, MaybeUninit},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
    ptr,
    time::Duration,
};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Bytes moved; None if the call would have to wait. Interrupted calls are made again.
fn moved(mut call: impl FnMut() -> isize) -> io::Result<Option<usize>> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(Some(count));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => return Ok(None),
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}

/// The shim sends SIGTERM when the task is deleted, with output still in the pipe.
pub fn ignore_stop_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: SIG_IGN is a valid disposition and no handler runs.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// What new files and directories may not have, whatever started us.
pub fn set_umask(mask: u32) {
    // SAFETY: umask takes a number and cannot fail.
    unsafe { libc::umask(mask) };
}

/// Takes an inherited descriptor over, and keeps it from being inherited further. None: it is not open.
pub fn take_fd(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl on a number has no memory effects; a closed one gives an error.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }).ok()?;
    // SAFETY: it is open, and by the agreement with whoever started us it is ours alone.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes inherited descriptors known under other numbers; /dev/null takes the places they leave.
pub fn move_fds(from: [RawFd; 2], to: [RawFd; 2]) -> io::Result<()> {
    /// Above every number that is set by agreement.
    const CLEAR: RawFd = 16;
    // Out of the way first: what is open now may sit on a number that is wanted.
    let clear = |fd| {
        // SAFETY: the new descriptor is ours when the call succeeds.
        unsafe { check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, CLEAR)).map(|fd| OwnedFd::from_raw_fd(fd)) }
    };
    let ends = [clear(from[0])?, clear(from[1])?];
    let null = {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        clear(file.as_raw_fd())?
    };
    for fd in from {
        // SAFETY: dup2 only changes the table of descriptors; the number is ours by agreement with who started us.
        check(unsafe { libc::dup2(null.as_raw_fd(), fd) })?;
    }
    for (end, fd) in ends.iter().zip(to) {
        // SAFETY: as above; everything of ours that is open here is at `CLEAR` or above.
        check(unsafe { libc::dup2(end.as_raw_fd(), fd) })?;
    }
    Ok(())
}

/// Seconds and nanoseconds since the epoch.
pub fn now() -> (i64, u32) {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the pointer is valid for a timespec; zero is a valid one should the call fail, which it cannot.
    let time = unsafe {
        libc::clock_gettime(libc::CLOCK_REALTIME, time.as_mut_ptr());
        time.assume_init()
    };
    (time.tv_sec, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// First place of `byte`, by the C library's vector code.
pub fn find(byte: u8, bytes: &[u8]) -> Option<usize> {
    // SAFETY: the range is that of the slice.
    let at = unsafe { libc::memchr(bytes.as_ptr().cast(), i32::from(byte), bytes.len()) };
    (!at.is_null()).then(|| at as usize - bytes.as_ptr() as usize)
}

/// A pipe of our own: read end, write end.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are ours when the call succeeds.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Copies without consuming. None: nothing there yet. Zero: the end.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, max: usize) -> io::Result<Option<usize>> {
    // SAFETY: tee takes descriptors and numbers only.
    moved(|| unsafe { libc::tee(from.as_raw_fd(), to.as_raw_fd(), max, libc::SPLICE_F_NONBLOCK) })
}

/// Consumes exactly `count` bytes that are known to be in the pipe.
pub fn discard(pipe: BorrowedFd<'_>, null: BorrowedFd<'_>, mut count: usize) -> io::Result<()> {
    while count > 0 {
        let (from, to) = (pipe.as_raw_fd(), null.as_raw_fd());
        // SAFETY: no offsets are given, so splice takes descriptors and numbers only.
        let taken = moved(|| unsafe {
            libc::splice(
                from,
                ptr::null_mut(),
                to,
                ptr::null_mut(),
                count,
                libc::SPLICE_F_NONBLOCK,
            )
        })?;
        match taken {
            // Somebody else reads this pipe: what is gone is not ours to wait for.
            None | Some(0) => return Ok(()),
            Some(taken) => count -= taken.min(count),
        }
    }
    Ok(())
}

fn poll_now(fd: BorrowedFd<'_>, events: i16) -> io::Result<i16> {
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one valid entry; a timeout of zero never waits.
    check(unsafe { libc::poll(&raw mut entry, 1, 0) })?;
    Ok(entry.revents)
}

/// No writer is left.
pub fn hung_up(pipe: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(poll_now(pipe, libc::POLLIN)? & libc::POLLHUP != 0)
}

/// A slot is free.
pub fn writable(pipe: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(poll_now(pipe, libc::POLLOUT)? & libc::POLLOUT != 0)
}

/// Bytes, a page for each slot.
pub fn pipe_capacity(pipe: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_GETPIPE_SZ) })
}

/// The pipe must hold no more than that.
pub fn set_pipe_capacity(pipe: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) }).map(drop)
}

/// Waits for pipes.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the descriptor is ours when the call succeeds.
        unsafe {
            let fd = check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?;
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Reports every write, not the state.
    pub fn add_edge_triggered(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: 0,
        };
        let (epoll, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: the event is valid for the call.
        check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(drop)
    }

    /// Until something happened, or the time is over (None: never).
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
        let room = events.len() as i32;
        // SAFETY: room for as many events as is said.
        match check(unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room, timeout) }) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}

/// Connects to a listener; waits for room in its queue, and later to send, no longer than `timeout`.
pub fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    // SAFETY: the descriptor is ours when the call succeeds.
    let socket = unsafe {
        let fd = check(libc::socket(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            0,
        ))?;
        UnixStream::from_raw_fd(fd)
    };
    // Bounds connect, too.
    socket.set_write_timeout(Some(timeout))?;
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    let path = path.as_os_str().as_bytes();
    if path.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let length = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: a whole, NUL-terminated address.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Sends one message with two descriptors.
pub fn send_with_fds(socket: BorrowedFd<'_>, message: &[u8], fds: [BorrowedFd<'_>; 2]) -> io::Result<()> {
    const FDS_BYTES: u32 = mem::size_of::<[RawFd; 2]>() as u32;
    let fds = fds.map(|fd| fd.as_raw_fd());
    // Of u64, so that the header in it is aligned; more than CMSG_SPACE of two descriptors (24 bytes).
    let mut control = [0_u64; 8];
    let mut data = libc::iovec {
        iov_base: message.as_ptr().cast_mut().cast(),
        iov_len: message.len(),
    };
    // SAFETY: every pointer is to a local that outlives the call; the control buffer is large enough and zeroed.
    let sent = unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &raw mut data;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(FDS_BYTES) as _;
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(FDS_BYTES) as _;
        ptr::copy_nonoverlapping(
            fds.as_ptr().cast::<u8>(),
            libc::CMSG_DATA(first),
            mem::size_of_val(&fds),
        );
        moved(|| libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL))?
    };
    // Far below the socket's buffer: it goes whole or not at all.
    if sent == Some(message.len()) {
        Ok(())
    } else {
        Err(io::ErrorKind::TimedOut.into())
    }
}
