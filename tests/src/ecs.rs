//! Owns a small signed client of the ECS API.

use std::{net::SocketAddr, time::SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use serde_json::Value;

pub const ACCESS_KEY_ID: &str = "AKIABERTHTESTS000000";
pub const SECRET_ACCESS_KEY: &str = "a-secret-only-for-tests-000000000000000000";
pub const REGION: &str = "us-east-1";
const ECS: &str = "AmazonEC2ContainerServiceV20141113";

/// An error answer: its type and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub kind: String,
    pub message: String,
}

#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    pub fn new(api: SocketAddr) -> Self {
        // reqwest wants a provider even for plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            http: reqwest::Client::new(),
            url: format!("http://{api}/"),
        }
    }

    /// An ECS operation that must succeed.
    pub async fn ok(&self, operation: &str, body: Value) -> Value {
        self.call(operation, body)
            .await
            .unwrap_or_else(|refusal| panic!("{operation}: {refusal:?}"))
    }

    /// An operation of Berth's own that must succeed.
    pub async fn berth(&self, operation: &str, body: Value) -> Value {
        let response = self.send(&format!("BerthV1.{operation}"), body).await;
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{operation}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub async fn call(&self, operation: &str, body: Value) -> Result<Value, Refusal> {
        let response = self.send(&format!("{ECS}.{operation}"), body).await;
        let ok = response.status().is_success();
        let text = response.text().await.unwrap();
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{operation}: {text}"));
        if ok {
            return Ok(value);
        }
        let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Err(Refusal {
            kind: field("__type"),
            message: field("message"),
        })
    }

    /// Lines of a task's log, as the control plane streams them.
    pub async fn logs(&self, task: &str) -> Vec<Value> {
        self.try_logs(task)
            .await
            .unwrap_or_else(|refusal| panic!("logs of {task}: {refusal}"))
    }

    /// As [`logs`](Self::logs); the answer when there are none to be had, as while the node is away.
    pub async fn try_logs(&self, task: &str) -> Result<Vec<Value>, String> {
        let body = serde_json::json!({ "cluster": "default", "task": task });
        let response = self.send("BerthV1.StreamLogs", body).await;
        let ok = response.status().is_success();
        let text = response.text().await.unwrap();
        if !ok {
            return Err(text);
        }
        Ok(text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect())
    }

    pub async fn send(&self, target: &str, body: Value) -> reqwest::Response {
        let body = body.to_string();
        let content_type = "application/x-amz-json-1.1";
        let identity = Credentials::new(ACCESS_KEY_ID, SECRET_ACCESS_KEY, None, None, "tests").into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(REGION)
            .name("ecs")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let headers = [("content-type", content_type), ("x-amz-target", target)];
        let signable = SignableRequest::new(
            "POST",
            &self.url,
            headers.into_iter(),
            SignableBody::Bytes(body.as_bytes()),
        );
        let (instructions, _) = sign(signable.unwrap(), &parameters).unwrap().into_parts();
        let mut request = http::Request::builder()
            .method("POST")
            .uri(&self.url)
            .header("content-type", content_type)
            .header("x-amz-target", target)
            .body(body)
            .unwrap();
        instructions.apply_to_request_http1x(&mut request);
        self.http.execute(request.try_into().unwrap()).await.unwrap()
    }
}
