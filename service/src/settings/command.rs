//! Owns how a daemon's commands are told its settings: which file, what is set on the command line, and what
//! `config show` and `config validate` answer. Never knows a key.

use std::{
    error::Error,
    fmt::Debug,
    marker::PhantomData,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde::{Serialize, de::DeserializeOwned};

use super::{Loaded, Origin, SettingsError, Sources};

/// A daemon, as far as its settings go.
pub trait Daemon: Clone + Debug + Send + Sync + 'static {
    /// Read unless another one is named, and then it need not be there: drop-ins and the environment may say all.
    const FILE: &'static str;
    /// The environment variable that names another file.
    const FILE_VARIABLE: &'static str;
    /// `BERTH_AGENT`, where `BERTH_AGENT__RESERVED__CPU_UNITS` is `reserved.cpu_units`.
    const ENVIRONMENT_PREFIX: &'static str;
    /// Keys whose values are never shown.
    const SECRETS: &'static [&'static str];
    /// As it is written.
    type File: DeserializeOwned + Serialize;
    /// As it is used.
    type Config;
    type Error: Error + From<SettingsError> + From<toml::ser::Error>;

    /// From what is written to what is used.
    fn resolve(file: Self::File) -> Result<Self::Config, Self::Error>;
    /// Refuses what cannot work.
    fn check(config: &Self::Config) -> Result<(), Self::Error>;
    /// As a file would say all of it.
    fn file(config: &Self::Config) -> Self::File;
    /// The key that an error is about, if it is about one.
    fn key(error: &Self::Error) -> Option<&str>;
    /// The error, with the place where its value is written.
    fn at(origin: Origin, error: Self::Error) -> Self::Error;
}

/// What every command takes that needs the settings.
#[derive(Clone, Debug, Args)]
pub struct SettingsArgs<D: Daemon> {
    /// Configuration file, TOML; drop-ins are in NAME.conf.d beside it
    #[arg(long, value_name = "FILE", default_value = D::FILE, env = D::FILE_VARIABLE)]
    pub config: PathBuf,
    /// Set a key, over files and environment; may be repeated. Not for secrets: arguments can be read by everybody
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    #[arg(skip)]
    daemon: PhantomData<D>,
}

impl<D: Daemon> SettingsArgs<D> {
    /// As if given on the command line.
    pub fn new(config: &Path, set: &[String]) -> Self {
        Self {
            config: config.into(),
            set: set.to_vec(),
            daemon: PhantomData,
        }
    }

    /// The settings, checked, with who decided each.
    ///
    /// # Errors
    /// What cannot work, with the place where it is written.
    pub fn load(&self) -> Result<Loaded<D::Config>, D::Error> {
        let sources = Sources {
            file: self.config.clone(),
            file_required: self.config != Path::new(D::FILE),
            environment_prefix: D::ENVIRONMENT_PREFIX,
            sets: self.set.clone(),
            secrets: D::SECRETS,
        };
        let loaded = sources.load::<D::File>()?.try_map(D::resolve)?;
        if let Err(error) = D::check(&loaded.value) {
            return Err(located::<D>(&loaded, error));
        }
        for path in loaded.secret_files() {
            warn_if_exposed(&path);
        }
        Ok(loaded)
    }
}

/// A value that cannot be used, with the place where it is written.
fn located<D: Daemon>(loaded: &Loaded<D::Config>, error: D::Error) -> D::Error {
    match D::key(&error).map(|key| loaded.origin(key)) {
        None | Some(Origin::Default) => error,
        Some(origin) => D::at(origin, error),
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

/// `DAEMON config …`
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand<D: Daemon> {
    /// Check the settings without starting anything: exit code 0, or 78 and what is wrong
    Validate {
        #[command(flatten)]
        settings: SettingsArgs<D>,
    },
    /// Print the settings in effect, as TOML; secrets are left out
    Show {
        /// With who decided each: default, file and line, environment variable, or --set
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        settings: SettingsArgs<D>,
    },
}

impl<D: Daemon> ConfigCommand<D> {
    /// What to print.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub fn run(&self) -> Result<String, D::Error> {
        match self {
            Self::Validate { settings } => settings.load().map(|_| "the configuration is valid\n".into()),
            Self::Show { origin, settings } => {
                let shown = settings.load()?.map(|config| D::file(&config));
                Ok(shown.show(*origin)?)
            }
        }
    }
}
