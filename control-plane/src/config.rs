//! Owns the control plane's settings: what they mean, their defaults, and what is refused before anything is opened.
//! Never reads them: `settings` does.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_control_plane_core::definition::UnsupportedLogDriver;
use berth_service::settings::{Origin, SettingsError};
use serde::{Deserialize, Serialize};

use crate::api::{ApiKey, is_key_id};

/// Where the API listens unless told otherwise.
pub const API_PORT: u16 = 8780;
/// Where nodes link unless told otherwise.
pub const NODE_PORT: u16 = 8781;
/// Shortest interval of heartbeats.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
/// Shortest and longest life of a node's certificate: nodes need time to renew, and revoking is no reason to let one
/// live for ever.
const CERTIFICATE_MIN: Duration = Duration::from_secs(10);
const CERTIFICATE_MAX: Duration = Duration::from_secs(825 * 86_400);
/// A node is not given up before it could have missed a heartbeat.
const HEARTBEATS_PER_SILENCE_MIN: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("{origin}")]
    At {
        origin: Origin,
        source: Box<ConfigError>,
    },
    #[error("show the configuration")]
    Show(#[from] toml::ser::Error),
    #[error("{key}: {problem}")]
    Invalid { key: &'static str, problem: String },
}

fn invalid(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid {
        key,
        problem: problem.into(),
    }
}

/// Where the API's certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiTlsFiles {
    /// The chain, the API's own first.
    pub certificate: PathBuf,
    /// Not for others to read.
    pub key: PathBuf,
}

/// What a control plane is told at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything it keeps: the store, the authority, a lock.
    pub state_dir: PathBuf,
    /// Where the socket for health, metrics and administration is.
    pub run_dir: PathBuf,
    /// Health and metrics on TCP as well.
    pub metrics_listen: Option<SocketAddr>,
    /// The ECS API. Loopback only unless it has a certificate. Port 0: any free one.
    pub api_listen: SocketAddr,
    /// The API's certificate and key, PEM files. Both or neither.
    pub api_tls: Option<ApiTlsFiles>,
    /// Node links, over mutual TLS. Port 0: any free one.
    pub node_listen: SocketAddr,
    /// Further host names and addresses by which nodes reach it, for its certificate. Loopback, the host's name and
    /// the address it listens on are there anyway.
    pub node_names: Vec<String>,
    /// Where hosts that join are sent, `host:port`. None: the first of `node_names`, else an address of this host, with
    /// the port of `node_listen`.
    pub node_advertise: Option<String>,
    /// How long the certificate of a node is good that joined; it renews before.
    pub node_certificate_lifetime: Duration,
    pub region: String,
    /// Twelve digits.
    pub account_id: String,
    /// Admins besides those in the store. With no admin anywhere the control plane makes one.
    pub keys: Vec<ApiKey>,
    /// A node that said nothing for so long is disconnected.
    pub node_silence: Duration,
    pub heartbeat_interval: Duration,
    /// How long stopped tasks can still be described.
    pub stopped_task_retention: Duration,
    pub unsupported_log_driver: UnsupportedLogDriver,
}

/// The file, as it is written. Every field has a default.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    metrics_listen: Option<SocketAddr>,
    api_listen: Option<SocketAddr>,
    api_tls_certificate: Option<PathBuf>,
    api_tls_key: Option<PathBuf>,
    node_listen: Option<SocketAddr>,
    #[serde(default)]
    node_names: Vec<String>,
    node_advertise: Option<String>,
    node_certificate_lifetime_seconds: Option<u32>,
    region: Option<String>,
    account_id: Option<String>,
    #[serde(default)]
    keys: Vec<KeyFile>,
    node_silence_seconds: Option<u32>,
    heartbeat_interval_seconds: Option<u32>,
    stopped_task_retention_seconds: Option<u32>,
    unsupported_log_driver: Option<AbsentDriver>,
}

/// What becomes of log drivers that do not exist yet.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum AbsentDriver {
    JsonFile,
    Refuse,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    access_key_id: String,
    secret_access_key: String,
}

impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyFile")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The defaults, in one directory, for these keys.
    pub fn new(state_dir: impl Into<PathBuf>, keys: Vec<ApiKey>) -> Self {
        Self {
            state_dir: state_dir.into(),
            run_dir: "/run/berth-control-plane".into(),
            metrics_listen: None,
            api_listen: (Ipv4Addr::LOCALHOST, API_PORT).into(),
            api_tls: None,
            node_listen: (Ipv4Addr::UNSPECIFIED, NODE_PORT).into(),
            node_names: vec![],
            node_advertise: None,
            node_certificate_lifetime: Duration::from_secs(90 * 86_400),
            region: "us-east-1".into(),
            account_id: "000000000000".into(),
            keys,
            node_silence: Duration::from_secs(15),
            heartbeat_interval: Duration::from_secs(5),
            stopped_task_retention: Duration::from_secs(3_600),
            unsupported_log_driver: UnsupportedLogDriver::default(),
        }
    }

    /// Reads and checks a file, its drop-ins and the environment.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        crate::settings::load(path, &[]).map(|loaded| loaded.value)
    }

    /// Where health, metrics and administration are.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("control-plane.sock")
    }

    /// Refuses what cannot work, by the name of its key.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.api_tls.is_none() && !self.api_listen.ip().is_loopback() {
            let address = self.api_listen;
            return Err(invalid(
                "api_listen",
                format!(
                    "{address} is not a loopback address, and the API has no certificate: set api_tls_certificate \
                     and api_tls_key, or listen on 127.0.0.1"
                ),
            ));
        }
        let region = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if self.region.is_empty() || !self.region.bytes().all(region) {
            return Err(invalid(
                "region",
                format!("{:?} is not a region, such as us-east-1", self.region),
            ));
        }
        if self.account_id.len() != 12 || !self.account_id.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid(
                "account_id",
                format!("{:?} is not twelve digits", self.account_id),
            ));
        }
        self.check_keys()?;
        self.check_node_names()?;
        self.check_joining()?;
        self.check_times()
    }

    fn check_keys(&self) -> Result<(), ConfigError> {
        let mut ids = std::collections::BTreeSet::new();
        for key in &self.keys {
            let id = &key.access_key_id;
            if !is_key_id(id) {
                let problem = format!("{id:?} is not 16 to 128 letters, digits and underscores");
                return Err(invalid("keys.access_key_id", problem));
            }
            if key.secret.is_empty() {
                return Err(invalid(
                    "keys.secret_access_key",
                    format!("that of {id} is empty"),
                ));
            }
            if !ids.insert(id) {
                return Err(invalid("keys.access_key_id", format!("{id} is there twice")));
            }
        }
        Ok(())
    }

    fn check_node_names(&self) -> Result<(), ConfigError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':');
        match self
            .node_names
            .iter()
            .find(|name| name.is_empty() || !name.bytes().all(allowed))
        {
            Some(name) => Err(invalid(
                "node_names",
                format!("{name:?} is neither a host name nor an address"),
            )),
            None => Ok(()),
        }
    }

    fn check_joining(&self) -> Result<(), ConfigError> {
        if let Some(given) = &self.node_advertise
            && crate::app::advertised_host(given).is_none()
        {
            let problem = format!("{given:?} is not HOST:PORT, such as cp.example.org:8781");
            return Err(invalid("node_advertise", problem));
        }
        if !(CERTIFICATE_MIN..=CERTIFICATE_MAX).contains(&self.node_certificate_lifetime) {
            let problem = format!(
                "must be {} to {}",
                CERTIFICATE_MIN.as_secs(),
                CERTIFICATE_MAX.as_secs()
            );
            return Err(invalid("node_certificate_lifetime_seconds", problem));
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        if self.heartbeat_interval < HEARTBEAT_MIN {
            return Err(invalid(
                "heartbeat_interval_seconds",
                "nodes cannot send heartbeats that often",
            ));
        }
        if self.node_silence < self.heartbeat_interval * HEARTBEATS_PER_SILENCE_MIN {
            let problem = format!(
                "{:?} is less than {HEARTBEATS_PER_SILENCE_MIN} heartbeat intervals of {:?}",
                self.node_silence, self.heartbeat_interval
            );
            return Err(invalid("node_silence_seconds", problem));
        }
        Ok(())
    }
}

