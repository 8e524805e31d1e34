//! `berth`: runs a development node, and shows and drives what runs on any Berth through the ECS API.
//!
//! This crate owns what people see: arguments, tables, progress, exit codes. It never decides where a task runs,
//! and outside `dev` it never touches the host.

mod api;
mod arguments;
mod commands;
mod definition;
mod dev;
mod duration;
mod endpoint;
mod error;
mod ids;
mod output;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Cli;

fn main() -> ExitCode {
    // `berth dev` runs an agent.
    if let Some(code) = berth_agent::effects::volumes::run_if_asked() {
        return code;
    }
    let cli = Cli::parse();
    // Two providers could be compiled in; the choice must be made before the first connection.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("berth: cannot start threads: {error}");
            return ExitCode::from(error::HOST_UNFIT);
        }
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if !error.is_broken_pipe() {
                eprintln!("berth: {}", error::Chain(&error));
            }
            ExitCode::from(error.exit_code())
        }
    }
}
