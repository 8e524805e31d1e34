//! Owns one signed request: `POST /`, awsJson1_1, Signature Version 4 for service `ecs`.
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html>

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::endpoint::{Endpoint, is_loopback};
use crate::error::Chain;

const ECS: &str = "AmazonEC2ContainerServiceV20141113";
/// Berth's own operations, which no shape of ECS can carry.
const BERTH: &str = "BerthV1";
const JSON: &str = "application/x-amz-json-1.1";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds one answer; streams have no such bound.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// More pages than that are a server that goes in circles.
pub(super) const PAGES_MAX: usize = 10_000;
/// An answer larger than this is not one of a control plane.
const ANSWER_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no control plane answers at {url}: is it running, and is its certificate to be believed (--ca-file)?"
    )]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{operation} was refused: {message} ({code})")]
    Refused {
        operation: String,
        code: String,
        message: String,
    },
    #[error("{operation} got no answer from {url}")]
    Broken {
        operation: String,
        url: String,
        source: reqwest::Error,
    },
    #[error("{operation} got an answer from {url} that is not of a control plane (status {status})")]
    NotUnderstood {
        operation: String,
        url: String,
        status: u16,
    },
    #[error("{operation} cannot be signed: {reason}")]
    Sign { operation: String, reason: String },
    #[error("cannot use the authorities in {}", path.display())]
    Authorities {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot make an HTTP client")]
    Build { source: reqwest::Error },
}

impl ClientError {
    /// The control plane does not accept our keys or our clock.
    pub fn is_about_keys(&self) -> bool {
        const CODES: [&str; 6] = [
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "InvalidSignatureException",
            "SignatureDoesNotMatch",
            "MissingAuthenticationTokenException",
            "IncompleteSignatureException",
        ];
        matches!(self, Self::Refused { code, .. } if CODES.contains(&code.as_str()))
    }

    /// The error code of the ECS API, if the control plane gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }
}

/// A connection to one control plane. Cheap to call, so that waiting can poll.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    endpoint: Endpoint,
}

impl Client {
    pub fn new(endpoint: Endpoint) -> Result<Self, ClientError> {
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if endpoint.url.host_str().is_some_and(is_loopback) {
            http = http.no_proxy();
        }
        if let Some(path) = &endpoint.ca_file {
            http = http.tls_certs_only(authorities(path)?);
        }
        let http = http.build().map_err(|source| ClientError::Build { source })?;
        Ok(Self { http, endpoint })
    }

    /// Calls an operation of the ECS API.
    pub async fn ecs(&self, operation: &str, body: &Value) -> Result<Value, ClientError> {
        self.call(ECS, operation, body).await
    }

    /// Calls one of Berth's own operations.
    pub async fn berth(&self, operation: &str, body: &Value) -> Result<Value, ClientError> {
        self.call(BERTH, operation, body).await
    }

    /// Every page of one of Berth's own List operations.
    pub async fn berth_list(&self, operation: &str, field: &str) -> Result<Vec<Value>, ClientError> {
        let (mut all, mut body) = (Vec::new(), serde_json::json!({}));
        for _ in 0..PAGES_MAX {
            let mut answer = self.berth(operation, &body).await?;
            if let Some(Value::Array(page)) = answer.get_mut(field).map(Value::take) {
                all.extend(page);
            }
            match answer.get("nextToken").and_then(Value::as_str) {
                Some(token) if !token.is_empty() => body["nextToken"] = token.into(),
                _ => break,
            }
        }
        Ok(all)
    }

    /// Calls one of Berth's own operations whose answer comes in parts, for as long as it takes.
    pub async fn berth_stream(
        &self,
        operation: &str,
        body: &Value,
    ) -> Result<reqwest::Response, ClientError> {
        let response = self.send(BERTH, operation, body, None).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(match self.read(operation, response).await {
            Err(error) => error,
            Ok(_) => ClientError::NotUnderstood {
                operation: operation.into(),
                url: self.url(),
                status: 200,
            },
        })
    }

    /// Where requests go.
    pub fn url(&self) -> String {
        self.endpoint.url.to_string()
    }

    /// What requests are signed for.
    pub fn region(&self) -> &str {
        &self.endpoint.region
    }

    async fn call(&self, service: &str, operation: &str, body: &Value) -> Result<Value, ClientError> {
        let response = self.send(service, operation, body, Some(ANSWER_TIMEOUT)).await?;
        self.read(operation, response).await
    }

