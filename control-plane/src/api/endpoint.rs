//! Owns the way of one HTTP request: limits, signature, the operation's name, and the shape of answers and errors.
//! Never knows what an operation does.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    response::Response,
};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tracing::{debug, error};

use super::{
    access::Key,
    audited,
    context::{Api, Caller},
    error::ApiError,
    fields::Fields,
    operations::{Answer, Operation},
    sigv4::{AuthError, Claim, Signed},
    sts,
    turns::{SMALL_BODY_BYTES, Turn},
};
use crate::date;

/// Longest request body.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Most header fields of a request.
const HEADERS_MAX: usize = 64;
/// Most bytes of all header names and values.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// From the first byte of the body to the answer (to its first byte, where it is a stream).
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Longest wait for more of a body: who sends it slower holds a connection of others.
const CHUNK_DEADLINE: Duration = Duration::from_secs(5);
const JSON_TYPE: &str = "application/x-amz-json-1.1";
const XML_TYPE: &str = "text/xml";
const STREAM_TYPE: &str = "application/x-ndjson";

/// The two protocols spoken here. Errors must come in the one the client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Json,
    Query,
}

/// Serves one request.
pub(super) async fn serve(State(api): State<Arc<Api>>, request: Request) -> Response {
    let request_id = uuid::Uuid::new_v4().to_string();
    let (parts, body) = request.into_parts();
    let protocol = protocol(&parts.headers);
    let answer = tokio::time::timeout(CALL_DEADLINE, answer(&api, &parts, body, &request_id))
        .await
        .unwrap_or(Err(ApiError::DeadlineExceeded(CALL_DEADLINE.as_secs())));
    let mut response = match answer {
        Ok(Answer::Json(value)) => respond(StatusCode::OK, JSON_TYPE, value.to_string()),
        Ok(Answer::Xml(text)) => respond(StatusCode::OK, XML_TYPE, text),
        Ok(Answer::Stream(body)) => respond(StatusCode::OK, STREAM_TYPE, body),
        Err(error) => refuse(&error, protocol, &request_id),
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-amzn-requestid", value);
    }
    date::stamp(response)
}

async fn answer(api: &Arc<Api>, parts: &Parts, body: Body, request_id: &str) -> Result<Answer, ApiError> {
    check_head(parts)?;
    let (caller, service, body) = authenticate(api, parts, body).await?;
    let _turn = api.turns.call(caller.role).await?;
    let body = &body.bytes;
    if service == "sts" {
        return sts::call(api, &caller, body, request_id).map(Answer::Xml);
    }
    let target = target(&parts.headers)?;
    let operation = Operation::find(target)?;
    let answer = audited::call(api, &caller, operation, fields(body), request_id).await;
    log(target, &caller, request_id, answer.as_ref().err());
    answer
}

/// A whole body.
#[derive(Debug, Default)]
struct Read {
    bytes: Vec<u8>,
    /// Where it is large; held as long as the body is.
    _place: Option<Turn>,
}

/// Who calls, which service the signature is for, and the body that was signed.
async fn authenticate(api: &Api, parts: &Parts, body: Body) -> Result<(Caller, String, Read), ApiError> {
    let address = parts
        .extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map(|info| info.0.ip());
    let refused = |error: ApiError, key: Option<&str>| {
        if let ApiError::Auth(error) = &error {
            api.audit.refused(address, error.code(), key.map(str::to_owned));
        }
        error
    };
    // All that can be refused without the body is refused before it is read.
    let (claim, key) = check_claim(api, &parts.headers)
        .await
        .map_err(|error| refused(error, None))?;
    let body = read(body, || api.turns.body(&claim.access_key_id, address)).await?;
    let signed = Signed {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        headers: &parts.headers,
        body: &body.bytes,
    };
    claim
        .verify(signed, &key.secret)
        .map_err(|error| refused(error.into(), Some(&claim.access_key_id)))?;
    api.access
        .used(api.store.as_ref(), &claim.access_key_id, &key)
        .await;
    let caller = api.caller(&claim.access_key_id, key.role, address);
    Ok((caller, claim.service, body))
}

fn check_head(parts: &Parts) -> Result<(), ApiError> {
    let bytes: usize = parts
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if parts.headers.len() > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
        return Err(ApiError::HeaderTooLarge {
            count_max: HEADERS_MAX,
            bytes_max: HEADER_BYTES_MAX,
        });
    }
    if parts.method != http::Method::POST || parts.uri.path() != "/" {
        return Err(ApiError::UnknownOperation(format!(
            "{} {}: this endpoint takes only POST /",
            parts.method,
            parts.uri.path()
        )));
    }
    let length = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
        return Err(ApiError::TooLarge {
            limit_bytes: BODY_BYTES_MAX,
        });
    }
    Ok(())
}

