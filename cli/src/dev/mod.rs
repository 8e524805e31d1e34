//! Owns `berth dev`: a control plane, an agent and a private containerd as one foreground process, and their end.
//! Everything it makes on the host is named by one instance, and gone when it ends, unless asked to stay.

mod cidr;
mod compose;
mod containerd;
pub mod environment;
mod error;
mod guide;
mod leftovers;
mod paths;
mod preflight;
mod secrets;
mod session;
mod tasks;

use std::io::IsTerminal;

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

pub use error::DevError;

use crate::arguments::{DevArgs, Global};
use crate::error::{Chain, FAILED, INTERRUPTED};
use session::Session;

/// The one cluster of a development node.
const CLUSTER: &str = "default";
const SUPERVISION_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs until a signal; returns the exit code.
pub async fn run(global: &Global, args: DevArgs) -> Result<u8, DevError> {
    start_logging(&args.log_level)?;
    let ground = preflight::check(global, &args)?;
    let mut stop = StopSignals::new()?;
    // Signals meanwhile are not lost: they are taken up right after.
    let session = Session::start(&args, ground).await?;
    if args.stop_all {
        return end(session, &args, global, &mut stop).await;
    }
    guide::print(&session, global, &args);
    let session = serve(session, &mut stop).await;
    end(session, &args, global, &mut stop).await
}

/// Until somebody wants it to end; meanwhile a containerd that dies is started again.
async fn serve(mut session: Session, stop: &mut StopSignals) -> Session {
    let mut tick = tokio::time::interval(SUPERVISION_INTERVAL);
    loop {
        tokio::select! {
            name = stop.next() => {
                eprintln!("berth: {name}: ending");
                return session;
            }
            error = session.agent_failed() => {
                eprintln!("berth: {}: ending", Chain(&error));
                return session;
            }
            _ = tick.tick() => {
                if let Err(error) = session.supervise().await {
                    eprintln!("berth: {}: ending", Chain(&error));
                    return session;
                }
            }
        }
    }
}

/// Takes everything down; a second signal gives up on that.
async fn end(
    session: Session,
    args: &DevArgs,
    global: &Global,
    stop: &mut StopSignals,
) -> Result<u8, DevError> {
    let left = tokio::select! {
        left = session.end(args) => left?,
        name = stop.next() => {
            eprintln!("berth: second {name}: given up, `{}` removes what is left", guide::stop_all(global, args));
            return Ok(INTERRUPTED);
        }
    };
    if left.is_empty() {
        eprintln!(
            "berth: ended, {}",
            if args.keep_tasks {
                "tasks and containerd go on"
            } else {
                "nothing is left on this host"
            }
        );
        return Ok(0);
    }
    eprintln!("berth: ended, but this is left on this host:");
    for thing in left {
        eprintln!("  {thing}");
    }
    Ok(FAILED)
}

fn start_logging(level: &str) -> Result<(), DevError> {
    let filter = tracing_subscriber::EnvFilter::try_new(level).map_err(|source| DevError::LogLevel {
        given: level.into(),
        source,
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> Result<Self, DevError> {
        let listen = |kind| signal(kind).map_err(|source| DevError::Signals { source });
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The next one's name. Cancel-safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT.as_str(),
            _ = self.terminate.recv() => Signal::SIGTERM.as_str(),
        }
    }
}
