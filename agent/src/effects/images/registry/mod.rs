//! Owns talking to registries (OCI distribution spec): one method, one attempt. Never retries, never trusts a
//! length, and never speaks plain HTTP except to loopback and to hosts an operator listed.
//!
//! On top of `reqwest`: the registry client crates at hand read a manifest of any size into memory, ask `/v2/`
//! before every request of an anonymous pull, and hide the status that decides whether trying again helps.

mod auth;
mod challenge;
mod http;

use std::{
    collections::HashSet,
    fs,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Client, Method, Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, WWW_AUTHENTICATE},
    redirect,
};

use self::{
    auth::Auth,
    http::{check_status, read_bounded, transport},
};
use super::{
    config::{ImagesConfig, MANIFEST_BYTES_MAX},
    digest::{Digest, excerpt},
    document::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST},
    error::Cause,
    reference::{ImageRef, is_loopback},
};

const REDIRECTS_MAX: usize = 5;
const IDLE_CONNECTIONS_MAX: usize = 4;
const IDLE_CONNECTION: Duration = Duration::from_secs(30);
const DIGEST_HEADER: &str = "docker-content-digest";

/// A client for every registry. Its parts are made when first needed: reading the system's certificates takes
/// longer than pulling from loopback.
#[derive(Debug)]
pub(super) struct Registry {
    auth: Auth,
    plain: Arc<PlainHosts>,
    /// Loopback registries that turned out to speak TLS.
    loopback_tls: Mutex<HashSet<String>>,
    remote: OnceLock<Client>,
    loopback: OnceLock<Client>,
    extra_ca: Vec<reqwest::Certificate>,
    connect: Duration,
    stall: Duration,
}

/// Hosts that may be spoken to in clear.
#[derive(Debug)]
struct PlainHosts(Vec<String>);

impl PlainHosts {
    fn allows(&self, host: &str) -> bool {
        is_loopback(host) || self.0.iter().any(|plain| plain == host)
    }

    fn allows_url(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let with_port = url.port().map(|port| format!("{host}:{port}"));
        self.allows(host) || with_port.is_some_and(|host| self.allows(&host))
    }
}

/// A manifest as the registry sent it, not yet checked against what was asked for.
#[derive(Debug)]
pub(super) struct RawManifest {
    pub bytes: Bytes,
    /// What the registry says its digest is.
    pub claimed: Option<Digest>,
}

/// The body of a blob, from `offset` on.
#[derive(Debug)]
pub(super) struct BlobBody {
    response: Response,
    /// Where in the blob the body starts: 0 if the registry does not do ranges.
    pub offset: u64,
    stall: Duration,
}

impl BlobBody {
    /// Bytes the registry announced, from `offset` on.
    pub fn announced(&self) -> Option<u64> {
        self.response.content_length()
    }

    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Cause> {
        self.response
            .chunk()
            .await
            .map_err(|error| transport(error, self.stall))
    }
}

/// Reads the PEM files of the configuration; an error names the file.
pub(super) fn read_extra_ca(config: &ImagesConfig) -> Result<Vec<reqwest::Certificate>, Cause> {
    let mut all = Vec::new();
    for path in &config.extra_ca_pem {
        let pem = fs::read(path).map_err(|source| Cause::File {
            path: path.clone(),
            source,
        })?;
        let unusable = || Cause::Config(format!("{} holds no PEM certificate", path.display()));
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|_| unusable())?;
        if certificates.is_empty() {
            return Err(unusable());
        }
        all.extend(certificates);
    }
    Ok(all)
}

impl Registry {
    pub fn new(config: &ImagesConfig) -> Result<Self, Cause> {
        Ok(Self {
            auth: Auth::new(config.credentials.clone()),
            plain: Arc::new(PlainHosts(config.plain_http_hosts.clone())),
            loopback_tls: Mutex::default(),
            remote: OnceLock::new(),
            loopback: OnceLock::new(),
            extra_ca: read_extra_ca(config)?,
            connect: config.limits.connect,
            stall: config.limits.stall,
        })
    }

