//! Tasks that are hosts of the network their node is on: reached from there and by each other, with their endpoints, and with
//! no way into that network or out of it through the node.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

pub(crate) use berth_tests::fleet::ip;
use berth_tests::fleet::{Fleet, Task};
use serde_json::{Value, json};

use crate::between_nodes::{CONNECT, NO_WAY, seen_at, seen_by_udp, within};

/// This machine, which is a host of the nodes' network too.
pub(crate) const HERE: &str = "/proc/self/ns/net";
/// As which a node reaches its own tasks there.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);

/// A host of the network that knows no better than to send to a node what is for tasks.
struct Stranger {
    netns: String,
    address: Ipv4Addr,
}

impl Stranger {
    fn join(fleet: &Fleet) -> Self {
        let netns = format!("{}s", fleet.bridge());
        let [a, b, c, _] = fleet.address().octets();
        let address = Ipv4Addr::new(a, b, c, 99);
        let stranger = Self { netns, address };
        ip(&format!("netns add {}", stranger.netns));
        ip(&format!(
            "link add {0}v type veth peer name eth0 netns {0}",
            stranger.netns
        ));
        ip(&format!(
            "link set {}v master {} up",
            stranger.netns,
            fleet.bridge()
        ));
        stranger.ip("link set lo up");
        stranger.ip(&format!("addr add {address}/24 dev eth0"));
        stranger.ip("link set eth0 up");
        stranger
    }

    fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.netns));
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.netns)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).status();
    }
}

/// What `ip` says inside of a task's namespace.
fn ip_inside(task: &Task, arguments: &str) -> String {
    within(&task.netns, || ip(arguments))
}

pub(crate) fn reaches(from: &Path, task: &Task, as_whom: Ipv4Addr) {
    for (protocol, seen) in [
        ("tcp", seen_at(from, &task.netns, task.address, CONNECT)),
        (
            "udp",
            seen_by_udp(from, &task.netns, task.address.into(), CONNECT),
        ),
    ] {
        assert_eq!(
            seen,
            Some(IpAddr::V4(as_whom)),
            "{protocol} from {from:?} to {task:?}"
        );
    }
}

