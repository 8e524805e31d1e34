//! A task's link to a network outside: which address it gets there.

use berth_agent::effects::network::{Network, NetworkConfig, NetworkError};
use berth_agent_core::lan::{Lan, LanLink};

use crate::host::{on_host, run_in, task};

#[test]
fn an_address_that_another_has_is_not_given_however_often_it_is_tried() {
    on_host(async |host| {
        let network = Network::start(NetworkConfig {
            lans: ["192.0.2.64/26".parse().unwrap()].into(),
            ..host.config()
        });
        let network = network.await.unwrap();
        let lan = Lan {
            link: LanLink::Macvlan {
                uplink: "uplink".into(),
            },
            network: "192.0.2.0/24".parse().unwrap(),
            gateway: None,
        };
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
