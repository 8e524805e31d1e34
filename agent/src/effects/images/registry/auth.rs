//! Owns the credentials and tokens for registries. Never sends a credential in clear, except to a host that may be
//! spoken to in plain HTTP, and never prints one.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Client, Url, header::AUTHORIZATION, header::HeaderValue};
use serde::Deserialize;

use super::{
    super::{
        config::RegistryCredential,
        digest::excerpt,
        error::Cause,
        reference::{ImageRef, canonical_host},
    },
    challenge::Challenge,
    http::{check_status, read_bounded, transport},
};

const TOKEN_BYTES_MAX: u64 = 256 << 10;
const TOKENS_MAX: usize = 256;
/// What the token specification says of a token that does not say.
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// A token this close to its end is not used any more.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);

/// One `Authorization` header per registry and repository.
#[derive(Debug)]
pub(super) struct Auth {
    credentials: Vec<RegistryCredential>,
    granted: Mutex<HashMap<(String, String), Granted>>,
}

#[derive(Clone, Debug)]
struct Granted {
    /// Marked sensitive: its Debug prints nothing.
    header: HeaderValue,
    until: Option<Instant>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Auth {
    pub fn new(credentials: Vec<RegistryCredential>) -> Self {
        Self {
            credentials,
            granted: Mutex::default(),
        }
    }

    /// What was granted for this repository before, if it still counts.
    pub fn cached(&self, image: &ImageRef) -> Option<HeaderValue> {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = granted.get(&key(image))?;
        entry
            .until
            .is_none_or(|until| until > Instant::now())
            .then(|| entry.header.clone())
    }

    /// Answers a challenge. `may_be_plain` says which token services may be spoken to in clear.
    pub async fn answer(
        &self,
        image: &ImageRef,
        challenge: Challenge,
        client: impl Fn(&Url) -> Result<Client, Cause>,
        may_be_plain: impl Fn(&Url) -> bool,
        stall: Duration,
    ) -> Result<HeaderValue, Cause> {
        let granted = match challenge {
            Challenge::Basic => {
                let header = self.basic(image).ok_or_else(|| Cause::Denied {
                    status: 401,
                    detail: "it asks for a user name and none is configured".to_owned(),
                })?;
                Granted { header, until: None }
            }
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let url = token_url(image, &realm, service.as_deref(), scope.as_deref())?;
                if url.scheme() != "https" && !may_be_plain(&url) {
                    return Err(Cause::InsecureRealm(excerpt(&realm)));
                }
                self.fetch(image, client(&url)?, url, stall).await?
            }
        };
        let header = granted.header.clone();
        self.keep(key(image), granted);
        Ok(header)
    }

    async fn fetch(
        &self,
        image: &ImageRef,
        client: Client,
        url: Url,
        stall: Duration,
    ) -> Result<Granted, Cause> {
        let mut request = client.get(url);
        if let Some(basic) = self.basic(image) {
            request = request.header(AUTHORIZATION, basic);
        }
        let response = request.send().await.map_err(|error| transport(error, stall))?;
        let response = check_status(response, "token service").await?;
        let body = read_bounded(response, "token", TOKEN_BYTES_MAX, stall).await?;
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|source| Cause::Malformed {
            what: "the registry's token",
            source,
        })?;
        let token = answer.token.or(answer.access_token).unwrap_or_default();
        let life = answer.expires_in.map_or(TOKEN_LIFE_DEFAULT, Duration::from_secs);
        Ok(Granted {
            header: sensitive(format!("Bearer {token}"))?,
            until: Instant::now().checked_add(life.saturating_sub(TOKEN_MARGIN)),
        })
    }

    fn keep(&self, key: (String, String), entry: Granted) {
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        if granted.len() >= TOKENS_MAX {
            granted.clear();
        }
        granted.insert(key, entry);
    }

    fn basic(&self, image: &ImageRef) -> Option<HeaderValue> {
        let wanted = canonical_host(image.host());
        let credential = self
            .credentials
            .iter()
            .find(|c| canonical_host(&c.host) == wanted)?;
        let pair = STANDARD.encode(format!("{}:{}", credential.username, credential.password));
        sensitive(format!("Basic {pair}")).ok()
    }
}

fn key(image: &ImageRef) -> (String, String) {
    (image.host().to_owned(), image.repository().to_owned())
}

fn sensitive(text: String) -> Result<HeaderValue, Cause> {
    let mut value = HeaderValue::from_str(&text).map_err(|_| Cause::Invalid {
        what: "the registry's token",
        why: "it cannot be sent in a header".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn token_url(
    image: &ImageRef,
    realm: &str,
    service: Option<&str>,
    scope: Option<&str>,
) -> Result<Url, Cause> {
    let mut url = Url::parse(realm).map_err(|_| Cause::Invalid {
        what: "the registry's token service",
        why: format!("{:?} is no URL", excerpt(realm)),
    })?;
    let pull = format!("repository:{}:pull", image.repository());
    // The answer to the challenge is for this repository only, whatever else the registry would have us ask for.
    let scope = scope
        .filter(|scope| scope.contains(image.repository()))
        .unwrap_or(&pull);
    let mut query = url.query_pairs_mut();
    query.append_pair("scope", scope);
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    drop(query);
    Ok(url)
}
