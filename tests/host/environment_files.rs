//! `environmentFiles`: of the control plane's own store and of servers that the node asks.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth_tests::cluster::Cluster;
use serde_json::{Value, json};

const STORED: &str = "arn:aws:s3:::config/web.env";
/// For a server that says nothing: as often as a start is tried, each time until the deadline.
const HUNG: Duration = Duration::from_secs(120);

/// A server of environment files, another one with each answer.
struct Server {
    address: SocketAddr,
    answers: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answers);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let read = stream.read(&mut request).unwrap();
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                let body = match request.split(' ').nth(1).unwrap().split('?').next().unwrap() {
                    "/web" => {
                        let nth = count.fetch_add(1, Ordering::Relaxed) + 1;
                        format!("# of the server\n\nNTH={nth}\nSTORED=server\nOWN=server\nSERVED=secret\n")
                    }
                    "/large" => "A=".to_owned() + &"x".repeat(64 << 10),
                    "/bad" => "A=1\nsecret".to_owned(),
                    "/hung" => {
                        // Kept open, and never answered.
                        std::mem::forget(stream);
                        continue;
                    }
                    _ => {
                        stream
                            .write_all(
                                b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                            )
                            .unwrap();
                        continue;
                    }
                };
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                // Who finds it too large goes away.
                let _ = stream.write_all((head + &body).as_bytes());
            }
        });
        Self { address, answers }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}?token=secret", self.address)
    }
}

fn files(values: &[&str]) -> Value {
    let file = |value: &&str| json!({"type": "s3", "value": value});
    values.iter().map(file).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_its_files_the_first_wins_and_a_restart_changes_nothing() {
    let cluster = Cluster::start().await;
    let server = Server::start();
    let content = "STORED=store\nSPACED= a \"b\" $HOME\nOWN=store\nSERVED_LATE=1\n";
    let body = json!({"arn": STORED, "content": content});
    cluster.client.berth("PutEnvironmentFile", body).await;
    let say = "echo \"$NTH|$STORED|$SPACED|$OWN|$SERVED\"; sleep 1; exit 1";
    let definition = cluster
        .register(say, |d| {
            let main = &mut d["containerDefinitions"][0];
            main["environment"] = json!([{"name": "OWN", "value": "definition"}]);
            main["environmentFiles"] = files(&[STORED, &server.url("web")]);
            main["restartPolicy"] = json!({"enabled": true});
        })
        .await;
    let task = cluster.run(&definition).await;
    let logs = cluster
        .until("it to start again", Duration::from_secs(30), async || {
            let logs = cluster.client.try_logs(&task).await.unwrap_or_default();
            (logs.len() >= 2).then_some(logs)
        })
        .await;
    for line in &logs {
        let said = line["line"].as_str().unwrap().trim();
        assert_eq!(said, "1|store| a \"b\" $HOME|definition|secret");
    }
    assert_eq!(server.answers.load(Ordering::Relaxed), 1);
    // As secret as any environment.
    assert!(
        !cluster.agent_says().contains("secret"),
        "{}",
        cluster.agent_says()
    );
    let described = cluster.describe(&task).await;
    assert!(!described.to_string().contains("secret"), "{described}");
    cluster.stop(&task).await;

    // Of one run: other files, and a value that wins over them.
    let overrides = json!({"containerOverrides": [{
        "name": "main", "environmentFiles": files(&[&server.url("web"), STORED]),
        "environment": [{"name": "SERVED", "value": "override"}],
    }]});
    let body = json!({
        "taskDefinition": definition, "overrides": overrides,
        "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-default"]}},
    });
    let answer = cluster.client.ok("RunTask", body).await;
    let task = answer["tasks"][0]["taskArn"].as_str().unwrap();
    let logs = cluster
        .until("it to say what it has", Duration::from_secs(30), async || {
            let logs = cluster.client.try_logs(task).await.unwrap_or_default();
            (!logs.is_empty()).then_some(logs)
        })
        .await;
    let said = logs[0]["line"].as_str().unwrap().trim();
    assert_eq!(said, "2|server| a \"b\" $HOME|definition|override");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_files_a_task_does_not_start_and_says_why() {
    let cluster = Cluster::start().await;
    let server = Server::start();
    let mut tasks = Vec::new();
    for (path, why) in [
        ("missing", "its server answered 404 Not Found"),
        ("large", "more than 65536 bytes"),
        (
            "bad",
            "line 2 has no =: expected VARIABLE=VALUE, or # before a comment",
        ),
        ("hung", "not all of it came within 10 s"),
    ] {
        let url = server.url(path);
        let definition = cluster
            .register("sleep 3600", |d| {
                d["networkMode"] = json!("none");
                d["containerDefinitions"][0]["environmentFiles"] = files(&[&url]);
            })
            .await;
        tasks.push((cluster.run(&definition).await, path, why));
    }
    for (task, path, why) in tasks {
        let stopped = cluster
            .until(&format!("{path} to stop its task"), HUNG, async || {
                let described = cluster.describe(&task).await;
                (described["lastStatus"] == "STOPPED").then_some(described)
            })
            .await;
        let reason = stopped["stoppedReason"].as_str().unwrap();
        let at = format!("environment file http://{}/{path}", server.address);
        assert!(
            reason.starts_with(&format!("ResourceInitializationError: {at}: {why}")),
            "{reason}"
        );
        assert_eq!(stopped["stopCode"], "TaskFailedToStart", "{stopped}");
        assert!(!reason.contains("secret"), "{reason}");
    }
}
