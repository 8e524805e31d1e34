//! Tasks that have a link of their node to themselves, and what becomes of that link: it comes back as it was, whenever the agent dies.

use std::{path::Path, process::Command};

use berth_tests::fleet::{Fleet, Node};
use serde_json::json;

use crate::lan::{HERE, ip, reaches};

pub(crate) const SETTING: &str = "[network]\ntask_interfaces = [\"up0\", \"eth9\"]\n";

/// What the node has of the link that it gives to tasks.
pub(crate) fn shown(node: &Node) -> Option<[String; 2]> {
    let line = |listed: &str, with: &str| {
        let found = listed.lines().find(|line| line.contains(with));
        found.map(|line| line.split(" qdisc ").next().unwrap().to_owned())
    };
    // A veth's names its other end.
    let links = node.ip("-o link show").replace(": eth9@", ": eth9: @");
    let link = line(&links, ": eth9: ")?;
    let address = line(&node.ip("-4 -o addr show"), ": eth9 ");
    Some([link, address.unwrap_or_default()])
}

fn is_lent(node: &Node) -> bool {
    let records = std::fs::read_dir(node.run_dir().join("interfaces"));
    // One that is not written whole begins with a dot.
    let is_whole = |name: std::ffi::OsString| !name.to_string_lossy().starts_with('.');
    records.is_ok_and(|mut records| records.any(|record| is_whole(record.unwrap().file_name())))
}

/// Another link to the network of the nodes, `eth9`, which carries packets.
pub(crate) async fn add_link(fleet: &Fleet, node: usize) {
    let port = format!("{}e", fleet.bridge());
    let netns = fleet.nodes[node].netns();
    let netns = netns.file_name().unwrap().to_str().unwrap();
    ip(&format!("link add {port} type veth peer name eth9 netns {netns}"));
    ip(&format!("link set {port} master {} up", fleet.bridge()));
    set_up(fleet, node).await;
}

async fn set_up(fleet: &Fleet, node: usize) {
    for command in [
        "link set eth9 mtu 1400",
        "addr add 192.168.99.7/24 dev eth9",
        "link set eth9 up",
    ] {
        fleet.nodes[node].ip(command);
    }
    fleet
        .until("the link to carry packets", async || {
            let up = "<BROADCAST,MULTICAST,UP,LOWER_UP>";
            fleet.nodes[node].ip("link show eth9").contains(up).then_some(())
        })
        .await;
}

/// Likewise a network card, which another one of the machine is on one segment with.
async fn add_card(fleet: &Fleet, node: usize) {
    let links = Command::new("ip").args(["-o", "link", "show"]).output().unwrap();
    let links = String::from_utf8(links.stdout).unwrap();
    let [card, other] = ["52:54:00:00:02:01", "52:54:00:00:02:02"].map(|mac| {
        let line = links.lines().find(|line| line.contains(mac));
        let line = line.unwrap_or_else(|| {
            panic!("this test needs two network cards on one segment, one of them {mac}: {links}")
        });
        line.split(": ").nth(1).unwrap().to_owned()
    });
    ip(&format!("link set {other} master {} up", fleet.bridge()));
    let netns = fleet.nodes[node].netns();
    let netns = netns.file_name().unwrap().to_str().unwrap();
    ip(&format!("link set {card} down"));
    ip(&format!("link set {card} netns {netns} name eth9"));
    set_up(fleet, node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_a_task_had_comes_back_as_it_was_whenever_the_agent_dies() {
    let mut fleet = Fleet::start().await;
    let node = fleet.add("default", SETTING, &[]).await;
    add_link(&fleet, node).await;
    comes_back(&mut fleet, node).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two network cards on one segment: tests/vm/run test_host.OnCgroupV2.test_vlans_and_network_cards"]
async fn a_network_card_that_a_task_had_comes_back_as_it_was_whenever_the_agent_dies() {
    let mut fleet = Fleet::start().await;
    let node = fleet.add("default", SETTING, &[]).await;
    add_card(&fleet, node).await;
    comes_back(&mut fleet, node).await;
}

/// With `eth9` on a node.
async fn comes_back(fleet: &mut Fleet, node: usize) {
    let before = shown(&fleet.nodes[node]).unwrap();
    assert!(
        before[0].contains("UP,LOWER_UP") && before[0].contains("mtu 1400"),
        "{before:?}"
    );
    let lan = fleet
        .lan(json!({ "name": "eni", "kind": "interface", "uplink": null }))
        .await;
    // That of the default route does not count.
    fleet
        .until("one task to be possible", async || {
            (fleet.part(node, &lan).await["tasks"] == 1).then_some(())
        })
        .await;
    let one = fleet.run(node, &lan).await;
    reaches(Path::new(HERE), &one, fleet.address());
    assert_eq!(shown(&fleet.nodes[node]), None);
    let answer = fleet.try_run(node, &lan).await;
    assert_eq!(answer["failures"][0]["reason"], "RESOURCE:ENI", "{answer}");

    // With a task that runs.
    fleet.nodes[node].kill_agent();
    fleet.wait_connected(node, false).await;
    fleet.nodes[node].start_agent();
    fleet.wait_connected(node, true).await;
    reaches(Path::new(HERE), &one, fleet.address());
    fleet.stop(node, &one).await;
    assert_eq!(shown(&fleet.nodes[node]), Some(before.clone()));
    assert!(!is_lent(&fleet.nodes[node]));

    // On the way: as soon as it is to be lent, as soon as it is gone, and on the way back.
    type Moment = fn(&Node) -> bool;
    let moments: [Moment; 2] = [is_lent, |node| shown(node).is_none()];
    for reached in moments {
        let answer = fleet.try_run(node, &lan).await;
        let arn = answer["tasks"][0]["taskArn"].as_str().unwrap().to_owned();
        fleet
            .until("the moment", async || reached(&fleet.nodes[node]).then_some(()))
            .await;
        fleet.nodes[node].kill_agent();
        fleet.wait_connected(node, false).await;
        let body = json!({ "cluster": "default", "task": arn });
        fleet.client.ok("StopTask", body).await;
        fleet.nodes[node].start_agent();
        fleet.wait_status(node, &arn, "STOPPED").await;
        assert_eq!(shown(&fleet.nodes[node]), Some(before.clone()));
        assert!(!is_lent(&fleet.nodes[node]));
    }
    let last = fleet.run(node, &lan).await;
    let body = json!({ "cluster": "default", "task": last.arn });
    fleet.client.ok("StopTask", body).await;
    fleet
        .until("the link to be on its way back", async || {
            shown(&fleet.nodes[node]).map(drop)
        })
        .await;
    fleet.nodes[node].kill_agent();
    fleet.wait_connected(node, false).await;
    fleet.nodes[node].start_agent();
    fleet.wait_status(node, &last.arn, "STOPPED").await;
    assert_eq!(shown(&fleet.nodes[node]), Some(before));
    assert!(!is_lent(&fleet.nodes[node]));
}
