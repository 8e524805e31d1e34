use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::sys::Chain;

/// A server that answers each path as told, and the rest with 404.
async fn serve(answers: Vec<(&'static str, String)>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..count]).into_owned();
            let path = request.split(' ').nth(1).unwrap().to_owned();
            let path = path.split('?').next().unwrap();
            let answer = answers
                .iter()
                .find(|(of, _)| *of == path)
                .map(|(_, answer)| answer);
            let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned();
            let answer = answer.unwrap_or(&missing);
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.is_empty() {
                // Says nothing until the client goes away.
                let _ = stream.read(&mut [0; 1]).await;
            }
        }
    });
    address
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn moved(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

async fn fetch(address: SocketAddr, path: &str) -> Result<Vec<(String, String)>, FetchError> {
    let url = format!("http://{address}{path}");
    let files = EnvironmentFiles::new(vec![])
        .fetch(&BTreeSet::from([url.clone()]))
        .await?;
    Ok(files[&url].0.clone())
}

#[tokio::test]
async fn files_are_fetched_and_read_also_where_they_moved() {
    let address = serve(vec![("/a", ok("# x\nA=1\n")), ("/b", moved("/a?token=secret"))]).await;
    let expected = [("A".to_owned(), "1".to_owned())];
    assert_eq!(fetch(address, "/a?token=secret").await.unwrap(), expected);
    assert_eq!(fetch(address, "/b").await.unwrap(), expected);
}

#[tokio::test]
async fn what_is_no_file_says_where_and_why_and_never_what_it_holds() {
    let endless = format!("HTTP/1.1 200 OK\r\n\r\nA={}", "x".repeat(FILE_BYTES_MAX));
    let address = serve(vec![
        ("/bad", ok("A=1\nsecret")),
        (
            "/announced",
            "HTTP/1.1 200 OK\r\ncontent-length: 65537\r\n\r\n".into(),
        ),
        ("/endless", endless),
        (
            "/broken",
            "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into(),
        ),
        (
            "/empty",
            "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".into(),
        ),
        ("/loop", moved("/loop?secret")),
        ("/elsewhere", moved("ftp://secret.example/")),
        (
            "/cut",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nsecret".into(),
        ),
    ])
    .await;
    for (path, why, retryable) in [
        ("/bad", "line 2 has no =", false),
        ("/announced", "more than 65536 bytes", false),
        ("/endless", "more than 65536 bytes", false),
        ("/gone", "answered 404 Not Found", false),
        ("/broken", "answered 503", true),
        ("/empty", "answered 204", false),
        ("/loop", "too many redirects", false),
        ("/elsewhere", "not encrypted", false),
        ("/cut", "cannot be fetched", true),
    ] {
        let error = fetch(address, &format!("{path}?token=secret")).await.unwrap_err();
        let said = Chain(&error).to_string();
        assert!(said.contains(&format!("http://{address}{path}")), "{said}");
        assert!(said.contains(why) && !said.contains("secret"), "{path}: {said}");
        assert_eq!(error.retryable(), retryable, "{path}: {said}");
    }
    let closed = SocketAddr::from(([127, 0, 0, 1], 1));
    let error = fetch(closed, "/a?secret").await.unwrap_err();
    let said = Chain(&error).to_string();
    assert!(
        error.retryable() && said.contains("refused") && !said.contains("secret"),
        "{said}"
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let address = serve(vec![("/a", String::new())]).await;
    let files = EnvironmentFiles {
        deadline: Duration::from_millis(100),
        ..EnvironmentFiles::new(vec![])
    };
    let url = format!("http://{address}/a");
    let error = files.fetch(&BTreeSet::from([url])).await.unwrap_err();
    assert!(matches!(error, FetchError::Late { .. }), "{error:?}");
    assert!(error.retryable());
}

#[test]
fn an_url_is_shown_without_what_may_be_secret() {
    for (url, expected) in [
        ("https://a.example/b/c.env?x=secret", "https://a.example/b/c.env"),
        ("https://me:secret@a.example:8443?x", "https://a.example:8443"),
        ("https://a?secret", "https://a"),
        ("secret", "that names no scheme"),
    ] {
        assert_eq!(shown(url), expected);
    }
}
