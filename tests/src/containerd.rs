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
    child: Child,
}

impl Containerd {
    pub fn start(dir: &Path) -> Self {
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
            child: spawn(dir),
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
        self.child = spawn(&self.dir);
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

fn spawn(dir: &Path) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("containerd.log"))
        .unwrap();
    Command::new("containerd")
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
