//! Tasks with addresses of both families: what holds of IPv4 holds of IPv6.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use crate::host::*;
use berth_agent::effects::network::{Attached, HostObject, Network, NetworkConfig, NetworkError, Owner};
use berth_agent_core::{
    addresses::{Address, Range},
    desired::Protocol,
    network::WantedNetwork,
    ports::Published,
};

pub const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1);
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 2);
const PREFIX: &str = "fd00:77::/64";
/// Where the host publishes, and what listens in the task.
const PUBLISHED: u16 = 18_080;
pub const PORT: u16 = 8080;

/// The uplink has addresses, and both ends are told so at once.
pub fn with_uplink(host: &Host) {
    run(&format!("ip addr add {HOST6}/64 dev uplink nodad"));
    run_in(
        &host.outside_netns(),
        &format!("ip addr add {OUTSIDE6}/64 dev out0 nodad"),
    );
}

pub fn range() -> Range {
    Range::below("10.77.0.0/16".parse().unwrap(), PREFIX.parse().ok()).unwrap()
}

pub fn config(host: &Host) -> NetworkConfig {
    NetworkConfig {
        task_cidr: range(),
        ..host.config()
    }
}

pub async fn network(host: &Host) -> Network {
    Network::start(config(host)).await.unwrap()
}

pub fn both(n: u32) -> Address {
    range().address(address(n))
}

pub fn ipv6(n: u32) -> Ipv6Addr {
    both(n).ipv6.unwrap()
}

pub async fn attach_both(network: &Network, n: u32) -> Attached {
    network.attach(&task(n), both(n)).await.unwrap()
}

pub fn listen6() -> TcpListener {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap()
}

pub fn udp6(address: Ipv6Addr, port: u16) -> UdpSocket {
    UdpSocket::bind((address, port)).unwrap()
}

pub fn connect_to(address: Ipv6Addr, port: u16) -> TcpStream {
    TcpStream::connect_timeout(&(address, port).into(), PATIENCE).unwrap()
}

