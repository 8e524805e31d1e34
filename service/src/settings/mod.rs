//! Owns where settings come from: defaults, the file, its drop-ins, the environment, `--set`; each later one wins.
//! Tables merge, lists replace. Never knows a key: the daemon's type says which there are.
//!
//! Each value keeps its origin, so that what is wrong is reported with the file and line (or variable) where it was
//! written, and `config show --origin` can say who decided what.

mod command;
mod deserialize;
mod error;
mod layers;
mod show;
#[cfg(test)]
mod tests;
mod tree;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::de::DeserializeOwned;

use self::tree::Node;
pub use self::{
    command::{ConfigCommand, Daemon, SettingsArgs},
    error::SettingsError,
};

/// Largest settings file, bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most drop-ins.
pub const DROP_INS_MAX: usize = 256;
/// Deepest nesting of a key.
pub const KEY_DEPTH_MAX: usize = 16;

/// Who decided a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody: it is the daemon's own.
    Default,
    /// A line of a file, counted from 1.
    File { path: Arc<Path>, line: usize },
    /// An environment variable.
    Environment { variable: String },
    /// A `--set` argument.
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// Where to look for settings.
#[derive(Clone, Debug)]
pub struct Sources {
    /// For `/etc/berth/agent.toml`, drop-ins are `/etc/berth/agent.conf.d/*.toml`, in the order of their names.
    pub file: PathBuf,
    /// The file must be there. Drop-ins need not.
    pub file_required: bool,
    /// `BERTH_AGENT` takes `BERTH_AGENT__RESERVED__CPU_UNITS` for `reserved.cpu_units`.
    pub environment_prefix: &'static str,
    /// `key=value`, as given with `--set`.
    pub sets: Vec<String>,
    /// Keys whose values are never shown nor part of an error, such as `keys[].secret_access_key`.
    pub secrets: &'static [&'static str],
}

impl Sources {
    /// Reads and merges all of it, with this process's environment.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Loaded<T>, SettingsError> {
        self.load_with(std::env::vars_os())
    }

    /// As [`load`](Self::load), with another environment.
    pub fn load_with<T: DeserializeOwned>(
        &self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Loaded<T>, SettingsError> {
        let mut tree = layers::read(self, environment)?;
        let value = deserialize::deserialize(&mut tree, self)?;
        Ok(Loaded {
            value,
            tree,
            secrets: self.secrets,
        })
    }

    /// Where drop-ins are.
    pub fn drop_in_directory(&self) -> PathBuf {
        self.file.with_extension("conf.d")
    }
}

/// Settings, and who decided them.
#[derive(Debug)]
pub struct Loaded<T> {
    pub value: T,
    tree: Node,
    secrets: &'static [&'static str],
}

impl<T> Loaded<T> {
    /// Who decided the value of a dotted key; of one inside a list, `keys[0].access_key_id`. What is not written
    /// anywhere is a default.
    pub fn origin(&self, key: &str) -> Origin {
        self.tree.origin(key).unwrap_or(Origin::Default)
    }

    /// Files that hold a secret value, for a look at who can read them.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        self.tree.visit("", &mut |key, node| {
            if let Origin::File { path, .. } = &node.origin
                && self.secrets.contains(&tree::pattern(key).as_str())
            {
                files.push(path.to_path_buf());
            }
        });
        files.sort();
        files.dedup();
        files
    }

    /// The same settings as another type, for a daemon that resolves what it read.
    pub fn map<U>(self, resolve: impl FnOnce(T) -> U) -> Loaded<U> {
        Loaded {
            value: resolve(self.value),
            tree: self.tree,
            secrets: self.secrets,
        }
    }

    /// As [`map`](Self::map), where some settings cannot be resolved.
    pub fn try_map<U, E>(self, resolve: impl FnOnce(T) -> Result<U, E>) -> Result<Loaded<U>, E> {
        Ok(Loaded {
            value: resolve(self.value)?,
            tree: self.tree,
            secrets: self.secrets,
        })
    }
}