/// Where the task's containers are told that their metadata is.
fn metadata_uri(task: &Task) -> String {
    let inode = std::fs::metadata(&task.netns).unwrap().st_ino();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let inside = processes.filter(|process| {
        let netns = std::fs::metadata(process.path().join("ns/net"));
        netns.is_ok_and(|netns| netns.st_ino() == inode)
    });
    let told = inside.filter_map(|process| {
        let environment = std::fs::read(process.path().join("environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let uri = variables.find_map(|variable| variable.strip_prefix(b"ECS_CONTAINER_METADATA_URI_V4="))?;
        Some(String::from_utf8(uri.to_vec()).unwrap())
    });
    told.last().unwrap()
}

/// The code of an answer, and what it is. Code 000: there was none.
fn ask(from: &Path, uri: &str, more: &[&str]) -> (String, Value) {
    let output = within(from, || {
        Command::new("curl")
            .args(["--noproxy", "*", "-s", "-m", "3", "-w", "\n%{http_code}"])
            .args(more)
            .arg(uri)
            .output()
    });
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let (body, code) = text.rsplit_once('\n').unwrap();
    (code.to_owned(), serde_json::from_str(body).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_a_host_of_its_nodes_network_and_reached_by_all_there() {
    let mut fleet = Fleet::start().await;
    let accept = format!("/proc/sys/net/ipv4/conf/{}/arp_accept", fleet.bridge());
    std::fs::write(accept, "1").unwrap();
    let node = fleet.add("default", "", &[]).await;
    let before = fleet.nodes[node].links();
    let lan = fleet.lan(json!({ "name": "lan" })).await;
    let routed = fleet.subnet("default", "routed", "10.200.0.0/22").await;
    let one = fleet.run(node, &lan).await;
    // Who was there before knows it without a question.
    let known = ip(&format!("neigh show {} dev {}", one.address, fleet.bridge()));
    assert!(known.contains(&one.mac), "{known:?} {one:?}");
    let (two, sibling) = (fleet.run(node, &lan).await, fleet.run(node, &routed).await);

    let (here, there) = (Path::new(HERE), fleet.nodes[node].netns());
    reaches(here, &one, fleet.address());
    reaches(&one.netns, &one, one.address);
    reaches(&two.netns, &one, two.address);
    reaches(&there, &one, NODE);
    reaches(&sibling.netns, &one, NODE);
    let seen = seen_at(&one.netns, here, fleet.address(), CONNECT);
    assert_eq!(seen, Some(one.address.into()));
    let seen = seen_by_udp(&one.netns, here, fleet.address().into(), CONNECT);
    assert_eq!(seen, Some(one.address.into()));
    let address = ip_inside(&one, "-o addr show dev eth0");
    assert!(address.contains(&format!("{}/24", one.address)), "{address}");
    let route = ip_inside(&one, "route show default");
    assert!(
        route.contains(&format!("via {} dev eth0", fleet.address())),
        "{route}"
    );
    let names = format!("{}.default.berth.", one.arn.rsplit('/').next().unwrap());
    let answer = within(&two.netns, || {
        crate::dns::result(&crate::dns::ask_from_here(
            &names,
            hickory_proto::rr::RecordType::A,
        ))
    });
    assert_eq!(answer.1, vec![IpAddr::V4(one.address)]);

    // Its metadata is its own: neither with the address of another, nor from the network.
    let uri = metadata_uri(&one);
    let (code, own) = ask(&one.netns, &uri, &[]);
    assert_eq!(code, "200");
    let network = &own["Networks"][0];
    assert_eq!(network["IPv4Addresses"], json!([one.address]));
    let [a, b, c, _] = fleet.address().octets();
    assert_eq!(network["IPv4SubnetCIDRBlock"], format!("{a}.{b}.{c}.0/24"));
    assert_eq!(
        network["SubnetGatewayIpv4Address"],
        format!("{}/24", fleet.address())
    );
    assert_eq!(network["MACAddress"], json!(one.mac));
    assert_ne!(ask(&two.netns, &uri, &[]).0, "200");
    ip_inside(&two, &format!("addr add {}/32 dev eth0", one.address));
    let forged = ask(&two.netns, &uri, &["--interface", &one.address.to_string()]);
    assert_eq!(forged.0, "000");
    ip_inside(&two, &format!("addr del {}/32 dev eth0", one.address));
    assert_eq!(
        ask(&two.netns, &metadata_uri(&two), &[]).0,
        "200",
        "not for another reason"
    );

    // Nothing is led from the network to a task by the node, nor from a task there.
    let stranger = Stranger::join(&fleet);
    reaches(&stranger.path(), &one, stranger.address);
    let node_address = fleet.nodes[node].address;
    for address in [one.address, NODE] {
        stranger.ip(&format!("route add {address}/32 via {node_address}"));
    }
    let way = seen_at(&stranger.path(), &one.netns, one.address, NO_WAY);
    assert_eq!(way, None, "through the node");
    let way = seen_by_udp(&stranger.path(), &one.netns, one.address.into(), NO_WAY);
    assert_eq!(way, None, "through the node by udp");
    assert_eq!(ask(&stranger.path(), &uri, &[]).0, "000");
    stranger.ip(&format!("route del {}/32", one.address));
    ip_inside(
        &one,
        &format!("route add {}/32 via 169.254.1.1 dev berth0", stranger.address),
    );
    let way = seen_at(&one.netns, &stranger.path(), stranger.address, NO_WAY);
    assert_eq!(way, None, "out through the node");
    drop(stranger);
    // Nor does the link of its endpoints lead to anything else of the node.
    let way = seen_at(&sibling.netns, &there, node_address, CONNECT);
    assert_eq!(way, Some(sibling.address.into()));
    ip_inside(
        &one,
        &format!("route add {node_address}/32 via 169.254.1.1 dev berth0"),
    );
    let way = seen_at(&one.netns, &there, node_address, NO_WAY);
    assert_eq!(way, None, "to the node itself");
    let off = within(&one.netns, || {
        std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    });
    assert_eq!(off.unwrap().trim(), "1");

    // An address that somebody took is not a task's: it gets the next.
    let taken = Ipv4Addr::from(u32::from(two.address) + 1);
    ip(&format!("addr add {taken}/32 dev {}", fleet.bridge()));
    let three = fleet.run(node, &lan).await;
    assert_eq!(three.address, Ipv4Addr::from(u32::from(taken) + 1));
    reaches(here, &three, fleet.address());
    let routes = fleet.nodes[node].ip("route show");
    assert!(!routes.contains(&format!("{taken} ")), "{routes}");

    // If all are, it says whose.
    let [a, b, c, _] = fleet.address().octets();
    let body = json!({
        "name": "small", "range": format!("{a}.{b}.{c}.120/29"), "nodePrefixLength": 30,
    });
    let small = fleet.lan(body).await;
    for last in [121, 122, 125, 126] {
        ip(&format!("addr add {a}.{b}.{c}.{last}/32 dev {}", fleet.bridge()));
    }
    let unlucky = fleet
        .until("the node to have a part of the range", async || {
            let answer = fleet.try_run(node, &small).await;
            answer["tasks"][0]["taskArn"].as_str().map(str::to_owned)
        })
        .await;
    let stopped = fleet.wait_status(node, &unlucky, "STOPPED").await;
    let reason = stopped["stoppedReason"].as_str().unwrap();
    assert!(
        reason.contains(&format!("a host of the network has {a}.{b}.{c}.12"))
            && reason.ends_with("; no other address is free"),
        "{reason}"
    );

    let answer = fleet.try_publish(node, &lan).await;
    assert!(
        answer.contains("is itself a host of") && answer.contains("macvlan"),
        "{answer}"
    );
    for task in [&one, &two, &three, &sibling] {
        fleet.stop(node, task).await;
    }
    assert_eq!(fleet.nodes[node].links(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_the_network_stays_one_over_a_crash_of_the_agent_and_loses_its_uplink_no_longer_than_the_node_does()
 {
    let mut fleet = Fleet::start().await;
    let node = fleet
        .add("default", "", &["link add lan0 type veth peer name lan1"])
        .await;
    fleet.nodes[node].ip("link set lan1 up");
    fleet.nodes[node].ip("link set lan0 up");
    let before = fleet.nodes[node].ip("-br link show up0");
    let lan = fleet.lan(json!({ "name": "lan" })).await;
    let body = json!({
        "name": "other", "cidrBlock": "192.168.77.0/24", "range": "192.168.77.64/26", "gateway": null, "uplink": "lan0",
    });
    let other = fleet.lan(body).await;
    let none = json!({
        "name": "none", "cidrBlock": "192.168.78.0/24", "range": "192.168.78.64/26", "gateway": null, "uplink": "eth77",
    });
    let none = fleet.lan(none).await;
    let refused = refusal(&fleet, node, &none, "there is no link eth77").await;
    assert!(refused.contains("RESOURCE:ENI"), "{refused}");
    let health = fleet.instance(node).await["healthStatus"].clone();
    assert_eq!(
        health["overallStatus"], "OK",
        "a network need not be everywhere: {health}"
    );

    let (kept, lost) = (fleet.run(node, &lan).await, fleet.run(node, &other).await);
    let has_no_default = ip_inside(&lost, "route show default");
    assert_eq!(has_no_default, "");
    fleet.nodes[node].kill_agent();
    fleet.wait_connected(node, false).await;
    reaches(Path::new(HERE), &kept, fleet.address());
    // A link for a VLAN that could not be removed, as far as its name goes, which is as that of a task's link.
    let links = fleet.nodes[node].ip("-br link");
    let is_name = |name: &str| name.len() == 15 && name[1..].bytes().all(|c| c.is_ascii_hexdigit());
    let of_task = links.lines().filter_map(|line| line.split('@').next());
    let of_task = of_task.into_iter().find(|name| is_name(name)).unwrap();
    let vlan = format!("v{}0123456789", &of_task[1..5]);
    fleet.nodes[node].ip(&format!("link add {vlan} type veth peer name lan3"));
    fleet.nodes[node].start_agent();
    fleet.wait_connected(node, true).await;
    reaches(Path::new(HERE), &kept, fleet.address());
    reaches(&fleet.nodes[node].netns(), &kept, NODE);
    let uri = metadata_uri(&kept);
    fleet
        .until("the task's metadata", async || {
            (ask(&kept.netns, &uri, &[]).0 == "200").then_some(())
        })
        .await;

    let audited = async || (!fleet.nodes[node].ip("-br link").contains(&vlan)).then_some(());
    fleet
        .until("the audit to remove what is no task's", audited)
        .await;

    // The uplink goes, and the task's link with it; it comes back with it.
    fleet.nodes[node].ip("link del lan0");
    let refused = refusal(&fleet, node, &other, "there is no link lan0").await;
    assert!(refused.contains("RESOURCE:ENI"), "{refused}");
    assert!(!ip_inside(&lost, "-br link").contains("eth0"));
    fleet.nodes[node].ip("link add lan0 type veth peer name lan1");
    fleet.nodes[node].ip("link set lan1 up");
    fleet.nodes[node].ip("link set lan0 up");
    let wanted = format!("{}/24", lost.address);
    fleet
        .until("the task to be a host again", async || {
            ip_inside(&lost, "-o addr").contains(&wanted).then_some(())
        })
        .await;
    for task in [&kept, &lost] {
        fleet.stop(node, task).await;
    }
    assert_eq!(fleet.nodes[node].ip("-br link show up0"), before);
    let links = fleet.nodes[node].links();
    let is_lan = |link: &String| link.contains("macvlan");
    assert!(!links.iter().any(is_lan) && links.len() == 4, "{links:?}");
}

/// Until a task is refused in the subnet on this node for that reason; all that was said.
async fn refusal(fleet: &Fleet, node: usize, subnet: &str, reason: &str) -> String {
    fleet
        .until(&format!("a refusal: {reason}"), async || {
            let part = fleet.part(node, subnet).await;
            part["problem"]
                .as_str()
                .is_some_and(|text| text.contains(reason))
                .then_some(())
        })
        .await;
    let answer = fleet.try_run(node, subnet).await;
    let failures = answer["failures"].to_string();
    assert!(failures.contains(reason), "{answer}");
    failures
}
