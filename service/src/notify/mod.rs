//! Owns the talk with the service manager: sd_notify(3), the watchdog, and the store of file descriptors. Never fails
//! the daemon: without a service manager every message is dropped.
//!
//! Our own rather than the `sd-notify` crate: that one reads the environment at each message, so that the environment
//! cannot be cleared for child processes, knows no abstract sockets, and brings a crate to send one descriptor.

mod stored;
#[cfg(test)]
mod tests;

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, IoSlice},
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::{ffi::OsStrExt as _, net::UnixDatagram},
    },
    process,
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg},
    time::{ClockId, clock_gettime},
};

pub use self::stored::{StoredFd, take_environment};

/// A service manager that does not read for so long is not waited for.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest name of a stored descriptor (systemd's `FDNAME_MAX`).
pub const FD_NAME_BYTES_MAX: usize = 255;
/// Longest status line, bytes: a longer one is cut.
const STATUS_BYTES_MAX: usize = 1_024;

/// What the service manager handed over at the start.
#[derive(Debug, Default)]
pub struct ServiceManager {
    pub notifier: Notifier,
    /// Descriptors of the former process, with their names; the order means nothing.
    pub fds: Vec<StoredFd>,
}

impl ServiceManager {
    /// Takes all of it out of the environment, so that no child inherits it: to be called first thing in `main`.
    ///
    /// # Errors
    /// Other threads run already, or what the service manager left there makes no sense. Nothing is taken then.
    pub fn take() -> io::Result<Self> {
        let (variables, fds) = take_environment()?;
        let notifier = Notifier::new(variables.socket.as_deref(), variables.watchdog)?;
        Ok(Self { notifier, fds })
    }
}

/// Speaks to the service manager. Clones share the socket.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    socket: Option<Arc<(UnixDatagram, UnixAddr)>>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// For the socket in `NOTIFY_SOCKET`; without one, nobody is told anything.
    pub fn new(socket: Option<&OsStr>, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = match socket {
            Some(name) if !name.is_empty() => {
                let datagram = UnixDatagram::unbound()?;
                datagram.set_write_timeout(Some(SEND_TIMEOUT))?;
                Some(Arc::new((datagram, address(name)?)))
            }
            _ => None,
        };
        Ok(Self { socket, watchdog })
    }

    /// There is a service manager that listens.
    pub fn connected(&self) -> bool {
        self.socket.is_some()
    }

    /// The daemon has started.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// One line for `systemctl status`.
    pub fn status(&self, text: &str) {
        let line = text.lines().next().unwrap_or_default();
        self.tell(&format!(
            "STATUS={}",
            &line[..line.floor_char_boundary(STATUS_BYTES_MAX)]
        ));
    }

    /// The daemon is ending.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// The daemon takes up a changed configuration; [`ready`](Self::ready) ends that.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| Duration::from(now).as_micros());
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// The start takes longer than the unit allows: so much more, from now.
    pub fn extend_start(&self, by: Duration) {
        self.tell(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()));
    }

    /// How often [`keep_alive`](Self::keep_alive) must be said, where a watchdog is set: half its interval.
    pub fn keep_alive_interval(&self) -> Option<Duration> {
        self.watchdog.map(|interval| interval / 2)
    }

    /// The daemon works. Only for who has just proved it.
    pub fn keep_alive(&self) {
        if self.watchdog.is_some() {
            self.tell("WATCHDOG=1");
        }
    }

    /// Leaves a duplicate of a descriptor with the service manager, to be handed to the next process. Answers whether
    /// it was sent; beyond `FileDescriptorStoreMax=` the service manager drops it without a word.
    ///
    /// # Errors
    /// A name that is empty, too long, or has a colon or a control character; a socket that fails.
    pub fn store_fd(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<bool> {
        check_name(name)?;
        self.send(&format!("FDSTORE=1\nFDNAME={name}"), &[fd.as_raw_fd()])
    }

    /// The service manager forgets every descriptor of this name.
    pub fn forget_fd(&self, name: &str) -> io::Result<bool> {
        check_name(name)?;
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    fn tell(&self, message: &str) {
        if let Err(error) = self.send(message, &[]) {
            tracing::warn!(%error, message, "the service manager cannot be told");
        }
    }

    fn send(&self, message: &str, fds: &[i32]) -> io::Result<bool> {
        let Some(socket) = &self.socket else {
            return Ok(false);
        };
        let (datagram, address) = &**socket;
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(message.as_bytes())];
        sendmsg(
            datagram.as_raw_fd(),
            &parts,
            control,
            MsgFlags::MSG_NOSIGNAL,
            Some(address),
        )?;
        Ok(true)
    }
}

fn check_name(name: &str) -> io::Result<()> {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b':';
    if name.is_empty() || name.len() > FD_NAME_BYTES_MAX || !name.bytes().all(allowed) {
        let problem = format!("{name:?} cannot name a stored descriptor");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    Ok(())
}

/// A path, or after `@` a name in the abstract namespace.
fn address(name: &OsStr) -> io::Result<UnixAddr> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(abstract_name) => UnixAddr::new_abstract(abstract_name),
        None => UnixAddr::new(name),
    };
    Ok(address?)
}

/// What is in the environment for us.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Variables {
    socket: Option<OsString>,
    watchdog: Option<Duration>,
    /// Descriptors from 3 on, by their names.
    fd_names: Vec<String>,
}

impl Variables {
    /// Most descriptors that are taken.
    const FDS_MAX: usize = 65_536;

    fn read(get: impl Fn(&str) -> Option<OsString>) -> io::Result<Self> {
        let number = |name: &str| get(name).and_then(|text| text.to_str()?.parse::<u64>().ok());
        let ours = |name: &str| number(name) == Some(process::id().into());
        let watchdog = number("WATCHDOG_USEC")
            .filter(|usec| *usec > 0 && (get("WATCHDOG_PID").is_none() || ours("WATCHDOG_PID")))
            .map(Duration::from_micros);
        let count = if ours("LISTEN_PID") {
            number("LISTEN_FDS").unwrap_or(0)
        } else {
            0
        };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > Self::FDS_MAX {
            return Err(io::Error::other(format!(
                "LISTEN_FDS={count} is more than can be"
            )));
        }
        let names = get("LISTEN_FDNAMES").map(|names| names.to_string_lossy().into_owned());
        let mut names = names.as_deref().unwrap_or_default().split(':');
        let fd_names = (0..count)
            .map(|_| names.next().unwrap_or("unknown").to_owned())
            .collect();
        Ok(Self {
            socket: get("NOTIFY_SOCKET"),
            watchdog,
            fd_names,
        })
    }

    fn of_process() -> io::Result<Self> {
        Self::read(|name| env::var_os(name))
    }
}
