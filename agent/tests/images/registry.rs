//! A registry that counts what it is asked, and misbehaves on demand. Plain HTTP/1.1, one request per connection.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::image::{Image, digest};

/// What goes wrong with a path, before anything else is looked at.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status instead of an answer, so many times.
    Status(u16, usize),
    /// Other bytes than were asked for, of the same number, without a digest header.
    WrongBytes,
    /// So many bytes, then silence; so many times.
    Stall(usize, usize),
    /// So many bytes, then the connection is closed; so many times.
    Cut(usize, usize),
    /// Bytes without end.
    Endless,
    /// Another digest in the header than the content has.
    WrongHeader(String),
    /// Waits before it answers.
    Slow(Duration),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Auth {
    None,
    Basic,
    /// The token service is at `/token`.
    Bearer,
}

pub const USER: &str = "who";
pub const PASSWORD: &str = "pass:word";
const TOKEN: &str = "a-token";

#[derive(Debug, Default)]
struct State {
    /// By path: media type and bytes.
    objects: HashMap<String, (String, Vec<u8>)>,
    faults: HashMap<String, Fault>,
    /// Method, path and range of every request, in order.
    requests: Vec<(String, String, Option<String>)>,
}

#[derive(Debug)]
pub struct Registry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Registry {
    pub async fn start() -> Self {
        Self::with_auth(Auth::None).await
    }

    pub async fn with_auth(auth: Auth) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, address, Arc::clone(&shared), auth.clone()));
            }
        });
        Self {
            address,
            state,
            server,
        }
    }

    pub fn put(&self, repository: &str, tag: &str, image: &Image) {
        for blob in image.blobs() {
            self.object(
                &format!("/v2/{repository}/blobs/{}", digest(&blob)),
                "application/octet-stream",
                blob,
            );
        }
        self.put_manifest(repository, tag, image.media_type, &image.manifest);
    }

    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        for selector in [tag, &digest(bytes)] {
            self.object(
                &format!("/v2/{repository}/manifests/{selector}"),
                media_type,
                bytes.to_vec(),
            );
        }
    }

    pub fn object(&self, path: &str, media_type: &str, bytes: Vec<u8>) {
        self.state
            .lock()
            .unwrap()
            .objects
            .insert(path.to_owned(), (media_type.to_owned(), bytes));
    }

    pub fn fault(&self, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(path.to_owned(), fault);
    }

    pub fn heal(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// How many requests had this in their path.
    pub fn count(&self, part: &str) -> usize {
        self.state
            .lock()
            .unwrap()
            .requests
            .iter()
            .filter(|(_, path, _)| path.contains(part))
            .count()
    }

    pub fn total(&self) -> usize {
        self.state.lock().unwrap().requests.len()
    }

    pub fn ranges(&self, part: &str) -> Vec<Option<String>> {
        let state = self.state.lock().unwrap();
        state
            .requests
            .iter()
            .filter(|(_, path, _)| path.contains(part))
            .map(|(.., range)| range.clone())
            .collect()
    }

    /// Goes away: connections are refused from now on.
    pub async fn stop(self) {
        self.server.abort();
        let _ = self.server.await;
    }
}

#[derive(Debug)]
struct Request {
    method: String,
    path: String,
    query: String,
    range: Option<String>,
    authorization: Option<String>,
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        range: headers.remove("range"),
        authorization: headers.remove("authorization"),
    })
}

async fn serve(stream: TcpStream, address: SocketAddr, state: Arc<Mutex<State>>, auth: Auth) {
    let mut stream = BufReader::new(stream);
    let Some(request) = read_request(&mut stream).await else {
        return;
    };
    let (object, fault) = {
        let mut state = state.lock().unwrap();
        state.requests.push((
            request.method.clone(),
            request.path.clone(),
            request.range.clone(),
        ));
        (
            state.objects.get(&request.path).cloned(),
            take_fault(&mut state.faults, &request.path),
        )
    };
    let _ = answer(stream.get_mut(), &request, object, fault, address, &auth).await;
    let _ = stream.get_mut().shutdown().await;
}

