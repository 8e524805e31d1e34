//! What a removal of all that an instance left does with a link that a task had.

use berth_agent::effects::network::Network;
use berth_agent_core::lan::{Lan, LanLink};

use crate::host::{on_host, run, task};

#[test]
fn a_purge_gives_back_the_link_that_a_task_had() {
    on_host(async |host| {
        run("ip link add eth9 type veth peer name lan9");
        run("ip link set lan9 up");
        run("ip link set eth9 mtu 1400 up");
        run("ip addr add 192.168.99.7/24 dev eth9");
        let shown = || run("ip -o link show eth9") + &run("ip -4 -o addr show dev eth9");
        let before = shown();
        let config = || berth_agent::effects::network::NetworkConfig {
            interfaces: vec!["eth9".into()],
            lans: ["192.168.99.64/26".parse().unwrap()].into(),
            ..host.config()
        };
        let network = Network::start(config()).await.unwrap();
        let lan = Lan {
            link: LanLink::Interface,
            network: "192.168.99.0/24".parse().unwrap(),
            gateway: None,
        };
        let address = "192.168.99.65".parse().unwrap();
        network.attach_to_lan(&task(1), address, &lan).await.unwrap();
        assert!(!run("ip -o link show").contains(": eth9"));
        // Of two tasks one has it, and nobody the rest.
        let none = network
            .attach_to_lan(&task(2), "192.168.99.66".parse().unwrap(), &lan)
            .await
            .unwrap_err();
        assert!(none.to_string().contains("no interface is free"), "{none}");
        network.detach(&task(2)).await.unwrap();
        let left = Network::left_behind(config()).unwrap();
        left.remove_strays(&left.list().await.unwrap()).await.unwrap();
        assert_eq!(shown(), before);
    });
}
