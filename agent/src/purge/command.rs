//! Owns `berth-agent purge` as a command: asks before, says how it went. Exit codes: 0 nothing is left, 1 something is or
//! may be, 2 nobody said yes, 78 the configuration cannot be used.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use super::{Purged, SharedVolumes, Through, purge};
use crate::{place::Place, sys::Chain};

const EXIT_USAGE: u8 = berth_service::EXIT_USAGE;
const EXIT_CONFIG: u8 = berth_service::EXIT_CONFIG;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub struct Purge {
    /// Configuration file, TOML. Only what says where the agent's things are is read.
    #[arg(long, default_value = "/etc/berth/agent.toml", env = "BERTH_AGENT_CONFIG")]
    config: PathBuf,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// End tasks by their cgroups: for a host whose containerd is gone for good.
    #[arg(long)]
    without_containerd: bool,
    /// Remove shared volumes too, which else stay: they are users' data.
    #[arg(long)]
    volumes: bool,
}

impl Purge {
    /// Does it.
    pub fn run(self) -> ExitCode {
        let loaded = Place::load(&self.config).and_then(|place| place.check_removable().map(|()| place));
        let place = match loaded {
            Ok(place) => place,
            Err(error) => return fail(&*error, EXIT_CONFIG),
        };
        let question = format!(
            "End every task of instance {} on this host, and remove its images, logs, identity and {}?",
            place.instance,
            place.state_dir.display()
        );
        if !self.yes && !confirmed("purge", &question) {
            return ExitCode::from(EXIT_USAGE);
        }
        let through = if self.without_containerd {
            Through::Cgroups
        } else {
            Through::Containerd
        };
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(&error, berth_service::EXIT_FAILED),
        };
        let shared = if self.volumes {
            SharedVolumes::Remove
        } else {
            SharedVolumes::Keep
        };
        match runtime.block_on(purge(&place, through, shared)) {
            Ok(Purged { unseen, kept }) => {
                let nothing = if unseen.is_empty() && kept.is_empty() {
                    "nothing"
                } else {
                    "nothing else"
                };
                for line in unseen {
                    println!("not looked at: {line}");
                }
                if !kept.is_empty() {
                    let directory = place.state_dir.join("volumes/shared");
                    println!(
                        "kept: shared volumes {} in {}: `--volumes` removes them too",
                        kept.join(", "),
                        directory.display()
                    );
                }
                println!("instance {}: {nothing} is left on this host", place.instance);
                ExitCode::SUCCESS
            }
            Err(error) => fail(&*error, berth_service::EXIT_FAILED),
        }
    }
}

/// Asks `question` in a terminal; elsewhere nobody answers, and that is no.
pub(crate) fn confirmed(command: &str, question: &str) -> bool {
    if !io::stdin().is_terminal() {
        eprintln!("berth-agent: {command} ends every task of this host: give --yes, or run it in a terminal");
        return false;
    }
    print!("{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdout()
        .flush()
        .and_then(|()| io::stdin().read_line(&mut answer));
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

fn fail(error: &(dyn std::error::Error + 'static), code: u8) -> ExitCode {
    eprintln!("berth-agent: {}", Chain(error));
    ExitCode::from(code)
}
