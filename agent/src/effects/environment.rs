//! Owns the fetching of environment files over HTTP: one attempt, all or none, bounded in size and time. Never says what a
//! file or the query of its URL holds: both may be secrets.

use std::{
    collections::BTreeSet,
    error::Error,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use berth_agent_core::environment::{FetchedFiles, Variables};
use berth_environment_file::{FILE_BYTES_MAX, Invalid, parse};
use futures_util::future::try_join_all;
use reqwest::{Client, Response, StatusCode, Url, redirect};

/// For one file, from the connection to its last byte.
const FILE_DEADLINE: Duration = Duration::from_secs(10);
const REDIRECTS_MAX: usize = 5;
/// Most files of a task that are fetched at a time.
const AT_A_TIME: usize = 8;

/// Why there is no file. Each names the URL without its query.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("environment file {url}: its server answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("environment file {url}: more than {FILE_BYTES_MAX} bytes")]
    TooLarge { url: String },
    #[error("environment file {url}")]
    Invalid { url: String, source: Invalid },
    #[error("environment file {url}: not all of it came within {} s", FILE_DEADLINE.as_secs())]
    Late { url: String },
    #[error("environment file {url}: cannot be fetched")]
    Transport { url: String, source: reqwest::Error },
    #[error("environment file {url}: is not a URL")]
    Url { url: String },
    #[error("make a client for environment files")]
    Client { source: reqwest::Error },
    #[error("read authorities for environment files from {path}")]
    Authorities {
        path: PathBuf,
        source: Box<dyn Error + Send + Sync>,
    },
}

impl FetchError {
    /// Exhaustive on purpose: a new failure must choose.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                status.is_server_error()
                    || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(status)
            }
            Self::Late { .. } => true,
            Self::Transport { source, .. } => !source.is_redirect(),
            Self::TooLarge { .. }
            | Self::Invalid { .. }
            | Self::Url { .. }
            | Self::Client { .. }
            | Self::Authorities { .. } => false,
        }
    }
}

/// Fetches environment files. Its clients are made when first needed: few tasks have such files, and reading the system's
/// certificates takes a while.
#[derive(Debug)]
pub struct EnvironmentFiles {
    extra_ca: Vec<PathBuf>,
    deadline: Duration,
    remote: OnceLock<Client>,
    loopback: OnceLock<Client>,
}

impl EnvironmentFiles {
    /// `extra_ca`: PEM files of authorities to believe besides the system's.
    pub fn new(extra_ca: Vec<PathBuf>) -> Self {
        Self {
            extra_ca,
            deadline: FILE_DEADLINE,
            remote: OnceLock::new(),
            loopback: OnceLock::new(),
        }
    }

    /// All files.
    ///
    /// # Errors
    /// The first that cannot be had.
    pub async fn fetch(&self, urls: &BTreeSet<String>) -> Result<FetchedFiles, FetchError> {
        let urls: Vec<&String> = urls.iter().collect();
        let mut files = FetchedFiles::new();
        for some in urls.chunks(AT_A_TIME) {
            let mut under_way = Vec::new();
            for url in some {
                under_way.push(self.fetch_one(url));
            }
            let fetched = try_join_all(under_way).await?;
            files.extend(some.iter().copied().cloned().zip(fetched));
        }
        Ok(files)
    }

    async fn fetch_one(&self, text: &str) -> Result<Variables, FetchError> {
        let shown = shown(text);
        let Ok(url) = Url::parse(text) else {
            return Err(FetchError::Url { url: shown });
        };
        let client = self.client(&url)?;
        let body = async {
            let sent = client.get(url).send().await;
            let response = sent.map_err(|error| transport(&shown, error))?;
            if response.status() != StatusCode::OK {
                return Err(FetchError::Status {
                    url: shown.clone(),
                    status: response.status(),
                });
            }
            read(&shown, response).await
        };
        let body = tokio::time::timeout(self.deadline, body).await;
        let body = body.map_err(|_| FetchError::Late { url: shown.clone() })??;
        let variables = parse(&body).map_err(|source| FetchError::Invalid { url: shown, source })?;
        Ok(Variables(variables))
    }

    /// Loopback is never reached through a proxy, and needs no certificates of the system's.
    fn client(&self, url: &Url) -> Result<Client, FetchError> {
        let local = url.scheme() == "http"
            && ["localhost", "127.0.0.1", "[::1]"].contains(&url.host_str().unwrap_or_default());
        let cell = if local { &self.loopback } else { &self.remote };
        if let Some(client) = cell.get() {
            return Ok(client.clone());
        }
        // Fails only if there is a provider already: then that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = Client::builder()
            .user_agent(concat!("berth-agent/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::custom(follow))
            .pool_max_idle_per_host(0);
        let authorities = authorities(&self.extra_ca)?;
        let builder = if local {
            builder.no_proxy().tls_certs_only(authorities)
        } else {
            builder.tls_certs_merge(authorities)
        };
        let client = builder.build().map_err(|source| FetchError::Client { source })?;
        Ok(cell.get_or_init(|| client).clone())
    }
}

/// What began encrypted stays so.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let encrypted = attempt
        .previous()
        .first()
        .is_some_and(|first| first.scheme() == "https");
    if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error("too many redirects")
    } else if attempt.url().scheme() == "https" || !encrypted && attempt.url().scheme() == "http" {
        attempt.follow()
    } else {
        attempt.error("redirected to what is not encrypted")
    }
}

fn authorities(files: &[PathBuf]) -> Result<Vec<reqwest::Certificate>, FetchError> {
    let mut all = Vec::new();
    for path in files {
        let failed = |source| FetchError::Authorities {
            path: path.clone(),
            source,
        };
        let pem = read_file(path).map_err(failed)?;
        all.extend(reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.into()))?);
    }
    Ok(all)
}

fn read_file(path: &Path) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    Ok(std::fs::read(path)?)
}

async fn read(url: &str, mut response: Response) -> Result<Vec<u8>, FetchError> {
    let too_large = || FetchError::TooLarge { url: url.to_owned() };
    let announced = response.content_length().unwrap_or_default();
    if announced > FILE_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| transport(url, error))? {
        if body.len() + chunk.len() > FILE_BYTES_MAX {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Its own words have the whole URL.
fn transport(url: &str, error: reqwest::Error) -> FetchError {
    FetchError::Transport {
        url: url.to_owned(),
        source: error.without_url(),
    }
}

/// Without query and user.
fn shown(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    match plain.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => "that names no scheme".to_owned(),
    }
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
