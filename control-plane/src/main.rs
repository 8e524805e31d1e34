//! The control plane as a process: arguments, the log, signals, exit codes (`berth_service::EXIT_*`).

use std::{io::Write as _, process::ExitCode};

use berth_control_plane::{
    app::StartError,
    config::Config,
    service::{self, ServiceError},
    settings::{ConfigCommand, SettingsArgs},
};
use berth_manual::Manual;
use berth_service::{
    EXIT_CONFIG, EXIT_FAILED,
    notify::{Notifier, ServiceManager},
};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Berth's control plane: the ECS API, node links, the store.
#[derive(Debug, Parser)]
#[command(name = "berth-control-plane", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Serve {
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Check or print the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version.
    Version,
    /// Write man pages and shell completions: for packaging.
    #[command(hide = true)]
    Manual(Manual),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Version => print(&format!("berth-control-plane {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Config(command) => match command.run() {
            Ok(text) => print(&text),
            Err(error) => fail(&error, EXIT_CONFIG),
        },
        Command::Serve { settings } => serve(&settings),
        Command::Manual(manual) => match manual.write::<Arguments>() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, EXIT_FAILED),
        },
    }
}

/// A reader that has seen enough is no failure.
fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn serve(settings: &SettingsArgs) -> ExitCode {
    // First: it wants no other thread, and nothing that is started inherits what it takes.
    let manager = match ServiceManager::take() {
        Ok(manager) => manager,
        Err(error) => return fail(&error, EXIT_FAILED),
    };
    if let Err(error) = log_to_stderr() {
        eprintln!("berth-control-plane: BERTH_LOG: {error}");
        return ExitCode::from(EXIT_CONFIG);
    }
    let config = match settings.load() {
        Ok(loaded) => loaded.value,
        Err(error) => return fail(&error, EXIT_CONFIG),
    };
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(run(config, manager.notifier)),
        Err(error) => fail(&error, EXIT_FAILED),
    }
}

/// Levels by target, for example `info,berth_control_plane::link=debug`. `RUST_LOG` is heard as well.
fn log_to_stderr() -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = match std::env::var("BERTH_LOG") {
        Ok(levels) => EnvFilter::try_new(levels)?,
        Err(_) => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    tracing_subscriber::registry()
        .with(berth_service::log::layer().with_filter(filter))
        .init();
    Ok(())
}

async fn run(config: Config, notifier: Notifier) -> ExitCode {
    // Before anything is started, so that no signal finds it half done.
    let signals = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ]
    .map(signal);
    let [Ok(terminate), Ok(interrupt), Ok(hangup)] = signals else {
        return fail(&std::io::Error::last_os_error(), EXIT_FAILED);
    };
    match service::run(config, notifier, asked_to_end(terminate, interrupt, hangup)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ ServiceError::Start(StartError::Config { .. } | StartError::ApiTls { .. })) => {
            fail(&error, EXIT_CONFIG)
        }
        Err(error) => fail(&error, EXIT_FAILED),
    }
}

async fn asked_to_end(mut terminate: Signal, mut interrupt: Signal, mut hangup: Signal) {
    loop {
        tokio::select! {
            _ = terminate.recv() => return tracing::info!("SIGTERM"),
            _ = interrupt.recv() => return tracing::info!("SIGINT"),
            _ = hangup.recv() => {
                tracing::warn!("SIGHUP: the configuration is not reloaded while it runs; restart it, nodes and tasks go on");
            }
        }
    }
}

/// Says what went wrong, with its causes, for people.
fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    eprintln!("berth-control-plane: {text}");
    ExitCode::from(code)
}