/// What is there of IPv6 that could be left behind.
fn listing() -> String {
    let all = [
        run("ip -6 -o addr show"),
        run("ip -6 route show table all"),
        run("ip -6 neigh show nud permanent"),
    ];
    let of_uplink = |line: &&str| line.contains("uplink") && !line.contains(&HOST6.to_string());
    let lines = all.iter().flat_map(|text| text.lines());
    lines
        .filter(|line| !of_uplink(line))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn tasks_host_and_outside_talk_over_ipv6() {
    on_host(async |host| {
        with_uplink(host);
        let network = network(host).await;
        let (one, two) = (attach_both(&network, 1).await, attach_both(&network, 2).await);
        let in_one = within(&one.netns, listen6);
        let udp_one = within(&one.netns, || udp6(ipv6(1), 9));
        let on_host = listen6();
        let outside = within(&host.outside_netns(), listen6);
        let own = Path::new("/proc/thread-self/ns/net");
        for (case, from, listener, to, seen_as) in [
            ("host to task", own, &in_one, ipv6(1), HOST6),
            ("task to task", &two.netns, &in_one, ipv6(1), ipv6(2)),
            ("task to host", &one.netns, &on_host, HOST6, ipv6(1)),
            (
                "task to outside, as the host",
                &one.netns,
                &outside,
                OUTSIDE6,
                HOST6,
            ),
        ] {
            let client = within(from, || connect_to(to, PORT));
            assert_eq!(talk(listener, client), seen_as, "{case}");
        }
        assert_eq!(within(&two.netns, || ask(&udp_one, (ipv6(1), 9))), ipv6(2));
        let inside = run_in(&one.netns, "ip -6 -o addr show dev eth0");
        assert_eq!(inside.lines().count(), 1, "nothing but its own address: {inside}");
        assert!(!inside.contains("tentative"), "{inside}");
        let accepts = within(&one.netns, || {
            fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra").unwrap()
        });
        assert_eq!(accepts.trim(), "0");
    });
}

#[test]
fn a_host_without_an_ipv6_address_reaches_its_tasks() {
    on_host(async |host| {
        let network = network(host).await;
        let (one, two) = (attach_both(&network, 1).await, attach_both(&network, 2).await);
        let in_one = within(&one.netns, listen6);
        let gateway: IpAddr = "fe80::1".parse().unwrap();
        assert_eq!(talk(&in_one, connect_to(ipv6(1), PORT)), gateway);
        let client = within(&two.netns, || connect_to(ipv6(1), PORT));
        assert_eq!(talk(&in_one, client), ipv6(2));
    });
}

fn published(n: u32) -> [Published; 2] {
    [Protocol::Tcp, Protocol::Udp].map(|protocol| Published {
        protocol,
        host_port: PUBLISHED,
        address: both(n),
        port: PORT,
    })
}

#[test]
fn a_published_port_is_one_of_the_hosts_ipv6_addresses_too() {
    on_host(async |host| {
        with_uplink(host);
        let network = network(host).await;
        let (one, two) = (attach_both(&network, 1).await, attach_both(&network, 2).await);
        let publish = async || {
            let owners = [Owner::from(&task(1))];
            network.publish(&task(1), &owners, &published(1)).await
        };
        // A process that has it of IPv6 alone has it.
        let theirs = udp6(HOST6, PUBLISHED);
        match publish().await.unwrap_err() {
            NetworkError::PortsTaken { ports } => assert_eq!(ports, [(Protocol::Udp, PUBLISHED)]),
            other => panic!("{other}"),
        }
        drop(theirs);
        publish().await.unwrap();
        let tcp = within(&one.netns, listen6);
        let udp = within(&one.netns, || udp6(Ipv6Addr::UNSPECIFIED, PORT));
        let outside = host.outside_netns();
        let own = Path::new("/proc/thread-self/ns/net");
        let cases: [(&str, &Path, Ipv6Addr); 4] = [
            ("from the host", own, HOST6),
            ("from itself", &one.netns, HOST6),
            ("from another task", &two.netns, ipv6(2)),
            ("from outside", &outside, OUTSIDE6),
        ];
        for (case, netns, seen_as) in cases {
            let client = within(netns, || connect_to(HOST6, PUBLISHED));
            assert_eq!(talk(&tcp, client), seen_as, "tcp {case}");
            let seen = within(netns, || ask(&udp, (HOST6, PUBLISHED)));
            assert_eq!(seen, seen_as, "udp {case}");
        }
        // A client that goes on from the same port comes to who has it now.
        let client = within(&outside, || udp6(OUTSIDE6, 0));
        client.connect((HOST6, PUBLISHED)).unwrap();
        ask_from(&client, &udp);
        network.withdraw(&task(1)).await.unwrap();
        let owners = [Owner::from(&task(2))];
        network.publish(&task(2), &owners, &published(2)).await.unwrap();
        ask_from(&client, &within(&two.netns, || udp6(Ipv6Addr::UNSPECIFIED, PORT)));
        network.withdraw(&task(2)).await.unwrap();
        let table = run(&format!("nft list table inet {INSTANCE}"));
        assert!(!table.contains("18080"), "{table}");
    });
}

#[test]
fn spoofed_ipv6_sources_are_dropped() {
    on_host(async |host| {
        with_uplink(host);
        let network = network(host).await;
        let (one, _two) = (attach_both(&network, 1).await, attach_both(&network, 2).await);
        let not_ours: Ipv6Addr = "fd00:ffff::9".parse().unwrap();
        let of_link: Ipv6Addr = "fe80::77".parse().unwrap();
        let spoofed = [ipv6(2), ipv6(300), not_ours, HOST6];
        for address in spoofed {
            run_in(&one.netns, &format!("ip addr add {address}/128 dev lo nodad"));
        }
        run_in(&one.netns, &format!("ip addr add {of_link}/64 dev eth0 nodad"));
        // It is the task's own there, and not sent to.
        let outside = within(&host.outside_netns(), || udp6(OUTSIDE6, 9));
        let send = |source| {
            within(&one.netns, || {
                udp6(source, 0).send_to(b"x", (OUTSIDE6, 9)).unwrap();
            });
            hears(&outside)
        };
        assert!(send(ipv6(1)), "its own address is heard");
        for source in spoofed {
            assert!(!send(source), "{source} is heard");
        }
        let gateway = udp6(Ipv6Addr::UNSPECIFIED, 9);
        let scope = within(&one.netns, || nix::net::if_::if_nametoindex("eth0").unwrap());
        within(&one.netns, || {
            let socket = UdpSocket::bind(SocketAddrV6::new(of_link, 0, 0, scope)).unwrap();
            let to = SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, scope);
            socket.send_to(b"x", to).unwrap();
        });
        assert!(!hears(&gateway), "an address of the link alone is heard");
        let table = run(&format!("nft list chain inet {INSTANCE} prerouting"));
        let rule = table.lines().find(|line| line.contains("nfproto ipv6")).unwrap();
        assert!(!rule.contains("packets 0 "), "{rule}");
    });
}

