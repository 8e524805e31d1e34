//! Tasks that are hosts of one VLAN of their node's uplink. The kernels of machines that build often have no VLANs, so these run in
//! a virtual machine: `tests/vm/run OnCgroupV2`.

use std::{net::Ipv4Addr, path::Path};

use berth_tests::fleet::Fleet;
use serde_json::json;

use crate::lan::{HERE, NODE, ip, reaches};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs 8021q in the kernel: tests/vm/run OnCgroupV2"]
async fn tasks_of_a_vlan_share_one_link_of_the_node_which_goes_with_the_last() {
    let mut fleet = Fleet::start().await;
    // It goes with the bridge.
    let tagged = format!("{}v", fleet.bridge());
    ip(&format!(
        "link add link {} name {tagged} type vlan id 40",
        fleet.bridge()
    ));
    ip(&format!("addr add 192.168.40.1/24 dev {tagged}"));
    ip(&format!("link set {tagged} up"));
    let node = fleet.add("default", "", &[]).await;
    let vlan = |id: u16| {
        json!({
            "name": format!("vlan{id}"), "kind": "vlan", "vlanId": id, "cidrBlock": format!("192.168.{id}.0/24"),
            "range": format!("192.168.{id}.128/25"), "gateway": format!("192.168.{id}.1"),
        })
    };
    let cameras = fleet.lan(vlan(40)).await;
    let (one, two) = (fleet.run(node, &cameras).await, fleet.run(node, &cameras).await);
    let links = |fleet: &Fleet| fleet.nodes[node].ip("-br link show type vlan");
    assert_eq!(links(&fleet).lines().count(), 1, "{}", links(&fleet));
    let gateway = Ipv4Addr::new(192, 168, 40, 1);
    reaches(Path::new(HERE), &one, gateway);
    reaches(&two.netns, &one, two.address);
    reaches(&fleet.nodes[node].netns(), &two, NODE);

    fleet.nodes[node].kill_agent();
    fleet.wait_connected(node, false).await;
    fleet.nodes[node].start_agent();
    fleet.wait_connected(node, true).await;
    fleet.stop(node, &one).await;
    reaches(Path::new(HERE), &two, gateway);
    assert_eq!(links(&fleet).lines().count(), 1);
    fleet.stop(node, &two).await;
    assert_eq!(links(&fleet), "");

    // The node's own link for a VLAN is left alone.
    fleet.nodes[node].ip("link add link up0 name mine type vlan id 41");
    let taken = fleet.lan(vlan(41)).await;
    let answer = fleet.try_run(node, &taken).await;
    let arn = answer["tasks"][0]["taskArn"].as_str().unwrap();
    let stopped = fleet.wait_status(node, arn, "STOPPED").await;
    let reason = stopped["stoppedReason"].as_str().unwrap();
    assert!(reason.contains("up0 has a link for VLAN 41 already"), "{reason}");
    assert!(links(&fleet).starts_with("mine@up0"), "{}", links(&fleet));
}
