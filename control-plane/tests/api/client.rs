//! A small signing client: HTTP/1.1 by hand, so that tests can send what a well-behaved client would not.

use std::{net::SocketAddr, time::Duration, time::SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4::SigningParams,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub const KEY: &str = "AKIDTESTS";
pub const SECRET: &str = "a-secret-for-tests";
pub const REGION: &str = "eu-central-1";
pub const ECS: &str = "AmazonEC2ContainerServiceV20141113";
const DEADLINE: Duration = Duration::from_secs(20);

/// One call, with every knob a test may want to turn.
#[derive(Clone, Debug)]
pub struct Call {
    pub target: String,
    pub body: Vec<u8>,
    /// What is sent in place of the body that was signed.
    pub altered: Option<Vec<u8>>,
    pub key: String,
    pub secret: String,
    pub region: String,
    pub service: String,
    pub at: SystemTime,
    pub content_type: String,
    pub signed: bool,
    /// Added before signing.
    pub signed_extra: Vec<(String, String)>,
    /// Added after signing.
    pub extra: Vec<(String, String)>,
}

impl Call {
    pub fn new(target: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self {
            target: target.into(),
            body: body.into(),
            altered: None,
            key: KEY.into(),
            secret: SECRET.into(),
            region: REGION.into(),
            service: "ecs".into(),
            at: SystemTime::now(),
            content_type: "application/x-amz-json-1.1".into(),
            signed: true,
            signed_extra: Vec::new(),
            extra: Vec::new(),
        }
    }

    pub fn ecs(operation: &str, body: &Value) -> Self {
        Self::new(format!("{ECS}.{operation}"), body.to_string())
    }

    fn headers(&self, host: &str) -> Vec<(String, String)> {
        let mut headers = vec![
            ("host".to_owned(), host.to_owned()),
            ("content-type".to_owned(), self.content_type.clone()),
        ];
        if !self.target.is_empty() {
            headers.push(("x-amz-target".to_owned(), self.target.clone()));
        }
        headers.extend(self.signed_extra.clone());
        if self.signed {
            let identity = Credentials::new(&self.key, &self.secret, None, None, "tests").into();
            let params = SigningParams::builder()
                .identity(&identity)
                .region(&self.region)
                .name(&self.service)
                .time(self.at)
                .settings(SigningSettings::default())
                .build()
                .unwrap()
                .into();
            let listed: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let uri = format!("http://{host}/");
            let request =
                SignableRequest::new("POST", uri, listed.into_iter(), SignableBody::Bytes(&self.body))
                    .unwrap();
            let (instructions, _) = sign(request, &params).unwrap().into_parts();
            let added: Vec<_> = instructions
                .headers()
                .map(|(n, v)| (n.to_owned(), v.to_owned()))
                .collect();
            headers.extend(added);
        }
        headers.extend(self.extra.clone());
        headers
    }

    /// Sends all but the body.
    pub async fn send_head(&self, address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = head(
            "POST / HTTP/1.1",
            &self.headers(&address.to_string()),
            self.body.len(),
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    /// Sends the head and so many bytes of the body.
    pub async fn send_part(&self, address: SocketAddr, bytes: usize) -> TcpStream {
        let mut stream = self.send_head(address).await;
        stream.write_all(&self.body[..bytes]).await.unwrap();
        stream
    }

    /// Sends it and reads the whole answer.
    pub async fn send(&self, address: SocketAddr) -> Answer {
        let headers = self.headers(&address.to_string());
        let body = self.altered.as_ref().unwrap_or(&self.body);
        exchange(address, "POST / HTTP/1.1", &headers, body).await
    }
}

fn head(request_line: &str, headers: &[(String, String)], body_bytes: usize) -> String {
    let mut head = format!("{request_line}\r\nconnection: close\r\ncontent-length: {body_bytes}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head + "\r\n"
}

/// One exchange on a connection of its own.
pub async fn exchange(
    address: SocketAddr,
    request_line: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> Answer {
    let work = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = head(request_line, headers, body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server may answer, and close, before it has read a body that it refuses.
        let _ = stream.write_all(body).await;
        let mut raw = Vec::new();
        let _ = stream.read_to_end(&mut raw).await;
        Answer::parse(&raw)
    };
    tokio::time::timeout(DEADLINE, work)
        .await
        .expect("the server answers in time")
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

impl Answer {
    fn parse(raw: &[u8]) -> Self {
        let end = raw
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .expect("a whole head");
        let head = String::from_utf8(raw[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let field = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let mut answer = Self {
            status,
            headers: lines.map(field).collect(),
            text: String::new(),
        };
        let body = &raw[end + 4..];
        let chunked = answer.header("transfer-encoding") == Some("chunked");
        let body = if chunked { unchunk(body) } else { body.to_vec() };
        answer.text = String::from_utf8(body).unwrap();
        answer
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    /// The answer of a call that must succeed.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        assert_eq!(self.header("content-type"), Some("application/x-amz-json-1.1"));
        assert_eq!(self.header("x-amzn-requestid").map(str::len), Some(36));
        self.json()
    }

    /// The message of a call that must be refused with this code.
    #[track_caller]
    pub fn refused(&self, code: &str) -> String {
        let body = self.json();
        assert_eq!(body["__type"], code, "{}", self.text);
        assert!(self.status >= 400, "{}", self.status);
        assert_eq!(self.header("x-amzn-requestid").map(str::len), Some(36));
        body["message"].as_str().unwrap().to_owned()
    }
}

fn unchunk(mut raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = raw
            .windows(2)
            .position(|window| window == b"\r\n")
            .expect("a chunk's size");
        let size = usize::from_str_radix(std::str::from_utf8(&raw[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&raw[end + 2..end + 2 + size]);
        raw = &raw[end + 4 + size..];
    }
}
