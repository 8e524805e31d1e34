//! Owns where `berth dev` keeps things. All of it is under the state directory.

use std::path::{Path, PathBuf};

/// A socket's path has at most 107 characters (unix(7)); the longest below is `run/containerd.sock.ttrpc`, and the
/// agent has its own beside it.
pub const STATE_DIR_LENGTH_MAX: usize = 70;

#[derive(Clone, Debug)]
pub struct Paths {
    pub state_dir: PathBuf,
}

impl Paths {
    pub fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.into(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }

    /// Locked as long as a `berth dev` uses the directory.
    pub fn lock(&self) -> PathBuf {
        self.at("lock")
    }

    pub fn dev_env(&self) -> PathBuf {
        self.at(crate::endpoint::DEV_ENV)
    }

    /// The access keys, which stay the same from start to start.
    pub fn keys(&self) -> PathBuf {
        self.at("keys.env")
    }

    /// The task range chosen at the first start.
    pub fn task_cidr(&self) -> PathBuf {
        self.at("task-cidr")
    }

    pub fn control_plane(&self) -> PathBuf {
        self.at("control-plane")
    }

    /// The node's id and certificate.
    pub fn node(&self) -> PathBuf {
        self.at("node")
    }

    pub fn node_id(&self) -> PathBuf {
        self.at("node/id")
    }

    pub fn agent(&self) -> PathBuf {
        self.at("agent")
    }

    /// Sockets, namespaces' mount points, containerd's run-time state: nothing that outlives a reboot.
    pub fn run_dir(&self) -> PathBuf {
        self.at("run")
    }

    pub fn containerd(&self) -> PathBuf {
        self.at("containerd")
    }

    pub fn containerd_config(&self) -> PathBuf {
        self.at("containerd/config.toml")
    }

    pub fn containerd_log(&self) -> PathBuf {
        self.at("containerd/log")
    }

    pub fn containerd_pid(&self) -> PathBuf {
        self.at("containerd/pid")
    }

    pub fn containerd_socket(&self) -> PathBuf {
        self.at("run/containerd.sock")
    }
}
