//! What others do to tasks' network, with a whole agent: undone within what is promised, and counted.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use berth_tests::{
    cluster::{Cluster, Options},
    fleet::Fleet,
};
use serde_json::json;

use crate::{between_nodes::within, interfaces, lan, service::get};

/// What is promised.
const WITHIN: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_millis(500);
const PORT: u16 = 8080;

/// What the command says; None: it failed.
fn said(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().unwrap();
    let text = || String::from_utf8(output.stdout.clone()).unwrap();
    output.status.success().then(text)
}

/// The link by which the host reaches the address; None: it goes elsewhere, or nowhere.
fn link_of(cluster: &Cluster, address: Ipv4Addr) -> Option<String> {
    let links = said("ip", &["-o", "link", "show"]).unwrap();
    let route = said("ip", &["-4", "route", "get", &address.to_string()])?;
    let words: Vec<_> = route.split_whitespace().collect();
    let name = words[words.iter().position(|word| *word == "dev")? + 1];
    let is_a_tasks = links.contains(&format!("{name}@")) && !route.contains("via");
    (is_a_tasks && cluster.listing().iter().any(|line| line.contains(name))).then(|| name.to_owned())
}

fn repairs(cluster: &Cluster, what: &str) -> u64 {
    let (_, metrics) = get(cluster, "/metrics");
    let name = format!("berth_network_repairs_total{{what=\"{what}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}"))
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_and_a_link_that_others_remove_are_back_at_once() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let serve = format!("while true; do echo here | nc -l -p {PORT}; done");
    let task = cluster.running(&serve, |_| {}).await;
    let described = cluster.describe(&task).await;
    let address = &described["containers"][0]["networkInterfaces"][0]["privateIpv4Address"];
    let address: Ipv4Addr = address.as_str().unwrap().parse().unwrap();
    let answers = || TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), CONNECT).is_ok();
    cluster
        .until("the task to answer", WITHIN, async || answers().then_some(()))
        .await;

    let table = ["table", "inet", &cluster.instance];
    said("nft", &[&["delete"], &table[..]].concat()).unwrap();
    cluster
        .until("the table to be back", WITHIN, async || {
            said("nft", &[&["list"], &table[..]].concat())
        })
        .await;
    let link = link_of(&cluster, address).unwrap();
    said("ip", &["link", "delete", &link]).unwrap();
    cluster
        .until("the task to be back", WITHIN, async || {
            (link_of(&cluster, address)? == link && answers()).then_some(())
        })
        .await;
    for what in ["table", "link"] {
        assert_eq!(repairs(&cluster, what), 1, "{what}");
    }
    assert_eq!(cluster.describe(&task).await["lastStatus"], "RUNNING");
    cluster.stop(&task).await;
    cluster.assert_nothing_left(&before).await;
}

/// Why the node is impaired, as DescribeContainerInstances has it; empty: it is not.
async fn impairment(cluster: &Cluster) -> String {
    let nodes = cluster.client.ok("ListContainerInstances", json!({})).await;
    let body = json!({ "containerInstances": nodes["containerInstanceArns"], "include": ["CONTAINER_INSTANCE_HEALTH"] });
    let described = cluster.client.ok("DescribeContainerInstances", body).await;
    let details = described["containerInstances"][0]["healthStatus"]["details"].clone();
    let reasons = details
        .as_array()
        .into_iter()
        .flatten()
        .filter(|detail| detail["status"] == "IMPAIRED");
    let reasons = reasons.filter_map(|detail| detail["statusReason"].as_str());
    reasons.collect()
}

