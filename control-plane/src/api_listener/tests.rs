//! Callers that are slow, many, or do not believe the certificate.

use std::sync::Arc;

use std::{os::unix::fs::PermissionsExt, path::Path, time::Instant};

use axum::routing::post;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;

const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
const SOON: Duration = Duration::from_secs(20);

fn limits() -> Limits {
    Limits {
        connections: Places { all: 4, of_one: 3 },
        handshake: Duration::from_millis(500),
        header: Duration::from_millis(500),
    }
}

async fn start(tls: Option<ApiTls>) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        "done"
    };
    let from = |info: ConnectInfo<SocketAddr>| async move { info.0.ip().to_string() };
    let router = Router::new().route("/", post(from)).route("/slow", post(slow));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, router, tls, limits(), stop.clone()));
    (address, stop, server)
}

/// All there is to read until the end.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut bytes))
        .await
        .unwrap()
        .ok();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_caller_who_does_not_finish_its_header_is_closed() {
    let (address, _stop, _server) = start(None).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"POST / HTTP/1.1\r\nhost:").await.unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    let mut once = TcpStream::connect(address).await.unwrap();
    once.write_all(REQUEST).await.unwrap();
    let begun = Instant::now();
    for stream in [&mut slow, &mut idle, &mut once] {
        rest(stream).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(begun.elapsed() > Duration::from_millis(300));
}

#[tokio::test]
async fn connections_are_bounded_and_places_come_back() {
    let (address, _stop, _server) = start(None).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).await.unwrap();
        held.push(stream);
    }
    let mut fourth = TcpStream::connect(address).await.unwrap();
    assert_eq!(rest(&mut fourth).await, "", "closed without a word");
    drop(held);
    let begun = Instant::now();
    loop {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST).await.ok();
        if rest(&mut stream).await.contains("127.0.0.1") {
            break;
        }
        assert!(begun.elapsed() < SOON);
    }
}

#[tokio::test]
async fn what_is_under_way_at_the_end_is_finished() {
    let (address, stop, server) = start(None).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.cancel();
    assert!(rest(&mut stream).await.ends_with("done"));
    tokio::time::timeout(SOON, server).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

/// Writes a self-signed certificate for these names; returns it, PEM.
fn certificate(directory: &Path, names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let made = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    std::fs::write(directory.join("tls.pem"), made.pem()).unwrap();
    crate::pki::write_private(&directory.join("tls.key"), &key.serialize_pem()).unwrap();
    made.pem()
}

async fn over_tls(address: SocketAddr, trusted: &str) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let mut stream = connected.map_err(|error| error.to_string())?;
    stream.write_all(REQUEST).await.unwrap();
    Ok(rest(&mut stream).await)
}

#[tokio::test]
async fn with_a_certificate_the_api_speaks_tls_and_follows_its_files() {
    let directory = tempfile::tempdir().unwrap();
    let (pem, key) = (directory.path().join("tls.pem"), directory.path().join("tls.key"));
    let first = certificate(directory.path(), &["cp.example.org", "localhost"]);
    let tls = ApiTls::load(&pem, &key).unwrap();
    assert_eq!(
        (tls.name(), tls.own_authority()),
        (Some("localhost"), Some(pem.as_path()))
    );
    let (address, stop, _server) = start(Some(tls.clone())).await;
    let watch = tokio::spawn(tls.watch(stop.clone()));
    assert!(over_tls(address, &first).await.unwrap().contains("127.0.0.1"));
    // Plain HTTP, and silence, get no answer.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.ok();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let mut silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(rest(&mut silent).await, "");

    let second = certificate(directory.path(), &["localhost"]);
    let begun = Instant::now();
    while over_tls(address, &second).await.is_err() {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    over_tls(address, &first).await.unwrap_err();
    stop.cancel();
    watch.await.unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let (pem, key) = (directory.path().join("tls.pem"), directory.path().join("tls.key"));
    let refusal = || {
        let error = ApiTls::load(&pem, &key).unwrap_err();
        let source = std::error::Error::source(&error)
            .map(ToString::to_string)
            .unwrap_or_default();
        format!("{error}: {source}")
    };
    assert!(refusal().starts_with("api_tls_certificate: read"));
    certificate(directory.path(), &["a.example"]);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refusal().contains("chmod 640"), "{}", refusal());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    ApiTls::load(&pem, &key).unwrap();
    let (kept, other) = (std::fs::read(&key).unwrap(), KeyPair::generate().unwrap());
    std::fs::write(&key, other.serialize_pem()).unwrap();
    assert!(refusal().contains("cannot be used together"), "{}", refusal());
    std::fs::write(&key, "nonsense").unwrap();
    assert!(refusal().contains("no private key"), "{}", refusal());
    std::fs::write(&key, kept).unwrap();
    std::fs::write(&pem, "nonsense").unwrap();
    assert!(refusal().contains("no certificate"), "{}", refusal());
}
