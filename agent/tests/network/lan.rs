//! A task's link to a network outside: which address it gets there, and what is left of it.

use berth_agent::effects::network::{HostObject, Network, NetworkConfig, NetworkError};
use berth_agent_core::lan::{Lan, LanLink};
use sha2::{Digest, Sha256};

use crate::host::{Host, attach, link_name, on_host, run, run_in, task};

/// A node whose uplink's network tasks can be hosts of.
async fn on_lan(host: &Host) -> (Network, Lan) {
    let network = Network::start(NetworkConfig {
        lans: ["192.0.2.64/26".parse().unwrap()].into(),
        ..host.config()
    });
    let lan = Lan {
        link: LanLink::Macvlan {
            uplink: "uplink".into(),
        },
        network: "192.0.2.0/24".parse().unwrap(),
        gateway: None,
    };
    (network.await.unwrap(), lan)
}

#[test]
fn an_address_that_another_has_is_not_given_however_often_it_is_tried() {
    on_host(async |host| {
        let (network, lan) = on_lan(host).await;
        let outside = host.outside_netns();
        let address = "192.0.2.65".parse().unwrap();
        run_in(&outside, "ip addr add 192.0.2.65/32 dev out0");
        for _ in 0..3 {
            let taken = network.attach_to_lan(&task(1), address, &lan).await.unwrap_err();
            assert!(matches!(taken, NetworkError::AddressTaken { .. }), "{taken}");
            let netns = network.netns_path(&(&task(1)).into());
            let link = run_in(&netns, "ip addr show dev eth0");
            assert!(link.contains("state DOWN") && !link.contains("inet"), "{link}");
        }

        // Also where an earlier try left the link up, as when the agent was killed while it asked.
        let netns = network.netns_path(&(&task(1)).into());
        run_in(&netns, "ip link set eth0 up");
        let taken = network.attach_to_lan(&task(1), address, &lan).await;
        assert!(
            matches!(taken, Err(NetworkError::AddressTaken { .. })),
            "{taken:?}"
        );

        // Once it is free it is given, and its neighbours are told.
        run_in(&outside, "ip addr del 192.0.2.65/32 dev out0");
        run_in(&outside, "sysctl -qw net.ipv4.conf.out0.arp_accept=1");
        run_in(&netns, "ip link set eth0 up");
        let attached = network.attach_to_lan(&task(1), address, &lan).await.unwrap();
        let known = run_in(&outside, "ip neigh show 192.0.2.65");
        assert!(known.contains(&attached.mac), "{known:?}");
        let own = run_in(&netns, "ip -o addr show dev eth0");
        assert!(own.contains("192.0.2.65/24") && !own.contains("inet6"), "{own}");
        let off = run_in(&netns, "cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
        assert_eq!(off.trim(), "1");

        // Without a carrier what is whole stays whole, and nobody waits for it.
        run_in(&outside, "ip link set out0 down");
        network.attach_to_lan(&task(1), address, &lan).await.unwrap();
        network.detach(&task(1)).await.unwrap();
    });
}

#[test]
fn an_uplink_that_carries_nothing_is_said_at_once_and_a_task_gets_its_address_when_it_does() {
    on_host(async |host| {
        let (network, lan) = on_lan(host).await;
        let outside = host.outside_netns();
        let address = "192.0.2.65".parse().unwrap();
        // Also where its link is there from an earlier try.
        let is_said_twice = async |state: &str| {
            for _ in 0..2 {
                let idle = network.attach_to_lan(&task(1), address, &lan).await.unwrap_err();
                assert!(matches!(idle, NetworkError::UplinkIdle { .. }), "{idle}");
                assert!(idle.to_string().contains(state), "{idle}");
                assert!(idle.is_of_uplink());
            }
        };
        run_in(&outside, "ip link set out0 down");
        is_said_twice("has no carrier").await;
        run_in(&outside, "ip link set out0 up");
        run("ip link set uplink down");
        is_said_twice("is down").await;
        run("ip link set uplink up");
        network.attach_to_lan(&task(1), address, &lan).await.unwrap();
        network.detach(&task(1)).await.unwrap();
    });
}

#[test]
fn a_question_that_is_lost_gives_nobody_the_address_of_another() {
    on_host(async |host| {
        let (network, lan) = on_lan(host).await;
        let outside = host.outside_netns();
        run_in(&outside, "ip addr add 192.0.2.65/32 dev out0");
        for command in [
            "nft add table arp lossy",
            "nft add chain arp lossy in { type filter hook input priority 0 ; }",
            // The first.
            "nft add rule arp lossy in arp daddr ip 192.0.2.65 limit rate 1/hour burst 1 packets counter drop",
        ] {
            run_in(&outside, command);
        }
        let address = "192.0.2.65".parse().unwrap();
        let taken = network.attach_to_lan(&task(1), address, &lan).await.unwrap_err();
        assert!(matches!(taken, NetworkError::AddressTaken { .. }), "{taken}");
        let lost = run_in(&outside, "nft list table arp lossy");
        assert!(lost.contains("counter packets 1 "), "{lost}");
        // Of the task's own neighbours it asks as any other host.
        let netns = network.netns_path(&(&task(1)).into());
        let every = run_in(&netns, "cat /proc/sys/net/ipv4/neigh/eth0/retrans_time_ms");
        let usual = run_in(&netns, "cat /proc/sys/net/ipv4/neigh/lo/retrans_time_ms");
        assert_eq!(every, usual);
        network.detach(&task(1)).await.unwrap();
    });
}

#[test]
fn a_link_for_a_vlan_that_nobody_is_on_is_a_leak_and_removed_unless_a_task_came() {
    on_host(async |host| {
        let network = host.network().await;
        attach(&network, 1).await;
        // As the link of a task is called, but for its first letter. A kernel without VLANs has no better one.
        let prefix = &link_name(&network).await[1..5];
        let name = format!("v{prefix}{}", hex::encode(&Sha256::digest(b"uplink/7")[..5]));
        run(&format!("ip link add {name} type veth peer name other"));
        let vlans = async || {
            let mut objects = network.list().await.unwrap();
            objects.retain(|object| matches!(object, HostObject::Vlan { .. }));
            objects
        };
        let found = vlans().await;
        assert_eq!(found, [HostObject::Vlan { name: name.clone() }]);
        // Not while there may be a task on it, and not when one came since.
        let lan = Lan {
            link: LanLink::Vlan {
                uplink: "uplink".into(),
                id: 7,
            },
            network: "192.0.2.0/24".parse().unwrap(),
            gateway: None,
        };
        network.take_up_on_lan(&task(2), "192.0.2.65".parse().unwrap(), lan);
        assert_eq!(vlans().await, []);
        network.remove_strays(&found).await.unwrap();
        run(&format!("ip link show {name}"));

        // As after a removal that failed.
        network.detach(&task(1)).await.unwrap();
        network.detach(&task(2)).await.unwrap();
        run(&format!("ip link add {name} type veth peer name other"));
        assert_eq!(vlans().await, found);
        network.remove_vlan(&name).await.unwrap();
        assert_eq!(vlans().await, []);
        assert!(!run("ip -o link show").contains(&name));
    });
}
