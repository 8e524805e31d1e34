//! The task metadata endpoint, asked from inside of containers, and by those who must not.

use std::{
    fs,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use berth_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::{
    dns::in_network_of,
    fields::{Seen, look},
};

const LIMIT: Duration = Duration::from_secs(20);
/// Asks for all that there is, a line each, once all of the task is known to run: a container is faster than the news of it.
const ASK: &str = "until wget -q -O - $ECS_CONTAINER_METADATA_URI_V4/task | grep -q '\"Group\":\"family:test\",\"KnownStatus\":\"RUNNING\"'; \
                   do sleep 0.1; done; \
                   for path in '' /task /taskWithTags /stats /task/stats; do wget -q -O - $ECS_CONTAINER_METADATA_URI_V4$path; \
                   echo; done; echo uri $ECS_CONTAINER_METADATA_URI_V4; echo agent $ECS_AGENT_URI; wget -q -O - $ECS_CONTAINER_METADATA_URI; echo";

fn documents(seen: &Seen) -> Vec<Value> {
    let documents = seen.lines.iter().filter(|line| line.starts_with('{'));
    documents
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn uri(seen: &Seen) -> String {
    let found = seen.lines.iter().find_map(|line| line.strip_prefix("uri "));
    found.unwrap_or_else(|| panic!("{:?}", seen.lines)).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_reads_what_it_and_its_task_are() {
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    // The workload has the port that the endpoint seems to have.
    let serve = "httpd -p 80 -h /; nc -l -p 8080 >/dev/null & netstat -ltn | grep -q '0.0.0.0:80 \\|:::80 ' && echo has-80";
    let volumes = |d: &mut Value| d["volumes"] = json!([{"name": "data", "host": {}}]);
    let (task, seen) = look(
        &cluster,
        volumes,
        &[
            (
                "a",
                &format!("{serve}; sed 's/^/resolv /' /etc/resolv.conf; {ASK}"),
                json!({
                    "cpu": 128, "memory": 64, "dockerLabels": {"team": "shop"}, "portMappings": [{"containerPort": 8080}],
                    "mountPoints": [{"sourceVolume": "data", "containerPath": "/data"}],
                    "restartPolicy": {"enabled": true},
                    "healthCheck": {"command": ["CMD", "true"], "interval": 5},
                }),
            ),
            ("b", ASK, json!({"essential": false})),
        ],
    )
    .await;
    let lines = &seen["a"].lines;
    assert!(lines.iter().any(|line| line == "has-80"), "{lines:?}");
    let described = cluster.describe(&task).await;
    let [own, whole, tagged, stats, all_stats, version_3] = &documents(&seen["a"])[..] else {
        panic!("{lines:?}");
    };
    let shown = &described["containers"][0];
    for (name, expected) in [
        ("Name", json!("a")),
        ("DockerId", shown["runtimeId"].clone()),
        ("Image", shown["image"].clone()),
        ("ImageID", shown["imageDigest"].clone()),
        ("ContainerARN", shown["containerArn"].clone()),
        ("DesiredStatus", json!("RUNNING")),
        ("KnownStatus", json!("RUNNING")),
        ("Limits", json!({"CPU": 128, "Memory": 64})),
        ("Type", json!("NORMAL")),
        (
            "Ports",
            json!([{"ContainerPort": 8080, "HostPort": 8080, "Protocol": "tcp"}]),
        ),
    ] {
        assert_eq!(own[name], expected, "{name} of {own:#}");
    }
    assert_eq!(own["Labels"]["team"], "shop");
    assert_eq!(own["Labels"]["com.amazonaws.ecs.task-arn"], json!(task));
    let address = &shown["networkInterfaces"][0]["privateIpv4Address"];
    assert_eq!(own["Networks"][0]["NetworkMode"], "awsvpc");
    assert_eq!(own["Networks"][0]["IPv4Addresses"], json!([address]));
    assert_eq!(version_3["DockerId"], own["DockerId"]);
    let network = &own["Networks"][0];
    let mac = described["attachments"][0]["details"].as_array().unwrap().iter();
    let mac = mac.clone().find(|detail| detail["name"] == "macAddress").unwrap();
    assert_eq!(network["MACAddress"], mac["value"]);
    assert_eq!(network["SubnetGatewayIpv4Address"], "169.254.1.1/32");
    assert_eq!(network["IPv4SubnetCIDRBlock"], json!(cluster.task_cidr()));
    let name = format!("{}.default.berth", task.rsplit('/').next().unwrap());
    assert_eq!(network["PrivateDNSName"], json!(name));
    assert_eq!(network["DomainNameServers"], json!(["169.254.170.3"]));
    let mut search = lines
        .iter()
        .filter_map(|line| line.strip_prefix("resolv search "));
    let search = search
        .next_back()
        .map(|words| words.split_whitespace().collect::<Vec<_>>());
    assert_eq!(
        network.get("DomainNameSearchList"),
        search.map(|words| json!(words)).as_ref()
    );
    let volume = &own["Volumes"][0];
    assert_eq!(
        (&volume["DockerName"], &volume["Destination"]),
        (&json!("data"), &json!("/data"))
    );
    assert!(
        std::path::Path::new(volume["Source"].as_str().unwrap()).is_dir(),
        "{volume}"
    );
    assert!(
        ["UNKNOWN", "HEALTHY"]
            .map(Value::from)
            .contains(&own["Health"]["status"]),
        "{own:#}"
    );
    assert_eq!(
        (&own["RestartCount"], &own["Snapshotter"]),
        (&json!(0), &json!("overlayfs"))
    );
    for (name, at) in [
        ("CreatedAt", own),
        ("StartedAt", own),
        ("PullStartedAt", whole),
        ("PullStoppedAt", whole),
    ] {
        let is_time = |text: &str| text.starts_with("20") && text.ends_with('Z');
        assert!(at[name].as_str().is_some_and(is_time), "{name} of {at:#}");
    }
    assert_eq!(
        (&whole["Group"], &described["group"]),
        (&json!("family:test"), &json!("family:test"))
    );
    assert_eq!(tagged["Errors"][0]["ErrorField"], "ContainerInstanceTags");

    assert_eq!(
        (&whole["TaskARN"], &whole["KnownStatus"]),
        (&json!(task), &json!("RUNNING"))
    );
    assert_eq!(whole["Limits"], json!({"CPU": 0.25, "Memory": 128}));
    assert_eq!(
        (&whole["Family"], &whole["Revision"]),
        (&json!("test"), &json!("1"))
    );
    let names: Vec<_> = whole["Containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["Name"])
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(whole["LaunchType"], described["launchType"]);
    assert_eq!(tagged["TaskTags"], json!({}), "{tagged:#}");
    assert_eq!(stats["id"], own["DockerId"]);
    assert_eq!(stats["memory_stats"]["limit"], 64 << 20);
    for figure in [
        "/cpu_stats/cpu_usage/total_usage",
        "/memory_stats/usage",
        "/pids_stats/current",
        "/networks/eth0/rx_bytes",
    ] {
        let value = stats.pointer(figure).and_then(Value::as_u64);
        assert!(value.is_some_and(|value| value > 0), "{figure} of {stats:#}");
    }
    assert!(
        stats["precpu_stats"]["cpu_usage"]["total_usage"].is_u64(),
        "{stats:#}"
    );
    let theirs = format!("{}/stats", uri(&seen["a"]));
    let rated = cluster
        .until("rates", LIMIT, async || {
            let stats = curl(seen["a"].pid, &[&theirs]);
            stats.get("network_rate_stats").is_some().then_some(stats)
        })
        .await;
    let counted = |stats: &Value, part: &str| stats[part]["system_cpu_usage"].as_u64().unwrap();
    assert!(
        counted(&rated, "cpu_stats") > counted(&rated, "precpu_stats"),
        "{rated:#}"
    );
    assert!(
        rated["network_rate_stats"]["rx_bytes_per_sec"].is_number(),
        "{rated:#}"
    );
    assert_eq!(all_stats[own["DockerId"].as_str().unwrap()]["name"], "a");
    assert_ne!(uri(&seen["a"]), uri(&seen["b"]));

    // It is a task of no service, as all are.
    let agent = uri(&seen["a"]).replace("/v4/", "/api/");
    assert_eq!(seen["a"].said("agent "), agent);
    let state = format!("{agent}/task-protection/v1/state");
    let not_valid = |answer: Value| {
        assert_eq!(answer["failure"]["Reason"], "TASK_NOT_VALID", "{answer}");
        assert_eq!(answer["failure"]["Arn"], json!(task));
    };
    not_valid(curl(seen["a"].pid, &[&state]));
    let enable = r#"{"ProtectionEnabled": true, "ExpiresInMinutes": 60}"#;
    not_valid(curl(seen["a"].pid, &["-X", "PUT", "-d", enable, &state]));
    let refused = curl(seen["a"].pid, &["-X", "PUT", "-d", "{}", &state]);
    assert_eq!(refused["error"]["Code"], "InvalidParameterException");
    let much = format!(
        r#"{{"ProtectionEnabled": true, "Other": "{}"}}"#,
        "x".repeat(5_000)
    );
    assert_eq!(put(seen["a"].pid, &state, &much), "413");

    // Another task knows where it is, and learns nothing. Neither does the host.
    let theirs = uri(&seen["a"]);
    let script = "wget -q -O - $THEIRS; wget -q -O - $THEIRS/task; wget -q -O - $THEIRS/stats; \
                  wget -q -O - http://169.254.170.2/v4/x/task";
    let other = json!({"environment": [{"name": "THEIRS", "value": theirs}]});
    let (other, unseen) = look(&cluster, |_| {}, &[("c", script, other)]).await;
    let refusals = unseen["c"]
        .lines
        .iter()
        .filter(|line| line.contains("404 Not Found"));
    assert_eq!(refusals.count(), 4, "{:?}", unseen["c"].lines);
    assert!(documents(&unseen["c"]).is_empty());
    assert_eq!(ask(unseen["c"].pid, &state, "2"), "404");
    let port = endpoint_port(&cluster);
    let address = SocketAddr::from((Ipv4Addr::new(169, 254, 170, 2), port));
    TcpStream::connect_timeout(&address, Duration::from_millis(300)).unwrap_err();
    // Nothing else of the host is at that address.
    let ssh = TcpListener::bind("0.0.0.0:0").unwrap();
    let elsewhere = format!("http://169.254.170.2:{}/", ssh.local_addr().unwrap().port());
    assert_eq!(ask(seen["a"].pid, &elsewhere, "1"), "000");

    let held = as_many_as_may_be(seen["a"].pid);
    assert_eq!(
        ask(unseen["c"].pid, &theirs, "4"),
        "404",
        "another task has places of its own"
    );
    drop(held);

    // What was told to a container holds when the agent is another. It is not asked more often than it may be.
    assert_eq!(ask(seen["a"].pid, &theirs, "1"), "200");
    cluster.kill_agent();
    cluster.wait_connected(false).await;
    cluster.start_agent();
    cluster.wait_connected(true).await;
    assert_eq!(endpoint_port(&cluster), port);
    let many: Vec<String> = vec![theirs.clone(); 200];
    let answers = ask(seen["a"].pid, &many.join(" "), "200");
    assert!(
        answers.starts_with("200 200 ") && answers.contains("429"),
        "{answers}"
    );
    // Nor may a task guess, and that it did keeps it from nothing.
    let environment = fs::read_to_string(format!("/proc/{}/environ", unseen["c"].pid)).unwrap();
    let own = environment
        .split('\0')
        .find_map(|v| v.strip_prefix("ECS_CONTAINER_METADATA_URI_V4="));
    let own = own.unwrap().to_owned();
    assert_eq!(ask(unseen["c"].pid, &own, "1"), "200");
    let guesses: Vec<String> = (0..200).map(|n| format!("{theirs}{n}")).collect();
    let answers = ask(unseen["c"].pid, &guesses.join(" "), "200");
    assert!(answers.contains("404") && answers.ends_with("429"), "{answers}");
    assert_eq!(ask(unseen["c"].pid, &own, "1"), "200");

    cluster.stop(&other).await;
    cluster.stop(&task).await;
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_reads_the_tags_that_it_was_made_with() {
    let cluster = Cluster::start().await;
    let ask = "wget -q -O - $ECS_CONTAINER_METADATA_URI_V4/taskWithTags; echo; sleep 3600";
    let definition = cluster.register(ask, |_| {}).await;
    let answer = cluster.run_tagged(&definition, &[("team", "shop")]).await;
    let task = answer["tasks"][0]["taskArn"].as_str().unwrap();
    cluster.wait_status(task, "RUNNING").await;
    let said: Value = cluster
        .until("its tags", LIMIT, async || {
            let logs = cluster.client.logs(task).await;
            let line = logs.first()?["line"].as_str()?.to_owned();
            serde_json::from_str(&line).ok()
        })
        .await;
    assert_eq!(said["TaskTags"], json!({"team": "shop"}), "{said:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_on_the_hosts_network_asks_on_loopback_and_one_without_a_network_is_told_nothing() {
    let cluster = Cluster::start().await;
    let host = |d: &mut Value| d["networkMode"] = json!("host");
    let (task, seen) = look(&cluster, host, &[("a", ASK, json!({})), ("b", ASK, json!({}))]).await;
    for name in ["a", "b"] {
        let own = &documents(&seen[name])[0];
        assert_eq!(
            (&own["Name"], &own["Networks"][0]["NetworkMode"]),
            (&json!(name), &json!("host"))
        );
        assert!(uri(&seen[name]).starts_with("http://127.0.0.1:"));
    }
    let guessed = uri(&seen["a"]).replace(|c: char| c.is_ascii_digit(), "0");
    let guessed = guessed.rsplit_once('/').unwrap().1.to_owned();
    let port = endpoint_port(&cluster);
    assert_eq!(
        ask(
            seen["a"].pid,
            &format!("http://127.0.0.1:{port}/v4/{guessed}"),
            "1"
        ),
        "404"
    );
    // The agent's own ports are no task's, nor is the way to the host.
    for own in [port, resolver_port(&cluster), 22] {
        let definition = cluster
            .register("sleep 3600", |d| {
                host(d);
                d["containerDefinitions"][0]["portMappings"] = json!([{"containerPort": own}]);
            })
            .await;
        let answer = cluster.try_run(&definition).await;
        assert_eq!(
            answer["failures"][0]["reason"], "RESOURCE:PORTS",
            "{own}: {answer}"
        );
    }
    cluster.stop(&task).await;
    let bridge = |d: &mut Value| d["networkMode"] = json!("bridge");
    let (task, seen) = look(&cluster, bridge, &[("a", ASK, json!({})), ("b", ASK, json!({}))]).await;
    let networks = ["a", "b"].map(|name| documents(&seen[name])[0]["Networks"].clone());
    for network in &networks {
        assert_eq!(network[0]["NetworkMode"], "bridge");
        assert_eq!(network[0]["DomainNameServers"], json!(["169.254.170.3"]));
        assert!(
            network[0].get("MACAddress").is_none() && network.get(1).is_none(),
            "{network}"
        );
    }
    let addresses = networks.map(|network| network[0]["IPv4Addresses"][0].as_str().unwrap().to_owned());
    assert_ne!(addresses[0], addresses[1], "each container has its own");
    cluster.stop(&task).await;
    // Nor is one told that has no network.
    let none = |d: &mut Value| d["networkMode"] = json!("none");
    let (_, seen) = look(&cluster, none, &[("a", "env | grep -c ECS_", json!({}))]).await;
    assert_eq!(seen["a"].lines[0], "0");
}

/// Everybody knows everybody's name: each learns of its own task, and of no other, in whichever modes they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_learns_nothing_of_another_in_any_mode() {
    let cluster = Cluster::start().await;
    let tell = "echo uri $ECS_CONTAINER_METADATA_URI_V4";
    let mut known = Vec::new();
    for (mode, containers) in [
        ("awsvpc", &["main"][..]),
        ("awsvpc", &["main"]),
        ("bridge", &["main", "beside"]),
        ("bridge", &["main"]),
        ("host", &["main"]),
    ] {
        let containers: Vec<_> = containers.iter().map(|name| (*name, tell, json!({}))).collect();
        let (task, seen) = look(&cluster, |d| d["networkMode"] = json!(mode), &containers).await;
        known.extend(seen.into_values().map(|seen| (mode, task.clone(), seen)));
    }
    let port = endpoint_port(&cluster);
    let on_loopback = format!("http://127.0.0.1:{port}");
    for (mode, task, seen) in &known {
        let own_way = match *mode {
            "host" => &on_loopback,
            _ => "http://169.254.170.2",
        };
        let names = known
            .iter()
            .map(|(_, _, of)| uri(of).rsplit_once('/').unwrap().1.to_owned());
        let urls: Vec<_> = names.map(|name| format!("{own_way}/v4/{name}/task")).collect();
        let answers = ask(seen.pid, &urls.join(" "), "5");
        let expected: Vec<_> = known
            .iter()
            .map(|(_, other, _)| if other == task { "200" } else { "404" })
            .collect();
        assert_eq!(answers, expected.join(" "), "{mode} {task}");
    }
    // Nor by the way of others: that of the host's tasks is not in the others' namespaces, and theirs not on the host.
    let by = |mode: &'static str| known.iter().filter(move |(of, _, _)| *of == mode);
    let of_host = &by("host").next().unwrap().2;
    for (mode, _, seen) in by("awsvpc").chain(by("bridge")) {
        assert_eq!(ask(seen.pid, &uri(of_host), "1"), "000", "{mode}");
    }
    assert_eq!(
        ask(of_host.pid, &uri(&by("awsvpc").next().unwrap().2), "1"),
        "000"
    );

    // Who takes another's address for its own is not answered at all.
    for mode in ["awsvpc", "bridge"] {
        let (one, other) = (&by(mode).next().unwrap().2, &by(mode).next_back().unwrap().2);
        let address = one.address();
        assert_ne!(address, other.address());
        in_netns(
            other.pid,
            &["ip", "addr", "add", &format!("{address}/32"), "dev", "eth0"],
        );
        let before = spoofed(&cluster);
        let forged = in_netns(
            other.pid,
            &[
                "curl",
                "--noproxy",
                "*",
                "-s",
                "-m",
                "1",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--interface",
                &address,
                &uri(one),
            ],
        );
        assert_eq!(forged, "000", "{mode}");
        // Not only for want of a way back.
        assert!(spoofed(&cluster) > before, "{mode}");
        assert_eq!(
            ask(one.pid, &uri(one), "5"),
            "200",
            "{mode}: not for another reason"
        );
    }
}

/// Packets that the firewall dropped for a source that is not their task's.
fn spoofed(cluster: &Cluster) -> u64 {
    let output = Command::new("nft")
        .args(["list", "chain", "inet", &cluster.instance, "prerouting"])
        .output()
        .unwrap();
    let chain = String::from_utf8(output.stdout).unwrap();
    let mut rules = chain.lines();
    let rule = rules
        .find(|rule| rule.contains("nfproto ipv4 fib saddr"))
        .unwrap();
    let counted = rule.split("packets ").nth(1).unwrap();
    counted.split(' ').next().unwrap().parse().unwrap()
}

/// What a command prints in the network of a process, whatever its end.
fn in_netns(pid: i32, command: &[&str]) -> String {
    let network = format!("--net=/proc/{pid}/ns/net");
    let output = Command::new("nsenter")
        .arg(network)
        .args(command)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The connections of a task that has as many as it may: 16. One more is closed at once.
fn as_many_as_may_be(pid: i32) -> Vec<TcpStream> {
    in_network_of(pid, || {
        let endpoint = SocketAddr::from((Ipv4Addr::new(169, 254, 170, 2), 80));
        let connect = || TcpStream::connect_timeout(&endpoint, LIMIT).unwrap();
        let is_open = |stream: &mut TcpStream| {
            stream.set_nonblocking(true).unwrap();
            let read = stream.read(&mut [0; 1]);
            read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        let begun = Instant::now();
        // Whoever says nothing is closed after 5 s, and one that ended may have its place for a moment.
        while begun.elapsed() < LIMIT {
            let mut held: Vec<TcpStream> = (0..16).map(|_| connect()).collect();
            let mut more = connect();
            more.set_read_timeout(Some(LIMIT)).unwrap();
            let closed = !matches!(more.read(&mut [0; 1]), Ok(1));
            if closed && held.iter_mut().all(is_open) {
                return held;
            }
        }
        panic!("one more than 16 is not closed, or others are");
    })
}

/// What is answered in the network of a process.
fn curl(pid: i32, arguments: &[&str]) -> Value {
    let network = format!("--net=/proc/{pid}/ns/net");
    let output = Command::new("nsenter")
        .args([&network, "curl", "--noproxy", "*", "-sS", "-m", "10"])
        .args(arguments)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Likewise the code, to what is put.
fn put(pid: i32, url: &str, body: &str) -> String {
    let network = format!("--net=/proc/{pid}/ns/net");
    let output = Command::new("nsenter")
        .args([
            &network,
            "curl",
            "--noproxy",
            "*",
            "-s",
            "-m",
            "10",
            "-o",
            "/dev/null",
        ])
        .args(["-w", "%{http_code}", "-X", "PUT", "-d", body, url])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The codes of the answers to URLs, asked in the network of a process, one after the other.
fn ask(pid: i32, urls: &str, seconds: &str) -> String {
    let network = format!("--net=/proc/{pid}/ns/net");
    let mut curl = Command::new("nsenter");
    curl.args([&network, "curl", "--noproxy", "*", "-s", "-m", seconds]);
    for url in urls.split(' ') {
        curl.args(["-o", "/dev/null", "-w", "%{http_code} ", url]);
    }
    let output = curl.output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn endpoint_port(cluster: &Cluster) -> u16 {
    kept_port(cluster, "endpoints.json")
}

fn resolver_port(cluster: &Cluster) -> u16 {
    kept_port(cluster, "dns.json")
}

fn kept_port(cluster: &Cluster, file: &str) -> u16 {
    let file = std::fs::read(cluster.run_dir().join(file)).unwrap();
    let kept: Value = serde_json::from_slice(&file).unwrap();
    u16::try_from(kept["port"].as_u64().unwrap()).unwrap()
}
