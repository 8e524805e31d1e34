//! Owns where volumes are on the disk, and which paths of the host a volume may be. Never makes one.
//!
//! ```text
//! tasks/<task>/named/<volume>/{volume.json, data}
//! tasks/<task>/image/<container>-<number>/data
//! tasks/<task>/view                               where an image is mounted, until it is open
//! shared/<volume>/{volume.json, data}
//! ```
//! Names are the user's, of letters, digits, `-` and `_`, at most 255: file names as they are. All of it is open to root alone;
//! what a container sees of it is `data`.

use std::path::{Path, PathBuf};

use berth_agent_core::{ids::TaskId, volumes::MountSource};

use super::VolumeError;

const TASKS: &str = "tasks";
const SHARED: &str = "shared";
const NAMED: &str = "named";
const IMAGE: &str = "image";
const DATA: &str = "data";
const RECORD: &str = "volume.json";

/// Where things are.
#[derive(Clone, Debug)]
pub struct Places {
    root: PathBuf,
    /// The agent's own directories.
    own: Vec<PathBuf>,
    host_paths: Vec<PathBuf>,
}

impl Places {
    /// `host_paths` are those at or below which a volume may be a path of the host.
    pub fn new(state_dir: &Path, run_dir: &Path, host_paths: Vec<PathBuf>) -> Self {
        Self {
            root: state_dir.join("volumes"),
            own: vec![state_dir.to_owned(), run_dir.to_owned()],
            host_paths,
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn tasks(&self) -> PathBuf {
        self.root.join(TASKS)
    }

    pub(super) fn task(&self, task: &TaskId) -> PathBuf {
        self.tasks().join(task.as_str())
    }

    pub(super) fn shared(&self) -> PathBuf {
        self.root.join(SHARED)
    }

    pub(super) fn view(&self, task: &TaskId) -> PathBuf {
        self.task(task).join("view")
    }

    /// What belongs to a volume; its content is the `data` in it.
    pub(super) fn home(&self, task: &TaskId, source: &MountSource) -> PathBuf {
        match source {
            MountSource::Host { volume, .. } | MountSource::Task { volume } => self.named(task, volume),
            MountSource::Shared { volume } => self.shared().join(volume),
            MountSource::Image { container, number } => {
                let name = format!("{container}-{number}");
                self.task(task).join(IMAGE).join(name)
            }
        }
    }

    pub(super) fn named(&self, task: &TaskId, volume: &str) -> PathBuf {
        self.task(task).join(NAMED).join(volume)
    }

    pub(super) fn data(home: &Path) -> PathBuf {
        home.join(DATA)
    }

    pub(super) fn record(home: &Path) -> PathBuf {
        home.join(RECORD)
    }

    /// What is mounted into a container.
    pub(super) fn source(&self, task: &TaskId, source: &MountSource) -> PathBuf {
        match source {
            MountSource::Host { path, .. } if !self.restricts() => path.into(),
            _ => Self::data(&self.home(task, source)),
        }
    }

    /// Not every path of the host may be a volume: those that may are then held by a mount of the agent's, so that nobody who
    /// can write below an allowed path leads out of it.
    pub(super) fn restricts(&self) -> bool {
        !self.host_paths.iter().any(|path| path == Path::new("/"))
    }

    /// The agent's own directories are below that path: what it mounts there must not be kept by who sees it.
    pub(super) fn is_above_own(&self, path: &Path) -> bool {
        self.own.iter().any(|own| own.starts_with(path))
    }

    /// The allowed path that this one is at or below, and the rest of it.
    pub(super) fn allowed<'a>(
        &'a self,
        volume: &str,
        path: &'a Path,
    ) -> Result<(&'a Path, &'a Path), VolumeError> {
        if self.own.iter().any(|own| path.starts_with(own)) {
            return Err(VolumeError::AgentsOwn {
                volume: volume.to_owned(),
                path: path.to_owned(),
            });
        }
        let below = |allowed: &'a PathBuf| {
            path.strip_prefix(allowed)
                .ok()
                .map(|rest| (allowed.as_path(), rest))
        };
        let mut found = self.host_paths.iter().filter_map(below);
        found.next().ok_or_else(|| VolumeError::NotAllowed {
            volume: volume.to_owned(),
            path: path.to_owned(),
        })
    }
}
