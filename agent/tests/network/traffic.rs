//! Which packets get where.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use berth_agent::{
    effects::{
        cgroups::Cgroups,
        network::{Network, NetworkConfig},
    },
    telemetry::Sampler,
};

use crate::host::*;

#[test]
fn tasks_host_and_outside_talk() {
    on_host(async |host| {
        let network = host.network().await;
        let (one, two) = (attach(&network, 1).await, attach(&network, 2).await);
        assert!(one.mac.starts_with("0a:") && run_in(&one.netns, "ip link show eth0").contains(&one.mac));

        let in_one = within(&one.netns, listen);
        assert_eq!(
            converse(&in_one, connect(address(1)).unwrap()),
            HOST,
            "host to task"
        );
        let from_two = within(&two.netns, || connect(address(1)).unwrap());
        assert_eq!(
            converse(&in_one, from_two),
            address(2),
            "task to task, not translated"
        );

        let on_host = listen();
        let from_one = within(&one.netns, || connect(HOST).unwrap());
        assert_eq!(
            converse(&on_host, from_one),
            address(1),
            "task to host, not translated"
        );

        let outside = within(&host.outside_netns(), listen);
        let from_one = within(&one.netns, || connect(OUTSIDE).unwrap());
        assert_eq!(converse(&outside, from_one), HOST, "task to outside, as the host");

        let to_itself = within(&one.netns, || connect(Ipv4Addr::LOCALHOST).unwrap());
        assert_eq!(
            converse(&in_one, to_itself),
            Ipv4Addr::LOCALHOST,
            "loopback is up"
        );
    });
}

/// The kernel may hold the first packets of a link back until it has noticed, by itself, that the link is up.
#[test]
fn the_first_packet_goes_through_at_once() {
    on_host(async |host| {
        let network = host.network().await;
        let listener = listen();
        for n in 1..=40 {
            let attached = attach(&network, n).await;
            let start = Instant::now();
            let from_task = within(&attached.netns, || connect(HOST).unwrap());
            let took = start.elapsed();
            assert_eq!(converse(&listener, from_task), address(n));
            assert!(took < Duration::from_millis(500), "{took:?}");
        }
    });
}

#[test]
fn spoofed_sources_are_dropped() {
    on_host(async |host| {
        let network = host.network().await;
        let (one, _two) = (attach(&network, 1).await, attach(&network, 2).await);
        let link = run("ip -o link show")
            .lines()
            .find(|l| l.contains("berth-test/0000000001"))
            .unwrap()
            .to_owned();
        let link = link.split([':', '@']).nth(1).unwrap().trim().to_owned();
        let filter = std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter")).unwrap();
        assert_eq!(filter.trim(), "1");

        let not_ours = Ipv4Addr::new(203, 0, 113, 9);
        for spoofed in [address(2), address(300), not_ours] {
            run_in(&one.netns, &format!("ip addr add {spoofed}/32 dev lo"));
        }
        let listeners = [
            (HOST, udp(HOST, 9)),
            (OUTSIDE, within(&host.outside_netns(), || udp(OUTSIDE, 9))),
        ];
        // With 2 for all links the kernel's own check of task links becomes the weak one; ours must not depend on it.
        for all in ["0", "1", "2"] {
            std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", all).unwrap();
            for (target, listener) in &listeners {
                let send = |source| {
                    within(&one.netns, || udp(source, 0).send_to(b"x", (*target, 9)).unwrap());
                    hears(listener)
                };
                assert!(send(address(1)), "{target} hears the task's own address");
                for spoofed in [address(2), address(300), not_ours] {
                    assert!(!send(spoofed), "{target} hears {spoofed}, all.rp_filter={all}");
                }
            }
        }
    });
}

/// As a cloud has it, beyond the host's uplink.
fn instance_metadata(host: &Host) -> (Ipv4Addr, UdpSocket) {
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    let outside = host.outside_netns();
    run_in(&outside, &format!("ip addr add {metadata}/32 dev out0"));
    run(&format!("ip route add {metadata}/32 dev uplink"));
    (metadata, within(&outside, || udp(metadata, 9)))
}

#[test]
fn the_clouds_metadata_is_reached_where_that_is_set_and_nothing_else_of_its_kind() {
    on_host(async |host| {
        let network = Network::start(NetworkConfig {
            instance_metadata: true,
            ..host.config()
        });
        let network = network.await.unwrap();
        let one = attach(&network, 1).await;
        let (metadata, outside) = instance_metadata(host);
        run("ip route add 169.254.169.253/32 dev uplink");
        let asked = within(&one.netns, || {
            let socket = udp(address(1), 0);
            socket.send_to(b"x", (metadata, 9)).unwrap();
            socket
                .send_to(b"x", (Ipv4Addr::new(169, 254, 169, 253), 9))
                .unwrap();
            socket
        });
        outside.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (_, from) = outside.recv_from(&mut [0; 8]).unwrap();
        outside.send_to(b"y", from).unwrap();
        assert!(hears(&asked), "the answer comes back");
        let table = run(&format!("nft list table inet {INSTANCE}"));
        assert!(
            table.contains("ip daddr 169.254.0.0/16 counter packets 1 "),
            "{table}"
        );
    });
}

#[test]
fn link_local_addresses_are_not_forwarded() {
    on_host(async |host| {
        let network = host.network().await;
        let one = attach(&network, 1).await;
        let (metadata, outside) = instance_metadata(host);
        udp(HOST, 0).send_to(b"x", (metadata, 9)).unwrap();
        assert!(hears(&outside), "the host itself reaches it");
        within(&one.netns, || {
            udp(address(1), 0).send_to(b"x", (metadata, 9)).unwrap()
        });
        assert!(!hears(&outside), "a task does not");
        let table = run(&format!("nft list table inet {INSTANCE}"));
        assert!(
            table.contains("ip daddr 169.254.0.0/16 counter packets 1 "),
            "{table}"
        );
    });
}

#[test]
fn usage_is_what_the_task_sent_and_received() {
    on_host(async |host| {
        let network = host.network().await;
        assert_eq!(network.usage(&task(1)).await, None);
        let one = attach(&network, 1).await;
        let before = network.usage(&task(1)).await.unwrap();
        let on_host = udp(HOST, 9);
        within(&one.netns, || {
            for _ in 0..10 {
                udp(address(1), 0).send_to(&[0; 1000], (HOST, 9)).unwrap();
            }
        });
        assert!(hears(&on_host));
        let after = network.usage(&task(1)).await.unwrap();
        // 14 bytes Ethernet, 20 IP, 8 UDP.
        assert_eq!(
            (
                after.tx_packets - before.tx_packets,
                after.tx_bytes - before.tx_bytes
            ),
            (10, 10_420)
        );
        assert_eq!(after.rx_packets, before.rx_packets);

        let cgroups = Cgroups::new("/berth-test-net").unwrap();
        let mut sampler = Sampler::new(cgroups, INSTANCE, host.dir.path()).unwrap();
        sampler.register(&task(1), &[]);
        sampler.register(&task(2), &[]);
        let (_, tasks) = sampler.sample();
        assert_eq!((tasks[0].network, tasks[1].network), (Some(after), None));
    });
}
