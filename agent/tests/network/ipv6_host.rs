//! What tasks' IPv6 asks of the host's own, and leaves as it is.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use berth_agent::{
    config::{Between, Network as Settings},
    effects::network::{Network, NetworkConfig},
    link::ipv6_address,
};
use berth_agent_core::network::WantedNetwork;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt,
};

use crate::{host::*, ipv6::*, others::doctor};

/// A router advertisement (RFC 4861) of a default router, from outside.
fn advertise(host: &Host) {
    within(&host.outside_netns(), || {
        let protocol = SockProtocol::IcmpV6;
        let socket: OwnedFd = socket(
            AddressFamily::Inet6,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )
        .unwrap();
        setsockopt(&socket, sockopt::Ipv6MulticastHops, &255).unwrap();
        let scope = nix::net::if_::if_nametoindex("out0").unwrap();
        // Type 134, code, checksum (the kernel's), hop limit 64, flags, lifetime 1800 s, reachable and retransmission times.
        let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, scope);
        let to = SockaddrIn6::from(all_nodes);
        sendto(socket.as_raw_fd(), &advertisement, &to, MsgFlags::empty()).unwrap();
    });
}

/// As after a boot, when the agent is there before the first advertisement.
#[test]
fn a_link_on_which_no_router_was_heard_yet_goes_on_listening() {
    on_host(async |host| {
        let setting = "/proc/sys/net/ipv6/conf/uplink/accept_ra";
        assert_eq!(fs::read_to_string(setting).unwrap().trim(), "1");
        let network = network(host).await;
        assert_eq!(fs::read_to_string(setting).unwrap().trim(), "2");
        let loopback = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/accept_ra").unwrap();
        assert_eq!(loopback.trim(), "1");
        drop(network);
    });
}

#[test]
fn a_host_that_learned_its_router_by_ipv6_still_has_it() {
    on_host(async |host| {
        let setting = "/proc/sys/net/ipv6/conf/uplink/accept_ra";
        assert_eq!(fs::read_to_string(setting).unwrap().trim(), "1");
        let learned = || run("ip -6 route show default").contains("proto ra");
        let start = Instant::now();
        while !learned() {
            assert!(start.elapsed() < Duration::from_secs(20), "no router is learned");
            // The router's own address may still be tentative: nothing is sent from it then.
            if run_in(
                &host.outside_netns(),
                "ip -6 addr show dev out0 scope link -tentative",
            )
            .contains("fe80")
            {
                advertise(host);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _network = network(host).await;
        assert_eq!(forwarding(), "1");
        assert!(learned(), "{}", run("ip -6 route show"));
        assert_eq!(fs::read_to_string(setting).unwrap().trim(), "2");
        // And learns it anew.
        run("ip -6 route del default");
        let start = Instant::now();
        while !learned() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the router is not heard any more"
            );
            advertise(host);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

#[test]
fn without_ipv6_on_the_host_nothing_is_begun() {
    on_host(async |host| {
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let refused = Network::start(config(host)).await.unwrap_err().to_string();
        assert!(
            refused.contains("no IPv6") && refused.contains("all/disable_ipv6 is not 0"),
            "{refused}"
        );
        // Without a prefix it is nobody's business; a part of a subnet that has one is not used.
        let network = host.network().await;
        let own = subnet("10.64.1.0/24", "fd00:64::/64");
        let wanted = WantedNetwork {
            ranges: BTreeMap::from([("subnet-0000000000000000a".parse().unwrap(), own)]),
            ..WantedNetwork::default()
        };
        let applied = network.configure(&wanted).await.unwrap();
        assert!(applied.ranges.is_empty());
        assert!(applied.problems.values().next().unwrap().contains("no IPv6"));
        drop(network);
        // Nor does one that was used before keep the agent, and IPv4 with it, from starting.
        let before = NetworkConfig {
            ranges: [own].into(),
            ..host.config()
        };
        let network = Network::start(before).await.unwrap();
        let one = attach(&network, 1).await;
        let listener = within(&one.netns, listen);
        assert_eq!(converse(&listener, connect(address(1)).unwrap()), HOST);
    });
}

#[test]
fn without_a_prefix_nothing_of_ipv6_is_changed_or_forwarded() {
    on_host(async |host| {
        with_uplink(host);
        let network = host.network().await;
        assert_eq!(forwarding(), "0");
        let one = attach(&network, 1).await;
        assert_eq!(run_in(&one.netns, "ip -6 -o addr show dev eth0"), "");
        let rules = run(&format!("nft list chain inet {INSTANCE} forward"));
        assert!(
            rules.contains("nfproto ipv6 counter packets 0 bytes 0 drop"),
            "{rules}"
        );
    });
}

#[test]
fn other_nodes_are_told_an_address_that_stays() {
    on_host(async |_| {
        fs::write("/proc/sys/net/ipv6/conf/uplink/use_tempaddr", "2").unwrap();
        run(&format!("ip addr add {HOST6}/64 dev uplink nodad mngtmpaddr"));
        let start = Instant::now();
        // The kernel makes it in its own time, and sends from it by itself.
        while run("ip -6 -o addr show dev uplink temporary -tentative").is_empty() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "no temporary address is made"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        let there = format!("[{OUTSIDE6}]:7071").parse().unwrap();
        assert_ne!(sends_from(OUTSIDE6), HOST6);
        let settings = Settings {
            between: Between::Routes,
            ..Settings::default()
        };
        assert_eq!(ipv6_address(&settings, &[there]), Some(HOST6));
    });
}

/// The address that the host takes for its packets there.
fn sends_from(to: Ipv6Addr) -> Ipv6Addr {
    let socket = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect((to, 9)).unwrap();
    match socket.local_addr().unwrap().ip() {
        std::net::IpAddr::V6(address) => address,
        other => panic!("{other}"),
    }
}

/// As where the kernel was started with `ipv6.disable_ipv6=1`, and the host's own links have it again.
#[test]
fn a_task_has_ipv6_though_new_namespaces_come_without() {
    on_host(async |host| {
        with_uplink(host);
        let network = network(host).await;
        let netns = host.dir.path().join("run/netns").join(task(1).to_string());
        fs::write(&netns, "").unwrap();
        run(&format!("unshare --net={} true", netns.display()));
        for link in ["default", "lo"] {
            run_in(
                &netns,
                &format!("sysctl -q -w net.ipv6.conf.{link}.disable_ipv6=1"),
            );
        }
        let one = attach_both(&network, 1).await;
        let listener = within(&one.netns, listen6);
        let own = std::path::Path::new("/proc/thread-self/ns/net");
        for (from, to, seen_as) in [
            (own, ipv6(1), HOST6),
            (&one.netns, Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        ] {
            let client = within(from, || connect_to(to, PORT));
            assert_eq!(talk(&listener, client), seen_as);
        }
    });
}

/// As docker does, or an operator for something else.
#[test]
fn doctor_finds_a_link_that_went_deaf_when_somebody_else_forwarded() {
    on_host(async |_| {
        run(&format!(
            "ip addr add {HOST6}/64 dev uplink nodad valid_lft 600 preferred_lft 600"
        ));
        let says = |what: &str| {
            let said = doctor(None);
            assert!(said.contains(what), "{said}");
        };
        says("ok       IPv6 routers");
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        says("warning  IPv6 routers");
        says("sysctl -w net.ipv6.conf.uplink.accept_ra=2");
        fs::write("/proc/sys/net/ipv6/conf/uplink/accept_ra", "2").unwrap();
        says("ok       IPv6 routers");
    });
}
