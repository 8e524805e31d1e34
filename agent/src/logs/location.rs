//! Owns where logs lie, `LOG_DIR/TASK/CONTAINER NAME/CONTAINER ID-json.log`, and how a logger is told. Never touches a
//! file.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use berth_agent_core::{
    desired::ContainerSpec,
    ids::{Attempt, ContainerId, TaskId, runtime_id},
};

/// Longest name of a container (ECS API, ContainerDefinition).
const NAME_BYTES_MAX: usize = 255;

/// A container's name that cannot be part of a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a container name: up to 255 letters, digits, hyphens and underscores")]
pub struct UnsafeName(pub String);

/// Where all logs of a task lie.
pub fn task_dir(log_dir: &Path, task: &TaskId) -> PathBuf {
    log_dir.join(task.as_str())
}

/// A container's current log file; rotated ones are beside it, with `.1` (the newest) to `.N` added.
///
/// # Errors
/// A name that is not one of ECS: it would lead out of the directory.
pub fn container_log(task_dir: &Path, name: &str, id: &ContainerId) -> Result<PathBuf, UnsafeName> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(good) {
        return Err(UnsafeName(name.chars().take(64).collect()));
    }
    Ok(task_dir.join(name).join(format!("{id}-json.log")))
}

/// What starts one container's logger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggerCommand {
    /// The binary; absolute.
    pub logger: PathBuf,
    /// The agent's socket for loggers; absolute.
    pub socket: PathBuf,
    pub runtime_id: String,
    /// The current log file.
    pub path: PathBuf,
    /// Zero: no limit.
    pub max_size_bytes: u64,
    /// In all, the current one among them.
    pub max_files: u32,
    /// The container waits for a disk that does not keep up.
    pub blocking: bool,
    /// Zero: the logger's default.
    pub max_buffer_bytes: u64,
    /// Nothing is kept.
    pub discard: bool,
    /// Added to every line.
    pub attributes: BTreeMap<String, String>,
}

impl LoggerCommand {
    /// Of a container whose logs are below `log_dir`.
    ///
    /// # Errors
    /// Its name cannot be part of a path.
    pub fn of(
        (task, spec, attempt): (&TaskId, &ContainerSpec, Attempt),
        log_dir: &Path,
        (logger, socket): (&Path, &Path),
    ) -> Result<Self, UnsafeName> {
        Ok(Self {
            logger: logger.into(),
            socket: socket.into(),
            runtime_id: runtime_id(&spec.id, attempt),
            path: container_log(&task_dir(log_dir, task), &spec.name, &spec.id)?,
            max_size_bytes: spec.log.max_size_bytes,
            max_files: spec.log.max_files,
            blocking: spec.log.blocking,
            max_buffer_bytes: spec.log.max_buffer_bytes,
            discard: spec.log.discard,
            attributes: spec.log.attributes.clone(),
        })
    }

    /// What the logger is told, by names: all but the socket, which is the agent's own.
    pub fn arguments(&self) -> Vec<(&'static str, OsString)> {
        let mut arguments = vec![
            ("id", self.runtime_id.clone().into()),
            ("path", self.path.clone().into()),
            ("max-size", self.max_size_bytes.to_string().into()),
            ("max-file", self.max_files.to_string().into()),
        ];
        if self.blocking {
            arguments.push(("mode", "blocking".into()));
        }
        if self.max_buffer_bytes != 0 {
            arguments.push(("max-buffer-size", self.max_buffer_bytes.to_string().into()));
        }
        if self.discard {
            arguments.push(("discard", "yes".into()));
        }
        if !self.attributes.is_empty() {
            arguments.push(("attrs", serde_json::json!(self.attributes).to_string().into()));
        }
        arguments
    }

    /// As containerd takes it for a task's stdout and stderr: both get the same. Its shim starts the logger with the
    /// query's keys and values as arguments.
    pub fn uri(&self) -> String {
        let mut uri = String::from("binary://");
        escape(&mut uri, self.logger.as_os_str().as_bytes(), b"/");
        let socket = ("socket", self.socket.clone().into_os_string());
        for (index, (key, value)) in self.arguments().into_iter().chain([socket]).enumerate() {
            uri.push(if index == 0 { '?' } else { '&' });
            uri.push_str(key);
            uri.push('=');
            escape(&mut uri, value.as_bytes(), b"/");
        }
        uri
    }
}

/// Percent-encoding of everything but RFC 3986's unreserved characters and `keep`.
fn escape(uri: &mut String, bytes: &[u8], keep: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_out_of_the_directory() {
        let id: ContainerId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let path = container_log(Path::new("/l/t"), "web-1_a", &id).unwrap();
        assert_eq!(
            path,
            Path::new("/l/t/web-1_a/0123456789abcdef0123456789abcdef-json.log")
        );
        for bad in ["", ".", "..", "a/b", "/etc", "a\0", "ä", &"x".repeat(256)] {
            assert!(container_log(Path::new("/l/t"), bad, &id).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_uri_survives_any_path() {
        let command = LoggerCommand {
            logger: "/opt/my berth/berth-logger".into(),
            socket: "/run/berth/l.sock".into(),
            runtime_id: "c-1".into(),
            path: "/l/a&b=c%d?e".into(),
            max_size_bytes: 10,
            max_files: 3,
            blocking: true,
            max_buffer_bytes: 7,
            discard: true,
            attributes: BTreeMap::from([("a".into(), "\"b\"".into())]),
        };
        assert_eq!(
            command.uri(),
            "binary:///opt/my%20berth/berth-logger?id=c-1&path=/l/a%26b%3Dc%25d%3Fe&max-size=10&max-file=3&mode=blocking&max-buffer-size=7\
             &discard=yes&attrs=%7B%22a%22%3A%22%5C%22b%5C%22%22%7D&socket=/run/berth/l.sock"
        );
    }
}
