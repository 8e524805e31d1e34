//! Owns what a container's environment is made of: its files in their order, and what its definition sets. Never fetches
//! or reads a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::desired::{ContainerSpec, TaskSpec};

/// Names with their values. They may be secrets: never shown by `Debug`, so that no log has them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Variables(pub Vec<(String, String)>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} variables", self.0.len())
    }
}

/// One environment file of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvironmentFile {
    /// What the control plane had of it.
    Variables(Variables),
    /// `http` or `https`: this node fetches it.
    Url(String),
}

/// What a task fetched, by URL.
pub type FetchedFiles = BTreeMap<String, Variables>;

/// How far a task is with the files that this node fetches. They are fetched once, when it starts: a container that
/// starts again has what it had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fetching {
    #[default]
    Wanted,
    UnderWay {
        cancelled: bool,
    },
    Done(FetchedFiles),
    /// It failed, or is not needed any more.
    Abandoned,
}

impl Fetching {
    pub fn is_under_way(&self) -> bool {
        matches!(self, Self::UnderWay { .. })
    }

    pub fn files(&self) -> Option<&FetchedFiles> {
        match self {
            Self::Done(files) => Some(files),
            Self::Wanted | Self::UnderWay { .. } | Self::Abandoned => None,
        }
    }
}

impl ContainerSpec {
    /// Files that this node fetches.
    pub fn environment_urls(&self) -> impl Iterator<Item = &String> {
        self.environment_files.iter().filter_map(|file| match file {
            EnvironmentFile::Url(url) => Some(url),
            EnvironmentFile::Variables(_) => None,
        })
    }

    /// Of a variable that several files define, the first one's value; what the definition itself sets wins over all of
    /// them. `None`: a file was not fetched yet.
    pub fn merged_environment(&self, fetched: Option<&FetchedFiles>) -> Option<Vec<(String, String)>> {
        let mut set: BTreeSet<&str> = self.environment.iter().map(|(name, _)| name.as_str()).collect();
        let mut merged = Vec::new();
        for file in &self.environment_files {
            let variables = match file {
                EnvironmentFile::Variables(variables) => variables,
                EnvironmentFile::Url(url) => fetched?.get(url)?,
            };
            for (name, value) in &variables.0 {
                if set.insert(name) {
                    merged.push((name.clone(), value.clone()));
                }
            }
        }
        merged.extend(self.environment.iter().cloned());
        Some(merged)
    }
}

impl TaskSpec {
    /// All that this node fetches for its environment, each once.
    pub fn environment_urls(&self) -> BTreeSet<String> {
        let urls = self.containers.iter().flat_map(ContainerSpec::environment_urls);
        urls.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(files: Vec<EnvironmentFile>, environment: Vec<(String, String)>) -> ContainerSpec {
        ContainerSpec {
            environment_files: files,
            environment,
            ..crate::oci::tests::container()
        }
    }

    #[test]
    fn a_file_that_was_not_fetched_is_no_environment() {
        let spec = spec(vec![EnvironmentFile::Url("a".into())], vec![]);
        assert_eq!(spec.merged_environment(None), None);
        assert_eq!(spec.merged_environment(Some(&FetchedFiles::new())), None);
        let fetched = FetchedFiles::from([("a".into(), Variables::default())]);
        assert_eq!(spec.merged_environment(Some(&fetched)), Some(vec![]));
    }

    fn variables() -> impl Strategy<Value = Vec<(String, String)>> {
        prop::collection::vec(("[A-D]", "[0-9]{0,2}"), 0..5)
    }

    proptest! {
        /// Whatever is merged last wins, from the last file to the first, and then what the definition sets.
        #[test]
        fn the_first_file_wins_and_the_definition_over_all(
            files in prop::collection::vec((any::<bool>(), variables()), 0..4), own in variables()
        ) {
            let once = |all: &[(String, String)]| all.iter().cloned().collect::<BTreeMap<_, _>>();
            let mut expected = BTreeMap::new();
            for (_, file) in files.iter().rev() {
                expected.extend(once(file));
            }
            expected.extend(once(&own));
            let mut fetched = FetchedFiles::new();
            let mut named = Vec::new();
            for (at, (stored, file)) in files.iter().enumerate() {
                // As parsers give them: each name once.
                let variables = Variables(once(file).into_iter().collect());
                if *stored {
                    named.push(EnvironmentFile::Variables(variables));
                } else {
                    fetched.insert(at.to_string(), variables);
                    named.push(EnvironmentFile::Url(at.to_string()));
                }
            }
            let merged = spec(named, own).merged_environment(Some(&fetched)).unwrap();
            // The last of a name wins, as for a process.
            prop_assert_eq!(once(&merged), expected);
        }
    }
}
