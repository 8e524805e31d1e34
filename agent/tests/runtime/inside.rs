//! What a container sees of itself, and what the kernel has of it.

use std::process::Command;

use berth_agent_core::{
    desired::{NetworkMode, Ulimit},
    effect::StartContainer,
};
use tokio_util::sync::CancellationToken;

use crate::{cgroups, host::Host};

const MIB: u64 = 1 << 20;

/// Of a line `key: value` or `key=value`.
fn field<'a>(text: &'a str, key: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key} in {text}"))
        .trim_start_matches([':', '='])
        .trim()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_as_docker_would_make_it() {
    let host = Host::start().await;
    let script = "cat /proc/self/status; pwd; env; cat /proc/self/oom_score_adj; hostname; cat /etc/hostname; \
                  cat /etc/hosts; ls /dev; cat /proc/kcore | dd bs=1 count=1 2>/dev/null; echo limit $(ulimit -Sn)";
    let mut request = host.request(script);
    request.spec.working_directory = "/made/on/demand".into();
    request.spec.environment = vec![("OWN".into(), "a b".into()), ("FROM".into(), "definition".into())];
    request.image.config.env = vec!["FROM=image".into(), "IMAGE=1".into()];
    let out = host.output(&request).await;

    // chown … audit_write: the fourteen of Docker.
    assert_eq!(field(&out, "CapEff"), "00000000a80425fb");
    assert_eq!(field(&out, "CapBnd"), "00000000a80425fb");
    assert_eq!(field(&out, "CapInh"), "0000000000000000");
    assert_eq!(field(&out, "Seccomp"), "2");
    assert_eq!(field(&out, "NoNewPrivs"), "0");
    assert_eq!(field(&out, "Uid"), "0\t0\t0\t0");
    for line in ["/made/on/demand", "OWN=a b", "FROM=definition", "IMAGE=1", "0"] {
        assert!(out.lines().any(|have| have == line), "{line} in {out}");
    }
    assert!(field(&out, "PATH").starts_with("/usr/local/sbin:"));
    assert_eq!(field(&out, "HOSTNAME"), request.task.short());
    assert_eq!(
        out.lines().filter(|line| *line == request.task.short()).count(),
        2
    );
    assert!(
        out.contains("127.0.0.1\tlocalhost") && out.contains(&format!("127.0.0.1\t{}", request.task.short()))
    );
    assert!(out.lines().any(|line| line == "null") && !out.lines().any(|line| line == "kmsg"));
    assert!(field(&out, "limit").parse::<u64>().unwrap() <= 65_535);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_those_of_the_images_upper_layer() {
    let host = Host::start().await;
    let script = "id -u; id -g; cat /proc/self/status";
    let run = async |user: &str, of_image: &str| {
        let mut request = host.request(script);
        request.spec.user = user.into();
        request.image.config.user = of_image.into();
        host.output(&request).await
    };
    for (user, of_image, ids, groups) in [
        ("", "app", "33\n34\n", "34 50"),
        ("app", "0", "33\n34\n", "34 50"),
        ("33", "", "33\n34\n", "34 50"),
        ("app:extra", "", "33\n50\n", "50"),
        ("1234:77", "", "1234\n77\n", "77"),
        ("", "", "0\n0\n", "0"),
    ] {
        let out = run(user, of_image).await;
        assert!(out.starts_with(ids), "{user:?}: {out}");
        assert_eq!(field(&out, "Groups"), groups, "{user:?}");
        let effective = if user.is_empty() && of_image.is_empty() {
            "00000000a80425fb"
        } else {
            "0000000000000000"
        };
        assert_eq!(field(&out, "CapEff"), effective, "{user:?}");
    }

    let mut request = host.request(script);
    request.spec.user = "old".into();
    let failure = host.try_start(&request).await.unwrap_err().failure();
    assert_eq!(failure.kind, "CannotStartContainerError");
    assert!(
        failure
            .message
            .contains("unable to find user old: no matching entries in passwd file"),
        "{failure:?}"
    );
    assert!(!failure.retryable);
    assert_eq!(host.leftovers(&request), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_root_and_ulimits_hold() {
    let host = Host::start().await;
    let script = "touch /x && echo wrote; touch /etc/hosts && echo hosts; touch /dev/shm/x && echo shm; \
                  echo files $(ulimit -Sn) $(ulimit -Hn); echo core $(ulimit -Hc)";
    let mut request = host.request(script);
    request.spec.readonly_root_filesystem = true;
    let ulimit = |name: &str, soft, hard| Ulimit {
        name: name.into(),
        soft,
        hard,
    };
    request.spec.ulimits = vec![ulimit("nofile", 100, 200), ulimit("core", 0, 0)];
    let out = host.output(&request).await;
    assert!(
        !out.contains("wrote\n") && !out.contains("hosts\n") && out.contains("shm\n"),
        "{out}"
    );
    assert_eq!(field(&out, "files"), "100 200");
    assert_eq!(field(&out, "core"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_in_the_kernel() {
    let host = Host::start().await;
    let mut request = host.request("sleep 1000");
    request.spec.cpu_units = 512;
    request.spec.memory_bytes = 64 * MIB;
    request.spec.memory_reservation_bytes = 32 * MIB;
    let started = host.started(&request).await;
    let cgroup = host.container_cgroup(&request);
    let read = |file: &str| cgroups::read(&cgroup, file).unwrap_or_else(|| panic!("no {file} in {cgroup}"));
    if cgroups::version() == 1 {
        assert_eq!(read("memory.limit_in_bytes"), (64 * MIB).to_string());
        assert_eq!(read("memory.memsw.limit_in_bytes"), (64 * MIB).to_string());
        assert_eq!(read("memory.soft_limit_in_bytes"), (32 * MIB).to_string());
        assert_eq!(read("cpu.shares"), "512");
    } else {
        assert_eq!(read("memory.max"), (64 * MIB).to_string());
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("memory.low"), (32 * MIB).to_string());
        assert_eq!(read("memory.oom.group"), "1");
    }
    assert_eq!(read("pids.max"), "32768");
    let pid = i32::try_from(started.pid).unwrap();
    assert!(cgroups::processes(&cgroup).contains(&pid));
    let rt = cgroups::processes(&format!("{}/rt", host.task_cgroup(&request.task)));
    assert!(rt.len() >= 2 && !rt.contains(&pid), "shim and logger: {rt:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hog_is_killed_at_its_own_limit_and_the_counter_names_it() {
    let host = Host::start().await;
    let mut hog = host.request("exec tail /dev/zero");
    hog.spec.memory_bytes = 32 * MIB;
    let mut other = hog.clone();
    other.spec.id = crate::host::unique_id().parse().unwrap();
    other.spec.command = ["/bin/sleep", "1000"].map(str::to_owned).into();
    let other_pid = host.started(&other).await.pid;
    host.started(&hog).await;
    assert_eq!(host.exit_code(&hog).await, 137);
    let kills = |request: &StartContainer| {
        let file = if cgroups::version() == 1 {
            "memory.oom_control"
        } else {
            "memory.events.local"
        };
        let text = cgroups::read(&host.container_cgroup(request), file).unwrap();
        field(&text, "oom_kill ").parse::<u64>().unwrap()
    };
    assert!(
        kills(&hog) > 0,
        "the cgroup is there until the container is removed"
    );
    assert_eq!(kills(&other), 0);
    assert!(std::fs::exists(format!("/proc/{other_pid}")).unwrap());
}

async fn network(
    host: &Host,
    mode: NetworkMode,
    netns: Option<&std::path::Path>,
) -> (StartContainer, String) {
    let script = "readlink /proc/self/ns/net; cat /proc/net/dev; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
                  cat /etc/resolv.conf; ls /sys/class/net";
    let mut request = host.request(script);
    request.network = mode;
    request.address = netns.map(|_| std::net::Ipv4Addr::new(10, 1, 2, 3).into());
    host.runtime
        .start(&request, netns, CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(host.exit_code(&request).await, 0);
    host.remove(&request).await;
    let log = host.log(&request);
    (request, log)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_is_the_one_that_was_asked_for() {
    let host = Host::start().await;
    let own = std::fs::read_link("/proc/self/ns/net")
        .unwrap()
        .display()
        .to_string();

    let name = host.config.instance.clone();
    let ip = |args: &[&str]| {
        assert!(
            Command::new("ip").args(args).status().unwrap().success(),
            "ip {args:?}"
        )
    };
    ip(&["netns", "add", &name]);
    let path = std::path::PathBuf::from(format!("/run/netns/{name}"));
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap());
    let (_, joined) = network(&host, NetworkMode::Awsvpc, Some(&path)).await;
    ip(&["netns", "del", &name]);
    assert!(joined.contains(&format!("net:[{inode}]")), "{joined}");
    assert!(
        joined.lines().any(|line| line == "0"),
        "ports below 1024 need no privilege: {joined}"
    );
    assert!(!joined.contains("nameserver 127."));

    let (_, private) = network(&host, NetworkMode::None, None).await;
    assert!(
        !private.contains(&own) && private.contains("lo:") && !private.contains("eth0"),
        "{private}"
    );

    let (_, hosts) = network(&host, NetworkMode::Host, None).await;
    assert!(hosts.contains(&own), "{hosts}");
    assert!(hosts.contains(std::fs::read_to_string("/etc/resolv.conf").unwrap().trim()));
}
