//! Which links of the host tasks can have, and how they come back.

use std::{fs, pin::pin, time::Duration};

use berth_agent::{
    dial::FirstHop,
    effects::network::{Attached, Network, NetworkConfig, NetworkError},
};
use berth_agent_core::{
    lan::{Lan, LanLink},
    network::WantedNetwork,
};
use futures_util::future::try_join_all;

use crate::host::{Host, on_host, run, run_in, task};

const ADDRESS: &str = "192.168.99.65";

fn config(host: &Host) -> NetworkConfig {
    NetworkConfig {
        interfaces: vec!["eth9".into()],
        lans: ["192.168.99.64/26".parse().unwrap()].into(),
        ..host.config()
    }
}

fn lan() -> Lan {
    Lan {
        link: LanLink::Interface,
        network: "192.168.99.0/24".parse().unwrap(),
        gateway: None,
    }
}

async fn attach(network: &Network) -> Result<Attached, NetworkError> {
    let address = ADDRESS.parse().unwrap();
    network.attach_to_lan(&task(1), address, &lan()).await
}

/// The link that tasks can have, and a network that it is on.
fn make_link() {
    run("ip link add eth9 type veth peer name lan9");
    run("ip link set lan9 up");
    run("ip link set eth9 mtu 1400 up");
    run("ip addr add 192.168.99.7/24 dev eth9");
}

/// The link as the host has it, but for its index.
fn shown() -> String {
    let link = run("ip -o link show eth9");
    let (_, link) = link.split_once(": ").unwrap();
    link.to_owned() + &run("ip -4 -o addr show dev eth9 scope global")
}

fn mac() -> String {
    let shown = shown();
    let (_, mac) = shown.split_once("link/ether ").unwrap();
    mac.split(' ').next().unwrap().to_owned()
}

#[test]
fn a_purge_gives_back_the_link_that_a_task_had() {
    on_host(async |host| {
        make_link();
        let before = shown();
        let network = Network::start(config(host)).await.unwrap();
        attach(&network).await.unwrap();
        assert!(!run("ip -o link show").contains(": eth9"));
        // Of two tasks one has it, and nobody the rest.
        let none = network
            .attach_to_lan(&task(2), "192.168.99.66".parse().unwrap(), &lan())
            .await
            .unwrap_err();
        assert!(none.to_string().contains("no interface is free"), "{none}");
        network.detach(&task(2)).await.unwrap();
        let left = Network::left_behind(config(host)).unwrap();
        // As long as it cannot come back it stays where it is.
        run("ip link add eth9 type veth peer name eth9-peer");
        left.remove_strays(&left.list().await.unwrap()).await.unwrap_err();
        run("ip link del eth9");
        left.remove_strays(&left.list().await.unwrap()).await.unwrap();
        assert_eq!(shown(), before);
    });
}

#[test]
fn a_link_that_the_host_needs_is_no_tasks() {
    on_host(async |host| {
        make_link();
        run("ip link add lan8 type veth peer name lan8-peer");
        run("ip link set lan8 up");
        let mac = mac();
        let network = Network::start(config(host)).await.unwrap();
        for (does, undoes) in [
            (
                "ip route add default metric 900 nexthop dev lan8 nexthop dev eth9",
                "ip route del default metric 900",
            ),
            (
                "ip route add 128.0.0.0/1 dev eth9",
                "ip route del 128.0.0.0/1 dev eth9",
            ),
            (
                "ip link add link eth9 name eth9.5 type macvlan",
                "ip link del eth9.5",
            ),
            (
                &format!("ip link add twin address {mac} type veth peer name twin-peer"),
                "ip link del twin",
            ),
            ("ip link add br9 type bridge", "ip link set eth9 nomaster"),
        ] {
            run(does);
            if does.contains("bridge") {
                run("ip link set eth9 master br9");
            }
            let none = attach(&network).await.unwrap_err();
            assert!(
                none.to_string().contains("no interface is free"),
                "{does}: {none}"
            );
            network.detach(&task(1)).await.unwrap();
            run(undoes);
        }
        attach(&network).await.unwrap();
        network.detach(&task(1)).await.unwrap();
    });
}

#[test]
fn a_link_comes_back_as_it_was_whatever_its_task_made_of_it() {
    on_host(async |host| {
        run("ip link add twin type veth peer name twin-peer");
        make_link();
        let before = shown();
        let mac = mac();
        let network = Network::start(config(host)).await.unwrap();
        let netns = attach(&network).await.unwrap().netns;
        for change in [
            "ip link set eth0 down",
            "ip link set eth0 address 02:00:00:00:00:99 name hidden",
            &format!("ip link add eth0 address {mac} type veth peer name eth0-peer"),
            &format!("ip link add eth9 address {mac} type veth peer name eth9-peer"),
        ] {
            run_in(&netns, change);
        }
        // Another link of the host has its hardware address meanwhile.
        run(&format!("ip link set twin address {mac} up"));
        let twin = run("ip -o link show twin");
        network.detach(&task(1)).await.unwrap();
        assert_eq!(shown(), before);
        assert_eq!(run("ip -o link show twin"), twin);
    });
}

