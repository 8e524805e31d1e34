//! Owns which control plane a command talks to, and with which keys. Keys of one place are never sent to another:
//! somebody's real AWS keys in the environment must not end up at a development server, nor the reverse.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use reqwest::Url;

use crate::arguments::Global;
use crate::dev::environment::{DevEnvironment, ParseError};

/// Written by a control plane of this host that has no key in its configuration.
pub const ADMIN_ENV: &str = "/var/lib/berth-control-plane/admin.env";
/// Names another such file.
const ADMIN_ENV_VARIABLE: &str = "BERTH_ADMIN_ENV";
/// Written by `berth dev` into its state directory.
pub const DEV_ENV: &str = "dev.env";
/// The region when nothing names one.
pub const DEFAULT_REGION: &str = "us-east-1";

#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// Where requests go and how they are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub url: Url,
    pub region: String,
    pub keys: Keys,
    /// Whose certificates are believed, PEM. None: the system's.
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error(
        "no control plane to talk to: start one with `sudo berth dev`, or name one with --endpoint-url or \
         BERTH_ENDPOINT_URL (neither {dev_env} nor {admin_env} is there)"
    )]
    None { dev_env: PathBuf, admin_env: PathBuf },
    #[error(
        "cannot read {path}: the keys of a control plane on this host are root's, so run this as root, or name a \
         control plane with --endpoint-url"
    )]
    Permission { path: PathBuf },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: a new start of `berth dev`, or of the control plane, writes it again")]
    Damaged { path: PathBuf, source: ParseError },
    #[error("{url:?} is not a URL of a control plane: write http://127.0.0.1:7070 or https://host:port")]
    BadUrl { url: String },
    #[error("{url} is not encrypted and not loopback: use https, or a tunnel to loopback")]
    Plain { url: String },
    #[error("no keys for {url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")]
    NoKeys { url: String },
}

