//! What is refused, what is warned of, and what has no owner.

use std::time::{Duration, Instant};

use berth_agent::effects::network::{Network, NetworkConfig, NetworkError, Retry};

use crate::host::*;

#[test]
fn two_tasks_never_share_a_link_or_an_address() {
    on_host(async |host| {
        let network = host.network().await;
        attach(&network, 1).await;
        let attached = host.listing();
        // The same first ten digits: the same link name.
        let twin = "0000000001ffffffffffffffffffffff".parse().unwrap();
        let taken = network.attach(&twin, address(2)).await.unwrap_err();
        assert!(
            matches!(taken, NetworkError::LinkTaken { .. }) && taken.retry() == Retry::Never,
            "{taken}"
        );
        network.detach(&twin).await.unwrap();
        assert_eq!(host.listing(), attached);

        let used = network.attach(&task(3), address(1)).await.unwrap_err();
        assert!(
            matches!(used, NetworkError::AddressInUse { .. }) && used.retry() == Retry::Backoff,
            "{used}"
        );
        network.detach(&task(3)).await.unwrap();
        assert_eq!(host.listing(), attached);

        let outside = network.attach(&task(4), HOST).await.unwrap_err();
        assert!(
            matches!(outside, NetworkError::AddressOutside { .. }),
            "{outside}"
        );
        assert_eq!(host.listing(), attached);
    });
}

#[test]
fn strays_are_listed_from_the_host_and_removed() {
    on_host(async |host| {
        let network = host.network().await;
        let before = host.listing();
        for n in 1..=3 {
            attach(&network, n).await;
        }
        let link = link_name(&network).await;
        let prefix = &link[..5];
        run(&format!("ip link add {prefix}stray type veth peer name other"));
        run("ip route add 10.77.9.9/32 dev uplink");
        std::fs::write(network.netns_path(&(&task(1)).into()).with_file_name("junk"), "").unwrap();
        let objects = network.list().await.unwrap();
        let owned = |n: u32| objects.iter().filter(|o| o.task() == Some(&task(n))).count();
        assert_eq!([owned(1), owned(2), owned(3)], [3, 3, 3], "{objects:#?}");
        let strays: Vec<_> = objects
            .iter()
            .filter(|object| object.task().is_none())
            .cloned()
            .collect();
        assert_eq!(strays.len(), 3, "{strays:#?}");
        network.remove_stray(&strays[0]).await.unwrap();
        network.remove_strays(&strays).await.unwrap();
        let left = network.list().await.unwrap();
        assert!(left.iter().all(|object| object.task().is_some()), "{left:#?}");
        network.remove_strays(&objects).await.unwrap();
        let start = Instant::now();
        while host.listing() != before {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{}\n---\n{before}",
                host.listing()
            );
        }
    });
}

#[test]
fn an_address_from_before_the_range_was_changed_is_still_its_tasks() {
    on_host(async |host| {
        let address = std::net::Ipv4Addr::new(10, 78, 0, 9);
        let network = Network::start(NetworkConfig {
            kept: vec![address.into()],
            ..host.config()
        });
        let network = network.await.unwrap();
        network.attach(&task(1), address).await.unwrap();
        let rules = host.listing();
        assert!(
            rules.contains("10.78.0.9"),
            "it leaves the host as any other: {rules}"
        );
        network.detach(&task(1)).await.unwrap();
    });
}

#[test]
fn a_private_agent_does_not_leave_while_tasks_are_attached() {
    on_host(async |host| {
        let network = host.network().await;
        attach(&network, 1).await;
        let attached = host.listing();
        let refused = network.stop().await.unwrap_err();
        assert!(
            matches!(refused, NetworkError::NotEmpty { count: 1, .. }),
            "{refused}"
        );
        assert_eq!(host.listing(), attached);
    });
}

#[test]
fn a_bad_configuration_is_refused_before_anything_is_made() {
    on_host(async |host| {
        let before = host.listing();
        let bad = [
            NetworkConfig {
                instance: "Bad; name".to_owned(),
                ..host.config()
            },
            NetworkConfig {
                task_cidr: "169.254.0.0/17".parse().unwrap(),
                ..host.config()
            },
        ];
        for config in bad {
            let refused = Network::start(config).await.unwrap_err();
            assert_eq!(refused.retry(), Retry::Never, "{refused}");
        }
        assert_eq!(host.listing(), before);
    });
}

#[test]
fn a_foreign_firewall_that_drops_is_named() {
    on_host(async |host| {
        run("nft add table ip filter");
        run("nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        host.network().await;
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(
            text.contains("WARN") && text.contains("ip filter FORWARD"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    });
}

#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
