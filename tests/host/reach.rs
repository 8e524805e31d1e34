//! Who reaches a task, in every mode, by every protocol and family, from everywhere: one table.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use berth_tests::cluster::{Cluster, Options};
use serde_json::{Value, json};

use crate::{
    ask::{OUTSIDE, OUTSIDE_IPV6, Outside, Protocol, serve, serve_tcp, serve_udp, within},
    fields::{Seen, look},
};

/// For one who is to be reached.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who has no way is not reached later either.
const NO_WAY: Duration = Duration::from_secs(1);
/// What the containers of mode bridge listen on, by TCP and UDP.
const PORT: u16 = 80;
/// One of the range of container ports 7000 to 7004.
const IN_RANGE: u16 = 7_002;
const ON_HOST: u16 = 18_470;
const STATIC: u16 = 18_471;
const PUBLISHED: u16 = 18_472;
/// What nobody publishes.
const UNPUBLISHED: u16 = 18_473;

/// Where a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// At an address of the node, by the port that leads to it there.
    Node,
    /// At 127.0.0.1 or ::1, by that port.
    NodeLoopback,
    /// At an address of the node, by a port that is not published.
    NodeUnpublished,
    /// At its own address, by a port that is not published.
    Own,
    /// At 127.0.0.1 or ::1, by that port.
    OwnLoopback,
}

/// Who asks, in the table's order.
const FROM: [&str; 5] = ["the host", "itself", "its sibling", "another task", "outside"];

/// `+` is answered, `-` is not. A blank is no question: on whose loopback nobody listens, and who has no sibling, which is another
/// container of the task.
const TABLE: [(&str, At, &str, &str); 16] = [
    //                              IPv4     IPv6
    ("static", At::Node, "+++++", "+++++"),
    ("static", At::NodeLoopback, "+    ", "-    "),
    ("static", At::NodeUnpublished, "-----", "-----"),
    ("static", At::Own, "++++-", "++++-"),
    ("dynamic", At::Node, "+++++", "+++++"),
    ("dynamic", At::NodeLoopback, "+    ", "-    "),
    ("range", At::Node, "+++++", "+++++"),
    ("range", At::NodeLoopback, "+    ", "-    "),
    ("awsvpc", At::Node, "+++++", "+++++"),
    ("awsvpc", At::NodeLoopback, "+    ", "-    "),
    ("awsvpc", At::NodeUnpublished, "-----", "-----"),
    ("awsvpc", At::Own, "++++-", "++++-"),
    ("awsvpc", At::OwnLoopback, " ++  ", " ++  "),
    ("host", At::Node, "++ ++", "++ ++"),
    ("host", At::NodeLoopback, "+    ", "+    "),
    ("none", At::OwnLoopback, " +   ", " +   "),
];

/// One that answers with its name.
struct Server {
    itself: i32,
    sibling: Option<i32>,
    /// A process of another task.
    another: i32,
    /// The ports of the node that lead to it.
    ports: BTreeMap<String, u16>,
    own: Option<[IpAddr; 2]>,
}

impl Server {
    fn address(&self, at: At, family: usize, protocol: Protocol) -> SocketAddr {
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let node: [IpAddr; 2] = [OUTSIDE[0].into(), OUTSIDE_IPV6[0].into()];
        let port = match protocol {
            Protocol::Tcp => self.ports.get("tcp"),
            Protocol::Udp => self.ports.get("udp"),
        };
        let (addresses, port) = match at {
            At::Node => (node, port),
            At::NodeLoopback => (loopback, port),
            At::NodeUnpublished => (node, Some(&UNPUBLISHED)),
            At::Own => (self.own.unwrap(), Some(&UNPUBLISHED)),
            At::OwnLoopback => (loopback, Some(&UNPUBLISHED)),
        };
        SocketAddr::new(addresses[family], *port.unwrap())
    }
}

