//! Owns client tokens: the same token with the same request gives the same answer, with another request a conflict.
//! Never runs the request.
//!
//! The record is written in the transaction that does the work, so there is no moment at which one exists without
//! the other. Records live under a lease that is renewed by a new one, not kept alive: each lives for one to two
//! [`TOKEN_TTL`].

use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::{context::Api, context::now_ms, error::ApiError, fields::Fields, records};
use crate::{
    model::{Idempotent, keys},
    store::{Compare, LeaseId, Operation, typed},
};

/// How long a token is remembered, at least: AWS's 24 h.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// Longest token.
const TOKEN_CHARS_MAX: usize = 64;

/// A token and the request it came with.
#[derive(Clone, Debug)]
pub(super) struct ClientToken {
    token: String,
    operation: &'static str,
    request_sha256: String,
}

/// The lease that new records hang on.
#[derive(Debug, Default)]
pub(super) struct TokenLease(Mutex<Option<(LeaseId, Instant)>>);

impl TokenLease {
    async fn current(&self, api: &Api) -> Result<LeaseId, ApiError> {
        let mut held = self.0.lock().await;
        if let Some((lease, granted)) = *held
            && granted.elapsed() < TOKEN_TTL
        {
            return Ok(lease);
        }
        let lease = api.store.grant(TOKEN_TTL * 2).await?;
        *held = Some((lease, Instant::now()));
        Ok(lease)
    }

    /// The store does not know the lease any more: get another one next time.
    pub async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

impl ClientToken {
    /// Takes `clientToken`. `request` is the whole request as it came.
    pub fn take(
        fields: &mut Fields,
        operation: &'static str,
        request: &Value,
    ) -> Result<Option<Self>, ApiError> {
        let Some(token) = fields.string("clientToken")?.filter(|token| !token.is_empty()) else {
            return Ok(None);
        };
        if token.len() > TOKEN_CHARS_MAX || !token.bytes().all(|b| (33..=126).contains(&b)) {
            let problem = format!("must be 1 to {TOKEN_CHARS_MAX} characters of ASCII 33 to 126");
            return Err(ApiError::field("clientToken", problem));
        }
        Ok(Some(Self {
            token,
            operation,
            request_sha256: digest(request),
        }))
    }

    fn key(&self, cluster: &str) -> String {
        // A token may contain '/': hexadecimal keeps keys unambiguous.
        keys::idempotency(cluster, self.operation, &hex::encode(&self.token))
    }

    /// The answer given before, if there was one.
    pub async fn earlier(&self, api: &Api, cluster: &str) -> Result<Option<Value>, ApiError> {
        match records::get::<Idempotent>(api, &self.key(cluster)).await? {
            None => Ok(None),
            Some(record) if record.value.request_sha256 == self.request_sha256 => {
                Ok(Some(record.value.response))
            }
            Some(_) => Err(ApiError::Conflict {
                message: format!(
                    "clientToken {} was used with other parameters: use a new token for a new request",
                    self.token
                ),
                resource_ids: Vec::new(),
            }),
        }
    }

    /// What goes into the transaction that does the work.
    pub async fn record(
        &self,
        api: &Api,
        cluster: &str,
        response: &Value,
    ) -> Result<(Compare, Operation), ApiError> {
        let key = self.key(cluster);
        let record = Idempotent {
            request_sha256: self.request_sha256.clone(),
            response: response.clone(),
            created_at: now_ms(),
        };
        let mut put = typed::put_json(key.clone(), &record)?;
        if let Operation::Put { lease, .. } = &mut put {
            *lease = Some(api.token_lease.current(api).await?);
        }
        Ok((Compare::Missing(key), put))
    }
}

/// SHA-256 of the request without its token. Objects are ordered, so spelling does not matter.
fn digest(request: &Value) -> String {
    let mut request = request.clone();
    if let Value::Object(map) = &mut request {
        map.remove("clientToken");
    }
    hex::encode(Sha256::digest(request.to_string()))
}
