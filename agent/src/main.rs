//! The `berth-agent` command. Owns the process: arguments, logging, signals, exit codes.

use std::{io::Write as _, process::ExitCode, time::Duration};

use berth_agent::{
    app::Agent,
    config::Config,
    doctor::{self, Outcome},
    identity::{self, register::RegisterArgs},
    purge::Purge,
    settings::{ConfigCommand, SettingsArgs},
    sys::Chain,
};
use berth_manual::Manual;
use berth_service::EXIT_CONFIG;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{
    Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// What is under way may take so long on the way out; the next start takes up the rest.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
/// Enough for a thousand tasks.
const OPEN_FILES_MAX: u64 = 65_536;

/// Berth's node agent: runs the tasks that a control plane assigns to this host.
#[derive(Debug, Parser)]
#[command(name = "berth-agent", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground. SIGTERM ends it and leaves its tasks running.
    Run {
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Look at this host, and at the way to the control plane: what is wrong, and what to do. Changes nothing.
    Doctor {
        #[command(flatten)]
        settings: SettingsArgs,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Check or print the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    Register(RegisterArgs),
    /// End every task of this host, and remove everything that the agent made on it. Stop the agent before.
    Purge(Purge),
    /// Write man pages and shell completions: for packaging.
    #[command(hide = true)]
    Manual(Manual),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Register(args) => register(args),
        Command::Purge(purge) => purge.run(),
        Command::Manual(manual) => match manual.write::<Arguments>() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("berth-agent: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Run { settings } => serve(&settings),
        Command::Doctor { settings, json } => examine(&settings, json),
        Command::Config(command) => match command.run() {
            Ok(text) => {
                // A reader that has seen enough is no failure.
                let _ = std::io::stdout().write_all(text.as_bytes());
                ExitCode::SUCCESS
            }
            Err(error) => refuse(&error),
        },
    }
}

/// Exit code 0: tasks can run here; 1: there are problems.
fn examine(settings: &SettingsArgs, json: bool) -> ExitCode {
    let config = match settings.load() {
        Ok(loaded) => loaded.value,
        Err(error) => return refuse(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error),
    };
    let report = runtime.block_on(doctor::examine(&config));
    if json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => return refuse(&error),
        }
    } else {
        print!("{report}");
    }
    if report.outcome() == Outcome::Problem {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("berth-agent: {}", Chain(error));
    ExitCode::from(EXIT_CONFIG)
}

fn register(args: RegisterArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => ExitCode::from(runtime.block_on(identity::register::run(args))),
        Err(error) => {
            eprintln!("berth-agent: start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: &SettingsArgs) -> ExitCode {
    bound_allocator();
    if let Err(error) = log_to_stderr() {
        eprintln!("berth-agent: BERTH_LOG: {error}");
        return ExitCode::from(EXIT_CONFIG);
    }
    let config = match settings.load() {
        Ok(loaded) => loaded.value,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = config.load_identity() {
        return refuse(&error);
    }
    raise_open_files();
    // Two workers: the agent waits for containerd and the kernel far more than it computes.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(config)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-agent: {}", Chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Levels by target, for example `info,berth_agent::link=debug`.
fn log_to_stderr() -> Result<(), tracing_subscriber::filter::ParseError> {
    let levels = std::env::var("BERTH_LOG").unwrap_or_else(|_| "info".into());
    let targets: Targets = levels.parse()?;
    tracing_subscriber::registry()
        .with(berth_service::log::layer().with_filter(targets))
        .init();
    Ok(())
}

/// Threads come and go with bursts; an arena each would keep what a burst needed.
#[allow(unsafe_code)]
fn bound_allocator() {
    // SAFETY: mallopt(3) only sets a number of the C library's allocator; no thread but this one exists yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Usage is read from kept-open files, some twenty per task: take what the hard limit allows.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(OPEN_FILES_MAX), hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files; usage of many tasks costs more CPU");
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut agent = Agent::start(config).await?;
    let outcome = tokio::select! {
        error = agent.failed() => Err(error),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    tracing::info!("ending; tasks go on");
    agent.shutdown(SHUTDOWN_LIMIT).await;
    outcome
}