/// It is the one program that the agent needs.
#[tokio::test(flavor = "multi_thread")]
async fn without_nft_an_agent_says_so_once_and_goes_on_when_it_is_back_and_none_starts() {
    const MISSING: &str = "install the package nftables";
    let programs = tempfile::tempdir().unwrap();
    let (real, nft) = (
        said("sh", &["-c", "command -v nft"]).unwrap(),
        programs.path().join("nft"),
    );
    let install = || std::os::unix::fs::symlink(real.trim(), &nft).unwrap();
    install();
    let path = ("PATH".to_owned(), programs.path().display().to_string());
    let mut cluster = Cluster::alone_with(Options {
        agent_environment: vec![path],
        ..Options::default()
    })
    .await;
    let before = cluster.listing();
    let task = cluster.running("sleep 3600", |_| {}).await;
    let instance = cluster.instance.clone();
    let table = ["table", "inet", &instance];
    let is_there = || said("nft", &[&["list"], &table[..]].concat()).is_some();
    let times = |cluster: &Cluster, what: &str| cluster.agent_says().matches(what).count();

    std::fs::remove_file(&nft).unwrap();
    said("nft", &[&["delete"], &table[..]].concat()).unwrap();
    cluster
        .until("two more tries", Duration::from_secs(30), async || {
            (times(&cluster, "cannot be put in place yet") >= 2).then_some(())
        })
        .await;
    assert_eq!(times(&cluster, "cannot put the nftables table in place"), 1);
    assert!(!is_there());
    cluster
        .until("the node to be impaired", Duration::from_secs(20), async || {
            impairment(&cluster).await.contains(MISSING).then_some(())
        })
        .await;

    install();
    cluster
        .until("the table to be back", Duration::from_secs(20), async || {
            (is_there() && impairment(&cluster).await.is_empty()).then_some(())
        })
        .await;
    assert_eq!(repairs(&cluster, "table"), 1);

    std::fs::remove_file(&nft).unwrap();
    cluster.kill_agent();
    let already = times(&cluster, MISSING);
    cluster.start_agent();
    assert_ne!(cluster.agent_ends().await, Some(0));
    let says = cluster.agent_says();
    assert!(times(&cluster, MISSING) > already, "{says}");
    install();
    cluster.start_agent();
    cluster.wait_connected(true).await;
    assert_eq!(cluster.describe(&task).await["lastStatus"], "RUNNING");
    cluster.stop(&task).await;
    cluster.assert_nothing_left(&before).await;
}

/// A process of somebody else in a network namespace, as nsenter(1) puts it there.
struct Left(Child);

impl Left {
    fn enter(netns: &Path) -> Self {
        let inside = format!("--net={}", netns.display());
        let mut child = Command::new("nsenter")
            .args([&inside, "sh", "-c", "echo there; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "there");
        Self(child)
    }

    /// The links of its namespace but loopback.
    fn links(&self) -> Vec<String> {
        let netns = format!("/proc/{}/ns/net", self.0.id());
        let listed = within(Path::new(&netns), || said("ip", &["-o", "link"]).unwrap());
        let names = listed.lines().filter_map(|line| line.split(": ").nth(1));
        names.filter(|name| *name != "lo").map(str::to_owned).collect()
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A task is STOPPED when its link is gone, and not before.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_left_in_a_tasks_namespace_keeps_neither_the_link_nor_the_task() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    for mode in ["awsvpc", "bridge"] {
        let task = cluster
            .running("sleep 3600", |d| d["networkMode"] = json!(mode))
            .await;
        let netns = std::fs::read_dir(cluster.run_dir().join("netns")).unwrap();
        let id = task.rsplit('/').next().unwrap();
        let netns = netns.map(|entry| entry.unwrap().path());
        let netns = netns.filter(|path| path.to_str().unwrap().contains(id)).last();
        let mut left = Left::enter(&netns.unwrap());
        assert_eq!(left.links().len(), 1, "{:?}", left.links());
        cluster.client.ok("StopTask", json!({ "task": task })).await;
        cluster.wait_status(&task, "STOPPED").await;
        assert_eq!(left.links(), [""; 0], "{mode}");
        cluster.assert_nothing_left(&before).await;
        assert!(left.is_alive(), "it is not ours to end");
    }
}

/// Likewise what leads to networks outside: nobody answers for an address that the next task may have, and the host has its link.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_left_in_the_namespace_of_a_host_of_a_network_keeps_nothing_of_that() {
    let mut fleet = Fleet::start().await;
    let node = fleet.add("default", interfaces::SETTING, &[]).await;
    interfaces::add_link(&fleet, node).await;
    let before = interfaces::shown(&fleet.nodes[node]).unwrap();
    let [macvlan, whole] = [
        json!({ "name": "lan" }),
        json!({ "name": "eni", "kind": "interface", "uplink": null, "range": fleet.range(64, 26) }),
    ];
    let (macvlan, whole) = (fleet.lan(macvlan).await, fleet.lan(whole).await);
    fleet
        .until("a link to be there for a task", async || {
            (fleet.part(node, &whole).await["tasks"] == 1).then_some(())
        })
        .await;
    let (shared, own) = (fleet.run(node, &macvlan).await, fleet.run(node, &whole).await);
    for task in [&shared, &own] {
        lan::reaches(Path::new(lan::HERE), task, fleet.address());
    }
    let mut left = [&shared, &own].map(|task| Left::enter(&task.netns));
    for (task, left) in [&shared, &own].into_iter().zip(&mut left) {
        fleet.stop(node, task).await;
        assert_eq!(left.links(), [""; 0], "{task:?}");
        assert!(left.is_alive(), "it is not ours to end");
    }
    assert_eq!(interfaces::shown(&fleet.nodes[node]), Some(before));
    let again = fleet.run(node, &whole).await;
    lan::reaches(Path::new(lan::HERE), &again, fleet.address());
    fleet.stop(node, &again).await;
}
