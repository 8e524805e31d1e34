//! Owns `berth-agent halt` as a command. Exit codes: 0 no task runs any more, 1 one does or an agent runs, 2 nobody said
//! yes, 78 the configuration cannot be used.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use berth_service::{EXIT_CONFIG, EXIT_FAILED, EXIT_USAGE};

use super::halt;
use crate::{place::Place, purge::confirmed, sys::Chain};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub struct Halt {
    /// Configuration file, TOML. Only what says where the agent's things are is read
    #[arg(long, default_value = "/etc/berth/agent.toml", env = "BERTH_AGENT_CONFIG")]
    config: PathBuf,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// What is not over by then is killed, whatever its stop timeout
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    within: u32,
}

impl Halt {
    /// Does it.
    pub fn run(self) -> ExitCode {
        let place = match Place::load(&self.config) {
            Ok(place) => place,
            Err(error) => return fail(&*error, EXIT_CONFIG),
        };
        let question = format!(
            "End every task of instance {} on this host, as for its shutdown?",
            place.instance
        );
        if !self.yes && !confirmed("halt", &question) {
            return ExitCode::from(EXIT_USAGE);
        }
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(&error, EXIT_FAILED),
        };
        match runtime.block_on(halt(&place, Duration::from_secs(self.within.into()))) {
            Ok(()) => {
                tracing::info!(instance = place.instance, "no task runs any more");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&*error, EXIT_FAILED),
        }
    }
}

fn fail(error: &(dyn std::error::Error + 'static), code: u8) -> ExitCode {
    eprintln!("berth-agent: {}", Chain(error));
    ExitCode::from(code)
}
