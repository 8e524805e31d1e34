//! Owns the private containerd: its configuration, its process, and what a killed predecessor left of it. Never
//! talks its API: that is the agent's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::paths::Paths;
use super::preflight::private_directory;
use super::{DevError, secrets};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// It is started again when it dies; one that dies so often has a reason that a new start does not remove.
const RESTARTS_MAX: u32 = 5;
const LOG_TAIL_LINES: usize = 8;
/// What containerd's shims use whatever its configuration says; removed when empty.
const SHIM_SOCKET_DIRS: [&str; 2] = ["/run/containerd/s", "/run/containerd"];

#[derive(Debug)]
pub struct Containerd {
    paths: Paths,
    pid: u32,
    /// Ours to reap; none when a predecessor's is used.
    child: Option<Child>,
    restarts: u32,
}

impl Containerd {
    /// Starts it, or goes on with the one a predecessor left.
    pub async fn start(paths: &Paths) -> Result<Self, DevError> {
        private_directory(&paths.containerd())?;
        private_directory(&paths.run_dir())?;
        if let Some(pid) = left_over(paths) {
            let mut found = Self {
                paths: paths.clone(),
                pid,
                child: None,
                restarts: 0,
            };
            if found.wait_ready().await.is_ok() {
                return Ok(found);
            }
            found.stop().await;
        }
        let mut fresh = Self::spawn(paths)?;
        match fresh.wait_ready().await {
            Ok(()) => Ok(fresh),
            Err(error) => {
                fresh.stop().await;
                Err(error)
            }
        }
    }

    /// Started by us, not left by a predecessor.
    pub fn is_fresh(&self) -> bool {
        self.child.is_some()
    }

    pub fn socket(&self) -> PathBuf {
        self.paths.containerd_socket()
    }

    /// A containerd that died is started again: its containers did not die with it.
    pub async fn supervise(&mut self) -> Result<(), DevError> {
        if self.alive() {
            return Ok(());
        }
        if self.restarts >= RESTARTS_MAX {
            let times = self.restarts + 1;
            let (log, tail) = self.log_tail();
            return Err(DevError::ContainerdDies { times, log, tail });
        }
        eprintln!("berth: containerd (process {}) died: started again", self.pid);
        let restarts = self.restarts + 1;
        *self = Self::spawn(&self.paths)?;
        self.restarts = restarts;
        self.wait_ready().await
    }

    /// Ends the process. Its containers are the agent's to stop, before.
    pub async fn stop(&mut self) {
        for (signal, timeout) in [(Signal::SIGTERM, STOP_TIMEOUT), (Signal::SIGKILL, STOP_TIMEOUT)] {
            if !self.alive() {
                break;
            }
            let _ = kill(Pid::from_raw(self.pid.cast_signed()), signal);
            let deadline = Instant::now() + timeout;
            while self.alive() && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
            }
        }
        let socket = self.paths.containerd_socket();
        let _ = std::fs::remove_file(socket.with_extension("sock.ttrpc"));
        for path in [socket, self.paths.containerd_pid()] {
            let _ = std::fs::remove_file(path);
        }
        for dir in SHIM_SOCKET_DIRS {
            // Succeeds only on an empty directory: another containerd's is not.
            let _ = std::fs::remove_dir(dir);
        }
    }

    /// In a process group of its own: Ctrl-C in the terminal is for us, and we end it in order.
    fn spawn(paths: &Paths) -> Result<Self, DevError> {
        secrets::write_private(&paths.containerd_config(), &config(paths))?;
        let log_path = paths.containerd_log();
        let open = || -> io::Result<(File, File)> {
            let log = OpenOptions::new().append(true).create(true).open(&log_path)?;
            Ok((log.try_clone()?, log))
        };
        let (out, err) = open().map_err(DevError::path(&log_path))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(paths.containerd_config())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(|source| DevError::Run {
                program: "containerd",
                source,
            })?;
        let pid = child.id();
        secrets::write_private(&paths.containerd_pid(), &pid.to_string())?;
        Ok(Self {
            paths: paths.clone(),
            pid,
            child: Some(child),
            restarts: 0,
        })
    }

    async fn wait_ready(&mut self) -> Result<(), DevError> {
        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline && self.alive() {
            if UnixStream::connect(self.socket()).is_ok() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        let (log, tail) = self.log_tail();
        Err(DevError::ContainerdDown {
            seconds: START_TIMEOUT.as_secs(),
            log,
            tail,
        })
    }

    fn alive(&mut self) -> bool {
        match &mut self.child {
            // Reaps it, so that its number does not stay in /proc.
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => is_ours(&self.paths, self.pid),
        }
    }

    fn log_tail(&self) -> (PathBuf, String) {
        let path = self.paths.containerd_log();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
        (path, tail)
    }
}

/// The process that a predecessor's pid file names, if that still is our containerd.
fn left_over(paths: &Paths) -> Option<u32> {
    let pid = std::fs::read_to_string(paths.containerd_pid())
        .ok()?
        .trim()
        .parse()
        .ok()?;
    is_ours(paths, pid).then_some(pid)
}

/// Numbers are given again: the command line must be that of a containerd with our configuration.
fn is_ours(paths: &Paths, pid: u32) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let config = paths.containerd_config();
    line.split(|byte| *byte == 0)
        .any(|word| word == config.as_os_str().as_encoded_bytes())
}

/// Version 2 of the format is read by containerd 1.x and, migrated, by 2.x. Left out: what only Kubernetes needs,
/// snapshotters the agent does not use, and /opt/containerd, which would be made outside the state directory.
fn config(paths: &Paths) -> String {
    const LEFT_OUT: [&str; 10] = [
        "io.containerd.grpc.v1.cri",
        "io.containerd.cri.v1.images",
        "io.containerd.cri.v1.runtime",
        "io.containerd.internal.v1.opt",
        "io.containerd.internal.v1.tracing",
        "io.containerd.tracing.processor.v1.otlp",
        "io.containerd.snapshotter.v1.aufs",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.zfs",
    ];
    let text = |path: PathBuf| toml::Value::from(path.to_string_lossy().into_owned());
    let mut grpc = toml::Table::new();
    grpc.insert("address".into(), text(paths.containerd_socket()));
    let mut config = toml::Table::new();
    config.insert("version".into(), 2.into());
    config.insert("root".into(), text(paths.containerd().join("root")));
    config.insert("state".into(), text(paths.run_dir().join("containerd")));
    config.insert("disabled_plugins".into(), LEFT_OUT.to_vec().into());
    config.insert("grpc".into(), grpc.into());
    config.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_believed_only_with_our_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        private_directory(&paths.containerd()).unwrap();
        assert_eq!(left_over(&paths), None);
        std::fs::write(paths.containerd_pid(), std::process::id().to_string()).unwrap();
        assert_eq!(left_over(&paths), None);
    }

    #[tokio::test]
    async fn it_starts_is_found_again_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        let mut first = Containerd::start(&paths).await.unwrap();
        // A second start, as after a kill -9 of the first `berth dev`.
        let mut second = Containerd::start(&paths).await.unwrap();
        assert_eq!(second.pid, first.pid);
        assert!(second.child.is_none());

        kill(Pid::from_raw(first.pid.cast_signed()), Signal::SIGKILL).unwrap();
        while first.alive() {
            tokio::time::sleep(POLL).await;
        }
        second.supervise().await.unwrap();
        assert_ne!(second.pid, first.pid);
        second.stop().await;
        assert!(!second.alive() && !paths.containerd_socket().exists() && !paths.containerd_pid().exists());
    }
}
