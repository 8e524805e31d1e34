//! Owns what the agent's settings are called: its file, its environment, its errors. How they are read and shown is
//! [`berth_service::settings`]'. Never knows a key.

use std::path::Path;

use berth_service::settings::{Daemon, Loaded, Origin};

use crate::config::{Config, ConfigError};

/// Read unless another one is named.
pub const DEFAULT_FILE: &str = "/etc/berth/agent.toml";

/// What every command takes that needs the settings.
pub type SettingsArgs = berth_service::settings::SettingsArgs<Agent>;
/// `berth-agent config …`
pub type ConfigCommand = berth_service::settings::ConfigCommand<Agent>;

/// The agent, as far as its settings go.
#[derive(Clone, Copy, Debug)]
pub struct Agent;

impl Daemon for Agent {
    const FILE: &'static str = DEFAULT_FILE;
    const FILE_VARIABLE: &'static str = "BERTH_AGENT_CONFIG";
    const ENVIRONMENT_PREFIX: &'static str = "BERTH_AGENT";
    // Passwords are in files of their own.
    const SECRETS: &'static [&'static str] = &[];
    type File = Config;
    type Config = Config;
    type Error = ConfigError;

    fn resolve(file: Config) -> Result<Config, ConfigError> {
        Ok(file)
    }

    fn check(config: &Config) -> Result<(), ConfigError> {
        config.check()
    }

    fn file(config: &Config) -> Config {
        config.clone()
    }

    fn key(error: &ConfigError) -> Option<&str> {
        match error {
            ConfigError::Value { key, .. } => Some(key),
            _ => None,
        }
    }

    fn at(origin: Origin, error: ConfigError) -> ConfigError {
        let source = Box::new(error);
        ConfigError::At { origin, source }
    }
}

pub(crate) fn load(file: &Path, sets: &[String]) -> Result<Loaded<Config>, ConfigError> {
    SettingsArgs::new(file, sets).load()
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
