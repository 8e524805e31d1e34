//! Owns a private containerd: its own root, state and socket.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Ended by pid when dropped.
#[derive(Debug)]
pub struct Containerd {
    dir: PathBuf,
    /// The network namespace it is in; none: the test's.
    netns: Option<PathBuf>,
    child: Child,
}

impl Containerd {
    pub fn start(dir: &Path) -> Self {
        Self::start_in(dir, None)
    }

    /// In a network namespace.
    pub fn start_in(dir: &Path, netns: Option<PathBuf>) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let path = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("containerd.sock")
        );
        std::fs::write(dir.join("containerd.toml"), config).unwrap();
        let containerd = Self {
            dir: dir.into(),
            child: spawn(dir, netns.as_deref()),
            netns,
        };
        containerd.wait_ready();
        containerd
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// SIGKILL, and a new one on the same state.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What a boot empties: below /run on a real host.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// After [`Containerd::kill`].
    pub fn restart(&mut self) {
        self.child = spawn(&self.dir, self.netns.as_deref());
        self.wait_ready();
    }

    fn wait_ready(&self) {
        let begun = Instant::now();
        while !self.ctr("default", &["version"]).status.success() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "containerd does not answer: see {:?}",
                self.dir
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn ctr(&self, namespace: &str, args: &[&str]) -> std::process::Output {
        let socket = self.socket().display().to_string();
        Command::new("ctr")
            .args(["-a", &socket, "-n", namespace])
            .args(args)
            .output()
            .expect("ctr is installed")
    }

    /// Lines that `ctr` prints.
    pub fn list(&self, namespace: &str, args: &[&str]) -> Vec<String> {
        let output = self.ctr(namespace, args);
        assert!(
            output.status.success(),
            "ctr {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .map(str::to_owned)
            .filter(|line| !line.trim().is_empty())
            .collect()
    }
}

/// A program in a network namespace, and in all else where the test is: mounts must be seen by everybody.
pub(crate) fn within(netns: Option<&Path>, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let Some(netns) = netns else {
        return Command::new(program);
    };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display())).arg(program);
    command
}

fn spawn(dir: &Path, netns: Option<&Path>) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("containerd.log"))
        .unwrap();
    within(netns, "containerd")
        .arg("--config")
        .arg(dir.join("containerd.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("containerd is installed")
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
