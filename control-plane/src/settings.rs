//! Owns what the control plane's settings are called: its file, its environment, its errors. How they are read and shown
//! is [`berth_service::settings`]'. Never knows a key but the secret ones.

use std::path::Path;

use berth_service::settings::{Daemon, Loaded, Origin};

use crate::config::{Config, ConfigError, ConfigFile};

/// What every command takes that needs the settings.
pub type SettingsArgs = berth_service::settings::SettingsArgs<ControlPlane>;
/// `berth-control-plane config …`
pub type ConfigCommand = berth_service::settings::ConfigCommand<ControlPlane>;

/// The control plane, as far as its settings go.
#[derive(Clone, Copy, Debug)]
pub struct ControlPlane;

impl Daemon for ControlPlane {
    const FILE: &'static str = "/etc/berth/control-plane.toml";
    const FILE_VARIABLE: &'static str = "BERTH_CONTROL_PLANE_CONFIG";
    const ENVIRONMENT_PREFIX: &'static str = "BERTH_CONTROL_PLANE";
    const SECRETS: &'static [&'static str] = &["keys[].secret_access_key"];
    type File = ConfigFile;
    type Config = Config;
    type Error = ConfigError;

    fn resolve(file: ConfigFile) -> Result<Config, ConfigError> {
        file.resolve()
    }

    fn check(config: &Config) -> Result<(), ConfigError> {
        config.check()
    }

    fn file(config: &Config) -> ConfigFile {
        ConfigFile::of(config)
    }

    fn key(error: &ConfigError) -> Option<&str> {
        match error {
            ConfigError::Invalid { key, .. } => Some(key),
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

    const KEYS: &str = "[[keys]]\naccess_key_id = 'AKIDEXAMPLE00001'\nsecret_access_key = 'hush'\n";

    fn command(dir: &tempfile::TempDir, set: &[&str]) -> ConfigCommand {
        ConfigCommand::Show {
            origin: true,
            settings: SettingsArgs::new(
                &dir.path().join("cp.toml"),
                &set.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>(),
            ),
        }
    }

    #[test]
    fn what_is_in_effect_is_shown_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("cp.toml"),
            format!("region = 'eu-west-1'\n{KEYS}"),
        )
        .unwrap();
        let shown = command(&dir, &["account_id=123456789012"]).run().unwrap();
        for line in [
            "account_id = \"123456789012\"  # --set",
            "node_silence_seconds = 15  # default",
            "(secret)",
            "cp.toml:1\n",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn a_value_that_cannot_work_is_reported_where_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cp.toml"), KEYS).unwrap();
        std::fs::create_dir(dir.path().join("cp.conf.d")).unwrap();
        std::fs::write(dir.path().join("cp.conf.d/9.toml"), "\nregion = 'Europe'").unwrap();
        let error = command(&dir, &[]).run().unwrap_err();
        assert!(error.to_string().ends_with("cp.conf.d/9.toml:2"), "{error}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("region: \"Europe\" is not a region"), "{source}");
    }
}
