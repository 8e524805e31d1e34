//! Owns the verification of AWS Signature Version 4 in its header form. Pure: body, clock and keys are handed in.
//! Never accepts an unsigned body, a presigned query, or the chunked and asymmetric forms.
//!
//! The algorithm is "Signature Version 4 signing process" of the AWS General Reference; the tests hold it against
//! AWS's published signing test suite and against the aws-sigv4 crate as the signer.

use std::{collections::BTreeMap, time::Duration};

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, PrimitiveDateTime, macros::format_description};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";
/// Most headers a signature may name.
const SIGNED_HEADERS_MAX: usize = 64;

/// Why a request is not taken for the caller's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error(
        "Missing Authentication Token: sign the request (Signature Version 4, Authorization header) with an access \
         key of this control plane"
    )]
    Missing,
    #[error("{0}")]
    Incomplete(String),
    #[error(
        "The security token included in the request is invalid: access key {access_key_id} is not known to this \
         control plane. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a configured key"
    )]
    UnknownKey { access_key_id: String },
    #[error(
        "The security token included in the request is invalid: this control plane issues no session tokens. \
         Unset AWS_SESSION_TOKEN"
    )]
    SessionToken,
    #[error(
        "Signature expired: {signed} is now earlier than {limit} ({server} - {skew_max_s} s). The server's clock \
         says {server}, the request's {signed}: set the clock of the host that sends it"
    )]
    Expired {
        signed: String,
        limit: String,
        server: String,
        skew_max_s: u64,
    },
    #[error(
        "Signature not yet current: {signed} is still later than {limit} ({server} + {skew_max_s} s). The server's \
         clock says {server}, the request's {signed}: set the clock of the host that sends it"
    )]
    NotYetCurrent {
        signed: String,
        limit: String,
        server: String,
        skew_max_s: u64,
    },
    #[error(
        "Credential should be scoped to a valid region: the request says '{got}', this is '{expected}'. Set AWS_REGION={expected}"
    )]
    Region { got: String, expected: String },
    #[error(
        "Credential should be scoped to correct service: the request says '{got}', here are 'ecs' and 'sts'"
    )]
    Service { got: String },
    #[error("header {0} must be signed: add it to SignedHeaders")]
    Unsigned(String),
    #[error(
        "The request signature we calculated does not match the signature you provided. Check the secret access \
         key of {access_key_id}, and that nothing on the way changes the body or the signed headers \
         ({signed_headers})"
    )]
    Mismatch {
        access_key_id: String,
        signed_headers: String,
    },
}

impl AuthError {
    /// As ECS names it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "MissingAuthenticationTokenException",
            Self::Incomplete(_) => "IncompleteSignatureException",
            Self::UnknownKey { .. } | Self::SessionToken => "UnrecognizedClientException",
            _ => "InvalidSignatureException",
        }
    }

    /// As STS names it.
    pub fn query_code(&self) -> &'static str {
        match self {
            Self::Missing => "MissingAuthenticationToken",
            Self::Incomplete(_) => "IncompleteSignature",
            Self::UnknownKey { .. } | Self::SessionToken => "InvalidClientTokenId",
            _ => "SignatureDoesNotMatch",
        }
    }
}

/// What the Authorization and X-Amz-Date headers claim. Nothing of it is true before [`Claim::verify`].
#[derive(Clone, Debug)]
pub struct Claim {
    pub access_key_id: String,
    pub region: String,
    pub service: String,
    /// Eight digits.
    date: String,
    /// X-Amz-Date as sent.
    timestamp: String,
    signed_at: OffsetDateTime,
    /// Lower case, sorted.
    signed_headers: Vec<String>,
    signature: Vec<u8>,
}

/// The parts of a request that are signed, besides its headers.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

impl Claim {
    /// Reads the claim. Errors: no Authorization header, or one that is not a complete Signature Version 4.
    pub fn parse(headers: &HeaderMap) -> Result<Self, AuthError> {
        let authorization = single(headers, "authorization")?.ok_or(AuthError::Missing)?;
        let parameters = authorization
            .strip_prefix(ALGORITHM)
            .filter(|rest| rest.starts_with(' '))
            .ok_or_else(|| incomplete(format!("Authorization header must start with '{ALGORITHM}'")))?;
        let mut found = BTreeMap::new();
        for part in parameters.split(',') {
            let (name, value) = part
                .trim()
                .split_once('=')
                .ok_or_else(|| incomplete("Authorization header is malformed"))?;
            if found.insert(name, value).is_some() {
                return Err(incomplete(format!("Authorization header has '{name}' twice")));
            }
        }
        let parameter = |name: &str| {
            found
                .get(name)
                .copied()
                .filter(|value| !value.is_empty())
                .ok_or_else(|| incomplete(format!("Authorization header requires '{name}' parameter")))
        };
        let credential = parameter("Credential")?;
        let [access_key_id, date, region, service, TERMINATOR] =
            credential.split('/').collect::<Vec<_>>()[..]
        else {
            return Err(incomplete(format!(
                "Credential must be KEY/YYYYMMDD/REGION/SERVICE/{TERMINATOR}, not '{credential}'"
            )));
        };
        let timestamp = single(headers, "x-amz-date")?
            .ok_or_else(|| incomplete("Authorization header requires existence of a 'X-Amz-Date' header"))?;
        let signed_at = parse_timestamp(timestamp).ok_or_else(|| {
            incomplete(format!(
                "X-Amz-Date must look like 20150830T123600Z, not '{timestamp}'"
            ))
        })?;
        if !timestamp.starts_with(date) || date.len() != 8 {
            return Err(incomplete(format!(
                "Date in Credential scope ({date}) is not that of X-Amz-Date ({timestamp})"
            )));
        }
        let signature = hex::decode(parameter("Signature")?)
            .map_err(|_| incomplete("Signature in Authorization header is not hexadecimal"))?;
        Ok(Self {
            access_key_id: access_key_id.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
            date: date.to_owned(),
            timestamp: timestamp.to_owned(),
            signed_at,
            signed_headers: signed_headers(parameter("SignedHeaders")?, headers)?,
            signature,
        })
    }

