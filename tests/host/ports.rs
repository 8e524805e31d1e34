//! Ports of the host that lead to tasks, in every mode that has them, from everywhere.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::{Child, Command},
    time::Duration,
};

use berth_tests::cluster::{Cluster, Options, container};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::fields::look;

const PATIENCE: Duration = Duration::from_secs(5);
/// Of the link to the outside, and its other end.
const OUTSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];
const OUTSIDE_IPV6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0xbe47, 99, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0xbe47, 99, 0, 0, 0, 0, 2),
];
const LINK: &str = "bporttest0";
/// What every container listens on, by TCP and UDP; in host mode it is the host's.
const PORT: u16 = 80;
const ON_HOST: u16 = 18_470;
const STATIC: u16 = 18_471;
const PUBLISHED: u16 = 18_472;

/// Calls a function in the network namespace of a process; sockets that it makes stay there. None: the test's own.
fn within<T: Send>(pid: Option<i32>, call: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Some(pid) = pid {
                let netns = File::open(format!("/proc/{pid}/ns/net")).unwrap();
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            }
            call()
        });
        thread.join().unwrap()
    })
}

/// Tells everybody its name, by TCP and UDP, until the process ends.
fn serve(pid: Option<i32>, port: u16, name: &'static str) {
    let (tcp, udp) = within(pid, || {
        // Of both families.
        let address = (Ipv6Addr::UNSPECIFIED, port);
        (
            TcpListener::bind(address).unwrap(),
            UdpSocket::bind(address).unwrap(),
        )
    });
    std::thread::spawn(move || {
        for client in tcp.incoming() {
            let _ = client.unwrap().write_all(name.as_bytes());
        }
    });
    std::thread::spawn(move || {
        while let Ok((_, client)) = udp.recv_from(&mut [0; 16]) {
            udp.send_to(name.as_bytes(), client).unwrap();
        }
    });
}

fn ask_tcp(address: SocketAddr) -> std::io::Result<String> {
    let mut server = TcpStream::connect_timeout(&address, PATIENCE)?;
    server.set_read_timeout(Some(PATIENCE))?;
    let mut name = String::new();
    server.read_to_string(&mut name)?;
    Ok(name)
}

fn ask_udp(address: SocketAddr) -> std::io::Result<String> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = UdpSocket::bind((any, 0))?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.connect(address)?;
    client.send(b"who")?;
    let mut name = [0; 32];
    let read = client.recv(&mut name)?;
    Ok(String::from_utf8_lossy(&name[..read]).into_owned())
}

/// A network namespace that knows the host by one link.
struct Outside(Child);

