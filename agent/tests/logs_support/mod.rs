//! Real loggers for the tests of logs: builds the binary, and starts it the way the runtime's shim does.
#![allow(dead_code, unsafe_code, clippy::unwrap_used, missing_debug_implementations)]

pub mod manager;

use std::{
    fs,
    io::{PipeReader, PipeWriter, pipe},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use berth_agent::logs::LoggerCommand;
use berth_agent_core::ids::ContainerId;

/// No test waits longer for anything.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The logger's binary, built once.
pub fn logger_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("logger");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "berth-logger", "--target-dir"])
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(status.unwrap().success(), "berth-logger builds");
        target.join("debug/berth-logger")
    })
}

pub fn id(digit: char) -> ContainerId {
    digit.to_string().repeat(32).parse().unwrap()
}

/// A container's outputs, and the logger that a shim started for it.
pub struct Container {
    pub stdout: Option<PipeWriter>,
    pub stderr: Option<PipeWriter>,
    pub logger: Child,
}

impl Container {
    /// Starts the logger and waits until it is ready. As in the shim, nobody else keeps the read ends.
    pub fn start(command: &LoggerCommand) -> Self {
        let (out, stdout) = pipe().unwrap();
        let (err, stderr) = pipe().unwrap();
        let logger = spawn(command, &out, &err);
        Self {
            stdout: Some(stdout),
            stderr: Some(stderr),
            logger,
        }
    }

    /// The container ends, and its first logger is reaped.
    pub fn exit(&mut self) {
        self.stdout = None;
        self.stderr = None;
        self.logger.wait().unwrap();
    }

    pub fn kill_logger(&mut self) {
        self.logger.kill().unwrap();
        self.logger.wait().unwrap();
    }
}

/// Kills a process that is not our child.
pub fn kill(pid: u32) {
    // SAFETY: a signal to a process that a test started.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
}

fn spawn(command: &LoggerCommand, out: &PipeReader, err: &PipeReader) -> Child {
    let (mut ready, ready_writer) = pipe().unwrap();
    let fds = [out.as_raw_fd(), err.as_raw_fd(), ready_writer.as_raw_fd()];
    let mut process = Command::new(&command.logger);
    for (key, value) in query(&command.uri()) {
        process.arg(key).arg(value);
    }
    process.env_clear().env("CONTAINER_ID", &command.runtime_id);
    process.stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: only fcntl and dup2 run between fork and exec.
    unsafe { process.pre_exec(move || inherit(fds)) };
    let child = process.spawn().unwrap();
    drop(ready_writer);
    assert_eq!(std::io::Read::read(&mut ready, &mut [0]).unwrap(), 0);
    child
}

/// As Go's net/url reads it.
fn query(uri: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            let hex: Option<Vec<u8>> = (byte == b'%').then(|| rest.by_ref().take(2).collect());
            bytes.push(hex.map_or(byte, |hex| {
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }));
        }
        String::from_utf8(bytes).unwrap()
    };
    let (_, query) = uri.split_once('?').unwrap();
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(key, value)| (decode(key), decode(value))).collect()
}

fn inherit(fds: [RawFd; 3]) -> std::io::Result<()> {
    // SAFETY: fcntl and dup2 only change the table of descriptors of the new process.
    unsafe {
        let high = fds.map(|fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 200));
        for (from, to) in high.into_iter().zip(3..) {
            if from < 0 || libc::dup2(from, to) < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Tries until there is a result; fails at the deadline.
pub async fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(started.elapsed() < DEADLINE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The process is there and not a zombie.
pub fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}
