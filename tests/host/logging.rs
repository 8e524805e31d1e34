//! `logConfiguration`: what a container's logger is told, where its output is, and what the task says of it.

use std::time::Duration;

use berth_tests::cluster::{Cluster, container};
use serde_json::{Value, json};

/// The arguments of the logger of a container, by its runtime id.
fn logger_of(runtime_id: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let commands = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let words = commands.map(|command| {
        let command = String::from_utf8_lossy(&command).into_owned();
        command.split('\0').map(str::to_owned).collect::<Vec<_>>()
    });
    let mut loggers = words.filter(|words| {
        words[0].ends_with("/berth-logger") && words.windows(2).any(|two| two == ["id", runtime_id])
    });
    loggers.next().expect("a logger")
}

/// What follows a word among arguments.
fn told<'a>(arguments: &'a [String], key: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|word| word == key)?;
    arguments.get(at + 1).map(String::as_str)
}

#[tokio::test(flavor = "multi_thread")]
async fn options_reach_the_logger_and_absent_drivers_keep_their_output_here() {
    let cluster = Cluster::start().await;
    let logged = |name: &str, log: Value| {
        let mut one = container(name, &format!("echo said by {name}; sleep 3600"));
        one["logConfiguration"] = log;
        one
    };
    let awslogs = json!({
        "awslogs-group": "/ecs/web", "awslogs-region": "eu-central-1", "awslogs-stream-prefix": "ecs",
        "mode": "non-blocking", "max-buffer-size": "2m", "max-size": "1m",
    });
    let containers = json!([
        logged("plain", Value::Null),
        logged(
            "waits",
            json!({"logDriver": "json-file", "options": {"mode": "blocking", "max-file": "7"}})
        ),
        logged("away", json!({"logDriver": "awslogs", "options": awslogs})),
    ]);
    let task = cluster
        .running("", |d| d["containerDefinitions"] = containers)
        .await;
    let logs = cluster
        .until("all to be said", Duration::from_secs(20), async || {
            let logs = cluster.client.logs(&task).await;
            (logs.len() == 3).then_some(logs)
        })
        .await;
    for name in ["plain", "waits", "away"] {
        let line = logs.iter().find(|line| line["container"] == name).unwrap();
        assert_eq!(line["line"].as_str().unwrap().trim(), format!("said by {name}"));
    }

    let described = cluster.describe(&task).await;
    let all = described["containers"].as_array().unwrap();
    let logger = |name: &str| {
        let one = all.iter().find(|one| one["name"] == name).unwrap();
        logger_of(one["runtimeId"].as_str().unwrap())
    };
    for (name, mode, buffer, size, files) in [
        ("plain", None, None, "52428800", "3"),
        ("waits", Some("blocking"), None, "52428800", "7"),
        ("away", None, Some("2097152"), "1048576", "3"),
    ] {
        let arguments = logger(name);
        assert_eq!(told(&arguments, "mode"), mode, "{name}");
        assert_eq!(told(&arguments, "max-buffer-size"), buffer, "{name}");
        assert_eq!(told(&arguments, "max-size"), Some(size), "{name}");
        assert_eq!(told(&arguments, "max-file"), Some(files), "{name}");
    }

    let attributes = described["attributes"].as_array().unwrap();
    let warnings: Vec<_> = attributes
        .iter()
        .filter(|one| one["name"] == "berth.warning")
        .collect();
    let [warning] = &warnings[..] else {
        panic!("{attributes:?}");
    };
    let text = warning["value"].as_str().unwrap();
    assert!(
        text.starts_with("container away: log driver awslogs is not supported yet"),
        "{text}"
    );
    let stopped = cluster.stop(&task).await;
    assert_eq!(stopped["stopCode"], "UserInitiated");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_keeps_nothing_says_so_and_attributes_are_in_every_line() {
    let cluster = Cluster::start().await;
    // More than a pipe holds: its output is taken all the same.
    let mut quiet = container("quiet", "yes secret | head -c 1000000; exec sleep 3601");
    quiet["logConfiguration"] = json!({"logDriver": "none", "options": {"mode": "blocking"}});
    let mut marked = container("marked", "echo said; sleep 3600");
    marked["dockerLabels"] = json!({"team": "a & b", "other": "x"});
    marked["logConfiguration"] =
        json!({"logDriver": "json-file", "options": {"labels": "team", "tag": "{{.Name}}/{{.ID}}"}});
    let task = cluster
        .running("", |d| d["containerDefinitions"] = json!([quiet, marked]))
        .await;
    let logs = cluster
        .until(
            "the other one to say something",
            Duration::from_secs(20),
            async || {
                let logs = cluster.client.logs(&task).await;
                (logs.len() == 2).then_some(logs)
            },
        )
        .await;
    assert_eq!(
        (&logs[0]["container"], &logs[0]["line"]),
        (
            &json!("quiet"),
            &json!("berth: nothing of container quiet is kept: its log driver is none\n")
        )
    );
    assert_eq!(
        (&logs[1]["container"], &logs[1]["line"]),
        (&json!("marked"), &json!("said\n"))
    );

    let described = cluster.describe(&task).await;
    let runtime_id = |name: &str| {
        let containers = described["containers"].as_array().unwrap();
        let one = containers.iter().find(|one| one["name"] == name).unwrap();
        one["runtimeId"].as_str().unwrap().to_owned()
    };
    let arguments = logger_of(&runtime_id("quiet"));
    assert_eq!(told(&arguments, "discard"), Some("yes"));
    assert!(!std::path::Path::new(told(&arguments, "path").unwrap()).exists());
    // It wrote more than a pipe holds, and was not kept waiting.
    cluster
        .until("all of it to be taken", Duration::from_secs(20), async || {
            let pids = cluster.pids(&task);
            let done = |pid: &i32| {
                let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                command.contains("sleep\x003601")
            };
            pids.iter().any(done).then_some(())
        })
        .await;

    let id = runtime_id("marked");
    let arguments = logger_of(&id);
    assert_eq!(told(&arguments, "discard"), None);
    let text = std::fs::read_to_string(told(&arguments, "path").unwrap()).unwrap();
    let record: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let tag = format!("marked/{}", &id[..12]);
    assert_eq!(record["attrs"], json!({"team": "a & b", "tag": tag}));
    assert_eq!(record["log"], "said\n");
}
