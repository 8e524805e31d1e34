//! Owns what the registry does with processes: finding a logger that another agent knew, and starting one in place of
//! one that died. Never waits for either.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    io,
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::OpenOptionsExt,
        },
    },
    path::Path,
    process::Stdio,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::process::{Child, Command};

use super::{
    RegistryConfig,
    handshake::{self, Registration},
};

/// Where a logger has its pipes, whoever started it.
const LOGGER_FDS: [u32; 2] = [3, 4];
const LOGGER_NAME: &str = "berth-logger";

/// A running logger could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error("container {runtime_id} has no logger among {processes} processes")]
    NotFound { runtime_id: String, processes: usize },
    #[error("open the pipes of logger {pid} of container {runtime_id}")]
    Open {
        runtime_id: String,
        pid: u32,
        source: io::Error,
    },
    #[error("too many loggers")]
    TooMany,
    #[error("the registry has stopped")]
    ServerStopped,
}

/// A logger that runs.
#[derive(Debug)]
pub(super) struct Found {
    pub registration: Registration,
    pub pidfd: OwnedFd,
}

/// Finds a container's logger and opens its pipes.
pub(super) fn find(runtime_id: &str, pids: &[u32]) -> Result<Found, AdoptError> {
    for &pid in pids {
        // First, so that the number cannot come to mean another process while we look.
        let Ok(pidfd) = pidfd_open(pid) else { continue };
        let Some(arguments) = logger_arguments(pid, runtime_id) else {
            continue;
        };
        let opened = open_ends(pid).and_then(|ends| {
            if ended(&pidfd) {
                return Err(io::ErrorKind::NotFound.into());
            }
            Registration::new(arguments, ends).map_err(io::Error::other)
        });
        return match opened {
            Ok(registration) => Ok(Found { registration, pidfd }),
            Err(source) => Err(AdoptError::Open {
                runtime_id: runtime_id.to_owned(),
                pid,
                source,
            }),
        };
    }
    Err(AdoptError::NotFound {
        runtime_id: runtime_id.to_owned(),
        processes: pids.len(),
    })
}

/// The process's arguments, if it is that container's logger.
fn logger_arguments(pid: u32, runtime_id: &str) -> Option<Vec<(OsString, OsString)>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line
        .strip_suffix(b"\0")?
        .split(|&b| b == 0)
        .map(|word| OsString::from_vec(word.to_vec()));
    let program = words.next()?;
    if Path::new(&program).file_name() != Some(OsStr::from_bytes(LOGGER_NAME.as_bytes())) {
        return None;
    }
    let arguments = handshake::pairs(&mut words)?;
    let is_its = arguments
        .iter()
        .any(|(key, value)| key == "id" && value == runtime_id);
    is_its.then_some(arguments)
}

/// Read ends of our own on the same pipes. Opening them through /proc makes a new file description: no flag that is
/// set on it is seen by the logger.
fn open_ends(pid: u32) -> io::Result<[OwnedFd; 2]> {
    let open = |fd| {
        let mut options = OpenOptions::new();
        // Opening a pipe waits for a writer otherwise.
        options.read(true).custom_flags(libc::O_NONBLOCK);
        options.open(format!("/proc/{pid}/fd/{fd}")).map(OwnedFd::from)
    };
    Ok([open(LOGGER_FDS[0])?, open(LOGGER_FDS[1])?])
}

#[allow(unsafe_code)]
fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers; the descriptor is ours when it succeeds.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid.cast_signed()), 0);
        match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The process is dead.
fn ended(pidfd: &OwnedFd) -> bool {
    let mut entry = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut entry, PollTimeout::ZERO) != Ok(0)
}

/// Starts a logger on kept pipes, with its predecessor's arguments and this agent's socket.
pub(super) fn resume(config: &RegistryConfig, registration: &Registration) -> io::Result<Child> {
    let [out, err] = &registration.ends;
    let mut command = Command::new(&config.logger);
    // Found again by this name, whatever the binary is called.
    command.arg0(LOGGER_NAME);
    for (key, value) in registration.arguments.iter().filter(|(key, _)| key != "socket") {
        command.arg(key).arg(value);
    }
    command.arg("socket").arg(&config.socket).args(["resume", "0,1"]);
    command
        .env_clear()
        .env("CONTAINER_ID", &registration.id)
        .current_dir("/");
    command
        .stdin(Stdio::from(out.try_clone()?))
        .stdout(Stdio::from(err.try_clone()?))
        .stderr(Stdio::null());
    // A terminal's Ctrl-C is not for it, and it outlives the agent.
    command.process_group(0).kill_on_drop(false);
    command.spawn()
}
