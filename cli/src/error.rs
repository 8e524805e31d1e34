//! Owns why a command failed and the exit code that tells a script. Every message says what to do next; causes
//! are kept in `source` and printed once, by [`Chain`].

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::api::ClientError;
use crate::definition::DefinitionError;
use crate::dev::DevError;
use crate::endpoint::EndpointError;
use crate::ids::IdError;

/// The control plane refused or failed.
pub const FAILED: u8 = 1;
/// The arguments or a file given make no sense; clap uses the same.
pub const USAGE: u8 = 2;
/// Nothing has that id, or several things have.
pub const NOT_FOUND: u8 = 3;
/// No control plane to talk to, or it does not accept our keys.
pub const NO_ENDPOINT: u8 = 4;
/// This host cannot run `berth dev`.
pub const HOST_UNFIT: u8 = 5;
/// The task stopped before it was RUNNING, was placed nowhere, or ended with a failure.
pub const TASK_FAILED: u8 = 6;
/// Interrupted by Ctrl-C, as shells have it.
pub const INTERRUPTED: u8 = 130;

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    #[error(transparent)]
    Dev(#[from] DevError),
    #[error("the task was placed on no node: {0}")]
    NotPlaced(String),
    #[error("task {task} is still {status} after {seconds} s: `berth why {task}` says what it waits for")]
    Late {
        task: String,
        status: String,
        seconds: u64,
    },
    #[error("cannot read {path}")]
    ReadFile { path: PathBuf, source: io::Error },
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    #[error("the log of task {task} broke off: {reason}")]
    LogBroken { task: String, reason: String },
}

impl CliError {
    /// Exhaustive on purpose: a new failure must choose.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Client(ClientError::Unreachable { .. }) => NO_ENDPOINT,
            Self::Client(error) if error.is_about_keys() => NO_ENDPOINT,
            Self::Client(_) | Self::LogBroken { .. } => FAILED,
            Self::Endpoint(_) => NO_ENDPOINT,
            Self::Id(_) => NOT_FOUND,
            Self::Definition(_) | Self::ReadFile { .. } => USAGE,
            Self::Dev(_) => HOST_UNFIT,
            Self::NotPlaced(_) | Self::Late { .. } => TASK_FAILED,
            Self::Output(_) if self.is_broken_pipe() => 0,
            Self::Output(_) => FAILED,
        }
    }

    /// The reader of our output went away (`berth ps | head -1`): nothing to complain about.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Displays an error with its causes, each once.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their cause in their own message.
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer {
            source: io::Error,
        }
        let error = Outer {
            source: io::Error::other("inner"),
        };
        assert_eq!(Chain(&error).to_string(), "outer: inner");
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        let error = CliError::Output(io::ErrorKind::BrokenPipe.into());
        assert!(error.is_broken_pipe());
        assert_eq!(error.exit_code(), 0);
    }
}