impl Outside {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["--net", "sleep", "600"])
            .spawn()
            .unwrap();
        let outside = Self(child);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", outside.pid());
        let start = std::time::Instant::now();
        while std::fs::read_link(&theirs).unwrap() == own {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        }
        let (pid, [here, there]) = (outside.pid(), OUTSIDE);
        let [here_ipv6, there_ipv6] = OUTSIDE_IPV6;
        for command in [
            format!("ip link add {LINK} type veth peer name out0 netns {pid}"),
            format!("ip addr add {here}/30 dev {LINK}"),
            format!("ip addr add {here_ipv6}/64 dev {LINK} nodad"),
            format!("ip link set {LINK} up"),
            format!("nsenter --net={theirs} ip addr add {there}/30 dev out0"),
            format!("nsenter --net={theirs} ip addr add {there_ipv6}/64 dev out0 nodad"),
            format!("nsenter --net={theirs} ip link set out0 up"),
        ] {
            let mut words = command.split(' ');
            let done = Command::new(words.next().unwrap()).args(words).status().unwrap();
            assert!(done.success(), "{command}");
        }
        outside
    }

    fn pid(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // At once, and not when the kernel comes round to the namespace.
        let _ = Command::new("ip").args(["link", "del", LINK]).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ports(host_port: u16, container_port: u16) -> Value {
    let one = |protocol: &str| json!({"containerPort": container_port, "hostPort": host_port, "protocol": protocol});
    json!([one("tcp"), one("udp")])
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

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_the_host_lead_to_tasks_of_every_mode_from_everywhere() {
    let mut cluster = Cluster::alone_with(Options {
        agent_config: "task_cidr_v6 = \"fd00:be47::/64\"\n".into(),
        ..Options::default()
    })
    .await;
    let before = cluster.listing();
    let outside = Outside::new();
    // Two containers that listen on one port; another port range is the node's to choose as well.
    let range = json!([
        {"containerPort": PORT, "protocol": "tcp"},
        {"containerPort": PORT, "protocol": "udp"},
        {"containerPortRange": "7000-7004"},
    ]);
    let metadata = "wget -q -O - $ECS_CONTAINER_METADATA_URI_V4; echo; hostname";
    let (bridge, of_bridge) = look(
        &cluster,
        |d| d["networkMode"] = json!("bridge"),
        &[
            ("static", metadata, json!({"portMappings": ports(STATIC, PORT)})),
            (
                "dynamic",
                "true",
                json!({"essential": false, "portMappings": range}),
            ),
        ],
    )
    .await;
    let publishing = cluster
        .register("sleep 3600", |d| {
            d["containerDefinitions"][0]["portMappings"] = ports(PUBLISHED, PUBLISHED)
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

    let [of_awsvpc, of_host] = [&awsvpc, &on_host].map(|task| cluster.pids(task)[0]);
    serve(Some(of_bridge["static"].pid), PORT, "static");
    serve(Some(of_bridge["dynamic"].pid), PORT, "dynamic");
    serve(Some(of_awsvpc), PUBLISHED, "awsvpc");
    serve(Some(of_host), ON_HOST, "host");
    let shown = cluster.describe(&bridge).await;
    let dynamic = bound(&shown, "dynamic");
    let both = |port: u16| BTreeMap::from(["tcp", "udp"].map(|protocol| (protocol.to_owned(), port)));
    let by_range = &shown["containers"][1]["networkBindings"][2];
    assert_eq!(by_range["containerPortRange"], "7000-7004", "{shown:#}");
    let (first, last) = by_range["hostPortRange"]
        .as_str()
        .unwrap()
        .split_once('-')
        .unwrap();
    assert_eq!(last.parse::<u16>().unwrap() - first.parse::<u16>().unwrap(), 4);

    let servers = [
        (
            "static",
            of_bridge["static"].pid,
            bound(&shown, "static"),
            Some(both(STATIC)),
        ),
        ("dynamic", of_bridge["dynamic"].pid, dynamic.clone(), None),
        (
            "awsvpc",
            of_awsvpc,
            bound(&cluster.describe(&awsvpc).await, "main"),
            Some(both(PUBLISHED)),
        ),
        (
            "host",
            of_host,
            bound(&cluster.describe(&on_host).await, "main"),
            Some(both(ON_HOST)),
        ),
    ];
    let reach = |when: &str| {
        for (name, itself, ports, expected) in &servers {
            if let Some(expected) = expected {
                assert_eq!(ports, expected, "{name}");
            }
            let sibling = if *name == "awsvpc" {
                of_bridge["dynamic"].pid
            } else {
                of_awsvpc
            };
            let (host, host_ipv6) = (IpAddr::V4(OUTSIDE[0]), IpAddr::V6(OUTSIDE_IPV6[0]));
            for (case, from, to) in [
                ("from the host by its IPv6 address", None, host_ipv6),
                ("from itself by IPv6", Some(*itself), host_ipv6),
                ("from another task by IPv6", Some(sibling), host_ipv6),
                ("from outside by IPv6", Some(outside.pid()), host_ipv6),
                ("from the host by its address", None, host),
                ("from the host by 127.0.0.1", None, Ipv4Addr::LOCALHOST.into()),
                ("from itself", Some(*itself), host),
                ("from another task", Some(sibling), host),
                ("from outside", Some(outside.pid()), host),
            ] {
                for (protocol, port) in ports {
                    // Answers by UDP come from the address next to who asks, which need not be the one that was asked.
                    if *name == "host" && case.starts_with("from another task") && protocol == "udp" {
                        continue;
                    }
                    let address = SocketAddr::new(to, *port);
                    let ask = if protocol == "tcp" { ask_tcp } else { ask_udp };
                    let said = within(from, || ask(address));
                    let said =
                        said.unwrap_or_else(|error| panic!("{when}: {name}/{protocol} {case}: {error}"));
                    assert_eq!(said, *name, "{when}: {protocol} {case}");
                }
            }
        }
    };
    reach("at first");

    // What a container of bridge mode is told of itself.
    let own: Value = serde_json::from_str(&of_bridge["static"].lines[0]).unwrap();
    assert_eq!(own["Networks"][0]["NetworkMode"], "bridge");
    let port = json!({"ContainerPort": PORT, "HostPort": STATIC, "HostIp": "0.0.0.0", "Protocol": "tcp"});
    assert_eq!(own["Ports"][0], port);
    assert_eq!(own["Networks"][0]["IPv4Addresses"].as_array().unwrap().len(), 1);
    let ipv6 = own["Networks"][0]["IPv6Addresses"][0].as_str().unwrap();
    assert!(ipv6.starts_with("fd00:be47::"), "{ipv6}");

    // An awsvpc task has it in its attachment, and in its file of hosts.
    let shown = cluster.describe(&awsvpc).await;
    let details = shown["attachments"][0]["details"].as_array().unwrap();
    let detail = |name: &str| {
        let found = details.iter().find(|detail| detail["name"] == name).unwrap();
        found["value"].as_str().unwrap().to_owned()
    };
    let ipv4: Ipv4Addr = detail("privateIPv4Address").parse().unwrap();
    let ipv6: Ipv6Addr = detail("ipv6Address").parse().unwrap();
    let prefix: Ipv6Addr = "fd00:be47::".parse().unwrap();
    let expected = u128::from(prefix) | u128::from(u32::from(ipv4));
    assert_eq!(ipv6, Ipv6Addr::from(expected));
    let interface = &shown["containers"][0]["networkInterfaces"][0];
    assert_eq!(interface["ipv6Address"], ipv6.to_string(), "{interface}");
    let hosts = std::fs::read_to_string(format!("/proc/{of_awsvpc}/root/etc/hosts")).unwrap();
    assert!(hosts.contains(&format!("{ipv6}\t")), "{hosts}");

    // A port that is held is a fact of placement.
    let refused = cluster.client.ok("RunTask", body).await;
    assert_eq!(refused["failures"][0]["reason"], "RESOURCE:PORTS", "{refused}");

    cluster.kill_agent();
    cluster.start_agent();
    cluster.wait_connected(true).await;
    assert_eq!(bound(&cluster.describe(&bridge).await, "dynamic"), dynamic);
    reach("after the agent was killed");

    for task in [&bridge, &awsvpc, &on_host] {
        cluster.stop(task).await;
    }
    drop(outside);
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_a_process_of_the_host_has_fails_the_task_and_says_so() {
    let cluster = Cluster::start().await;
    let theirs = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = theirs.local_addr().unwrap().port();
    let definition = cluster
        .register("sleep 3600", |d| {
            d["networkMode"] = json!("bridge");
            d["containerDefinitions"][0]["portMappings"] = json!([{"containerPort": 80, "hostPort": port}]);
        })
        .await;
    let task = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(stopped["stopCode"], "TaskFailedToStart");
    let reason = stopped["stoppedReason"].as_str().unwrap();
    let expected = format!("a process of the host has host port {port}/tcp");
    assert!(reason.contains(&expected), "{reason}");
}

/// A container that its policy starts again has the network that it had; one without a network has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_bridge_mode_keeps_its_address_over_restarts() {
    let cluster = Cluster::start().await;
    let script = "ip -4 -o addr show eth0 | awk '{print \"address\", $4}'; hostname | sed 's/^/name /'; [ -e /tmp/x ] || sleep 1";
    let task = cluster
        .running("true", |d| {
            let mut main = container("main", script);
            main["restartPolicy"] = json!({"enabled": true, "restartAttemptPeriod": 60});
            let mut alone = container("alone", "ls /sys/class/net | sed 's/^/link /'; sleep 3600");
            alone["disableNetworking"] = json!(true);
            d["containerDefinitions"] = json!([main, alone]);
            d.as_object_mut().unwrap().remove("networkMode");
        })
        .await;
    let lines = cluster
        .until("a second start", Duration::from_secs(30), async || {
            let logs = cluster.client.logs(&task).await;
            let lines: Vec<String> = logs
                .iter()
                .map(|l| l["line"].as_str().unwrap().trim().to_owned())
                .collect();
            (lines.iter().filter(|line| line.starts_with("name ")).count() >= 2).then_some(lines)
        })
        .await;
    let addresses: Vec<_> = lines.iter().filter(|line| line.starts_with("address ")).collect();
    assert!(
        addresses.len() >= 2 && addresses.iter().all(|a| *a == addresses[0]),
        "{lines:?}"
    );
    let links: Vec<_> = lines.iter().filter(|line| line.starts_with("link ")).collect();
    assert_eq!(links, ["link lo"]);
    let id = cluster.describe(&task).await["containers"][0]["containerArn"]
        .as_str()
        .unwrap()
        .rsplit('/')
        .next()
        .unwrap()[..12]
        .to_owned();
    assert!(lines.contains(&format!("name {id}")), "{lines:?}");
    cluster.stop(&task).await;
}
