//! Owns what a task's environment files come to: the variables of those in the control plane's own store, and where its
//! node finds the others.

use std::collections::BTreeMap;

use super::Definition;
use crate::definition::{EnvironmentSource, StoredFile};

/// Most bytes of variables of stored files that one task is sent: all that a node is to run goes into one message.
pub const STORED_BYTES_MAX: usize = 128 << 10;

/// The variables of stored files, by name.
pub type StoredFiles = BTreeMap<StoredFile, Vec<(String, String)>>;

/// One environment file as its node gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvironmentFile {
    Variables(Vec<(String, String)>),
    /// The node fetches it when the task starts.
    Url(String),
}

impl Definition {
    /// What its tasks need of the control plane's own store, and the paths at which they ask for it.
    pub fn stored_files(&self) -> impl Iterator<Item = (String, &StoredFile)> {
        self.sources().filter_map(|(path, source)| match source {
            EnvironmentSource::Stored(file) => Some((path, file)),
            EnvironmentSource::Url(_) => None,
        })
    }

    /// Bytes of variables that one task is sent.
    pub fn stored_bytes(&self, files: &StoredFiles) -> usize {
        let variables = self
            .stored_files()
            .filter_map(|(_, file)| files.get(file))
            .flatten();
        variables.map(|(name, value)| name.len() + value.len()).sum()
    }

    /// What is said of files that are fetched in clear.
    pub(super) fn open_files(&self) -> impl Iterator<Item = String> {
        self.containers.iter().flat_map(|container| {
            let open = container.environment_files.iter().filter(|source| source.is_open());
            open.map(|_| {
                format!(
                    "container {}: an environment file is fetched over http: whoever is on the way to its server can \
                     read and change it; use https",
                    container.name
                )
            })
            .take(1)
        })
    }

    fn sources(&self) -> impl Iterator<Item = (String, &EnvironmentSource)> {
        self.containers.iter().enumerate().flat_map(|(at, container)| {
            let sources = container.environment_files.iter().enumerate();
            sources.map(move |(file, source)| {
                let path = format!("containerDefinitions[{at}].environmentFiles[{file}].value");
                (path, source)
            })
        })
    }
}

impl EnvironmentFile {
    /// `None`: it is to be in the store, and is not among `files`.
    pub(super) fn resolve(source: &EnvironmentSource, files: &StoredFiles) -> Option<Self> {
        match source {
            EnvironmentSource::Stored(file) => files.get(file).cloned().map(Self::Variables),
            EnvironmentSource::Url(url) => Some(Self::Url(url.clone())),
        }
    }
}