    /// Whether it was signed at most `skew_max` before or after `now`.
    pub fn check_time(&self, now: OffsetDateTime, skew_max: Duration) -> Result<(), AuthError> {
        let (signed, server, skew_max_s) =
            (self.timestamp.clone(), format_timestamp(now), skew_max.as_secs());
        let (oldest, newest) = (now - skew_max, now + skew_max);
        if self.signed_at < oldest {
            Err(AuthError::Expired {
                signed,
                limit: format_timestamp(oldest),
                server,
                skew_max_s,
            })
        } else if self.signed_at > newest {
            Err(AuthError::NotYetCurrent {
                signed,
                limit: format_timestamp(newest),
                server,
                skew_max_s,
            })
        } else {
            Ok(())
        }
    }

    /// Whether the request was signed with `secret`. The comparison takes the same time wherever they differ.
    pub fn verify(&self, request: Signed<'_>, secret: &str) -> Result<(), AuthError> {
        let canonical = canonical_request(request, &self.signed_headers);
        let to_sign = format!(
            "{ALGORITHM}\n{}\n{}/{}/{}/{TERMINATOR}\n{}",
            self.timestamp,
            self.date,
            self.region,
            self.service,
            hex::encode(Sha256::digest(canonical)),
        );
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [&self.date, &self.region, &self.service, TERMINATOR] {
            key = mac(&key, part.as_bytes()).finalize().into_bytes().to_vec();
        }
        mac(&key, to_sign.as_bytes())
            .verify_slice(&self.signature)
            .map_err(|_| AuthError::Mismatch {
                access_key_id: self.access_key_id.clone(),
                signed_headers: self.signed_headers.join(";"),
            })
    }
}

fn incomplete(problem: impl Into<String>) -> AuthError {
    AuthError::Incomplete(problem.into())
}

fn mac(key: &[u8], data: &[u8]) -> Hmac<Sha256> {
    #[allow(clippy::expect_used)] // HMAC is defined for keys of every length.
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("any key length");
    mac.update(data);
    mac
}

/// The one value of a header that must not come twice: a second one could be read by whoever comes after us.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, AuthError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(incomplete(format!("header {name} comes twice")));
    }
    value
        .to_str()
        .map(Some)
        .map_err(|_| incomplete(format!("header {name} is not ASCII")))
}

/// The names, checked: `host` and every `x-amz-*` header there is must be among them, and all must be there.
fn signed_headers(list: &str, headers: &HeaderMap) -> Result<Vec<String>, AuthError> {
    let mut names: Vec<String> = list.split(';').map(str::to_ascii_lowercase).collect();
    names.sort();
    names.dedup();
    if names.len() > SIGNED_HEADERS_MAX {
        return Err(incomplete(format!(
            "SignedHeaders names more than {SIGNED_HEADERS_MAX} headers"
        )));
    }
    if let Some(absent) = names.iter().find(|name| !headers.contains_key(name.as_str())) {
        return Err(incomplete(format!(
            "SignedHeaders names '{absent}', which the request does not have"
        )));
    }
    let must = |name: &HeaderName| name == http::header::HOST || name.as_str().starts_with("x-amz-");
    for name in headers.keys().filter(|name| must(name)) {
        if names
            .binary_search_by(|signed| signed.as_str().cmp(name.as_str()))
            .is_err()
        {
            return Err(AuthError::Unsigned(name.to_string()));
        }
    }
    if !names.iter().any(|name| name == "host") {
        return Err(AuthError::Unsigned("host".to_owned()));
    }
    Ok(names)
}

fn canonical_request(request: Signed<'_>, signed_headers: &[String]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(
        format!(
            "{}\n{}\n{}\n",
            request.method,
            request.path,
            canonical_query(request.query)
        )
        .as_bytes(),
    );
    for name in signed_headers {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        for (index, value) in request.headers.get_all(name.as_str()).iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            // Runs of spaces count as one; those at the ends do not count.
            let words = value
                .as_bytes()
                .split(u8::is_ascii_whitespace)
                .filter(|word| !word.is_empty());
            for (index, word) in words.enumerate() {
                if index > 0 {
                    out.push(b' ');
                }
                out.extend_from_slice(word);
            }
        }
        out.push(b'\n');
    }
    let payload = hex::encode(Sha256::digest(request.body));
    out.extend_from_slice(format!("\n{}\n{payload}", signed_headers.join(";")).as_bytes());
    out
}

/// Sorted by name, then value. Percent-encoding stays as the client wrote it, which is what it signed.
fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(&str, &str)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    pairs.sort_unstable();
    pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join("&")
}

fn parse_timestamp(text: &str) -> Option<OffsetDateTime> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    PrimitiveDateTime::parse(text, format)
        .ok()
        .map(PrimitiveDateTime::assume_utc)
}

fn format_timestamp(at: OffsetDateTime) -> String {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    at.format(format)
        .unwrap_or_else(|_| at.unix_timestamp().to_string())
}

#[cfg(test)]
mod tests;
