//! Owns how the agent's commands are told their settings: which file, what is set on the command line, and what
//! `config show` and `config validate` answer. Never knows a key.

use std::path::{Path, PathBuf};

use berth_service::settings::{Loaded, Origin, Sources};
use clap::{Args, Subcommand};

use crate::config::{Config, ConfigError};

/// Read unless another one is named, and then it need not be there: drop-ins and the environment may say all.
pub const DEFAULT_FILE: &str = "/etc/berth/agent.toml";
/// `BERTH_AGENT__RESERVED__CPU_UNITS` is `reserved.cpu_units`.
pub const ENVIRONMENT_PREFIX: &str = "BERTH_AGENT";

/// What every command takes that needs the settings.
#[derive(Clone, Debug, Args)]
pub struct SettingsArgs {
    /// Configuration file, TOML; drop-ins are in NAME.conf.d beside it
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE, env = "BERTH_AGENT_CONFIG")]
    pub config: PathBuf,
    /// Set a key, over files and environment; may be repeated. Not for secrets: arguments can be read by everybody
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl SettingsArgs {
    /// The settings, checked, with who decided each.
    ///
    /// # Errors
    /// What cannot work, with the place where it is written.
    pub fn load(&self) -> Result<Loaded<Config>, ConfigError> {
        load(&self.config, &self.set)
    }
}

pub(crate) fn load(file: &Path, sets: &[String]) -> Result<Loaded<Config>, ConfigError> {
    let sources = Sources {
        file: file.into(),
        file_required: file != Path::new(DEFAULT_FILE),
        environment_prefix: ENVIRONMENT_PREFIX,
        sets: sets.to_vec(),
        // Passwords are in files of their own.
        secrets: &[],
    };
    let loaded = sources.load::<Config>()?;
    match loaded.value.check() {
        Ok(()) => Ok(loaded),
        Err(error) => Err(located(&loaded, error)),
    }
}

/// A value that cannot be used, with the place where it is written.
fn located(loaded: &Loaded<Config>, error: ConfigError) -> ConfigError {
    let ConfigError::Value { key, .. } = &error else {
        return error;
    };
    match loaded.origin(key) {
        Origin::Default => error,
        origin => ConfigError::At {
            origin,
            source: Box::new(error),
        },
    }
}

/// `berth-agent config …`
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the settings without starting anything: exit code 0, or 78 and what is wrong
    Validate {
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Print the settings in effect, as TOML
    Show {
        /// With who decided each: default, file and line, environment variable, or --set
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
}

impl ConfigCommand {
    /// What to print.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub fn run(&self) -> Result<String, ConfigError> {
        match self {
            Self::Validate { settings } => settings.load().map(|_| "the configuration is valid\n".into()),
            Self::Show { origin, settings } => Ok(settings.load()?.show(*origin)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_cannot_work_is_reported_where_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        let text = "control_plane = 'https://cp:1'\nnode_id = '0123456789abcdef0123456789abcdef'\ncertificate = '/c'\n\
                    key = '/k'\nauthority = '/a'\ntask_cidr = '10.0.0.0/30'\n";
        std::fs::write(&file, text).unwrap();
        let refused = load(&file, &[]).unwrap_err();
        let text = crate::sys::Chain(&refused).to_string();
        assert!(
            text.contains("agent.toml:6") && text.contains("/8 to /29"),
            "{text}"
        );
        let set = ["task_cidr=10.0.0.0/22".to_owned()];
        let loaded = load(&file, &set).unwrap();
        let shown = loaded.show(true).unwrap();
        assert!(shown.contains("task_cidr = \"10.0.0.0/22\"  # --set"), "{shown}");
        assert!(shown.contains("reserved.cpu_units = 0  # default"), "{shown}");
        let set = ["instance=Über".to_owned()];
        let text = crate::sys::Chain(&load(&file, &set).unwrap_err()).to_string();
        assert!(text.starts_with("--set: configuration: instance"), "{text}");
    }
}