    /// What digest the reference has now, if the registry says so in a header.
    pub async fn resolve(&self, image: &ImageRef) -> Result<Option<Digest>, Cause> {
        let path = format!("manifests/{}", image.selector.as_str());
        let response = self.request(image, Method::HEAD, &path, None, "manifest").await?;
        Ok(claimed_digest(&response))
    }

    /// The manifest or index under a tag or digest, at most [`MANIFEST_BYTES_MAX`].
    pub async fn manifest(&self, image: &ImageRef, selector: &str) -> Result<RawManifest, Cause> {
        let path = format!("manifests/{selector}");
        let response = self.request(image, Method::GET, &path, None, "manifest").await?;
        let claimed = claimed_digest(&response);
        let bytes = read_bounded(response, "manifest", MANIFEST_BYTES_MAX, self.stall).await?;
        Ok(RawManifest { bytes, claimed })
    }

    /// A blob's body, from `offset` on if the registry can.
    pub async fn blob(&self, image: &ImageRef, digest: &Digest, offset: u64) -> Result<BlobBody, Cause> {
        let range = (offset > 0).then(|| format!("bytes={offset}-"));
        let path = format!("blobs/{digest}");
        let response = self
            .request(image, Method::GET, &path, range.as_deref(), "blob")
            .await?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        Ok(BlobBody {
            response,
            offset: if partial { offset } else { 0 },
            stall: self.stall,
        })
    }

    /// Sends a request; a challenge is answered once.
    async fn request(
        &self,
        image: &ImageRef,
        method: Method,
        path: &str,
        range: Option<&str>,
        what: &str,
    ) -> Result<Response, Cause> {
        let cached = self.auth.cached(image);
        let response = self.send(image, &method, path, range, cached.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return check_status(response, what).await;
        }
        // Whoever the registry redirected to gets no credentials, however it asks.
        let own_answer = is_at(response.url(), image.api_host());
        let Some(challenge) = challenge_of(&response).filter(|_| own_answer) else {
            return check_status(response, what).await;
        };
        let client = |url: &Url| self.client(url.host_str().unwrap_or_default());
        let may_be_plain = |url: &Url| self.plain.allows_url(url);
        let header = self
            .auth
            .answer(image, challenge, client, may_be_plain, self.stall)
            .await?;
        let response = self.send(image, &method, path, range, Some(&header)).await?;
        check_status(response, what).await
    }

