//! Owns the GPUs of the node: which the CDI specifications in its directories name, and what a container that gets some is
//! changed by. Never decides who gets one, and never changes a device.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_agent_core::{
    cdi::{CdiError, DeviceName, DeviceNode, Format, Kind, Library, SPEC_BYTES_MAX, Spec},
    oci::{self, DeviceEdits, DeviceKind, NodeNumbers},
};
use tokio::sync::watch;

use crate::sys::Chain;

/// Between two looks at the directories: a driver's service may write its specification after the agent's start.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Files of one directory that are read.
const FILES_MAX: usize = 64;
/// GPUs of one node: more than any has, and what control planes take.
const GPUS_MAX: usize = 256;

/// Why a container cannot have its GPUs.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no regular file", path.display())]
    Kind { path: PathBuf },
    #[error("{}: user {uid} with mode {mode:o}: others than root can write what is executed as root", path.display())]
    Writable { path: PathBuf, uid: u32, mode: u32 },
    #[error("{}", path.display())]
    Spec { path: PathBuf, source: CdiError },
    #[error("{}: only {FILES_MAX} files are read", path.display())]
    TooMany { path: PathBuf },
    #[error(transparent)]
    Edits(#[from] CdiError),
    #[error("device node {path}")]
    Node { path: String, source: io::Error },
    #[error("device node {path} is of another type than its CDI specification says")]
    OtherNode { path: String },
}

/// Where specifications are, and which devices of them are GPUs.
#[derive(Clone, Debug, Default)]
pub struct Gpus {
    directories: Vec<PathBuf>,
    kinds: Vec<Kind>,
}

/// What shows that a file was changed: its path, time, size and number.
type Seen = Vec<(PathBuf, i64, i64, u64, u64)>;

impl Gpus {
    /// Later directories win over earlier ones.
    pub fn new(directories: Vec<PathBuf>, kinds: Vec<Kind>) -> Self {
        Self { directories, kinds }
    }

    /// Ids of those that are here now. What cannot be used is said in the log.
    pub fn present(&self) -> Vec<String> {
        let (library, problems) = self.read();
        for problem in &problems {
            tracing::warn!(error = %Chain(problem), "a CDI specification is not used");
        }
        for name in library.ambiguous() {
            tracing::warn!(device = %name, "two CDI specifications of one directory have it: it is not used");
        }
        let mut gpus = library.gpus(&self.kinds);
        if gpus.len() > GPUS_MAX {
            tracing::warn!(found = gpus.len(), limit = GPUS_MAX, "more GPUs than are offered");
            gpus.truncate(GPUS_MAX);
        }
        gpus.iter().map(ToString::to_string).collect()
    }

