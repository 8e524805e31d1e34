//! Owns how results look: tables for people, JSON for programs, progress on a terminal. Never asks for anything.

mod progress;
mod table;
mod views;

use std::io::Write;

use serde_json::Value;

pub use progress::{Progress, Pull};
pub use table::Table;
pub use views::{join_tokens, nodes, tasks, warnings};

use crate::error::CliError;

/// Writes to standard output. A reader that went away ends the command quietly.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(CliError::Output)
}

pub fn print_line(text: &str) -> Result<(), CliError> {
    print(&format!("{text}\n"))
}

pub fn print_json(value: &Value) -> Result<(), CliError> {
    print(&format!("{value:#}\n"))
}
