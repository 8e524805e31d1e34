use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    time::Instant,
};

use axum::routing::get;

use super::*;
use crate::readiness::{Condition, Needed};

struct Ground {
    dir: tempfile::TempDir,
    server: Server,
    link: Condition,
}

fn listen(dir: &tempfile::TempDir) -> Listen {
    Listen {
        socket: dir.path().join("run/test.sock"),
        socket_mode: 0o600,
        metrics: Some((Ipv4Addr::LOCALHOST, 0).into()),
    }
}

fn served(limit: Duration) -> (Served, Condition) {
    let readiness = Readiness::new();
    let link = readiness.condition("link", Needed::ToServe, "refused by cp:8781");
    let served = Served {
        readiness,
        pulse: Pulse::new(limit),
        metrics: Arc::new(|| Box::pin(async { "# EOF\n".to_owned() })),
        more: Router::new().route("/v1/tasks", get(|| async { "[]" })),
    };
    (served, link)
}

fn start(limit: Duration) -> Ground {
    let dir = tempfile::tempdir().unwrap();
    let (served, link) = served(limit);
    let server = Server::start(&listen(&dir), served).unwrap();
    Ground { dir, server, link }
}

impl Ground {
    fn socket(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("run/test.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn get(&self, path: &str) -> String {
        ask(self.socket(), path)
    }

    fn get_tcp(&self, path: &str) -> String {
        ask(
            TcpStream::connect(self.server.metrics_address().unwrap()).unwrap(),
            path,
        )
    }
}

fn ask(mut stream: impl std::io::Read + std::io::Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn readiness_fails_with_its_reasons_and_liveness_does_not() {
    let ground = start(Duration::from_secs(60));
    assert!(ground.get("/livez").starts_with("HTTP/1.1 200"));
    let answer = ground.get("/readyz");
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("[-] link: refused by cp:8781"),
        "{answer}"
    );
    ground.link.ok();
    assert!(ground.get("/readyz").ends_with("\r\n\r\nok\n"));
    assert!(ground.get("/readyz?verbose").contains("[+] link: ok"));
    let json = ground.get("/readyz?format=json");
    let (_, body) = json.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (&body["ready"], &body["conditions"][0]["name"]),
        (&true.into(), &"link".into())
    );
}

#[test]
fn a_daemon_that_does_not_move_is_not_live() {
    let ground = start(Duration::from_millis(1));
    std::thread::sleep(Duration::from_millis(20));
    let answer = ground.get("/livez");
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("has not moved"),
        "{answer}"
    );
}

#[test]
fn tcp_has_health_and_metrics_only() {
    let ground = start(Duration::from_secs(60));
    for path in ["/livez", "/metrics"] {
        assert!(ground.get_tcp(path).starts_with("HTTP/1.1 200"), "{path}");
    }
    assert!(ground.get("/metrics").contains("application/openmetrics-text"));
    assert!(ground.get("/v1/tasks").ends_with("[]"));
    assert!(ground.get_tcp("/v1/tasks").starts_with("HTTP/1.1 404"));
    assert!(ground.get("/none").starts_with("HTTP/1.1 404"));
}

#[test]
fn one_who_sends_no_header_is_cut_off_and_keeps_nobody_out() {
    let ground = start(Duration::from_secs(60));
    let idle: Vec<UnixStream> = (0..31).map(|_| ground.socket()).collect();
    assert!(ground.get("/livez").starts_with("HTTP/1.1 200"));
    let begun = Instant::now();
    let mut answer = Vec::new();
    // An end, or an answer that says why.
    (&idle[0]).read_to_end(&mut answer).unwrap();
    assert!(begun.elapsed() < connections::HEADER_LIMIT * 3);
    let mut huge = ground.socket();
    // It may be cut off while we write.
    let _ = write!(huge, "GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(100_000));
    let mut answer = Vec::new();
    let _ = huge.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn it_answers_while_the_daemons_runtime_hangs() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let ground = start(Duration::from_secs(60));
        // This thread is the runtime, and does nothing else meanwhile.
        assert!(ground.get("/livez").starts_with("HTTP/1.1 200"));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_connections_and_removes_the_socket() {
    let ground = start(Duration::from_secs(60));
    let idle = ground.socket();
    let path = ground.dir.path().join("run/test.sock");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let begun = Instant::now();
    ground.server.stop().await;
    assert!(begun.elapsed() < connections::GRACE * 4);
    assert!(!path.exists());
    drop(idle);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let listen = listen(&dir);
    std::fs::create_dir(dir.path().join("run")).unwrap();
    drop(UnixListener::bind(&listen.socket).unwrap());
    let server = Server::start(&listen, served(Duration::from_secs(60)).0).unwrap();
    let second = Server::start(&listen, served(Duration::from_secs(60)).0).unwrap_err();
    assert!(
        second.to_string().contains("somebody listens there already"),
        "{second}"
    );
    let busy = Listen {
        socket: dir.path().join("other.sock"),
        metrics: server.metrics_address(),
        ..listen
    };
    let error = Server::start(&busy, served(Duration::from_secs(60)).0)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("metrics_listen") && error.contains("ss -ltnp"),
        "{error}"
    );
    assert!(!busy.socket.exists());
    std::fs::write(&busy.socket, "").unwrap();
    let error = Server::start(&busy, served(Duration::from_secs(60)).0).unwrap_err();
    assert!(error.to_string().contains("no socket"), "{error}");
}
