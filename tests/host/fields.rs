//! Fields of a definition that change what a container is: each as a process inside sees it, and as the kernel has it.

use std::{collections::BTreeMap, os::unix::fs::FileTypeExt as _, process::Command, time::Duration};

use berth_tests::cluster::{Cluster, container};
use serde_json::{Value, json};

/// What is printed last, so that all before it was seen.
pub(crate) const END: &str = "the-end";

/// One container of a task, looked at from both sides.
pub(crate) struct Seen {
    /// What it printed, without white space around it.
    pub(crate) lines: Vec<String>,
    /// Of its first process, on the host.
    pub(crate) pid: i32,
}

impl Seen {
    /// The value of a line `NAME: VALUE` or `NAME=VALUE` that it printed.
    #[track_caller]
    pub(crate) fn said(&self, name: &str) -> &str {
        let value = self.lines.iter().find_map(|line| line.strip_prefix(name));
        value
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.lines))
            .trim_start_matches([':', '='])
            .trim()
    }

    /// The value of a line of proc_pid_status(5).
    #[track_caller]
    pub(crate) fn status(&self, name: &str) -> String {
        let status = self.proc("status");
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}:")));
        value.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
    }

    pub(crate) fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap()
    }

    /// The IPv4 address that its namespace has.
    pub(crate) fn address(&self) -> String {
        let network = format!("--net=/proc/{}/ns/net", self.pid);
        let listed = Command::new("nsenter")
            .args([&network, "ip", "-4", "-br", "addr", "show", "dev", "eth0"])
            .output()
            .unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let address = listed.split_whitespace().nth(2).unwrap();
        address.split_once('/').unwrap().0.to_owned()
    }

    /// The lines of its list of resolvers, where it printed them as `resolv LINE`.
    fn resolv(&self) -> Vec<&str> {
        let lines = self.lines.iter().filter_map(|line| line.strip_prefix("resolv "));
        lines.map(str::trim).collect()
    }

    /// Its file of hosts is what the task's network is, and nothing of the host's.
    #[track_caller]
    fn assert_is_named(&self, name: &str) {
        let expected = format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{}\t{name}\n",
            self.address()
        );
        assert_eq!(self.proc("root/etc/hosts"), expected);
    }

    /// It searches as the host does.
    #[track_caller]
    fn assert_asks_the_node(&self) {
        let host = std::fs::read_to_string("/etc/resolv.conf").unwrap();
        let others = host.lines().filter(|line| !line.starts_with("nameserver"));
        let expected: Vec<&str> = ["nameserver 169.254.170.3"]
            .into_iter()
            .chain(others.map(str::trim))
            .collect();
        assert_eq!(self.resolv(), expected);
    }

    /// The options of what is mounted there: those of the mount, and those of its file system.
    #[track_caller]
    pub(crate) fn mount_options(&self, destination: &str) -> (String, String) {
        let all = self.proc("mountinfo");
        let line = all
            .lines()
            .rev()
            .find(|line| line.split(' ').nth(4) == Some(destination));
        let line = line.unwrap_or_else(|| panic!("nothing at {destination}: {all}"));
        let (own, rest) = line.split_once(" - ").unwrap();
        let field = |text: &str, at: usize| text.split(' ').nth(at).unwrap().to_owned();
        (field(own, 5), field(rest, 2))
    }
}