    async fn send(
        &self,
        service: &str,
        operation: &str,
        body: &Value,
        timeout: Option<Duration>,
    ) -> Result<reqwest::Response, ClientError> {
        let body = body.to_string().into_bytes();
        let headers = self
            .signed_headers(&format!("{service}.{operation}"), &body)
            .map_err(|reason| ClientError::Sign {
                operation: operation.into(),
                reason,
            })?;
        let mut request = self
            .http
            .post(self.endpoint.url.clone())
            .headers(headers)
            .body(body);
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        request.send().await.map_err(|source| {
            if source.is_connect() {
                ClientError::Unreachable {
                    url: self.url(),
                    source: source.without_url(),
                }
            } else {
                self.broken(operation, source)
            }
        })
    }

    fn broken(&self, operation: &str, source: reqwest::Error) -> ClientError {
        ClientError::Broken {
            operation: operation.into(),
            url: self.url(),
            source: source.without_url(),
        }
    }

    async fn read(&self, operation: &str, mut response: reqwest::Response) -> Result<Value, ClientError> {
        let status = response.status();
        let not_understood = || ClientError::NotUnderstood {
            operation: operation.into(),
            url: self.url(),
            status: status.as_u16(),
        };
        let mut answer = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.broken(operation, error))?
        {
            answer.extend_from_slice(&chunk);
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(not_understood());
            }
        }
        let answer: Value = serde_json::from_slice(&answer).map_err(|_| not_understood())?;
        if status.is_success() {
            return Ok(answer);
        }
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        let code = text("__type").ok_or_else(not_understood)?;
        Err(ClientError::Refused {
            operation: operation.into(),
            code: code.rsplit('#').next().unwrap_or(code).into(),
            message: text("message")
                .or_else(|| text("Message"))
                .unwrap_or("no reason given")
                .into(),
        })
    }

    fn signed_headers(&self, target: &str, body: &[u8]) -> Result<HeaderMap, String> {
        let keys = &self.endpoint.keys;
        let credentials = Credentials::new(
            keys.access_key_id.clone(),
            keys.secret_access_key.clone(),
            keys.session_token.clone(),
            None,
            "berth",
        );
        let identity = credentials.into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.endpoint.region)
            .name("ecs")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| Chain(&error).to_string())?
            .into();
        let own = [("content-type", JSON), ("x-amz-target", target)];
        let request = SignableRequest::new(
            "POST",
            self.endpoint.url.as_str(),
            own.iter().copied(),
            SignableBody::Bytes(body),
        )
        .map_err(|error| Chain(&error).to_string())?;
        let (instructions, _signature) = sign(request, &parameters)
            .map_err(|error| Chain(&error).to_string())?
            .into_parts();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        let signed = instructions.headers().chain([("x-amz-target", target)]);
        for (name, value) in signed {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
            headers.insert(
                name,
                HeaderValue::from_str(value).map_err(|error| error.to_string())?,
            );
        }
        Ok(headers)
    }
}

/// The certificates of a PEM file.
fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, ClientError> {
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Authorities {
        path: path.into(),
        source,
    };
    let pem = std::fs::read(path).map_err(|error| unusable(error.into()))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.into()))?;
    if found.is_empty() {
        return Err(unusable("there is no certificate in it".into()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Keys;

    fn client() -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::new(Endpoint {
            url: "http://127.0.0.1:9".parse().unwrap(),
            region: "us-east-1".into(),
            ca_file: None,
            keys: Keys {
                access_key_id: "AK".into(),
                secret_access_key: "SK".into(),
                session_token: None,
            },
        })
        .unwrap()
    }

    #[test]
    fn every_header_that_says_what_to_do_is_signed() {
        let headers = client()
            .signed_headers("AmazonEC2ContainerServiceV20141113.ListTasks", b"{}")
            .unwrap();
        let authorization = headers["authorization"].to_str().unwrap();
        assert!(
            authorization.starts_with("AWS4-HMAC-SHA256 Credential=AK/"),
            "{authorization}"
        );
        assert!(
            authorization.contains("/us-east-1/ecs/aws4_request"),
            "{authorization}"
        );
        assert!(
            authorization.contains("SignedHeaders=content-type;host;x-amz-date;x-amz-target,"),
            "{authorization}"
        );
    }

    #[tokio::test]
    async fn nobody_there_is_said_so() {
        let error = client().ecs("ListTasks", &Value::Null).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    }
}
