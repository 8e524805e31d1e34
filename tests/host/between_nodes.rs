//! Several nodes: tasks reach each other by address and by name over routes, clusters do not meet, and ranges that a host uses
//! otherwise are left alone.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use berth_tests::fleet::{Fleet, Node, Task};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use serde_json::{Value, json};

use crate::dns::{ask_from_here, result};

const ROUTES: &str = "[network]\nbetween = \"routes\"\n";
const PORT: u16 = 4000;
/// What is promised of others when a node joins or leaves.
const SOON: Duration = Duration::from_secs(1);
/// One of so many nodes is to be noticed as soon: the machine may have been busy with something else.
const TRIES: usize = 3;
/// Long for a connection on one machine.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// Who has no way is not reached later either.
pub(crate) const NO_WAY: Duration = Duration::from_secs(1);

/// Does `work` in a network namespace, on a thread that ends with it.
pub(crate) fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            let file = std::fs::File::open(netns).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        entered.join().unwrap()
    })
}

/// A child of another test that is not executed yet may hold the socket before for a moment.
fn listen(address: IpAddr) -> TcpListener {
    let begun = Instant::now();
    loop {
        match TcpListener::bind((address, PORT)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < CONNECT => {
                std::thread::sleep(Duration::from_millis(10));
            }
            bound => return bound.unwrap(),
        }
    }
}

/// Connects from one namespace to an address of another; whom the other saw. None: it was not reached.
pub(crate) fn seen_at(
    from: &Path,
    at: &Path,
    address: impl Into<IpAddr>,
    patience: Duration,
) -> Option<IpAddr> {
    let address = address.into();
    let listener = within(at, || listen(address));
    let to = SocketAddr::from((address, PORT));
    let connected = within(from, || TcpStream::connect_timeout(&to, patience));
    let mut stream = connected.ok()?;
    let (mut accepted, seen) = listener.accept().unwrap();
    stream.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    Some(seen.ip())
}

/// Likewise by a datagram, which is answered.
pub(crate) fn seen_by_udp(from: &Path, at: &Path, address: IpAddr, patience: Duration) -> Option<IpAddr> {
    let any = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let bind = |address| {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        socket
    };
    let (server, client) = (within(at, || bind(address)), within(from, || bind(any)));
    client.connect(server.local_addr().unwrap()).ok()?;
    client.send(b"x").ok()?;
    let (_, seen) = server.recv_from(&mut [0]).ok()?;
    server.send_to(b"y", seen).unwrap();
    client.recv(&mut [0]).unwrap();
    Some(seen.ip())
}

fn meet(from: &Task, to: &Task) {
    let seen = seen_at(&from.netns, &to.netns, to.address, CONNECT);
    assert_eq!(seen, Some(from.address.into()), "{from:?} to {to:?}");
}

/// Until a task's name has `found` for an answer, where another task asks for it.
async fn until_named(fleet: &Fleet, from: &Task, to: &Task, found: Option<Ipv4Addr>) {
    let name = format!("{}.default.berth.", to.arn.rsplit('/').next().unwrap());
    let expected = match found {
        Some(address) => (ResponseCode::NoError, vec![address.into()]),
        None => (ResponseCode::NXDomain, vec![]),
    };
    fleet
        .until(&format!("{name} to be {found:?}"), async || {
            let answer = within(&from.netns, || result(&ask_from_here(&name, RecordType::A)));
            (answer == expected).then_some(())
        })
        .await;
}

async fn until_ranges(fleet: &Fleet, node: usize, wanted: &[String]) {
    let mut wanted: Vec<String> = wanted.to_vec();
    wanted.sort();
    let what = format!("node {node} to have {wanted:?}");
    fleet
        .until(&what, async || {
            let mut ranges = fleet.nodes[node].ranges();
            ranges.sort();
            (ranges == wanted).then_some(())
        })
        .await;
}

async fn range(fleet: &Fleet, node: usize, subnet: &str) -> String {
    fleet
        .until("a part of the subnet", async || {
            fleet.part(node, subnet).await["cidrBlock"]
                .as_str()
                .map(str::to_owned)
        })
        .await
}

