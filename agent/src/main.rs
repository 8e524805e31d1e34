//! The `berth-agent` command. Owns the process: arguments, logging, signals, exit codes.

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use berth_agent::{
    app::Agent,
    config::{Config, ConfigError},
    doctor::{self, Outcome},
    halt::Halt,
    identity::{self, register::RegisterArgs},
    purge::Purge,
    settings::{ConfigCommand, SettingsArgs},
    sys::Chain,
};
use berth_manual::Manual;
use berth_service::{EXIT_CONFIG, notify::ServiceManager};
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
    /// End every task of this host with its stop signal and stop timeout, as for a shutdown. Stop the agent before: its next
    /// start takes it for a reboot, and starts those tasks again that are tagged for it.
    Halt(Halt),
    /// Write man pages and shell completions: for packaging.
    #[command(hide = true)]
    Manual(Manual),
    /// Say how the agent of this host is. Ends with 0 if it is ready, with 1 if it is not or does not answer.
    Status {
        /// The agent's socket; by default the one of the configuration.
        #[arg(long)]
        socket: Option<PathBuf>,
        #[command(flatten)]
        settings: SettingsArgs,
    },
}

fn main() -> ExitCode {
    if let Some(code) = berth_agent::effects::volumes::run_if_asked() {
        return code;
    }
    match Arguments::parse().command {
        Command::Register(args) => register(args),
        Command::Purge(purge) => purge.run(),
        Command::Halt(halt) => match log_to_stderr() {
            Ok(()) => halt.run(),
            Err(error) => refuse_levels(&error),
        },
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
        Command::Status { socket, settings } => status(socket, &settings),
    }
}

/// Exit code 0: tasks can run here; 1: there are problems.
fn examine(settings: &SettingsArgs, json: bool) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error),
    };
    let report = runtime.block_on(async {
        match settings.load() {
            Ok(loaded) => doctor::examine(&loaded.value).await,
            Err(error) => doctor::examine_without_settings(&error).await,
        }
    });
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

fn refuse_levels(error: &tracing_subscriber::filter::ParseError) -> ExitCode {
    eprintln!("berth-agent: BERTH_LOG: {error}");
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

/// A configuration that cannot be read must not keep anybody from asking: the agent may run on with an earlier one.
fn status(socket: Option<PathBuf>, settings: &SettingsArgs) -> ExitCode {
    let socket = socket.unwrap_or_else(|| match settings.load() {
        Ok(loaded) => loaded.value.introspection_socket(),
        Err(_) => "/run/berth/agent.sock".into(),
    });
    match berth_agent::status::ask(&socket) {
        Ok(summary) => {
            print!("{}", summary.text);
            if summary.ready {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("berth-agent: {}", Chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: &SettingsArgs) -> ExitCode {
    // First of all: it wants no other thread, and nothing that we start inherits what it takes.
    let manager = match ServiceManager::take() {
        Ok(manager) => manager,
        Err(error) => {
            eprintln!("berth-agent: what the service manager passed makes no sense: {error}");
            return ExitCode::FAILURE;
        }
    };
    bound_allocator();
    if let Err(error) = log_to_stderr() {
        return refuse_levels(&error);
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
        Ok(runtime) => runtime.block_on(run(config, manager)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-agent: {}", Chain(error.as_ref()));
            // Restarting does not help where the configuration has to change.
            if error.chain().any(|cause| cause.is::<ConfigError>()) {
                ExitCode::from(EXIT_CONFIG)
            } else {
                ExitCode::FAILURE
            }
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

async fn run(config: Config, manager: ServiceManager) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut asked_to_end = std::pin::pin!(async {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => tracing::warn!(
                    "SIGHUP: the configuration is not reloaded while the agent runs; restart it, tasks go on meanwhile"
                ),
            }
        }
    });
    let started = tokio::select! {
        started = Agent::start_as_service(config, manager) => started,
        () = &mut asked_to_end => {
            tracing::info!("ending before the start was done");
            return Ok(());
        }
    };
    let mut agent = started?;
    let outcome = tokio::select! {
        error = agent.failed() => Err(error),
        () = asked_to_end => Ok(()),
    };
    tracing::info!("ending; tasks go on");
    agent.shutdown(SHUTDOWN_LIMIT).await;
    outcome
}