/// Chooses the endpoint. `variable` reads the environment.
pub fn resolve(
    global: &Global,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Endpoint, EndpointError> {
    let dev_env = global.state_dir.join(DEV_ENV);
    let named = global
        .endpoint_url
        .clone()
        .or_else(|| variable("AWS_ENDPOINT_URL_ECS"))
        .filter(|url| !url.is_empty());
    let Some(named) = named else {
        return of_this_host(dev_env, global, variable);
    };
    let url = parse_url(&named)?;
    // With an address given, dev.env is a convenience: that it cannot be read is no failure.
    if let Ok(Some(dev)) = read_dev_environment(&dev_env)
        && parse_url(&dev.endpoint_url).ok().as_ref() == Some(&url)
    {
        return from_dev(&dev, global, variable);
    }
    let (Some(access_key_id), Some(secret_access_key)) =
        (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"))
    else {
        return Err(EndpointError::NoKeys { url: named });
    };
    let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
    Ok(Endpoint {
        url,
        region: region.unwrap_or_else(|| DEFAULT_REGION.into()),
        keys: Keys {
            access_key_id,
            secret_access_key,
            session_token: variable("AWS_SESSION_TOKEN"),
        },
        ca_file: ca_file(global, variable),
    })
}

/// The `berth dev` that runs here, else the control plane that is installed here.
fn of_this_host(
    dev_env: PathBuf,
    global: &Global,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Endpoint, EndpointError> {
    let dev = read_dev_environment(&dev_env);
    if let Ok(Some(dev)) = &dev {
        return from_dev(dev, global, variable);
    }
    let admin_env: PathBuf = variable(ADMIN_ENV_VARIABLE)
        .unwrap_or_else(|| ADMIN_ENV.into())
        .into();
    match (read_dev_environment(&admin_env), dev) {
        (Ok(Some(admin)), _) => from_dev(&admin, global, variable),
        (_, Err(error)) | (Err(error), Ok(_)) => Err(error),
        (Ok(None), Ok(_)) => Err(EndpointError::None { dev_env, admin_env }),
    }
}

/// Named by the argument or by what the AWS command line goes by; it then goes for every endpoint.
fn ca_file(global: &Global, variable: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let of_aws = || variable("AWS_CA_BUNDLE").filter(|path| !path.is_empty());
    global.ca_file.clone().or_else(|| of_aws().map(PathBuf::from))
}

fn from_dev(
    dev: &DevEnvironment,
    global: &Global,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Endpoint, EndpointError> {
    Ok(Endpoint {
        // The file knows its own control plane better than an environment that is meant for others.
        ca_file: global
            .ca_file
            .clone()
            .or_else(|| dev.ca_file.clone())
            .or_else(|| ca_file(global, variable)),
        url: parse_url(&dev.endpoint_url)?,
        region: dev.region.clone(),
        keys: dev.keys.clone(),
    })
}

fn read_dev_environment(path: &Path) -> Result<Option<DevEnvironment>, EndpointError> {
    match std::fs::read_to_string(path) {
        Ok(text) => match DevEnvironment::parse(&text) {
            Ok(dev) => Ok(Some(dev)),
            Err(source) => Err(EndpointError::Damaged {
                path: path.into(),
                source,
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(EndpointError::Permission { path: path.into() })
        }
        Err(source) => Err(EndpointError::Read {
            path: path.into(),
            source,
        }),
    }
}

fn parse_url(text: &str) -> Result<Url, EndpointError> {
    let bad = || EndpointError::BadUrl { url: text.into() };
    let url = Url::parse(text).map_err(|_| bad())?;
    let host = url.host_str().ok_or_else(bad)?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(host) => Ok(url),
        "http" => Err(EndpointError::Plain { url: text.into() }),
        _ => Err(bad()),
    }
}

/// True for `localhost` and loopback addresses, as a URL has them.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Format;

    fn global(endpoint: Option<&str>, state_dir: &Path) -> Global {
        Global {
            endpoint_url: endpoint.map(Into::into),
            ca_file: None,
            state_dir: state_dir.into(),
            cluster: "default".into(),
            output: Format::Table,
        }
    }

    fn somebodys_aws(name: &str) -> Option<String> {
        match name {
            "AWS_ACCESS_KEY_ID" => Some("AKIAREAL".into()),
            "AWS_SECRET_ACCESS_KEY" => Some("real".into()),
            "AWS_REGION" => Some("eu-west-1".into()),
            _ => None,
        }
    }

    fn running_dev() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let dev = DevEnvironment {
            endpoint_url: "http://127.0.0.1:7070".into(),
            region: "us-east-1".into(),
            keys: Keys {
                access_key_id: "DEV".into(),
                secret_access_key: "dev".into(),
                session_token: None,
            },
            ca_file: None,
        };
        std::fs::write(dir.path().join(DEV_ENV), dev.render()).unwrap();
        dir
    }

    #[test]
    fn a_running_dev_is_used_with_its_own_keys() {
        let dir = running_dev();
        for endpoint in [None, Some("http://127.0.0.1:7070")] {
            let found = resolve(&global(endpoint, dir.path()), &somebodys_aws).unwrap();
            assert_eq!(found.keys.access_key_id, "DEV");
            assert_eq!(found.url.as_str(), "http://127.0.0.1:7070/");
        }
    }

    #[test]
    fn another_endpoint_gets_the_keys_of_the_environment() {
        let dir = running_dev();
        let found = resolve(&global(Some("https://ecs.example"), dir.path()), &somebodys_aws).unwrap();
        assert_eq!(
            (found.keys.access_key_id.as_str(), found.region.as_str()),
            ("AKIAREAL", "eu-west-1")
        );
        let error = resolve(&global(Some("https://ecs.example"), dir.path()), &|_| None).unwrap_err();
        assert!(matches!(error, EndpointError::NoKeys { .. }), "{error}");
    }

    #[test]
    fn without_anything_it_says_how_to_start() {
        let dir = tempfile::tempdir().unwrap();
        let error = resolve(&global(None, dir.path()), &|name| {
            (name == ADMIN_ENV_VARIABLE).then(|| "/none/admin.env".into())
        })
        .unwrap_err();
        assert!(error.to_string().contains("sudo berth dev"), "{error}");
    }

    #[test]
    fn the_control_plane_of_this_host_is_found_when_no_dev_runs() {
        let dir = tempfile::tempdir().unwrap();
        let admin = dir.path().join("admin.env");
        let text = "# x\nexport AWS_ACCESS_KEY_ID=ADMIN\nexport AWS_SECRET_ACCESS_KEY=s\n\
                    export AWS_DEFAULT_REGION=eu-west-1\nexport BERTH_ENDPOINT_URL=https://cp.example:8780\n\
                    export AWS_CA_BUNDLE=/own.pem\n";
        std::fs::write(&admin, text).unwrap();
        let variable = |name: &str| match name {
            ADMIN_ENV_VARIABLE => Some(admin.display().to_string()),
            "AWS_CA_BUNDLE" => Some("/of-somebody-else.pem".into()),
            _ => None,
        };
        let found = resolve(&global(None, dir.path()), &variable).unwrap();
        assert_eq!(
            (found.keys.access_key_id.as_str(), found.url.as_str()),
            ("ADMIN", "https://cp.example:8780/")
        );
        assert_eq!(
            (found.region.as_str(), found.ca_file),
            ("eu-west-1", Some("/own.pem".into()))
        );
        let dev = running_dev();
        let found = resolve(&global(None, dev.path()), &variable).unwrap();
        assert_eq!(found.keys.access_key_id, "DEV");
    }

    #[test]
    fn keys_are_signed_but_never_sent_in_the_clear_to_another_host() {
        assert!(matches!(
            parse_url("http://10.0.0.1:7070"),
            Err(EndpointError::Plain { .. })
        ));
        assert!(matches!(
            parse_url("127.0.0.1:7070"),
            Err(EndpointError::BadUrl { .. })
        ));
        for good in [
            "http://localhost:1",
            "http://127.3.0.1:1",
            "http://[::1]:1",
            "https://10.0.0.1",
        ] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let keys = Keys {
            access_key_id: "id".into(),
            secret_access_key: "hush".into(),
            session_token: None,
        };
        assert!(!format!("{keys:?}").contains("hush"));
    }
}