    async fn send(
        &self,
        image: &ImageRef,
        method: &Method,
        path: &str,
        range: Option<&str>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Cause> {
        let host = image.api_host();
        let scheme = self.scheme(host);
        let response = self
            .send_over(scheme, image, method, path, range, authorization)
            .await?;
        if scheme == "http" && is_loopback(host) && response.status() == StatusCode::BAD_REQUEST {
            return self
                .try_tls(response, image, method, path, range, authorization)
                .await;
        }
        Ok(response)
    }

    /// A server that wants TLS answers plain HTTP with 400 and says so in words (Go's net/http and nginx do).
    async fn try_tls(
        &self,
        response: Response,
        image: &ImageRef,
        method: &Method,
        path: &str,
        range: Option<&str>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Cause> {
        // The answer to HEAD has no body; a refused HEAD of a manifest is worth the question, too.
        if *method != Method::HEAD {
            let refusal = check_status(response, "manifest").await.err();
            match refusal {
                Some(Cause::Refused { detail, .. }) if detail.contains("HTTPS") => {}
                Some(cause) => return Err(cause),
                None => {
                    return Err(Cause::Refused {
                        status: 400,
                        detail: String::new(),
                    });
                }
            }
        }
        let response = self
            .send_over("https", image, method, path, range, authorization)
            .await?;
        let mut tls = self.loopback_tls.lock().unwrap_or_else(PoisonError::into_inner);
        tls.insert(image.api_host().to_owned());
        Ok(response)
    }

    async fn send_over(
        &self,
        scheme: &str,
        image: &ImageRef,
        method: &Method,
        path: &str,
        range: Option<&str>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Cause> {
        const ACCEPTED: [&str; 4] = [OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_LIST];
        let host = image.api_host();
        let url = format!("{scheme}://{host}/v2/{}/{path}", image.repository());
        let client = if scheme == "http" {
            self.client(host)?
        } else {
            self.remote_client()?
        };
        let mut request = client.request(method.clone(), url);
        if path.starts_with("manifests/") {
            request = request.header(ACCEPT, ACCEPTED.join(", "));
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let again = request.try_clone();
        match (
            request.send().await.map_err(|error| transport(error, self.stall)),
            again,
        ) {
            // A loopback registry may redirect to storage elsewhere, whose certificate the system knows.
            (Err(Cause::Certificate { .. }), Some(again)) if scheme == "http" => {
                let again = again.build().map_err(|source| Cause::Client { source })?;
                let sent = self.remote_client()?.execute(again).await;
                sent.map_err(|error| transport(error, self.stall))
            }
            (sent, _) => sent,
        }
    }

    fn scheme(&self, host: &str) -> &'static str {
        let tls = self.loopback_tls.lock().unwrap_or_else(PoisonError::into_inner);
        if self.plain.allows(host) && !tls.contains(host) {
            "http"
        } else {
            "https"
        }
    }

    fn client(&self, host: &str) -> Result<Client, Cause> {
        // A loopback host that wants TLS needs the certificates of the other client.
        if is_loopback(host) && self.scheme(host) == "http" {
            self.loopback_client()
        } else {
            self.remote_client()
        }
    }

    fn remote_client(&self) -> Result<Client, Cause> {
        once(&self.remote, || {
            self.builder().tls_certs_merge(self.extra_ca.clone())
        })
    }

    /// Without proxy, and without the system's certificates.
    fn loopback_client(&self) -> Result<Client, Cause> {
        once(&self.loopback, || {
            self.builder().no_proxy().tls_certs_only(self.extra_ca.clone())
        })
    }

    fn builder(&self) -> reqwest::ClientBuilder {
        // Fails only if there is a provider already: then that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = Arc::clone(&self.plain);
        let follow = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > REDIRECTS_MAX {
                attempt.error("too many redirects")
            } else if attempt.url().scheme() == "https" || plain.allows_url(attempt.url()) {
                attempt.follow()
            } else {
                let why = format!("{} is not encrypted", excerpt(&authority(attempt.url())));
                attempt.error(why)
            }
        });
        Client::builder()
            .user_agent(concat!("berth-agent/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect)
            .read_timeout(self.stall)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_CONNECTION)
            .redirect(follow)
    }
}

fn once(cell: &OnceLock<Client>, builder: impl FnOnce() -> reqwest::ClientBuilder) -> Result<Client, Cause> {
    if let Some(client) = cell.get() {
        return Ok(client.clone());
    }
    let client = builder().build().map_err(|source| Cause::Client { source })?;
    Ok(cell.get_or_init(|| client).clone())
}

/// True if `url` is on `host` (with or without port), over whatever scheme.
fn is_at(url: &Url, host: &str) -> bool {
    let expected = Url::parse(&format!("{}://{host}/", url.scheme()));
    expected.is_ok_and(|expected| {
        expected.host_str() == url.host_str()
            && expected.port_or_known_default() == url.port_or_known_default()
    })
}

/// `host` or `host:port`, as a reference writes it.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn claimed_digest(response: &Response) -> Option<Digest> {
    response.headers().get(DIGEST_HEADER)?.to_str().ok()?.parse().ok()
}

fn challenge_of(response: &Response) -> Option<challenge::Challenge> {
    let values = response.headers().get_all(WWW_AUTHENTICATE);
    let joined: Vec<&str> = values.iter().filter_map(|value| value.to_str().ok()).collect();
    challenge::parse(&joined.join(", "))
}