#[test]
fn the_clouds_metadata_is_not_reached_over_ipv6() {
    on_host(async |host| {
        with_uplink(host);
        let metadata: Ipv6Addr = "fd00:ec2::254".parse().unwrap();
        let outside = host.outside_netns();
        run_in(&outside, &format!("ip addr add {metadata}/128 dev out0 nodad"));
        run(&format!("ip -6 route add {metadata} via {OUTSIDE6}"));
        let there = within(&outside, || udp6(metadata, 9));
        for allowed in [false, true] {
            let config = NetworkConfig {
                instance_metadata: allowed,
                ..config(host)
            };
            let network = Network::start(config).await.unwrap();
            let one = attach_both(&network, 1).await;
            within(&one.netns, || {
                udp6(ipv6(1), 0).send_to(b"x", (metadata, 9)).unwrap()
            });
            assert_eq!(hears(&there), allowed);
        }
    });
}

#[test]
fn another_start_finds_all_as_it_was_and_nothing_is_left_of_it() {
    on_host(async |host| {
        with_uplink(host);
        let first = network(host).await;
        let (clean, clean6) = (host.listing(), listing());
        let one = attach_both(&first, 1).await;
        let owners = [Owner::from(&task(1))];
        first.publish(&task(1), &owners, &published(1)).await.unwrap();
        let tcp = within(&one.netns, listen6);
        let client = within(&host.outside_netns(), || connect_to(HOST6, PUBLISHED));
        let (whole, whole6) = (host.listing(), listing());
        assert!(whole6.contains(&ipv6(1).to_string()), "{whole6}");
        drop(first);

        // Its range has no IPv6 any more: the task keeps what it has.
        let config = NetworkConfig {
            task_cidr: range().ipv4.into(),
            kept: vec![ipv6(1).into()],
            published: published(1).map(|port| (task(1), port)).into(),
            ..host.config()
        };
        let second = Network::start(config).await.unwrap();
        assert_eq!(talk(&tcp, client), OUTSIDE6, "the connection from before goes on");
        attach_both(&second, 1).await;
        assert_eq!(listing(), whole6);
        let outside = attach_both_refused(&second).await;
        assert!(
            matches!(outside, NetworkError::AddressOutside { .. }),
            "{outside}"
        );

        let third = network(host).await;
        attach_both(&third, 1).await;
        third.publish(&task(1), &owners, &published(1)).await.unwrap();
        assert_eq!((host.listing(), listing()), (whole, whole6));
        third.detach(&task(1)).await.unwrap();
        assert_eq!((host.listing(), listing()), (clean, clean6));
    });
}

async fn attach_both_refused(network: &Network) -> NetworkError {
    network.attach(&task(2), both(2)).await.unwrap_err()
}