#[test]
fn what_the_kernel_refuses_of_a_link_does_not_keep_it_down() {
    on_host(async |host| {
        make_link();
        let before = shown();
        let network = Network::start(config(host)).await.unwrap();
        attach(&network).await.unwrap();
        let mut records = fs::read_dir(host.config().run_dir.join("interfaces")).unwrap();
        let record = records.next().unwrap().unwrap().path();
        let lent = fs::read_to_string(&record).unwrap();
        let refused = lent.replace("\"mtu\":1400", "\"mtu\":1000000");
        assert_ne!(refused, lent);
        fs::write(&record, refused).unwrap();
        network.detach(&task(1)).await.unwrap();
        assert_eq!(shown(), before);
    });
}

#[test]
fn those_that_wait_for_a_carrier_keep_no_other_task_waiting() {
    // As many as there are threads for the network of tasks.
    const COUNT: u32 = 8;
    on_host(async |host| {
        let names: Vec<String> = (1..=COUNT).map(|n| format!("port{n}")).collect();
        for name in &names {
            run(&format!("ip link add {name} type veth peer name {name}-peer"));
        }
        let network = Network::start(NetworkConfig {
            interfaces: names.clone(),
            ..config(host)
        });
        let network = &network.await.unwrap();
        let waiting = (1..=COUNT).map(|n| async move {
            let address = format!("192.168.99.{}", 64 + n).parse().unwrap();
            network.attach_to_lan(&task(n), address, &lan()).await
        });
        let mut waiting = pin!(try_join_all(waiting));
        let routed = async {
            let is_there = |name: &String| run("ip -o link show").contains(&format!(": {name}@"));
            while names.iter().any(is_there) {
                tokio::task::yield_now().await;
            }
            network.attach(&task(100), crate::host::address(100)).await
        };
        tokio::select! {
            biased;
            waited = &mut waiting => panic!("a task that waits for nothing waited for those: {waited:?}"),
            routed = routed => drop(routed.unwrap()),
        }
        // As long as two sides may take to agree on a speed.
        tokio::select! {
            waited = &mut waiting => panic!("nobody waits any more: {waited:?}"),
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
        for name in &names {
            run(&format!("ip link set {name}-peer up"));
        }
        waiting.await.unwrap();
    });
}

#[test]
fn the_way_to_the_control_plane_is_no_tasks() {
    on_host(async |host| {
        make_link();
        run("ip addr add 203.0.113.1/24 dev eth9");
        let network = Network::start(NetworkConfig {
            control_plane: FirstHop::named("203.0.113.7", 8781),
            ..config(host)
        });
        let network = network.await.unwrap();
        let none = attach(&network).await.unwrap_err();
        assert!(none.to_string().contains("no interface is free"), "{none}");
        network.detach(&task(1)).await.unwrap();
        // It has another way.
        run("ip route add 203.0.113.7/32 dev uplink");
        attach(&network).await.unwrap();
        network.detach(&task(1)).await.unwrap();
    });
}

#[test]
fn as_long_as_the_way_to_the_control_plane_is_not_known_no_task_gets_a_link() {
    on_host(async |host| {
        make_link();
        let before = shown();
        let network = Network::start(NetworkConfig {
            // That means nothing to any resolver.
            control_plane: FirstHop::named("control..plane", 8781),
            ..config(host)
        });
        let network = network.await.unwrap();
        let awaited = attach(&network).await.unwrap_err();
        assert!(matches!(awaited, NetworkError::WayUnknown { .. }), "{awaited}");
        assert!(awaited.is_of_uplink());
        network.detach(&task(1)).await.unwrap();
        assert_eq!(shown(), before);
    });
}

#[test]
fn a_link_that_vanishes_under_its_task_is_told() {
    on_host(async |host| {
        make_link();
        let network = Network::start(config(host)).await.unwrap();
        attach(&network).await.unwrap();
        let lost = async || network.configure(&WantedNetwork::default()).await.unwrap().lost;
        assert!(lost().await.is_empty());
        // As when a card is pulled out.
        run("ip link del lan9");
        let told = lost().await;
        let reason = "interface eth9, which the task had, is gone".to_owned();
        assert_eq!(told, [(task(1), reason)].into());
        network.detach(&task(1)).await.unwrap();
        assert!(lost().await.is_empty());
    });
}

#[test]
fn a_namespace_that_cannot_be_entered_hides_no_other_task_that_lost_its_link() {
    on_host(async |host| {
        make_link();
        run("ip link add eth8 type veth peer name lan8");
        run("ip link set lan8 up");
        let network = Network::start(NetworkConfig {
            interfaces: vec!["eth9".into(), "eth8".into()],
            ..config(host)
        });
        let network = network.await.unwrap();
        let netns = attach(&network).await.unwrap().netns;
        let other = "192.168.99.66".parse().unwrap();
        network.attach_to_lan(&task(2), other, &lan()).await.unwrap();
        // A namespace, but none of a network.
        run(&format!("mount --bind /proc/self/ns/uts {}", netns.display()));
        run("ip link del lan8");
        let applied = network.configure(&WantedNetwork::default()).await.unwrap();
        assert_eq!(applied.lost.into_keys().collect::<Vec<_>>(), [task(2)]);
        run(&format!("umount {}", netns.display()));
        network.detach(&task(1)).await.unwrap();
        network.detach(&task(2)).await.unwrap();
    });
}