impl ConfigFile {
    /// As a file would say all of it.
    pub(crate) fn of(config: &Config) -> Self {
        let seconds = |duration: Duration| Some(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX));
        let key = |key: &ApiKey| KeyFile {
            access_key_id: key.access_key_id.clone(),
            secret_access_key: key.secret.clone(),
        };
        Self {
            state_dir: Some(config.state_dir.clone()),
            run_dir: Some(config.run_dir.clone()),
            metrics_listen: config.metrics_listen,
            api_listen: Some(config.api_listen),
            api_tls_certificate: config.api_tls.as_ref().map(|tls| tls.certificate.clone()),
            api_tls_key: config.api_tls.as_ref().map(|tls| tls.key.clone()),
            node_listen: Some(config.node_listen),
            node_names: config.node_names.clone(),
            node_advertise: config.node_advertise.clone(),
            node_certificate_lifetime_seconds: seconds(config.node_certificate_lifetime),
            region: Some(config.region.clone()),
            account_id: Some(config.account_id.clone()),
            keys: config.keys.iter().map(key).collect(),
            node_silence_seconds: seconds(config.node_silence),
            heartbeat_interval_seconds: seconds(config.heartbeat_interval),
            stopped_task_retention_seconds: seconds(config.stopped_task_retention),
            unsupported_log_driver: Some(match config.unsupported_log_driver {
                UnsupportedLogDriver::JsonFile => AbsentDriver::JsonFile,
                UnsupportedLogDriver::Refuse => AbsentDriver::Refuse,
            }),
        }
    }

    pub(crate) fn resolve(self) -> Result<Config, ConfigError> {
        let api_tls = match (self.api_tls_certificate, self.api_tls_key) {
            (Some(certificate), Some(key)) => Some(ApiTlsFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => return Err(invalid("api_tls_key", "is needed with api_tls_certificate")),
            (None, Some(_)) => return Err(invalid("api_tls_certificate", "is needed with api_tls_key")),
        };
        let key = |key: KeyFile| ApiKey {
            access_key_id: key.access_key_id,
            secret: key.secret_access_key,
        };
        let keys = self.keys.into_iter().map(key).collect();
        let default = Config::new("/var/lib/berth-control-plane", keys);
        let seconds = |given: Option<u32>, default: Duration| {
            given.map_or(default, |seconds| Duration::from_secs(seconds.into()))
        };
        Ok(Config {
            state_dir: self.state_dir.unwrap_or(default.state_dir),
            run_dir: self.run_dir.unwrap_or(default.run_dir),
            metrics_listen: self.metrics_listen,
            api_listen: self.api_listen.unwrap_or(default.api_listen),
            api_tls,
            node_listen: self.node_listen.unwrap_or(default.node_listen),
            node_names: self.node_names,
            node_advertise: self.node_advertise,
            node_certificate_lifetime: seconds(
                self.node_certificate_lifetime_seconds,
                default.node_certificate_lifetime,
            ),
            region: self.region.unwrap_or(default.region),
            account_id: self.account_id.unwrap_or(default.account_id),
            keys: default.keys,
            node_silence: seconds(self.node_silence_seconds, default.node_silence),
            heartbeat_interval: seconds(self.heartbeat_interval_seconds, default.heartbeat_interval),
            stopped_task_retention: seconds(
                self.stopped_task_retention_seconds,
                default.stopped_task_retention,
            ),
            unsupported_log_driver: match self.unsupported_log_driver {
                None => default.unsupported_log_driver,
                Some(AbsentDriver::JsonFile) => UnsupportedLogDriver::JsonFile,
                Some(AbsentDriver::Refuse) => UnsupportedLogDriver::Refuse,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "[[keys]]\naccess_key_id = 'AKIDEXAMPLE00001'\nsecret_access_key = 'secret'\n";

    fn load(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(file.path())
    }

    fn refusal(text: &str) -> String {
        let error = load(text).unwrap_err();
        let source = std::error::Error::source(&error)
            .map(ToString::to_string)
            .unwrap_or_default();
        format!("{error}: {source}")
    }

    #[test]
    fn nothing_is_needed_and_keys_are_taken() {
        let config = load(KEYS).unwrap();
        assert_eq!(config.api_listen.to_string(), "127.0.0.1:8780");
        assert_eq!(config.keys[0].access_key_id, "AKIDEXAMPLE00001");
        assert_eq!(config.stopped_task_retention, Duration::from_secs(3_600));
        assert!(!format!("{config:?}").contains("'secret'") && !format!("{config:?}").contains("\"secret\""));
    }

    #[test]
    fn every_setting_can_be_given() {
        let text = format!(
            "state_dir = '/s'\napi_listen = '[::1]:0'\nnode_listen = '0.0.0.0:9'\nnode_names = ['cp.example.org']\n\
             node_advertise = 'cp.example.org:443'\nnode_certificate_lifetime_seconds = 3600\n\
             region = 'eu-west-1'\naccount_id = '123456789012'\nnode_silence_seconds = 30\n\
             heartbeat_interval_seconds = 10\nstopped_task_retention_seconds = 60\n{KEYS}"
        );
        let config = load(&text).unwrap();
        assert_eq!(
            (config.region.as_str(), config.node_silence),
            ("eu-west-1", Duration::from_secs(30))
        );
        assert_eq!(
            (config.state_dir.to_str(), config.node_names.len()),
            (Some("/s"), 1)
        );
    }

    #[test]
    fn with_a_certificate_the_api_may_listen_anywhere() {
        let text = "api_listen = '0.0.0.0:80'\napi_tls_certificate = '/c'\napi_tls_key = '/k'\n";
        assert_eq!(load(text).unwrap().api_tls.unwrap().key.to_str(), Some("/k"));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (setting, key) in [
            ("api_listen = '0.0.0.0:80'", "api_listen"),
            ("api_listen = 80", "api_listen"),
            ("api_listen = 'localhost:80'", "api_listen"),
            ("node_listen = '1.2.3.4'", "node_listen"),
            ("api_tls_certificate = '/a'", "api_tls_key"),
            ("api_tls_key = '/a'", "api_tls_certificate"),
            ("regoin = 'eu-west-1'", "regoin"),
            ("region = 'Europe'", "region"),
            ("account_id = '123'", "account_id"),
            ("node_names = ['a b']", "node_names"),
            ("node_advertise = 'cp.example.org'", "node_advertise"),
            (
                "node_certificate_lifetime_seconds = 9",
                "node_certificate_lifetime_seconds",
            ),
            ("node_silence_seconds = 6", "node_silence_seconds"),
            ("node_silence_seconds = -1", "node_silence_seconds"),
            ("heartbeat_interval_seconds = 0", "heartbeat_interval_seconds"),
        ] {
            let refusal = refusal(&format!("{setting}\n{KEYS}"));
            assert!(refusal.contains(key), "{setting}: {refusal}");
        }
        assert!(load("").unwrap().keys.is_empty());
        assert!(refusal(&KEYS.repeat(2)).contains("is there twice"));
        assert!(refusal(&KEYS.replace("AKIDEXAMPLE00001", "short")).contains("keys.access_key_id"));
        assert!(refusal(&KEYS.replace("'secret'", "''")).contains("keys.secret_access_key"));
        assert!(refusal(&KEYS.replace("secret_access_key", "secret")).contains("secret"));
        assert!(refusal("state_dir = ").contains(":1:"));
        assert!(
            Config::load(Path::new("/none"))
                .unwrap_err()
                .to_string()
                .contains("/none")
        );
    }
}