/// Runs a task whose containers each run their script, print [`END`] and stay.
pub(crate) async fn look(
    cluster: &Cluster,
    task: impl FnOnce(&mut Value),
    containers: &[(&str, &str, Value)],
) -> (String, BTreeMap<String, Seen>) {
    let all: Vec<Value> = containers
        .iter()
        .map(|(name, script, fields)| {
            let mut one = container(name, &format!("({script}) 2>&1; echo {END}; sleep 3600"));
            one.as_object_mut()
                .unwrap()
                .extend(fields.as_object().unwrap().clone());
            one
        })
        .collect();
    let task = cluster
        .running("", |d| {
            d["containerDefinitions"] = json!(all);
            task(d);
        })
        .await;
    let logs = cluster
        .until("all to be said", Duration::from_secs(20), async || {
            let logs = cluster.client.logs(&task).await;
            let ended = logs
                .iter()
                .filter(|l| l["line"].as_str().unwrap().trim() == END)
                .count();
            (ended == all.len()).then_some(logs)
        })
        .await;
    let described = cluster.describe(&task).await;
    let seen = described["containers"].as_array().unwrap().iter().map(|one| {
        let id = one["runtimeId"].as_str().unwrap().split('-').next().unwrap();
        let procs = cluster
            .cgroup("memory", &task)
            .join("c")
            .join(id)
            .join("cgroup.procs");
        let pid = std::fs::read_to_string(procs)
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let own = logs.iter().filter(|l| l["container"] == one["name"]);
        let lines = own
            .map(|l| l["line"].as_str().unwrap().trim().to_owned())
            .collect();
        (one["name"].as_str().unwrap().to_owned(), Seen { lines, pid })
    });
    let seen = seen.collect();
    (task, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_privileges_and_security_options_are_in_the_kernel() {
    let cluster = Cluster::start().await;
    let capabilities =
        |add: Value, drop: Value| json!({"linuxParameters": {"capabilities": {"add": add, "drop": drop}}});
    let script = "touch /tmp/x; chown 1000 /tmp/x && echo chown; mknod /tmp/n c 1 3 && echo mknod; \
                  ip link set lo mtu 1400; echo mtu $(cat /sys/class/net/lo/mtu); \
                  mount -t tmpfs none /tmp && echo mount; grep NoNewPrivs /proc/self/status; \
                  grep '^sysfs /sys ' /proc/mounts | tail -n 1 | grep -q 'sysfs rw' && echo sysfs; \
                  echo interrupts $(wc -c < /proc/interrupts); ls -R /dev";
    let (_, seen) = look(
        &cluster,
        |d| d["networkMode"] = json!("none"),
        &[
            ("plain", script, json!({})),
            (
                "changed",
                script,
                capabilities(json!(["NET_ADMIN"]), json!(["CHOWN", "MKNOD"])),
            ),
            ("bare", script, capabilities(json!([]), json!(["ALL"]))),
            ("most", script, capabilities(json!(["ALL"]), json!(["SYS_ADMIN"]))),
            (
                "privileged",
                script,
                // After another: who mounts the sysfs of a network namespace first decides for all.
                json!({"privileged": true, "dependsOn": [{"containerName": "plain", "condition": "START"}]}),
            ),
            (
                "locked",
                script,
                json!({"dockerSecurityOptions": ["no-new-privileges"]}),
            ),
        ],
    )
    .await;
    let init = std::fs::read_to_string("/proc/1/status").unwrap();
    let init = init
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .unwrap();
    let everything = u64::from_str_radix(init.trim(), 16).unwrap();
    let default = 0xa804_25fb_u64;
    // capabilities(7): 0 CHOWN, 12 NET_ADMIN, 21 SYS_ADMIN, 27 MKNOD.
    for (name, mask) in [
        ("plain", default),
        ("locked", default),
        ("changed", (default & !(1 | 1 << 27)) | 1 << 12),
        ("bare", 0),
        ("most", everything & !(1 << 21)),
        ("privileged", everything),
    ] {
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(seen[name].status(set), format!("{mask:016x}"), "{set} of {name}");
        }
    }
    let can = |name: &str, what: &str| seen[name].lines.iter().any(|line| line == what);
    for (what, who) in [
        ("chown", ["plain", "locked", "most", "privileged"].as_slice()),
        ("mknod", &["plain", "locked", "most", "privileged"]),
        ("mount", &["privileged"]),
        ("sysfs", &["privileged"]),
    ] {
        for name in seen.keys() {
            assert_eq!(
                can(name, what),
                who.contains(&name.as_str()),
                "{what} by {name}: {:?}",
                seen[name].lines
            );
        }
    }
    assert_eq!(seen["plain"].status("Seccomp"), "2");
    assert_eq!(seen["privileged"].status("Seccomp"), "0");
    for (name, one) in &seen {
        let locked = if name == "locked" { "1" } else { "0" };
        assert_eq!(
            (one.said("NoNewPrivs"), one.status("NoNewPrivs").as_str()),
            (locked, locked),
            "{name}"
        );
        // One that is masked and one that is read-only.
        for path in [" /proc/interrupts ", " /proc/sys "] {
            assert_eq!(
                one.proc("mountinfo").contains(path),
                name != "privileged",
                "{path} of {name}"
            );
        }
        assert_eq!(
            one.lines.iter().any(|line| line.starts_with("interrupts 0")),
            name != "privileged",
            "{name}"
        );
        assert_eq!(
            one.mount_options("/sys").0.starts_with("rw"),
            name == "privileged",
            "{name}"
        );
    }
    assert_eq!(seen["changed"].said("mtu"), "1400");
    let of_host = std::fs::read_dir("/dev")
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| {
            let kind = entry.metadata().unwrap().file_type();
            (kind.is_char_device() || kind.is_block_device()) && entry.file_name() != "console"
        });
    let of_host: Vec<String> = of_host
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let missing = |name: &str| of_host.iter().filter(|device| !can(name, device)).count();
    assert_eq!(
        missing("privileged"),
        0,
        "{of_host:?} {:?}",
        seen["privileged"].lines
    );
    assert!(missing("plain") > 0, "{of_host:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn system_controls_are_the_containers_and_not_the_hosts() {
    let cluster = Cluster::start().await;
    let script = "for p in net/core/somaxconn net/ipv4/ip_unprivileged_port_start kernel/shmmax kernel/sem fs/mqueue/msg_max; do \
                  echo $p = $(cat /proc/sys/$p); done";
    let controls = |all: &[(&str, &str)]| {
        let all = all
            .iter()
            .map(|(name, value)| json!({"namespace": name, "value": value}));
        json!({"systemControls": all.collect::<Vec<_>>()})
    };
    let set = [
        ("net.core.somaxconn", "77"),
        ("net.ipv4.ip_unprivileged_port_start", "512"),
        ("kernel.shmmax", "12345678"),
        ("kernel.sem", "100 3200 50 64"),
        ("fs.mqueue.msg_max", "21"),
    ];
    let mut sibling = controls(&[]);
    sibling["dependsOn"] = json!([{"containerName": "set", "condition": "START"}]);
    let host = |path: &str| std::fs::read_to_string(format!("/proc/sys/{path}")).unwrap();
    let before: Vec<String> = set
        .iter()
        .map(|(name, _)| host(&name.replace('.', "/")))
        .collect();
    let (_, seen) = look(
        &cluster,
        |_| {},
        &[("set", script, controls(&set)), ("sibling", script, sibling)],
    )
    .await;
    for ((name, value), before) in set.iter().zip(before) {
        let path = name.replace('.', "/");
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(seen["set"].said(&format!("{path} "))), *value, "{name}");
        // A network namespace is the task's, and the sibling's start did not set it back; an IPC namespace is not.
        let shared = name.starts_with("net.");
        assert_eq!(
            words(seen["sibling"].said(&format!("{path} "))) == *value,
            shared,
            "{name}"
        );
        assert_eq!(host(&path), before, "{name}");
    }
    let answer = cluster
        .client
        .send(
            "AmazonEC2ContainerServiceV20141113.RegisterTaskDefinition",
            json!({"family": "f", "networkMode": "host", "containerDefinitions": [{
                "name": "c", "image": "i", "memory": 64,
                "systemControls": [{"namespace": "vm.swappiness", "value": "1"}],
            }]}),
        )
        .await;
    assert_eq!(answer.status().as_u16(), 400);
    let text = answer.text().await.unwrap();
    assert!(
        text.contains("systemControls[0].namespace") && text.contains("would change the node"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn file_systems_in_memory_have_their_size_and_options() {
    let cluster = Cluster::start().await;
    let script = "echo shm $(df -k /dev/shm | tail -n 1); cp /bin/busybox /work/true; /work/true true && echo executes; \
                  cp /bin/busybox /plain/true; /plain/true true && echo plain-executes; \
                  stat -c 'mode %a %u' /work; touch /locked/x || echo locked; \
                  dd if=/dev/zero of=/work/full bs=1M count=9 2>&1 | grep -q 'No space' && echo full; touch /etc/hosts && echo hosts";
    let own = json!({"linuxParameters": {"sharedMemorySize": 7, "tmpfs": [
        {"containerPath": "/work", "size": 5, "mountOptions": ["exec", "mode=1750", "uid=1000"]},
        {"containerPath": "/plain", "size": 3},
        {"containerPath": "/locked", "size": 1, "mountOptions": ["ro"]},
        {"containerPath": "/etc", "size": 1},
    ]}});
    let (_, seen) = look(
        &cluster,
        |_| {},
        &[
            ("own", script, own),
            ("default", "df -k /dev/shm | tail -n 1", json!({})),
        ],
    )
    .await;
    let own = &seen["own"];
    let said = |what: &str| own.lines.iter().any(|line| line == what);
    assert_eq!(
        own.said("shm").split_whitespace().nth(1),
        Some("7168"),
        "{:?}",
        own.lines
    );
    assert_eq!(seen["default"].lines[0].split_whitespace().nth(1), Some("65536"));
    assert!(said("executes") && !said("plain-executes"), "{:?}", own.lines);
    assert!(
        said("mode 1750 1000") && said("locked") && said("full") && said("hosts"),
        "{:?}",
        own.lines
    );
    let has = |place: &str, options: &[&str], file_system: &str| {
        let (own, of_all) = own.mount_options(place);
        for option in options {
            assert!(own.split(',').any(|one| one == *option), "{place}: {own}");
        }
        assert!(
            of_all.split(',').any(|one| one == file_system),
            "{place}: {of_all}"
        );
    };
    has("/dev/shm", &["nosuid", "noexec", "nodev"], "size=7168k");
    has("/work", &["rw", "nosuid", "nodev"], "size=5120k");
    has("/plain", &["rw", "nosuid", "nodev", "noexec"], "size=3072k");
    has("/locked", &["ro"], "size=1024k");
    assert!(!own.mount_options("/work").0.contains("noexec"));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_resolvers_are_the_definitions() {
    let cluster = Cluster::start().await;
    let script = "echo hostname = $(hostname); echo variable = $HOSTNAME; cat /etc/hostname /etc/hosts; \
                  sed 's/^/resolv /' /etc/resolv.conf";
    let own = json!({
        "hostname": "db-1.example", "dnsServers": ["10.9.8.7", "fd00::53"], "dnsSearchDomains": ["one.example", "two"],
        "extraHosts": [{"hostname": "other", "ipAddress": "10.1.2.3"}, {"hostname": "six", "ipAddress": "fd00::6"}],
    });
    for mode in ["none", "host", "bridge"] {
        let (_, seen) = look(
            &cluster,
            |d| d["networkMode"] = json!(mode),
            &[("own", script, own.clone()), ("default", script, json!({}))],
        )
        .await;
        let own = &seen["own"];
        assert_eq!(
            (own.said("hostname "), own.said("variable ")),
            ("db-1.example", "db-1.example")
        );
        let root =
            |file: &str| std::fs::read_to_string(format!("/proc/{}/root/etc/{file}", own.pid)).unwrap();
        assert_eq!(root("hostname"), "db-1.example\n");
        let address = match mode {
            "bridge" => own.address(),
            _ => "127.0.0.1".into(),
        };
        for line in [
            &format!("{address}\tdb-1.example"),
            "10.1.2.3\tother",
            "fd00::6\tsix",
        ] {
            assert!(
                own.lines.iter().any(|said| said == line),
                "{line}: {:?}",
                own.lines
            );
        }
        let resolv = own.resolv();
        let of = |keyword: &str| {
            let lines = resolv.iter().filter(|line| line.starts_with(keyword));
            lines.copied().collect::<Vec<_>>()
        };
        assert_eq!(of("nameserver"), ["nameserver 10.9.8.7", "nameserver fd00::53"]);
        assert_eq!(of("search"), ["search one.example two"]);
        let default = &seen["default"];
        assert_ne!(default.said("hostname "), "db-1.example");
        assert!(
            !default
                .lines
                .iter()
                .any(|line| line.contains("10.9.8.7") || line.contains("other"))
        );
        if mode == "bridge" {
            default.assert_is_named(default.said("hostname "));
            default.assert_asks_the_node();
        }
    }
}

/// The definition has no say there: the containers are one host.
#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_task_with_an_address_have_its_name_and_ask_their_node_for_others() {
    let cluster = Cluster::start().await;
    let script = "echo hostname = $(hostname); echo variable = $HOSTNAME; cat /etc/hosts; sed 's/^/resolv /' /etc/resolv.conf; \
                  ping -c 1 -W 1 $(hostname) | head -n 1";
    let (task, seen) = look(
        &cluster,
        |_| {},
        &[("a", script, json!({})), ("b", script, json!({}))],
    )
    .await;
    let described = cluster.describe(&task).await;
    let address = &described["containers"][0]["networkInterfaces"][0]["privateIpv4Address"];
    let id = &task.rsplit('/').next().unwrap()[..12];
    for one in seen.values() {
        assert_eq!(&json!(one.address()), address);
        assert_eq!((one.said("hostname "), one.said("variable ")), (id, id));
        assert_eq!(one.proc("root/etc/hostname"), format!("{id}\n"));
        one.assert_is_named(id);
        one.assert_asks_the_node();
        let pinged = format!("PING {id} ({})", one.address());
        assert!(
            one.lines.iter().any(|line| line.starts_with(&pinged)),
            "{:?}",
            one.lines
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_networking_has_loopback_and_nothing_else() {
    let cluster = Cluster::start().await;
    let script = "echo links = $(ls /sys/class/net); ping -c 1 -W 1 127.0.0.1 >/dev/null && echo loopback";
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
    for mode in ["awsvpc", "host"] {
        let (_, seen) = look(
            &cluster,
            |d| d["networkMode"] = json!(mode),
            &[
                ("alone", script, json!({"disableNetworking": true})),
                ("other", script, json!({})),
            ],
        )
        .await;
        let alone = &seen["alone"];
        assert_eq!(alone.said("links "), "lo", "{mode}");
        assert!(
            alone.lines.iter().any(|line| line == "loopback"),
            "{:?}",
            alone.lines
        );
        let devices = alone.proc("net/dev");
        assert_eq!(
            devices.lines().filter(|line| line.contains(':')).count(),
            1,
            "{devices}"
        );
        for other in [seen["other"].pid.to_string(), "self".to_owned()] {
            assert_ne!(namespace(&alone.pid.to_string()), namespace(&other), "{mode}");
        }
        assert_ne!(seen["other"].said("links "), "lo");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pseudo_terminal_is_one_and_its_output_is_kept() {
    let cluster = Cluster::start().await;
    let script = "echo terminal = $(tty <&0); echo to-stderr >&2";
    let fields = json!({"pseudoTerminal": true});
    let (task, seen) = look(
        &cluster,
        |_| {},
        &[("with", script, fields), ("without", script, json!({}))],
    )
    .await;
    assert!(
        seen["with"].said("terminal ").starts_with("/dev/"),
        "{:?}",
        seen["with"].lines
    );
    assert_eq!(seen["without"].said("terminal "), "not a tty");
    assert!(seen["with"].lines.iter().any(|line| line == "to-stderr"));
    // The number of the controlling terminal, proc_pid_stat(5): none is 0.
    let terminal = |name: &str| {
        let stat = seen[name].proc("stat");
        let after = stat.rsplit(") ").next().unwrap().to_owned();
        after.split(' ').nth(4).unwrap().to_owned()
    };
    assert_ne!(terminal("with"), "0");
    assert_eq!(terminal("without"), "0");
    let stopped = cluster.stop(&task).await;
    assert_eq!(stopped["stopCode"], "UserInitiated");
}