#[test]
fn what_is_taken_of_a_tasks_ipv6_is_given_back() {
    on_host(async |host| {
        with_uplink(host);
        let network = network(host).await;
        let one = attach_both(&network, 1).await;
        let listener = within(&one.netns, listen6);
        let link = link_name(&network).await;
        let whole = listing();
        let test = async {
            for wreck in [
                format!("ip -6 route del {}", ipv6(1)),
                format!("ip addr del fe80::1/128 dev {link}"),
                format!("ip link set {link} down"),
                format!("ip -6 addr flush dev {link}"),
            ] {
                run(&wreck);
                let start = Instant::now();
                while listing() != whole {
                    assert!(start.elapsed() < PATIENCE, "{wreck}: {}", listing());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                assert_eq!(talk(&listener, connect_to(ipv6(1), PORT)), HOST6, "{wreck}");
            }
        };
        tokio::select! {
            () = network.keep_repaired() => unreachable!("it never ends"),
            () = test => {}
        }
    });
}

pub fn subnet(range: &str, prefix: &str) -> Range {
    Range::below(range.parse().unwrap(), prefix.parse().ok()).unwrap()
}

#[test]
fn a_part_of_a_subnet_and_those_of_others_are_routed_by_ipv6_too() {
    on_host(async |host| {
        with_uplink(host);
        // Not before it is needed.
        let network = host.network().await;
        assert_eq!(forwarding(), "0");
        let (own, theirs) = (
            subnet("10.64.1.0/24", "fd00:64::/64"),
            subnet("10.64.2.0/24", "fd00:64::/64"),
        );
        let peer = |range: Range| {
            BTreeMap::from([
                (IpAddr::from(OUTSIDE), [range.ipv4.into()].into()),
                (IpAddr::from(OUTSIDE6), [range.ipv6().unwrap().into()].into()),
            ])
        };
        let wanted = WantedNetwork {
            ranges: BTreeMap::from([("subnet-0000000000000000a".parse().unwrap(), own)]),
            peers: peer(theirs),
            ..WantedNetwork::default()
        };
        let applied = network.configure(&wanted).await.unwrap();
        assert_eq!((&applied.ranges, applied.unreached.len()), (&wanted.ranges, 0));
        assert_eq!(forwarding(), "1");
        let routes = run("ip -6 route show proto 190");
        for route in [
            "unreachable fd00:64::a40:100/120",
            "fd00:64::a40:200/120 via fd00:99::2 dev uplink",
        ] {
            assert!(routes.contains(route), "{routes}");
        }
        assert_eq!(network.configure(&wanted).await.unwrap(), applied);
        let strays = async |network: &Network| {
            let mut objects = network.list().await.unwrap();
            objects.retain(|object| matches!(object, HostObject::RangeRoute { .. }));
            objects
        };
        assert_eq!(strays(&network).await, []);

        // Between parts of subnets nobody is masqueraded.
        let there = theirs.address([10, 64, 2, 9].into()).ipv6.unwrap();
        let outside = host.outside_netns();
        run_in(&outside, &format!("ip addr add {there}/128 dev out0 nodad"));
        run_in(
            &outside,
            &format!("ip -6 route add {} via {HOST6}", own.ipv6().unwrap()),
        );
        let here = own.address([10, 64, 1, 7].into());
        let one = network.attach(&task(1), here).await.unwrap();
        let listener = within(&outside, listen6);
        let client = within(&one.netns, || connect_to(there, PORT));
        assert_eq!(talk(&listener, client), here.ipv6.unwrap());

        // All of a part or none: somebody else has its IPv6 range.
        network.detach(&task(1)).await.unwrap();
        network.configure(&WantedNetwork::default()).await.unwrap();
        assert_eq!(run("ip -6 route show proto 190"), "");
        run(&format!("ip -6 route add fd00:64::/48 via {OUTSIDE6}"));
        let applied = network.configure(&wanted).await.unwrap();
        let problem = applied.problems.values().next().unwrap();
        assert!(
            problem.contains("fd00:64::/48 via fd00:99::2 on uplink"),
            "{problem}"
        );
        assert!(applied.ranges.is_empty() && run("ip route show proto 190").contains("10.64.2.0/24"));
        network.configure(&WantedNetwork::default()).await.unwrap();
    });
}

pub fn forwarding() -> String {
    let all = fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap();
    all.trim().to_owned()
}