/// Asks all that is in the table at once, and fails with all that is otherwise.
fn reach(when: &str, servers: &BTreeMap<&str, Server>, outside: &Outside) {
    let mut asked = Vec::new();
    for (name, at, ipv4, ipv6) in TABLE {
        let server = &servers[name];
        let who = [
            None,
            Some(server.itself),
            server.sibling,
            Some(server.another),
            Some(outside.pid()),
        ];
        for (family, row) in [ipv4, ipv6].into_iter().enumerate() {
            assert_eq!(row.len(), FROM.len());
            for (column, cell) in row.chars().enumerate().filter(|(_, cell)| *cell != ' ') {
                for protocol in Protocol::BOTH {
                    let address = server.address(at, family, protocol);
                    asked.push((name, FROM[column], who[column], protocol, address, cell == '+'));
                }
            }
        }
    }
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let asking: Vec<_> = asked
            .into_iter()
            .map(|(name, from, pid, protocol, address, reached)| {
                scope.spawn(move || {
                    let patience = if reached { PATIENCE } else { NO_WAY };
                    let said = within(pid, || protocol.ask(address, patience));
                    let right = match &said {
                        Ok(said) => reached && said == name,
                        Err(_) => !reached,
                    };
                    (!right).then(|| format!("{name} at {address}/{protocol:?} from {from}: {said:?}"))
                })
            })
            .collect();
        asking.into_iter().filter_map(|one| one.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{when}: {wrong:#?}");
}

fn ports(host_port: u16, container_port: u16) -> Value {
    let one = |protocol: &str| json!({"containerPort": container_port, "hostPort": host_port, "protocol": protocol});
    json!([one("tcp"), one("udp")])
}

fn both(port: u16) -> BTreeMap<String, u16> {
    BTreeMap::from(["tcp", "udp"].map(|protocol| (protocol.to_owned(), port)))
}

/// Of the container, by protocol; those of single ports.
fn bound(described: &Value, name: &str) -> BTreeMap<String, u16> {
    let containers = described["containers"].as_array().unwrap();
    let container = containers.iter().find(|c| c["name"] == name).unwrap();
    let bindings = container["networkBindings"].as_array().unwrap().iter();
    bindings
        .filter(|b| b.get("hostPort").is_some())
        .map(|b| {
            assert_eq!(b["bindIP"], "0.0.0.0");
            let port = b["hostPort"].as_u64().unwrap().try_into().unwrap();
            (b["protocol"].as_str().unwrap().to_owned(), port)
        })
        .collect()
}

/// The port of the node that leads to [`IN_RANGE`], of a container with the range 7000 to 7004.
fn in_range(described: &Value, protocol: &str) -> u16 {
    let bindings = described["containers"][1]["networkBindings"].as_array().unwrap();
    let range = |b: &&Value| b["containerPortRange"] == "7000-7004" && b["protocol"] == protocol;
    let range = bindings.iter().find(range).unwrap()["hostPortRange"]
        .as_str()
        .unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let [first, last] = [first, last].map(|port| port.parse::<u16>().unwrap());
    assert_eq!(last - first, 4, "{described:#}");
    first + (IN_RANGE - 7_000)
}

/// What an awsvpc task has for addresses, by its attachment.
fn attached(described: &Value) -> [IpAddr; 2] {
    let details = described["attachments"][0]["details"].as_array().unwrap();
    ["privateIPv4Address", "ipv6Address"].map(|name| {
        let found = details.iter().find(|detail| detail["name"] == name).unwrap();
        found["value"].as_str().unwrap().parse().unwrap()
    })
}

/// What a container of mode bridge is told of itself; its addresses.
fn told(seen: &Seen) -> [IpAddr; 2] {
    let own: Value = serde_json::from_str(&seen.lines[0]).unwrap();
    let network = &own["Networks"][0];
    assert_eq!(network["NetworkMode"], "bridge");
    let port = json!({"ContainerPort": PORT, "HostPort": STATIC, "HostIp": "0.0.0.0", "Protocol": "tcp"});
    assert_eq!(own["Ports"][0], port);
    assert_eq!(network["IPv4Addresses"].as_array().unwrap().len(), 1);
    ["IPv4Addresses", "IPv6Addresses"].map(|family| network[family][0].as_str().unwrap().parse().unwrap())
}

/// Both addresses are one, below the node's prefix, and the task's file of hosts has it.
fn assert_ipv6(described: &Value, own: [IpAddr; 2], pid: i32) {
    let [IpAddr::V4(ipv4), IpAddr::V6(ipv6)] = own else {
        panic!("{own:?}");
    };
    let prefix: Ipv6Addr = "fd00:be47::".parse().unwrap();
    let expected = u128::from(prefix) | u128::from(u32::from(ipv4));
    assert_eq!(ipv6, Ipv6Addr::from(expected));
    let interface = &described["containers"][0]["networkInterfaces"][0];
    assert_eq!(interface["ipv6Address"], ipv6.to_string(), "{interface}");
    let hosts = std::fs::read_to_string(format!("/proc/{pid}/root/etc/hosts")).unwrap();
    assert!(hosts.contains(&format!("{ipv6}\t")), "{hosts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_is_reached_from_where_it_is_said_to_be_and_from_nowhere_else() {
    let mut cluster = Cluster::alone_with(Options {
        agent_config: "task_cidr_v6 = \"fd00:be47::/64\"\n".into(),
        ..Options::default()
    })
    .await;
    let before = cluster.listing();
    let outside = Outside::new();
    // Two containers that listen on one port; another port and ranges are the node's to choose as well.
    let chosen = json!([
        {"containerPort": PORT, "protocol": "tcp"},
        {"containerPort": PORT, "protocol": "udp"},
        {"containerPortRange": "7000-7004", "protocol": "tcp"},
        {"containerPortRange": "7000-7004", "protocol": "udp"},
    ]);
    let metadata = "wget -q -O - $ECS_CONTAINER_METADATA_URI_V4; echo";
    let (bridge, of_bridge) = look(
        &cluster,
        |d| d["networkMode"] = json!("bridge"),
        &[
            ("static", metadata, json!({"portMappings": ports(STATIC, PORT)})),
            (
                "dynamic",
                "true",
                json!({"essential": false, "portMappings": chosen}),
            ),
        ],
    )
    .await;
    let publishing = cluster
        .register("sleep 3600", |d| {
            let mut beside = d["containerDefinitions"][0].clone();
            beside["name"] = json!("beside");
            d["containerDefinitions"][0]["portMappings"] = ports(PUBLISHED, PUBLISHED);
            d["containerDefinitions"].as_array_mut().unwrap().push(beside);
        })
        .await;
    let body = json!({"taskDefinition": publishing, "networkConfiguration": {"awsvpcConfiguration":
        {"subnets": ["subnet-default"], "assignPublicIp": "ENABLED"}}});
    let answer = cluster.client.ok("RunTask", body.clone()).await;
    let awsvpc = answer["tasks"][0]["taskArn"].as_str().unwrap().to_owned();
    cluster.wait_status(&awsvpc, "RUNNING").await;
    let on_host = cluster
        .running("sleep 3600", |d| {
            d["networkMode"] = json!("host");
            d["containerDefinitions"][0]["portMappings"] = ports(ON_HOST, ON_HOST);
        })
        .await;
    let none = cluster
        .running("sleep 3600", |d| d["networkMode"] = json!("none"))
        .await;

    let [of_static, of_dynamic] = ["static", "dynamic"].map(|name| of_bridge[name].pid);
    let [of_awsvpc, beside] = cluster.pids(&awsvpc)[..] else {
        panic!("one process for each container of {awsvpc}");
    };
    let [of_host, of_none] = [&on_host, &none].map(|task| cluster.pids(task)[0]);
    for (pid, port, name) in [
        (of_static, PORT, "static"),
        (of_static, UNPUBLISHED, "static"),
        (of_dynamic, PORT, "dynamic"),
        (of_dynamic, IN_RANGE, "range"),
        (of_awsvpc, PUBLISHED, "awsvpc"),
        (of_awsvpc, UNPUBLISHED, "awsvpc"),
        (of_none, UNPUBLISHED, "none"),
    ] {
        serve(Some(pid), port, name);
    }
    serve_tcp(Some(of_host), ON_HOST, "host");
    // One at [::] would answer tasks from whichever address the host's route to them has.
    let asked: [IpAddr; 4] = [
        OUTSIDE[0].into(),
        OUTSIDE_IPV6[0].into(),
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
    ];
    for address in asked {
        serve_udp(Some(of_host), (address, ON_HOST), "host");
    }

    let described = cluster.describe(&bridge).await;
    let dynamic = bound(&described, "dynamic");
    assert_eq!(bound(&described, "static"), both(STATIC));
    let range = ["tcp", "udp"].map(|protocol| (protocol.to_owned(), in_range(&described, protocol)));
    let shown = cluster.describe(&awsvpc).await;
    assert_eq!(bound(&shown, "main"), both(PUBLISHED));
    assert_eq!(bound(&cluster.describe(&on_host).await, "main"), both(ON_HOST));
    let own = attached(&shown);
    assert_ipv6(&shown, own, of_awsvpc);
    let server = |itself, sibling, another, ports: &BTreeMap<String, u16>, own| Server {
        itself,
        sibling,
        another,
        ports: ports.clone(),
        own,
    };
    let own_bridge = Some(told(&of_bridge["static"]));
    let servers = BTreeMap::from([
        (
            "static",
            server(of_static, Some(of_dynamic), of_awsvpc, &both(STATIC), own_bridge),
        ),
        (
            "dynamic",
            server(of_dynamic, Some(of_static), of_awsvpc, &dynamic, None),
        ),
        (
            "range",
            server(of_dynamic, Some(of_static), of_awsvpc, &range.into(), None),
        ),
        (
            "awsvpc",
            server(of_awsvpc, Some(beside), of_dynamic, &both(PUBLISHED), Some(own)),
        ),
        ("host", server(of_host, None, of_awsvpc, &both(ON_HOST), None)),
        ("none", server(of_none, None, of_awsvpc, &BTreeMap::new(), None)),
    ]);
    reach("at first", &servers, &outside);

    // A port that is held is a fact of placement.
    let refused = cluster.client.ok("RunTask", body).await;
    assert_eq!(refused["failures"][0]["reason"], "RESOURCE:PORTS", "{refused}");

    cluster.kill_agent();
    cluster.start_agent();
    cluster.wait_connected(true).await;
    assert_eq!(bound(&cluster.describe(&bridge).await, "dynamic"), dynamic);
    reach("after the agent was killed", &servers, &outside);

    // Who outside has a route to a task needs no published port.
    for (family, (address, node)) in own.into_iter().zip(asked).enumerate() {
        outside.run(&format!("ip route add {address} via {node}"));
        for protocol in Protocol::BOTH {
            let address = servers["awsvpc"].address(At::Own, family, protocol);
            let said = within(Some(outside.pid()), || protocol.ask(address, PATIENCE));
            assert_eq!(said.unwrap(), "awsvpc", "{protocol:?} to {address} by a route");
        }
    }

    for task in [&bridge, &awsvpc, &on_host, &none] {
        cluster.stop(task).await;
    }
    drop(outside);
    cluster.assert_nothing_left(&before).await;
}
