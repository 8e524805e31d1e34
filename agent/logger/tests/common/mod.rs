//! Starts the real binary the way containerd's shim does, and reads what it wrote. Shared by the tests of this crate.
#![allow(dead_code, unsafe_code, clippy::unwrap_used, missing_debug_implementations)]

use std::{
    fs,
    io::{PipeReader, PipeWriter, Read, pipe},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

pub const BATCH_BYTES_MAX: usize = 64 * 1024;
/// No test waits longer for anything.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The container's side of its two outputs, and duplicates of the read ends as the agent would hold them.
pub struct Container {
    pub stdout: Option<PipeWriter>,
    pub stderr: Option<PipeWriter>,
    pub ends: [PipeReader; 2],
}

impl Container {
    pub fn new() -> Self {
        let (out, stdout) = pipe().unwrap();
        let (err, stderr) = pipe().unwrap();
        Self {
            stdout: Some(stdout),
            stderr: Some(stderr),
            ends: [out, err],
        }
    }

    /// The container is gone.
    pub fn exit(&mut self) {
        self.stdout = None;
        self.stderr = None;
    }
}

/// One running logger. Killed on drop, should a test fail.
pub struct Logger {
    pub child: Child,
    ready: Option<PipeReader>,
}

impl Logger {
    /// As the shim: pipes at 3 and 4, the ready pipe at 5.
    pub fn spawn(container: &Container, pairs: &[(&str, &str)]) -> Self {
        Self::spawn_binary(Path::new(env!("CARGO_BIN_EXE_berth-logger")), container, pairs)
    }

    pub fn spawn_binary(binary: &Path, container: &Container, pairs: &[(&str, &str)]) -> Self {
        let (ready, ready_writer) = pipe().unwrap();
        let [out, err] = &container.ends;
        let fds = [out.as_raw_fd(), err.as_raw_fd(), ready_writer.as_raw_fd()];
        let mut command = Command::new(binary);
        command.args(pairs.iter().flat_map(|(key, value)| [key, value]));
        command
            .env_clear()
            .env("CONTAINER_ID", "c-1")
            .env("CONTAINER_NAMESPACE", "test");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: only fcntl and dup2 run between fork and exec.
        unsafe { command.pre_exec(move || inherit(fds)) };
        Self {
            child: command.spawn().unwrap(),
            ready: Some(ready),
        }
    }

    /// As the agent in place of one that died: pipes at 0 and 1.
    pub fn resume(container: &Container, pairs: &[(&str, &str)]) -> Self {
        let [out, err] = &container.ends;
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-logger"));
        command
            .args(pairs.iter().flat_map(|(key, value)| [key, value]))
            .args(["resume", "0,1"]);
        command.env_clear().env("CONTAINER_ID", "c-1");
        command
            .stdin(out.try_clone().unwrap())
            .stdout(err.try_clone().unwrap());
        Self {
            child: command.spawn().unwrap(),
            ready: None,
        }
    }

    /// Waits for the ready pipe to close; gives how long that took.
    pub fn wait_ready(&mut self) -> Duration {
        let started = Instant::now();
        let mut ready = self.ready.take().expect("waited for once");
        let (done, wait) = mpsc::channel();
        thread::spawn(move || done.send(ready.read(&mut [0]).unwrap()));
        assert_eq!(wait.recv_timeout(DEADLINE).expect("the logger becomes ready"), 0);
        started.elapsed()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: our own child, not yet reaped.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Waits for its end.
    pub fn finish(&mut self) -> ExitStatus {
        until("the logger ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts descriptors where the logger expects them, wherever they were.
fn inherit(fds: [RawFd; 3]) -> std::io::Result<()> {
    // SAFETY: fcntl and dup2 only change the table of descriptors of the new process.
    unsafe {
        let high = fds.map(|fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 50));
        for (from, to) in high.into_iter().zip(3..) {
            if from < 0 || libc::dup2(from, to) < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Tries until there is a result; fails at the deadline.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(started.elapsed() < DEADLINE, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub log: String,
    pub stream: String,
    pub time: String,
}

/// Every record that is kept, oldest first.
pub fn records(path: &Path) -> Vec<Record> {
    files(path).iter().rev().flat_map(|file| parse(file)).collect()
}

/// The current file, then the rotated ones, newest first.
pub fn files(path: &Path) -> Vec<PathBuf> {
    let rotated = (1..).map(|n| PathBuf::from(format!("{}.{n}", path.display())));
    std::iter::once(path.to_owned())
        .chain(rotated.take_while(|path| path.exists()))
        .collect()
}

fn parse(file: &Path) -> Vec<Record> {
    let text = fs::read_to_string(file).unwrap();
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "a torn record in {}",
        file.display()
    );
    text.lines()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let field = |name: &str| value[name].as_str().unwrap().to_owned();
            Record {
                log: field("log"),
                stream: field("stream"),
                time: field("time"),
            }
        })
        .collect()
}

/// What the container wrote to one of its outputs.
pub fn text(records: &[Record], stream: &str) -> String {
    records
        .iter()
        .filter(|r| r.stream == stream)
        .map(|r| r.log.as_str())
        .collect()
}