fn via(range: &str, node: &Node) -> String {
    format!("{range} via {}", node.address)
}

fn own(range: &str) -> String {
    format!("unreachable {range}")
}

/// How long others took to notice that a node came, what its task is called, and that both went again.
#[derive(Clone, Copy, Debug)]
struct Noticed([Duration; 4]);

impl Noticed {
    fn never() -> Self {
        Self([Duration::MAX; 4])
    }

    fn best(self, other: Self) -> Self {
        let mut best = self.0;
        for (mine, theirs) in best.iter_mut().zip(other.0) {
            *mine = theirs.min(*mine);
        }
        Self(best)
    }

    fn is_soon(&self) -> bool {
        let soon = berth_tests::emulated(SOON);
        self.0.iter().all(|took| *took <= soon)
    }
}

/// A node joins, runs a task that meets those of others, and leaves. Time runs from when the control plane has said that it is so.
async fn comes_and_goes(
    fleet: &mut Fleet,
    subnet: &str,
    others: &[(usize, String); 2],
    tasks: [&Task; 2],
) -> Noticed {
    let new = fleet.add("default", ROUTES, &[]).await;
    let begun = Instant::now();
    let part = range(fleet, new, subnet).await;
    let with_new = |fleet: &Fleet, [(_, mine), (other, theirs)]: [&(usize, String); 2]| {
        let [theirs, part] =
            [(theirs, *other), (&part, new)].map(|(part, node)| via(part, &fleet.nodes[node]));
        [own(mine), theirs, part]
    };
    let [a, b] = others.each_ref();
    until_ranges(fleet, a.0, &with_new(fleet, [a, b])).await;
    until_ranges(fleet, b.0, &with_new(fleet, [b, a])).await;
    let came = begun.elapsed();
    let mut ways = vec![own(&part)];
    ways.extend(others.iter().map(|(node, part)| via(part, &fleet.nodes[*node])));
    until_ranges(fleet, new, &ways).await;

    let task = fleet.run(new, subnet).await;
    let begun = Instant::now();
    until_named(fleet, tasks[0], &task, Some(task.address)).await;
    let named = begun.elapsed();
    meet(tasks[0], &task);
    meet(&task, tasks[1]);
    fleet.stop(new, &task).await;
    let begun = Instant::now();
    until_named(fleet, tasks[0], &task, None).await;
    let forgotten = begun.elapsed();

    let begun = Instant::now();
    let body = json!({ "cluster": "default", "containerInstance": fleet.nodes[new].id });
    fleet.client.ok("DeregisterContainerInstance", body).await;
    for [(node, mine), (other, theirs)] in [[a, b], [b, a]] {
        until_ranges(fleet, *node, &[own(mine), via(theirs, &fleet.nodes[*other])]).await;
    }
    Noticed([came, named, forgotten, begun.elapsed()])
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_a_cluster_meet_over_routes_and_those_of_another_do_not() {
    let mut fleet = Fleet::start().await;
    let (a, b) = (
        fleet.add("default", ROUTES, &[]).await,
        fleet.add("default", ROUTES, &[]).await,
    );
    let stranger = fleet.add("other", ROUTES, &[]).await;
    let subnet = fleet.subnet("default", "front", "10.200.0.0/22").await;
    let other = fleet.subnet("other", "front", "10.201.0.0/22").await;
    let (of_a, of_b) = (range(&fleet, a, &subnet).await, range(&fleet, b, &subnet).await);
    let of_stranger = range(&fleet, stranger, &other).await;
    until_ranges(&fleet, a, &[own(&of_a), via(&of_b, &fleet.nodes[b])]).await;
    until_ranges(&fleet, b, &[own(&of_b), via(&of_a, &fleet.nodes[a])]).await;
    until_ranges(&fleet, stranger, &[own(&of_stranger)]).await;

    let (one, two) = (fleet.run(a, &subnet).await, fleet.run(b, &subnet).await);
    let apart = fleet.run(stranger, &other).await;
    meet(&one, &two);
    meet(&two, &one);
    until_named(&fleet, &one, &two, Some(two.address)).await;
    until_named(&fleet, &two, &one, Some(one.address)).await;
    until_named(&fleet, &apart, &one, None).await;
    assert_eq!(seen_at(&apart.netns, &one.netns, one.address, NO_WAY), None);
    assert_eq!(seen_at(&one.netns, &apart.netns, apart.address, NO_WAY), None);
    // To the rest of the world a task has its node's address.
    let host = &fleet.nodes[stranger];
    let outside = seen_at(&one.netns, &host.netns(), host.address, CONNECT);
    assert_eq!(outside, Some(fleet.nodes[a].address.into()));

    let parts = [(a, of_a.clone()), (b, of_b.clone())];
    let mut took = Noticed::never();
    for _ in 0..TRIES {
        let next = comes_and_goes(&mut fleet, &subnet, &parts, [&one, &two]).await;
        took = took.best(next);
        if took.is_soon() {
            break;
        }
    }
    println!("a node that came and went was noticed after {took:?}");
    assert!(took.is_soon(), "{took:?}");

    // One that is only away keeps its routes, and its tasks; it finds them again.
    fleet.nodes[b].kill_agent();
    fleet.wait_connected(b, false).await;
    meet(&one, &two);
    assert_eq!(fleet.nodes[a].ranges().len(), 2);
    fleet.nodes[b].start_agent();
    fleet.wait_connected(b, true).await;
    meet(&two, &one);
    // What somebody takes away is made again, and what is somebody else's is left alone.
    let stray = format!(
        "route add 10.202.0.0/24 via {} proto 190 metric 4",
        fleet.nodes[a].address
    );
    fleet.nodes[b].ip(&stray);
    fleet.nodes[b].ip(&format!("route del {of_a}"));
    let foreign = format!("10.202.0.0/24 via {}", fleet.nodes[a].address);
    until_ranges(&fleet, b, &[own(&of_b), via(&of_a, &fleet.nodes[a]), foreign]).await;

    // The uplink vanishes with all that led over it, and the node says so; once it is back, so is the way to the others.
    fleet.unplug(a);
    let unreached = format!("the node at {} is not reached", fleet.nodes[b].address);
    fleet
        .until("the node to miss the other", async || {
            let lost = !fleet.nodes[a].ranges().contains(&via(&of_b, &fleet.nodes[b]));
            (lost && fleet.nodes[a].says().contains(&unreached)).then_some(())
        })
        .await;
    fleet.plug_in(a);
    until_ranges(&fleet, a, &[own(&of_a), via(&of_b, &fleet.nodes[b])]).await;
    meet(&one, &two);
    meet(&two, &one);
    fleet.wait_connected(a, true).await;

    for (node, task) in [(a, &one), (b, &two), (stranger, &apart)] {
        fleet.stop(node, task).await;
    }
    fleet
        .client
        .berth("DeleteSubnet", json!({ "subnet": subnet }))
        .await;
    until_ranges(&fleet, a, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_the_host_routes_elsewhere_is_not_used_and_told() {
    let mut fleet = Fleet::start().await;
    let foreign = "route add 10.200.0.0/16 dev lo";
    let node = fleet.add("default", ROUTES, &[foreign]).await;
    let taken = fleet.subnet("default", "taken", "10.200.0.0/24").await;
    let free = fleet.subnet("default", "free", "10.201.0.0/24").await;
    let problem = fleet
        .until("a problem with the range", async || {
            let part = fleet.part(node, &taken).await;
            part["problem"].as_str().map(str::to_owned)
        })
        .await;
    assert!(
        problem.contains("is routed elsewhere on this host: 10.200.0.0/16 on lo"),
        "{problem}"
    );
    let answer = fleet.try_run(node, &taken).await;
    let failure = &answer["failures"][0];
    assert_eq!(failure["reason"], "RESOURCE:ENI", "{answer}");
    assert!(failure["detail"].as_str().unwrap().contains(&problem), "{answer}");
    fleet
        .until("the node to be impaired", async || {
            let health = fleet.instance(node).await["healthStatus"].clone();
            let told = |detail: &Value| {
                detail["statusReason"]
                    .as_str()
                    .is_some_and(|text| text.contains(&problem))
            };
            health["details"].as_array()?.iter().any(told).then_some(())
        })
        .await;
    // The other one works.
    let task = fleet.run(node, &free).await;

    // Once the host has no other use for it, it is used.
    fleet.nodes[node].ip("route del 10.200.0.0/16 dev lo");
    fleet
        .until("the range to be used", async || {
            fleet.part(node, &taken).await["problem"].is_null().then_some(())
        })
        .await;
    let second = fleet.run(node, &taken).await;
    meet(&task, &second);

    // A range that is taken away is kept by who has an address of it, over a crash of the agent too.
    let refused = fleet
        .client
        .send("BerthV1.DeleteSubnet", json!({ "subnet": taken }))
        .await;
    assert!(refused.text().await.unwrap().contains("is used by 1 tasks"));
    fleet.nodes[node].kill_agent();
    fleet.nodes[node].start_agent();
    fleet.wait_connected(node, true).await;
    meet(&second, &task);
    for task in [&task, &second] {
        fleet.stop(node, task).await;
    }
}

async fn ipv6_routes(fleet: &Fleet, node: usize, wanted: &[String]) {
    fleet
        .until(&format!("node {node} to have {wanted:?}"), async || {
            let mut ranges = fleet.nodes[node].ipv6_ranges();
            ranges.sort();
            (ranges == wanted).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_a_subnet_with_ipv6_meet_by_that_too() {
    let mut fleet = Fleet::start().await;
    for n in [1, 2] {
        let config = format!("{ROUTES}node_address_v6 = \"fd00:be93::{n}\"\n");
        let address = format!("addr add fd00:be93::{n}/64 dev up0 nodad");
        fleet.add("default", &config, &[&address]).await;
    }
    // One without an address of its own gets a part, and is not routed to.
    fleet.add("default", ROUTES, &[]).await;
    let subnet = fleet
        .dual_subnet("front", "10.200.0.0/22", "fd00:be64::/64")
        .await;
    let mut parts = Vec::new();
    for node in 0..3 {
        let part = fleet
            .until("a part of the subnet", async || {
                let part = fleet.part(node, &subnet).await;
                part["ipv6CidrBlock"].as_str().map(str::to_owned)
            })
            .await;
        parts.push(part);
    }
    let via = |node: usize| format!("{} via fd00:be93::{}", parts[node], node + 1);
    ipv6_routes(&fleet, 0, &[via(1), own(&parts[0])]).await;
    ipv6_routes(&fleet, 1, &[via(0), own(&parts[1])]).await;
    ipv6_routes(&fleet, 2, &[own(&parts[2])]).await;
    let (one, two) = (fleet.run(0, &subnet).await, fleet.run(1, &subnet).await);
    for (from, to) in [(&one, &two), (&two, &one)] {
        let seen = seen_at(&from.netns, &to.netns, to.ipv6.unwrap(), CONNECT);
        assert_eq!(seen, Some(from.ipv6.unwrap().into()), "{from:?} to {to:?}");
        let name = format!("{}.default.berth.", to.arn.rsplit('/').next().unwrap());
        let expected = (ResponseCode::NoError, vec![to.ipv6.unwrap().into()]);
        fleet
            .until(&format!("{name} to be {expected:?}"), async || {
                let answer = within(&from.netns, || result(&ask_from_here(&name, RecordType::AAAA)));
                (answer == expected).then_some(())
            })
            .await;
    }
    meet(&one, &two);

    // The agent's next run leaves it as it is.
    fleet.nodes[0].kill_agent();
    fleet.nodes[0].start_agent();
    fleet.wait_connected(0, true).await;
    let seen = seen_at(&two.netns, &one.netns, one.ipv6.unwrap(), CONNECT);
    assert_eq!(seen, Some(two.ipv6.unwrap().into()));
    for (node, task) in [(0, &one), (1, &two)] {
        fleet.stop(node, task).await;
    }
    let body = json!({ "subnet": subnet });
    fleet.client.berth("DeleteSubnet", body).await;
    for node in 0..3 {
        ipv6_routes(&fleet, node, &[]).await;
    }
}
