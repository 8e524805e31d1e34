//! Other firewalls that drop what tasks send: docker's and firewalld's own tools make them.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berth_agent::effects::network::{Network, NetworkConfig};
use nix::mount::{MsFlags, mount};

use crate::{host::*, ipv6};

/// Both are scripts, on a machine that may be busy.
const STARTED_WITHIN: Duration = Duration::from_secs(60);
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

async fn network(host: &Host, pass_other_firewalls: bool) -> Network {
    let config = NetworkConfig {
        pass_other_firewalls,
        ..host.config()
    };
    Network::start(config).await.unwrap()
}

/// A datagram of the task's arrives outside.
fn reaches_outside(host: &Host, netns: &std::path::Path) -> bool {
    let outside = within(&host.outside_netns(), || udp(OUTSIDE, 9));
    within(netns, || udp(address(1), 0).send_to(b"x", (OUTSIDE, 9))).is_ok() && hears(&outside)
}

/// As dockerd sets it up.
fn docker() {
    docker_by("iptables-nft");
}

fn docker_by(tool: &str) {
    for rule in [
        "-P FORWARD DROP",
        "-N DOCKER-USER",
        "-A DOCKER-USER -j RETURN",
        "-I FORWARD -j DOCKER-USER",
    ] {
        run(&format!("{tool} -w 5 {rule}"));
    }
}

#[test]
fn docker_lets_tasks_through_with_permission_and_only_so_long() {
    on_host(async |host| {
        docker();
        let before = run("nft -s list table ip filter");
        let without = network(host, false).await;
        let one = attach(&without, 1).await;
        assert!(!reaches_outside(host, &one.netns));
        assert_eq!(run("nft -s list table ip filter"), before);

        let with = network(host, true).await;
        assert!(reaches_outside(host, &one.netns));
        // Docker's own tool still reads its chain.
        let listed = run("iptables-nft -w 5 -S DOCKER-USER");
        assert_eq!(listed.matches("-j ACCEPT").count(), 2, "{listed}");
        let tagged = run("nft -s list table ip filter");
        assert_eq!(tagged.matches("berth: tasks of instance berth-test").count(), 2);
        let again = network(host, true).await;
        assert_eq!(run("nft -s list table ip filter"), tagged, "once is enough");
        drop(again);

        // A restart of docker's.
        tokio::select! {
            () = with.keep_repaired() => unreachable!("it never ends"),
            () = async {
                run("iptables-nft -w 5 -F DOCKER-USER");
                run("iptables-nft -w 5 -A DOCKER-USER -j RETURN");
                let start = Instant::now();
                while run("nft -s list table ip filter") != tagged {
                    assert!(start.elapsed() < REPAIRED_WITHIN);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            } => {}
        }
        assert!(reaches_outside(host, &one.netns));

        let without = network(host, false).await;
        assert_eq!(run("nft -s list table ip filter"), before, "the setting is gone");
        drop(network(host, true).await);
        without.detach(&task(1)).await.unwrap();
        without.stop().await.unwrap();
        assert_eq!(run("nft -s list table ip filter"), before, "the instance is gone");
    });
}

#[test]
fn docker_lets_tasks_through_by_ipv6_too() {
    on_host(async |host| {
        docker_by("ip6tables-nft");
        ipv6::with_uplink(host);
        let before = run("nft -s list table ip6 filter");
        let network = async |pass_other_firewalls| {
            let config = NetworkConfig {
                pass_other_firewalls,
                ..ipv6::config(host)
            };
            Network::start(config).await.unwrap()
        };
        let outside = within(&host.outside_netns(), || ipv6::udp6(ipv6::OUTSIDE6, 9));
        let reaches = |netns: &std::path::Path| {
            let task = within(netns, || ipv6::udp6(ipv6::ipv6(1), 0));
            task.send_to(b"x", (ipv6::OUTSIDE6, 9)).is_ok() && hears(&outside)
        };
        let without = network(false).await;
        let one = ipv6::attach_both(&without, 1).await;
        assert!(!reaches(&one.netns));
        let _with = network(true).await;
        assert!(reaches(&one.netns));
        let listed = run("ip6tables-nft -w 5 -S DOCKER-USER");
        assert_eq!(listed.matches("-j ACCEPT").count(), 2, "{listed}");
        let _without = network(false).await;
        assert_eq!(run("nft -s list table ip6 filter"), before, "the setting is gone");
        assert!(!reaches(&one.netns));
    });
}

/// What `berth-agent doctor` says on this host.
pub fn doctor(path: Option<&str>) -> String {
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_berth-agent"));
    doctor
        .arg("doctor")
        .env("BERTH_AGENT__CONTROL_PLANE", "https://none.invalid")
        .env("BERTH_AGENT__INSTANCE", INSTANCE);
    if let Some(path) = path {
        doctor.env("PATH", path);
    }
    let output = doctor.output().unwrap();
    assert!(!output.status.success(), "it has not joined, if nothing else");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_command_that_doctor_prints_lets_tasks_through() {
    on_host(async |host| {
        docker();
        let network = host.network().await;
        let one = attach(&network, 1).await;
        assert!(!reaches_outside(host, &one.netns));
        let said = doctor(None);
        assert!(said.contains("PROBLEM  firewall"), "{said}");
        let commands: Vec<_> = said
            .lines()
            .filter_map(|line| line.trim().strip_prefix("-> "))
            .filter(|line| line.starts_with("nft "))
            .collect();
        assert_eq!(commands.len(), 2, "{said}");
        for command in commands {
            assert!(
                Command::new("sh")
                    .args(["-c", command])
                    .status()
                    .unwrap()
                    .success(),
                "{command}"
            );
        }
        assert!(reaches_outside(host, &one.netns));
        let said = doctor(None);
        assert!(said.contains("ok       firewall"), "{said}");
    });
}

#[test]
fn without_nft_doctor_says_what_to_install() {
    let said = doctor(Some("/nonexistent"));
    assert!(said.contains("install the package nftables"), "{said}");
}

/// Ended with the test.
struct Daemon(Child);

impl Daemon {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("{program}: {error}")))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the command succeeds.
fn answers(command: &[&str]) {
    let start = Instant::now();
    let asked = || {
        let mut command = Command::new(command[0])
            .args(&command[1..])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        command.wait().unwrap().success()
    };
    while !asked() {
        assert!(start.elapsed() < STARTED_WITHIN, "{command:?} says no");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn firewalld_lets_tasks_through_with_permission_and_only_so_long() {
    on_host(async |host| {
        let none = None::<&str>;
        // A bus of its own, in the mount namespace of this test.
        std::fs::create_dir_all("/run/dbus").unwrap();
        mount(Some("none"), "/run/dbus", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let _bus = Daemon::start("dbus-daemon", &["--system", "--nofork", "--nopidfile"]);
        let start = Instant::now();
        while !std::path::Path::new("/run/dbus/system_bus_socket").exists() {
            assert!(start.elapsed() < STARTED_WITHIN);
            std::thread::sleep(Duration::from_millis(10));
        }
        let _firewalld = Daemon::start("firewalld", &["--nofork", "--nopid"]);
        answers(&["firewall-cmd", "--state"]);
        let without = network(host, false).await;
        let one = attach(&without, 1).await;
        assert!(!reaches_outside(host, &one.netns));
        let _with = network(host, true).await;
        assert!(reaches_outside(host, &one.netns));
        let _without = network(host, false).await;
        assert!(!reaches_outside(host, &one.netns), "the setting is gone");
    });
}
