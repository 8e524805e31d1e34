//! The agent as a service: what it tells its manager, what it says of itself, and what outlives it.

use std::{
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    process::Command,
    time::{Duration, Instant},
};

use berth_tests::{
    cluster::{Cluster, Options, binary},
    manager::Manager,
};
use serde_json::{Value, json};

const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo line $i || exit 9; done";

/// An agent that was started just now has not made its socket yet.
const SOCKET: Duration = Duration::from_secs(10);

fn connect(cluster: &Cluster) -> UnixStream {
    let (path, begun) = (cluster.run_dir().join("agent.sock"), Instant::now());
    loop {
        match UnixStream::connect(&path) {
            Ok(stream) => return stream,
            Err(error) => assert!(begun.elapsed() < SOCKET, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn get(cluster: &Cluster, target: &str) -> (u16, String) {
    let mut stream = connect(cluster);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {target} HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn id(task: &str) -> &str {
    task.rsplit('/').next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_says_what_it_does_on_its_socket() {
    let mut cluster = Cluster::start().await;
    let tasks = [
        cluster.running("sleep 3600", |d| d["cpu"] = json!("128")).await,
        cluster.running("sleep 3600", |d| d["cpu"] = json!("128")).await,
    ];
    assert_eq!(get(&cluster, "/livez"), (200, "ok\n".into()));
    let (code, ready) = get(&cluster, "/readyz?verbose");
    assert!(
        code == 200 && ready.contains("[+] containerd") && ready.contains("[+] link"),
        "{ready}"
    );
    let (_, metadata) = get(&cluster, "/v1/metadata");
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(metadata["Cluster"], "default", "{metadata}");
    let (_, one) = get(&cluster, &format!("/v1/tasks?taskarn={}", tasks[0]));
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one["Tasks"].as_array().unwrap().len(), 1, "{one}");
    let shown = &one["Tasks"][0];
    assert_eq!(
        (&shown["Arn"], &shown["KnownStatus"]),
        (&json!(tasks[0]), &json!("RUNNING"))
    );
    let container = &shown["Containers"][0];
    assert_eq!(container["Pid"], cluster.pids(&tasks[0])[0]);
    let cgroup = container["Cgroup"].as_str().unwrap();
    assert!(cgroup.contains(id(&tasks[0])), "{cgroup}");
    let address = container["Networks"][0]["IPv4Addresses"][0].as_str().unwrap();
    assert!(address.starts_with("10.91."), "{address}");
    let (_, ledger) = get(&cluster, "/v1/ledger");
    assert!(
        ledger.contains(id(&tasks[0])) && ledger.contains("\"Kind\":\"attempt\""),
        "{ledger}"
    );
    assert_eq!(get(&cluster, "/v1/impairments").1.trim(), "{\"Impairments\":[]}");

    let (code, metrics) = get(&cluster, "/metrics");
    assert_eq!(code, 200);
    for slot in ["0", "1"] {
        let labels = format!("{{family=\"test\",container=\"main\",slot=\"{slot}\"}}");
        for name in [
            "container_memory_working_set_bytes",
            "container_cpu_usage_seconds_total",
        ] {
            assert!(
                metrics.contains(&format!("{name}{labels} ")),
                "{name}{labels}: {metrics}"
            );
        }
    }
    for line in [
        "berth_controlplane_connected 1",
        "berth_tasks{status=\"RUNNING\"} 2",
        "berth_leaked_objects{kind=\"container\"} 0",
        "berth_task_start_duration_seconds_count{phase=\"total\"} 2",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    assert!(
        tasks.iter().all(|task| !metrics.contains(id(task))),
        "no task id is a label"
    );
    assert!(metrics.ends_with("# EOF\n") && metrics.matches("# EOF").count() == 1);

    let socket = cluster.run_dir().join("agent.sock");
    let status = || {
        let mut command = Command::new(binary("berth-agent"));
        command
            .arg("status")
            .arg("--socket")
            .arg(&socket)
            .output()
            .unwrap()
    };
    let said = status();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.status.success() && text.contains("tasks: 2 RUNNING"),
        "{said:?}"
    );
    cluster.stop_control_plane().await;
    let unready = async || {
        let (code, ready) = get(&cluster, "/readyz");
        (code == 503 && ready.contains("link is down")).then_some(())
    };
    cluster
        .until("readyz to fail", Duration::from_secs(20), unready)
        .await;
    assert_eq!(get(&cluster, "/livez").0, 200, "alive without a link");
    assert_eq!(status().status.code(), Some(1));
    cluster.start_control_plane().await;
    for task in &tasks {
        cluster.stop(task).await;
    }
    let metrics = get(&cluster, "/metrics").1;
    assert!(
        !metrics.contains("slot="),
        "nothing is kept of tasks that ended: {metrics}"
    );
    cluster.stop_agent();
    assert_eq!(status().status.code(), Some(1));
}

/// The end-to-end proof that output outlives agent and logger: a service manager keeps the pipes.
#[tokio::test(flavor = "multi_thread")]
async fn agent_and_logger_killed_together_cost_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let mut manager = Manager::new(directory.path());
    let environment = [
        ("NOTIFY_SOCKET", manager.path.display().to_string()),
        ("WATCHDOG_USEC", "2000000".into()),
    ];
    let options = Options {
        agent_environment: environment.map(|(key, value)| (key.into(), value)).into(),
        ..Options::default()
    };
    let mut cluster = Cluster::with(options).await;
    manager.until_said("READY=1");
    manager.until_said("WATCHDOG=1");
    let task = cluster.running(COUNTER, |_| {}).await;
    manager.until_stored(2);
    manager.until_said("STATUS=1 tasks running");
    let before = cluster.pids(&task);
    for round in 0..2 {
        let rt = cluster.cgroup("memory", &task).join("rt/cgroup.procs");
        let procs = std::fs::read_to_string(rt).unwrap();
        let logger = procs
            .lines()
            .find(|pid| {
                let name = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                name.split('\0')
                    .next()
                    .is_some_and(|name| name.ends_with("berth-logger"))
            })
            .expect("the container has a logger, beside its shim");
        let logger = nix::unistd::Pid::from_raw(logger.parse().unwrap());
        let agent = nix::unistd::Pid::from_raw(cluster.agent_pid());
        for pid in [agent, logger] {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        cluster.kill_agent();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let pid = std::process::id();
        cluster.options.agent_fds = manager
            .stored
            .iter()
            .rev()
            .map(|(name, fd)| (name.clone(), format!("/proc/{pid}/fd/{}", fd.as_raw_fd()).into()))
            .collect();
        cluster.start_agent();
        manager.until_said("READY=1");
        assert_eq!(
            cluster.pids(&task),
            before,
            "round {round}: the same process, no SIGPIPE"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(cluster.agent_says().matches("was replaced").count(), 2);
    cluster.wait_connected(true).await;
    let stopped = cluster.stop(&task).await;
    assert_ne!(
        stopped["containers"][0]["exitCode"], 9,
        "no write ever failed: {stopped}"
    );
    // Both ends are let go once the container is gone.
    manager.until_stored(0);

    let (mut next, mut repeated) = (1u64, 0u32);
    let mut files: Vec<_> = glob(
        &cluster
            .agent_state_dir()
            .join("logs")
            .join(id(&task))
            .join("main"),
    );
    // The highest suffix is the oldest.
    files.sort_by_key(|path| {
        std::cmp::Reverse(path.extension().and_then(|e| e.to_str()?.parse::<u32>().ok()))
    });
    for text in files.iter().map(|path| std::fs::read_to_string(path).unwrap()) {
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).expect("no record is broken");
            let number: u64 = record["log"]
                .as_str()
                .unwrap()
                .trim()
                .strip_prefix("line ")
                .unwrap()
                .parse()
                .unwrap();
            if next == 1 {
                next = number;
            }
            assert!(number <= next, "{next} was lost before {number}");
            repeated += u32::from(number < next);
            next = next.max(number + 1);
        }
    }
    println!("{next} lines, {repeated} repeated");
    assert!(next > 1000 && repeated <= 2 * 64 * 1024 / 8);
    cluster.stop_agent();
    manager.until_said("STOPPING=1");
}

fn glob(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_for_a_pull_and_the_next_start_goes_on_with_it() {
    // A registry that accepts and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut cluster = Cluster::start().await;
    let change =
        |d: &mut Value| d["containerDefinitions"][0]["image"] = json!(format!("127.0.0.1:{port}/slow:1"));
    let definition = cluster.register("sleep 3600", change).await;
    let task = cluster.run(&definition).await;
    let pulls = async || {
        get(&cluster, "/v1/tasks")
            .1
            .contains("pulls 127.0.0.1")
            .then_some(())
    };
    cluster
        .until("the pull to begin", Duration::from_secs(20), pulls)
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    assert_eq!(cluster.stop_agent(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "took {:?}",
        begun.elapsed()
    );
    cluster.start_agent();
    cluster.wait_connected(true).await;
    let pulls = async || {
        get(&cluster, "/v1/tasks")
            .1
            .contains("pulls 127.0.0.1")
            .then_some(())
    };
    cluster
        .until("the pull to begin anew", Duration::from_secs(20), pulls)
        .await;
    drop(silent);
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_work_says_why_and_how_it_ends() {
    let cluster = Cluster::start().await;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let identity = |name: &str| cluster.identity_dir().join(name).display().to_string();
    let start = |lines: &str| {
        let config = format!(
            "instance = \"btnone\"\nstate_dir = {:?}\nrun_dir = {:?}\ncontainerd_address = {:?}\n\
             control_plane = \"https://127.0.0.1:1\"\n\
             certificate = {:?}\nkey = {:?}\nauthority = {:?}\n{lines}",
            path("state"),
            path("run"),
            path("no-containerd.sock"),
            identity("node.pem"),
            identity("node.key"),
            identity("authority.pem"),
        );
        std::fs::write(path("agent.toml"), config).unwrap();
        let mut command = Command::new(binary("berth-agent"));
        let output = command
            .args(["run", "--config", &path("agent.toml")])
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let begun = Instant::now();
    let (code, said) = start("containerd_wait_s = 1\n");
    assert!(
        code == Some(1) && said.contains("systemctl status containerd"),
        "{code:?} {said}"
    );
    assert!(
        begun.elapsed() >= Duration::from_secs(1) && said.matches("does not answer yet").count() == 1,
        "{said}"
    );
    let (code, said) = start("containerd_wait_s = 0\nreserved.memory_mib = 4294967295\n");
    assert!(code == Some(78) && said.contains("reserved"), "{code:?} {said}");
    let (code, said) = start("containerd_wiat_s = 1\n");
    assert!(
        code == Some(78) && said.contains("containerd_wiat_s"),
        "{code:?} {said}"
    );
    std::fs::write(path("file"), "").unwrap();
    let unwritable = format!("images_dir = {:?}\n", path("x"));
    std::fs::remove_dir_all(path("state")).unwrap();
    std::fs::write(path("state"), "in the way").unwrap();
    let (code, said) = start(&unwritable);
    assert!(
        code == Some(1) && said.contains("state_dir") && said.contains("cannot be written"),
        "{code:?} {said}"
    );
}