    /// Keeps `present` true until it is dropped. Cancel-safe.
    pub async fn watch(self, present: watch::Sender<Vec<String>>) {
        // Whatever was changed since the start is seen at the first look.
        let mut seen = None;
        while !present.is_closed() {
            let gpus = self.clone();
            let before = seen.clone();
            let look = tokio::task::spawn_blocking(move || {
                let now = gpus.seen();
                let found = (before.as_ref() != Some(&now)).then(|| gpus.present());
                (now, found)
            });
            let Ok((now, found)) = look.await else { return };
            seen = Some(now);
            if let Some(found) = found {
                present.send_if_modified(|known| {
                    let changed = *known != found;
                    if changed {
                        tracing::info!(gpus = ?found, "the node's GPUs changed");
                        *known = found;
                    }
                    changed
                });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// For a container that has these.
    ///
    /// # Errors
    /// One of them is not there any more, or what its specification names is not.
    pub fn edits(&self, names: &[DeviceName]) -> Result<DeviceEdits, GpuError> {
        if names.is_empty() {
            return Ok(DeviceEdits::default());
        }
        let (library, problems) = self.read();
        let edits = library.edits(names).map_err(|error| {
            // That a file cannot be used tells more than that a device is missing.
            problems.into_iter().next().unwrap_or(GpuError::Edits(error))
        })?;
        let numbers = edits.device_nodes.iter().map(numbers).collect::<Result<_, _>>()?;
        Ok(DeviceEdits::new(edits, numbers))
    }

    fn read(&self) -> (Library, Vec<GpuError>) {
        let mut problems = Vec::new();
        let mut read = |directory: &PathBuf| {
            let mut files = files(directory);
            if files.len() > FILES_MAX {
                problems.push(GpuError::TooMany {
                    path: directory.clone(),
                });
                files.truncate(FILES_MAX);
            }
            let mut specs = Vec::new();
            for (path, format) in files {
                match read_spec(path, format) {
                    Ok(spec) => specs.push(spec),
                    Err(problem) => problems.push(problem),
                }
            }
            specs
        };
        let library = Library::new(self.directories.iter().map(&mut read).collect());
        (library, problems)
    }

    fn seen(&self) -> Seen {
        let files = self.directories.iter().flat_map(|directory| files(directory));
        let look = |(path, _): (PathBuf, Format)| {
            let metadata = fs::metadata(&path).ok()?;
            let (at, more) = (metadata.ctime(), metadata.ctime_nsec());
            Some((path, at, more, metadata.size(), metadata.ino()))
        };
        files.filter_map(look).collect()
    }
}

/// The specifications of a directory in the order of their names; none where there is no directory.
fn files(directory: &Path) -> Vec<(PathBuf, Format)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let format = |path: PathBuf| {
        let format = match path.extension()?.to_str()? {
            "json" => Format::Json,
            "yaml" => Format::Yaml,
            _ => return None,
        };
        Some((path, format))
    };
    let mut files: Vec<_> = entries.filter_map(|entry| format(entry.path())).collect();
    files.sort_by(|(a, _), (b, _)| a.cmp(b));
    files
}

fn read_spec(path: PathBuf, format: Format) -> Result<Spec, GpuError> {
    let text = read_text(&path)?;
    Spec::parse(&text, format).map_err(|source| GpuError::Spec { path, source })
}

/// What nobody but root, or who runs the agent, can write: hooks of it are executed as root.
fn read_text(path: &Path) -> Result<String, GpuError> {
    let failed = |source| GpuError::Read {
        path: path.into(),
        source,
    };
    // Without O_NONBLOCK the opening of a pipe waits for its other end.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(GpuError::Kind { path: path.into() });
    }
    let (uid, mode) = (metadata.uid(), metadata.mode());
    if mode & 0o022 != 0 || (uid != 0 && uid != nix::unistd::geteuid().as_raw()) {
        let path = path.into();
        let mode = mode & 0o777;
        return Err(GpuError::Writable { path, uid, mode });
    }
    let mut text = String::new();
    // One byte more, so that the parser sees that it is too long.
    let limit = u64::try_from(SPEC_BYTES_MAX)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    file.take(limit).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Which device a node opens: as the specification says, else as the host's node does.
fn numbers(node: &DeviceNode) -> Result<NodeNumbers, GpuError> {
    if let Some(given) = oci::given(node) {
        return Ok(given);
    }
    let path = || node.on_host().to_owned();
    let failed = |source| GpuError::Node { path: path(), source };
    let metadata = fs::metadata(node.on_host()).map_err(failed)?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => DeviceKind::Character,
        kind if kind.is_block_device() => DeviceKind::Block,
        _ => return Err(failed(io::Error::other("it is no device"))),
    };
    let found = NodeNumbers {
        kind,
        major: libc::major(metadata.rdev()),
        minor: libc::minor(metadata.rdev()),
    };
    if oci::contradicts(node, found) {
        return Err(GpuError::OtherNode { path: path() });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn spec(devices: &[(&str, &str)]) -> String {
        let device = |(name, path): &(&str, &str)| {
            format!(
                "{{\"name\": \"{name}\", \"containerEdits\": {{\"deviceNodes\": [{{\"path\": \"{path}\"}}]}}}}"
            )
        };
        let devices: Vec<String> = devices.iter().map(device).collect();
        format!(
            "{{\"cdiVersion\": \"0.6.0\", \"kind\": \"nvidia.com/gpu\", \"devices\": [{}]}}",
            devices.join(", ")
        )
    }

    fn gpus(directories: &[&Path]) -> Gpus {
        let directories = directories.iter().map(|path| path.to_path_buf()).collect();
        Gpus::new(directories, vec!["nvidia.com/gpu".parse().unwrap()])
    }

    #[test]
    fn files_of_both_forms_are_read_and_bad_ones_do_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        write("a.json", &spec(&[("0", "/dev/null")]), 0o644);
        write(
            "b.yaml",
            "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: one\n  containerEdits:\n    deviceNodes:\n    - {path: /dev/x, hostPath: /dev/zero}\n",
            0o600,
        );
        write("c.json", "{", 0o644);
        write("d.json", &spec(&[("open", "/dev/full")]), 0o666);
        write("e.txt", &spec(&[("text", "/dev/full")]), 0o644);
        nix::unistd::mkfifo(&dir.path().join("f.json"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let gpus = gpus(&[&dir.path().join("none"), dir.path()]);
        assert_eq!(gpus.present(), ["nvidia.com/gpu=0", "nvidia.com/gpu=one"]);
        let (_, problems) = gpus.read();
        let said: Vec<String> = problems.iter().map(|p| Chain(p).to_string()).collect();
        for says in [
            "c.json: it is no CDI specification",
            "d.json: user 0 with mode 666",
            "f.json is no regular file",
        ] {
            assert!(said.iter().any(|s| s.contains(says)), "{says}: {said:?}");
        }
        let name = "nvidia.com/gpu=one".parse().unwrap();
        assert_ne!(gpus.edits(&[name]).unwrap(), DeviceEdits::default());
        assert_eq!(gpus.edits(&[]).unwrap(), DeviceEdits::default());
    }

    #[test]
    fn a_device_that_is_gone_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let gpus = gpus(&[dir.path()]);
        let why = |name: &str| {
            let error = gpus.edits(&[name.parse().unwrap()]).unwrap_err();
            Chain(&error).to_string()
        };
        let gone = "GPU nvidia.com/gpu=0 is not in the CDI specifications of this node any more";
        assert_eq!(why("nvidia.com/gpu=0"), gone);
        fs::write(&path, spec(&[("0", "/dev/no-such-gpu"), ("1", "/etc/passwd")])).unwrap();
        assert!(why("nvidia.com/gpu=0").starts_with("device node /dev/no-such-gpu: No such file"));
        assert_eq!(
            why("nvidia.com/gpu=1"),
            "device node /etc/passwd: it is no device"
        );
        fs::write(&path, "{").unwrap();
        assert!(why("nvidia.com/gpu=0").contains("a.json: it is no CDI specification"));
    }

    #[tokio::test]
    async fn what_comes_and_goes_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let gpus = gpus(&[dir.path()]);
        let (sender, mut seen) = watch::channel(gpus.present());
        let watching = tokio::spawn(gpus.watch(sender));
        fs::write(dir.path().join("a.json"), spec(&[("0", "/dev/null")])).unwrap();
        let limit = LOOK_AGAIN * 3;
        let found = tokio::time::timeout(limit, seen.wait_for(|gpus| !gpus.is_empty())).await;
        assert_eq!(*found.unwrap().unwrap(), ["nvidia.com/gpu=0"]);
        drop(seen);
        watching.abort();
    }
}