async fn check_claim(api: &Api, headers: &HeaderMap) -> Result<(Claim, Key), ApiError> {
    let claim = Claim::parse(headers)?;
    let key = api
        .access
        .find(api.store.as_ref(), &claim.access_key_id)
        .await?
        .ok_or_else(|| AuthError::UnknownKey {
            access_key_id: claim.access_key_id.clone(),
        })?;
    if headers.contains_key("x-amz-security-token") {
        return Err(AuthError::SessionToken.into());
    }
    claim.check_time(OffsetDateTime::now_utc(), api.clock_skew_max)?;
    // STS also has a global endpoint, for which clients sign with us-east-1.
    let global = claim.service == "sts" && claim.region == "us-east-1";
    if claim.region != api.realm.region && !global {
        return Err(AuthError::Region {
            got: claim.region,
            expected: api.realm.region.clone(),
        }
        .into());
    }
    if !matches!(claim.service.as_str(), "ecs" | "sts") {
        return Err(AuthError::Service { got: claim.service }.into());
    }
    Ok((claim, key))
}

/// Reads a body; once it turns out to be large, in the place that `place` gives.
async fn read<F>(body: Body, place: impl Fn() -> F) -> Result<Read, ApiError>
where
    F: Future<Output = Result<Turn, ApiError>>,
{
    let (mut bytes, mut chunks) = (Vec::new(), body.into_data_stream());
    let mut large = None;
    while let Some(chunk) = tokio::time::timeout(CHUNK_DEADLINE, chunks.next())
        .await
        .map_err(|_| ApiError::BrokenBody)?
    {
        let chunk = chunk.map_err(|_| ApiError::BrokenBody)?;
        if bytes.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(ApiError::TooLarge {
                limit_bytes: BODY_BYTES_MAX,
            });
        }
        if large.is_none() && bytes.len() + chunk.len() > SMALL_BODY_BYTES {
            large = Some(place().await?);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Read { bytes, _place: large })
}

/// The operation: exactly one X-Amz-Target (that it is signed was checked with the signature).
fn target(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut values = headers.get_all("x-amz-target").iter();
    match (values.next().and_then(|value| value.to_str().ok()), values.next()) {
        (Some(target), None) => Ok(target),
        _ => Err(ApiError::UnknownOperation(
            "exactly one X-Amz-Target header names the operation".to_owned(),
        )),
    }
}

fn fields(body: &[u8]) -> Result<Fields, ApiError> {
    if body.is_empty() {
        return Fields::top(Value::Object(Map::new()));
    }
    let value = serde_json::from_slice(body)
        .map_err(|error| ApiError::Serialization(format!("request body is not JSON: {error}")))?;
    Fields::top(value)
}

fn protocol(headers: &HeaderMap) -> Protocol {
    let form = |value: &HeaderValue| value.as_bytes().starts_with(b"application/x-www-form-urlencoded");
    if headers.get(header::CONTENT_TYPE).is_some_and(form) {
        Protocol::Query
    } else {
        Protocol::Json
    }
}

fn log(target: &str, caller: &Caller, request_id: &str, failure: Option<&ApiError>) {
    match failure {
        None => debug!(target, caller = caller.access_key_id, request_id, "call answered"),
        Some(error) if error.status().is_server_error() => {
            error!(target, caller = caller.access_key_id, request_id, error = %Chain(error), "call failed");
        }
        Some(error) => debug!(target, caller = caller.access_key_id, request_id, %error, "call refused"),
    }
}

/// An error and its causes, on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

fn refuse(error: &ApiError, protocol: Protocol, request_id: &str) -> Response {
    let mut message = error.to_string();
    if error.status() == StatusCode::INTERNAL_SERVER_ERROR {
        message.push_str(&format!(
            " (the control plane's log says more: request {request_id})"
        ));
    }
    match protocol {
        Protocol::Json => {
            let mut body = json!({"__type": error.code(), "message": message});
            if let ApiError::Conflict { resource_ids, .. } = error {
                body["resourceIds"] = json!(resource_ids);
            }
            respond(error.status(), JSON_TYPE, body.to_string())
        }
        Protocol::Query => {
            let (status, text) = sts::error(error, &message, request_id);
            respond(status, XML_TYPE, text)
        }
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
