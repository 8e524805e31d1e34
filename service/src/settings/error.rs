//! Owns what can be wrong with settings, said so that the reader knows where to look. Never holds a secret's value.

use std::{io, path::PathBuf};

use super::{DROP_INS_MAX, FILE_BYTES_MAX, KEY_DEPTH_MAX, Origin};

/// Settings that cannot be read or understood.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is larger than {FILE_BYTES_MAX} bytes: that is no configuration", .0.display())]
    TooLarge(PathBuf),
    #[error("{path}:{line}: not UTF-8", path = path.display())]
    Encoding { path: PathBuf, line: usize },
    #[error("{} holds more than {DROP_INS_MAX} files", .0.display())]
    TooManyDropIns(PathBuf),
    #[error("{path}:{line}:{column}: {problem}", path = path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        /// In characters, from 1.
        column: usize,
        problem: String,
    },
    #[error("environment variable {variable}: {problem}")]
    Environment { variable: String, problem: &'static str },
    /// The value is not repeated: it may be secret.
    #[error("--set {key}: {problem}")]
    Set { key: String, problem: &'static str },
    #[error("{origin}: key {key} is nested deeper than {KEY_DEPTH_MAX}")]
    TooDeep { key: String, origin: Origin },
    #[error("{origin}: {key} is not a setting: {problem}")]
    Unknown {
        key: String,
        origin: Origin,
        problem: String,
    },
    #[error("{key} is not set: {hint}")]
    Missing { key: String, hint: String },
    #[error("{origin}: {key}{value}: {problem}")]
    Invalid {
        key: String,
        origin: Origin,
        /// ` = …`, or nothing where the problem says it or it is secret.
        value: String,
        problem: String,
    },
}