/// A fault with a count is used up.
fn take_fault(faults: &mut HashMap<String, Fault>, path: &str) -> Option<Fault> {
    let fault = faults.get_mut(path)?;
    let taken = fault.clone();
    if let Fault::Status(_, left) | Fault::Stall(_, left) | Fault::Cut(_, left) = fault {
        if *left == 0 {
            return None;
        }
        *left -= 1;
    }
    Some(taken)
}

async fn answer(
    stream: &mut TcpStream,
    request: &Request,
    object: Option<(String, Vec<u8>)>,
    fault: Option<Fault>,
    address: SocketAddr,
    auth: &Auth,
) -> std::io::Result<()> {
    let basic = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let authorization = request.authorization.as_deref();
    if request.path == "/token" {
        let asks_right = request.query.contains("service=berth") && request.query.contains("pull");
        return match authorization {
            Some(given) if given == basic && asks_right => {
                let body = format!(r#"{{"token":"{TOKEN}","expires_in":300}}"#);
                head(stream, 200, body.len(), "").await?;
                stream.write_all(body.as_bytes()).await
            }
            _ => error(stream, 401, "UNAUTHORIZED", "wrong user name or password", "").await,
        };
    }
    let (wanted, challenge) = match auth {
        Auth::None => (None, String::new()),
        Auth::Basic => (
            Some(basic),
            "www-authenticate: Basic realm=\"berth\"\r\n".to_owned(),
        ),
        Auth::Bearer => {
            let realm = format!("http://{address}/token");
            let challenge = format!("www-authenticate: Bearer realm=\"{realm}\",service=\"berth\"\r\n");
            (Some(format!("Bearer {TOKEN}")), challenge)
        }
    };
    if wanted.is_some() && wanted.as_deref() != authorization {
        return error(stream, 401, "UNAUTHORIZED", "authentication required", &challenge).await;
    }
    if let Some(Fault::Status(status, _)) = fault {
        return error(stream, status, "UNKNOWN", "as the test wants it", "").await;
    }
    let Some((media_type, bytes)) = object else {
        return error(stream, 404, "MANIFEST_UNKNOWN", "manifest unknown", "").await;
    };
    send(stream, request, &media_type, bytes, fault).await
}

async fn send(
    stream: &mut TcpStream,
    request: &Request,
    media_type: &str,
    mut bytes: Vec<u8>,
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let mut claimed = digest(&bytes);
    match &fault {
        Some(Fault::WrongBytes) => {
            bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
            claimed = digest(&bytes);
        }
        Some(Fault::WrongHeader(other)) => claimed.clone_from(other),
        Some(Fault::Slow(delay)) => tokio::time::sleep(*delay).await,
        _ => {}
    }
    let from = request
        .range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let from: usize = from.unwrap_or(0);
    let status = if from > 0 { 206 } else { 200 };
    let body = &bytes[from.min(bytes.len())..];
    let headers = format!("content-type: {media_type}\r\ndocker-content-digest: {claimed}\r\n");
    if let Some(Fault::Endless) = fault {
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\n{headers}connection: close\r\n\r\n").as_bytes())
            .await?;
        loop {
            stream.write_all(&[b' '; 65536]).await?;
        }
    }
    head(stream, status, body.len(), &headers).await?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match fault {
        Some(Fault::Cut(count, _)) => stream.write_all(&body[..count.min(body.len())]).await,
        Some(Fault::Stall(count, _)) => {
            stream.write_all(&body[..count.min(body.len())]).await?;
            tokio::time::sleep(Duration::from_secs(600)).await;
            Ok(())
        }
        _ => stream.write_all(body).await,
    }
}

async fn head(stream: &mut TcpStream, status: u16, length: usize, headers: &str) -> std::io::Result<()> {
    let head =
        format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await
}

async fn error(
    stream: &mut TcpStream,
    status: u16,
    code: &str,
    message: &str,
    headers: &str,
) -> std::io::Result<()> {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
    head(stream, status, body.len(), headers).await?;
    stream.write_all(body.as_bytes()).await
}
