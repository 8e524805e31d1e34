//! What others do to tasks' network, with a whole agent: undone within what is promised, and counted.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use berth_tests::cluster::Cluster;

use crate::service::get;

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
