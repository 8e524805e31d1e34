//! Owns the reading of HTTP answers: bounded bodies, statuses and transport failures as causes. Never sends.

use std::{error::Error, io, time::Duration};

use bytes::{Bytes, BytesMut};
use reqwest::{Response, StatusCode, header::RETRY_AFTER};
use serde::Deserialize;

use super::super::{digest::excerpt, error::Cause};

/// How much of an error's body is read.
const ERROR_BYTES_MAX: u64 = 16 << 10;

/// What `check_status` calls the thing that was asked for, when it is not there.
pub(super) async fn check_status(response: Response, what: &str) -> Result<Response, Cause> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = retry_after.map(Duration::from_secs);
    let detail = error_detail(response).await;
    let code = status.as_u16();
    Err(match status {
        StatusCode::NOT_FOUND => Cause::NotFound {
            what: what.to_owned(),
            detail,
        },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Cause::Denied { status: code, detail },
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Cause::Unavailable {
            status: code,
            detail,
            retry_after,
        },
        other if other.is_server_error() => Cause::Unavailable {
            status: code,
            detail,
            retry_after,
        },
        _ => Cause::Refused { status: code, detail },
    })
}

#[derive(Deserialize)]
struct Envelope {
    errors: Vec<EnvelopeEntry>,
}

#[derive(Deserialize)]
struct EnvelopeEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The registry's own words, short (distribution spec, error codes).
async fn error_detail(response: Response) -> String {
    let status = response.status();
    let silence = Duration::ZERO;
    let body = read_bounded(response, "error", ERROR_BYTES_MAX, silence)
        .await
        .unwrap_or_default();
    if let Ok(envelope) = serde_json::from_slice::<Envelope>(&body)
        && let Some(entry) = envelope.errors.first()
    {
        let words = [entry.code.as_str(), entry.message.as_str()]
            .map(str::trim)
            .join(" ");
        return excerpt(words.trim());
    }
    let text = String::from_utf8_lossy(&body);
    match text.trim() {
        "" => status.canonical_reason().unwrap_or("no reason given").to_owned(),
        text => excerpt(text),
    }
}

/// Reads a body that may not be larger than `limit`, whatever its headers say.
pub(super) async fn read_bounded(
    mut response: Response,
    what: &'static str,
    limit: u64,
    stall: Duration,
) -> Result<Bytes, Cause> {
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(Cause::TooLarge { what, limit });
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| transport(error, stall))? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(Cause::TooLarge { what, limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Why a request got no answer, or an answer no end.
pub(super) fn transport(error: reqwest::Error, stall: Duration) -> Cause {
    if error.is_redirect() {
        Cause::Redirect { source: error }
    } else if is_untrusted(&error) {
        Cause::Certificate { source: error }
    } else if error.is_timeout() && !error.is_connect() {
        Cause::Stalled(stall)
    } else if error.is_builder() {
        Cause::Client { source: error }
    } else {
        Cause::Unreachable { source: error }
    }
}

/// True if TLS failed over the certificate: trying again does not help.
fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref::<rustls::Error>() {
        return true;
    }
    // An io::Error hides the error inside it from `source`.
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match inner {
        Some(inner) => is_untrusted(inner),
        None => error.source().is_some_and(is_untrusted),
    }
}
