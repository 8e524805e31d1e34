//! The control plane as a process: arguments, the log, signals, exit codes. 0: stopped as asked; 1: failed; 2: told
//! something that cannot work.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode, time::Duration};

use berth_control_plane::{
    app::{ControlPlane, StartError},
    config::Config,
};
use berth_manual::Manual;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// From the signal to the end.
const SHUTDOWN: Duration = Duration::from_secs(10);
const EXIT_FAILED: u8 = 1;
const EXIT_CONFIG: u8 = 2;

/// Berth's control plane: the ECS API, node links, the store.
#[derive(Debug, Parser)]
#[command(name = "berth-control-plane")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Serve {
        /// The settings, TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print the version.
    Version,
    /// Write man pages and shell completions: for packaging.
    #[command(hide = true)]
    Manual(Manual),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Version => {
            println!("berth-control-plane {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Command::Serve { config } => serve(&config),
        Command::Manual(manual) => match manual.write::<Arguments>() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, EXIT_FAILED),
        },
    }
}

fn serve(path: &std::path::Path) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return fail(&error, EXIT_CONFIG),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, EXIT_FAILED),
    };
    runtime.block_on(run(config))
}

async fn run(config: Config) -> ExitCode {
    // Before anything is started, so that no signal finds it half done.
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (mut terminate, mut interrupt) = match signals {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => return fail(&error, EXIT_FAILED),
    };
    let plane = match ControlPlane::start(config).await {
        Ok(plane) => plane,
        Err(error @ (StartError::Config { .. } | StartError::ApiTls { .. })) => {
            return fail(&error, EXIT_CONFIG);
        }
        Err(error) => return fail(&error, EXIT_FAILED),
    };
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
    }
    plane.shutdown(tokio::time::Instant::now() + SHUTDOWN).await;
    ExitCode::SUCCESS
}

/// Says what went wrong, with its causes, for people.
fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprint!("berth-control-plane: {error}");
    let mut cause = error.source();
    while let Some(source) = cause {
        eprint!(": {source}");
        cause = source.source();
    }
    eprintln!();
    ExitCode::from(code)
}
