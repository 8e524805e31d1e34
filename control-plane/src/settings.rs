//! Owns how the control plane's commands are told their settings: which file, what is set on the command line, and
//! what `config show` and `config validate` answer. Never knows a key but the secret ones.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use berth_service::settings::{Loaded, Origin, Sources};
use clap::{Args, Subcommand};

use crate::config::{Config, ConfigError, ConfigFile};

/// Read unless another one is named, and then it need not be there: drop-ins and the environment may say all.
pub const DEFAULT_FILE: &str = "/etc/berth/control-plane.toml";
/// `BERTH_CONTROL_PLANE__REGION` is `region`.
pub const ENVIRONMENT_PREFIX: &str = "BERTH_CONTROL_PLANE";
const SECRETS: &[&str] = &["keys[].secret_access_key"];

/// What every command takes that needs the settings.
#[derive(Clone, Debug, Args)]
pub struct SettingsArgs {
    /// Configuration file, TOML; drop-ins are in NAME.conf.d beside it
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE, env = "BERTH_CONTROL_PLANE_CONFIG")]
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
        secrets: SECRETS,
    };
    let loaded = sources.load::<ConfigFile>()?.try_map(ConfigFile::resolve)?;
    if let Err(error) = loaded.value.check() {
        return Err(located(&loaded, error));
    }
    for path in loaded.secret_files() {
        warn_if_exposed(&path);
    }
    Ok(loaded)
}

/// A value that cannot be used, with the place where it is written.
fn located(loaded: &Loaded<Config>, error: ConfigError) -> ConfigError {
    let ConfigError::Invalid { key, .. } = &error else {
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

/// The file holds secret keys. A group may be meant to read it; everybody is not.
fn warn_if_exposed(path: &Path) {
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode() & 0o7777);
    if mode & 0o004 != 0 {
        let path = path.display();
        tracing::warn!(
            "{path} holds secret keys and everybody can read it (mode {mode:04o}): run `chmod o-r {path}`"
        );
    }
}

/// `berth-control-plane config …`
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the settings without starting anything: exit code 0, or 78 and what is wrong
    Validate {
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Print the settings in effect, as TOML; secrets are left out
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
            Self::Show { origin, settings } => {
                let shown = settings.load()?.map(|config| ConfigFile::of(&config));
                Ok(shown.show(*origin)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "[[keys]]\naccess_key_id = 'AKIDEXAMPLE00001'\nsecret_access_key = 'hush'\n";

    fn command(dir: &tempfile::TempDir, set: &[&str]) -> ConfigCommand {
        ConfigCommand::Show {
            origin: true,
            settings: SettingsArgs {
                config: dir.path().join("cp.toml"),
                set: set.iter().map(|set| (*set).to_owned()).collect(),
            },
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
