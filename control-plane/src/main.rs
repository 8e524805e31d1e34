//! The control plane as a process: arguments, the log, signals, exit codes (`berth_service::EXIT_*`).

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use berth_control_plane::{
    app::StartError,
    backup::{self, BackupError},
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
    /// Write store, authority and first admin key into a new file, also while the control plane serves.
    Backup {
        #[command(flatten)]
        settings: SettingsArgs,
        /// The backup; it must not exist. It holds every secret of the control plane.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Make a backup the state of a control plane that is not running.
    Restore {
        #[command(flatten)]
        settings: SettingsArgs,
        /// The backup.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// Put it in the place of the state that is there, which is kept beside it.
        #[arg(long)]
        replace: bool,
    },
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
        Command::Backup { settings, to } => offline(&settings, |config| back_up(config, &to)),
        Command::Restore {
            settings,
            from,
            replace,
        } => offline(&settings, |config| restore(config, &from, replace)),
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

/// What needs no control plane that runs: prints what was done.
fn offline(settings: &SettingsArgs, work: impl FnOnce(&Config) -> Result<String, BackupError>) -> ExitCode {
    match settings.load() {
        Ok(loaded) => match work(&loaded.value) {
            Ok(text) => print(&text),
            Err(error) => fail(&error, EXIT_FAILED),
        },
        Err(error) => fail(&error, EXIT_CONFIG),
    }
}

fn back_up(config: &Config, to: &Path) -> Result<String, BackupError> {
    let manifest = backup::create(config, to)?;
    let (store, epoch, revision) = (manifest.store_id, manifest.epoch, manifest.revision);
    Ok(format!(
        "{}: store {store}, epoch {epoch}, revision {revision}\n",
        to.display()
    ))
}

fn restore(config: &Config, from: &Path, replace: bool) -> Result<String, BackupError> {
    let runtime = tokio::runtime::Runtime::new().map_err(BackupError::Threads)?;
    let restored = runtime.block_on(backup::restore(config, from, replace))?;
    let (manifest, epoch) = (&restored.manifest, restored.identity.epoch);
    let mut text = format!(
        "restored store {}, revision {}, now epoch {epoch}\n",
        manifest.store_id, manifest.revision
    );
    if let Some(former) = &restored.former {
        text.push_str(&format!("the former state is in {}\n", former.display()));
    }
    text.push_str(
        "access keys, nodes and join tokens that were revoked or used up after the backup are good again: revoke them \
         again. Start the control plane now.\n",
    );
    Ok(text)
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
