//! Ports of the host that lead to tasks.

use std::{
    net::{Ipv4Addr, TcpStream},
    path::Path,
    time::Duration,
};

use berth_agent::effects::network::{Network, NetworkConfig, NetworkError, Owner};
use berth_agent_core::{desired::Protocol, ports::Published};

use crate::host::*;

/// Where the host publishes, and what listens in the task.
const TCP_PORT: u16 = 18_080;
const UDP_PORT: u16 = 18_053;
const PORT: u16 = 8080;

fn ports(n: u32) -> [Published; 2] {
    [(Protocol::Tcp, TCP_PORT), (Protocol::Udp, UDP_PORT)].map(|(protocol, host_port)| Published {
        protocol,
        host_port,
        address: address(n).into(),
        port: PORT,
    })
}

async fn publish(network: &Network, n: u32, ports: &[Published]) -> Result<(), NetworkError> {
    network.publish(&task(n), &[Owner::from(&task(n))], ports).await
}

fn connect_to(address: Ipv4Addr) -> TcpStream {
    TcpStream::connect_timeout(&(address, TCP_PORT).into(), PATIENCE).unwrap()
}

/// The host's elements of published ports.
fn elements() -> String {
    let map = run(&format!("nft list map inet {INSTANCE} published"));
    let own = run(&format!("nft list set inet {INSTANCE} hairpin"));
    let lines = map.lines().chain(own.lines());
    lines
        .filter(|line| line.contains("10.77."))
        .map(|line| line.trim())
        .collect()
}

#[test]
fn a_published_port_is_reached_from_everywhere_by_tcp_and_udp() {
    on_host(async |host| {
        let network = host.network().await;
        let (one, two) = (attach(&network, 1).await, attach(&network, 2).await);
        publish(&network, 1, &ports(1)).await.unwrap();
        let tcp = within(&one.netns, listen);
        let udp = within(&one.netns, || udp(Ipv4Addr::UNSPECIFIED, PORT));
        let outside = host.outside_netns();
        let own = Path::new("/proc/thread-self/ns/net");
        let cases: [(&str, &Path, Ipv4Addr, Ipv4Addr); 5] = [
            ("from the host by its address", own, HOST, HOST),
            ("from the host by 127.0.0.1", own, Ipv4Addr::LOCALHOST, HOST),
            ("from itself", &one.netns, HOST, HOST),
            ("from another task", &two.netns, HOST, address(2)),
            ("from outside", &outside, HOST, OUTSIDE),
        ];
        for (case, netns, to, seen_as) in cases {
            let client = within(netns, || connect_to(to));
            assert_eq!(converse(&tcp, client), seen_as, "tcp {case}");
            assert_eq!(within(netns, || ask(&udp, (to, UDP_PORT))), seen_as, "udp {case}");
        }
        // The metadata endpoint's address is none that is published on.
        let endpoint = Ipv4Addr::new(169, 254, 170, 2);
        let to_endpoint = within(&two.netns, || {
            TcpStream::connect_timeout(&(endpoint, TCP_PORT).into(), Duration::from_millis(500))
        });
        assert!(to_endpoint.is_err());
    });
}

#[test]
fn elements_go_with_the_task_and_come_back_with_the_table() {
    on_host(async |host| {
        let network = host.network().await;
        let clean = host.listing();
        attach(&network, 1).await;
        attach(&network, 2).await;
        publish(&network, 1, &ports(1)).await.unwrap();
        publish(&network, 1, &ports(1)).await.unwrap();
        let published = elements();
        assert!(published.contains("tcp . 18080") && published.contains("udp . 18053"));

        // Another start, as of an agent that was killed: it is told what runs.
        drop(network);
        let known = ports(1).map(|port| (task(1), port)).to_vec();
        let config = NetworkConfig {
            published: known,
            ..host.config()
        };
        let network = Network::start(config).await.unwrap();
        assert_eq!(elements(), published);

        // Somebody else flushes the table: the next change puts all of it back.
        run(&format!("nft delete table inet {INSTANCE}"));
        let other = Published {
            host_port: 18_081,
            ..ports(2)[0].clone()
        };
        publish(&network, 2, &[other]).await.unwrap();
        assert!(elements().contains("tcp . 18080") && elements().contains("tcp . 18081"));

        for n in [1, 2] {
            network.detach(&task(n)).await.unwrap();
        }
        assert_eq!(elements(), "");
        assert_eq!(host.listing(), clean);
    });
}

#[test]
fn a_port_of_a_process_of_the_host_is_not_taken_from_it() {
    on_host(async |host| {
        let network = host.network().await;
        attach(&network, 1).await;
        let theirs = std::net::TcpListener::bind((HOST, TCP_PORT)).unwrap();
        let refused = publish(&network, 1, &ports(1)).await.unwrap_err();
        match refused {
            NetworkError::PortsTaken { ref ports } => assert_eq!(*ports, [(Protocol::Tcp, TCP_PORT)]),
            other => panic!("{other}"),
        }
        assert_eq!(refused.to_string(), "a process of the host has port 18080/tcp");
        assert_eq!(elements(), "");
        drop(theirs);
        publish(&network, 1, &ports(1)).await.unwrap();
        // What leads to the task already is its own, whoever came since.
        let _late = udp(HOST, UDP_PORT);
        publish(&network, 1, &ports(1)).await.unwrap();
    });
}

/// CVE-2020-8558: what makes 127.0.0.1 of the host reach a task must not make a task reach the host's.
#[test]
fn a_task_reaches_nothing_on_the_hosts_loopback() {
    on_host(async |host| {
        let network = host.network().await;
        let one = attach(&network, 1).await;
        publish(&network, 1, &ports(1)).await.unwrap();
        let service = udp(Ipv4Addr::LOCALHOST, 9);
        for command in [
            "sysctl -q -w net.ipv4.conf.all.route_localnet=1",
            "ip addr del 127.0.0.1/8 dev lo",
            "ip route add 127.0.0.0/8 via 169.254.1.1 dev eth0 src 10.77.0.1",
        ] {
            run_in(&one.netns, command);
        }
        let client = within(&one.netns, || udp(address(1), 0));
        client.send_to(b"ping", (Ipv4Addr::LOCALHOST, 9)).unwrap();
        assert!(!hears(&service));
        let dropped = run(&format!("nft list chain inet {INSTANCE} prerouting"));
        let rule = dropped.lines().find(|line| line.contains("127.0.0.0/8")).unwrap();
        assert!(rule.contains("packets 1 "), "{rule}");
    });
}

/// A client that goes on from the same port is not sent where the port led before.
#[test]
fn who_goes_on_by_udp_comes_to_the_task_that_has_the_port_now() {
    on_host(async |host| {
        let network = host.network().await;
        let (one, two) = (attach(&network, 1).await, attach(&network, 2).await);
        let outside = host.outside_netns();
        let clients = [
            (&*outside, HOST),
            (Path::new("/proc/thread-self/ns/net"), Ipv4Addr::LOCALHOST),
        ];
        let clients = clients.map(|(netns, to)| {
            within(netns, || {
                let client = udp(Ipv4Addr::UNSPECIFIED, 0);
                client.connect((to, UDP_PORT)).unwrap();
                client
            })
        });
        // With the same port of somebody else, which is no business of the host's.
        let elsewhere = within(&outside, || udp(OUTSIDE, UDP_PORT));
        let asks_elsewhere = within(&two.netns, || udp(address(2), 0));
        asks_elsewhere.connect((OUTSIDE, UDP_PORT)).unwrap();
        asks_elsewhere.send(b"ping").unwrap();
        elsewhere.set_read_timeout(Some(PATIENCE)).unwrap();
        let (_, masqueraded) = elsewhere.recv_from(&mut [0; 4]).unwrap();

        // Another port of UDP beside it, and later none.
        let beside = Published {
            host_port: UDP_PORT + 1,
            ..ports(1)[1].clone()
        };
        let [tcp, port] = ports(1);
        publish(&network, 1, &[tcp, port, beside]).await.unwrap();
        let in_one = within(&one.netns, || udp(Ipv4Addr::UNSPECIFIED, PORT));
        for client in &clients {
            ask_from(client, &in_one);
        }
        // What leads to the task that publishes again is kept.
        publish(&network, 1, &ports(1)).await.unwrap();
        for client in &clients {
            ask_from(client, &in_one);
        }
        network.detach(&task(1)).await.unwrap();
        for client in &clients {
            client.send(b"ping").unwrap();
            let nobody = client.recv(&mut [0; 4]).unwrap_err();
            assert_eq!(nobody.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        publish(&network, 2, &ports(2)).await.unwrap();
        let in_two = within(&two.netns, || udp(Ipv4Addr::UNSPECIFIED, PORT));
        for client in &clients {
            ask_from(client, &in_two);
        }
        elsewhere.send_to(b"pong", masqueraded).unwrap();
        assert!(hears(&asks_elsewhere), "its way back is gone");
    });
}
