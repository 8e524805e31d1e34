use super::*;

const PARAMETERS: &str = "containerDefinitions[0].linuxParameters";

/// What is wrong with these `linuxParameters`.
fn of(parameters: Value) -> Vec<String> {
    problems(&container("linuxParameters", parameters))
}

fn echoed(name: &str, value: Value) {
    let echo = accepted(&container(name, value.clone())).definition;
    assert_eq!(echo["containerDefinitions"][0][name], value);
}

#[test]
fn capabilities_are_ecss() {
    echoed(
        "linuxParameters",
        json!({"capabilities": {"add": ["SYS_PTRACE", "ALL"], "drop": ["MKNOD", "ALL"]}}),
    );
    echoed("linuxParameters", json!({}));
    assert_eq!(
        of(json!({"capabilities": {"add": ["CAP_SYS_PTRACE", "net_admn", 3], "drop": ["x"]}})),
        [
            format!("{PARAMETERS}.capabilities.add[2]: expected a string, got an integer"),
            format!(
                "{PARAMETERS}.capabilities.add[0]: \"CAP_SYS_PTRACE\" is not a capability of ECS (did you mean SYS_PTRACE?)"
            ),
            format!(
                "{PARAMETERS}.capabilities.add[1]: \"net_admn\" is not a capability of ECS (did you mean NET_ADMIN?)"
            ),
            format!("{PARAMETERS}.capabilities.drop[0]: \"x\" is not a capability of ECS"),
        ]
    );
}

#[test]
fn security_options_are_dockers_as_far_as_they_are_honoured() {
    for option in [
        "no-new-privileges",
        "no-new-privileges:true",
        "no-new-privileges=false",
        "seccomp=unconfined",
        "seccomp:builtin",
        "seccomp:my-app_2.x",
        "apparmor:unconfined",
        "apparmor=docker-default",
        "apparmor:/usr/bin/my+app",
    ] {
        echoed("dockerSecurityOptions", json!([option]));
    }
    for (option, says) in [
        ("seccomp", "seccomp: expected seccomp:unconfined"),
        ("seccomp:", "seccomp: expected seccomp:unconfined"),
        ("seccomp:../x", "seccomp: expected seccomp:unconfined"),
        ("seccomp:.x", "seccomp: expected seccomp:unconfined"),
        ("seccomp:{}", "seccomp: expected seccomp:unconfined"),
        ("apparmor", "apparmor: expected apparmor:unconfined"),
        ("apparmor:", "apparmor: expected apparmor:unconfined"),
        ("apparmor::root:x", "apparmor: expected apparmor:unconfined"),
        ("apparmor:a b", "apparmor: expected apparmor:unconfined"),
        (
            "label:type:x",
            "label: not supported: containers have no SELinux label",
        ),
        (
            "credentialspec:file://x",
            "credentialspec: not supported; it is for Active",
        ),
        (
            "no-new-privileges:maybe",
            "\"no-new-privileges:maybe\" is not a security option: expected",
        ),
        ("", "\"\" is not a security option"),
    ] {
        let found = problems(&container("dockerSecurityOptions", json!([option])));
        let path = "containerDefinitions[0].dockerSecurityOptions[0]: ";
        assert!(
            found.len() == 1 && found[0].starts_with(&format!("{path}{says}")),
            "{found:?}"
        );
    }
}

#[test]
fn fargate_has_no_way_to_the_host() {
    let definition = container("privileged", json!(true));
    let definition = with(
        definition,
        "/containerDefinitions/0/linuxParameters",
        json!({"capabilities": {"add": ["SYS_PTRACE", "SYS_ADMIN"], "drop": ["ALL"]}}),
    );
    let definition = with(
        definition,
        "/containerDefinitions/1/dockerSecurityOptions",
        json!(["no-new-privileges"]),
    );
    let echo = accepted(&definition).definition;
    assert_eq!(echo["compatibilities"], json!(["EC2"]));
    assert_eq!(
        problems(&with(definition, "/requiresCompatibilities", json!(["FARGATE"]))),
        [
            "containerDefinitions[0].privileged: FARGATE has no privileged containers",
            "containerDefinitions[0].linuxParameters.capabilities.add[1]: FARGATE lets only SYS_PTRACE be added, got SYS_ADMIN",
            "containerDefinitions[1].dockerSecurityOptions: FARGATE has no security options",
        ]
    );
}

#[test]
fn system_controls_are_the_containers_own() {
    let of = |controls: Value| container("systemControls", controls);
    let control = |name: &str| json!({"namespace": name, "value": "1 2\t3"});
    let all = json!([
        control("net.core.somaxconn"),
        control("kernel.sem"),
        control("fs.mqueue.msg_max"),
        control("net.ipv4.conf.eth0.rp_filter"),
    ]);
    echoed("systemControls", all.clone());
    let path = "containerDefinitions[0].systemControls";
    assert_eq!(
        problems(&with(of(all), "/networkMode", json!("host"))),
        [
            format!(
                "{path}[0].namespace: net.core.somaxconn would change the node's network: use awsvpc, or set it on the node"
            ),
            format!(
                "{path}[3].namespace: net.ipv4.conf.eth0.rp_filter would change the node's network: use awsvpc, or set it on the node"
            ),
        ]
    );
    let found = problems(&of(json!([
        control("kernel.core_pattern"),
        control("net/core/somaxconn"),
        {"namespace": "net.a", "value": ""},
        {"namespace": "net.b", "value": "1\n"},
        {"namespace": "net.b", "value": "1"},
        {},
        control("fs.mqueue."),
        control("net."),
    ])));
    for (found, says) in found.iter().zip([
        "[0].namespace: \"kernel.core_pattern\" is not a container's own and would change the node for all",
        "[1].namespace: \"net/core/somaxconn\" is not a kernel parameter",
        "[2].value: expected 1 to 1024 bytes",
        "[3].value: expected 1 to 1024 bytes",
        "[4].namespace: net.b is set twice",
        "[5].namespace: required",
        "[5].value: required",
        "[6].namespace: \"fs.mqueue.\" is not a kernel parameter",
        "[7].namespace: \"net.\" is not a kernel parameter",
    ]) {
        assert!(found.starts_with(&format!("{path}{says}")), "{found}");
    }
    assert_eq!(found.len(), 9);
}

#[test]
fn file_systems_in_memory_have_a_place_a_size_and_ecss_options() {
    let tmpfs = |place: &str, size: i64, options: &[&str]| json!({"containerPath": place, "size": size, "mountOptions": options});
    echoed(
        "linuxParameters",
        json!({
            "sharedMemorySize": 1,
            "tmpfs": [
                tmpfs("/run", 1, &["exec", "mode=1777", "uid=1000", "nr_inodes=1k", "mpol=bind:0-3", "rprivate"]),
                {"containerPath": "/tmp", "size": 64},
            ],
        }),
    );
    assert_eq!(
        of(json!({"sharedMemorySize": 0, "tmpfs": [
            tmpfs("run", 0, &["remount", "mode", "mode=888", "uid=-1", "noexecc", "mode=1,size=9", "size=9", "gid="]),
            tmpfs("/", 1, &[]),
            tmpfs("/a/../b", 1, &[]),
            tmpfs("//proc/x", 1, &[]),
            tmpfs("/a", 1, &[]),
            tmpfs("/a", 1, &[]),
            {},
        ]})),
        [
            "[6].containerPath: required",
            "[6].size: required",
            "SHM: 0 is below the minimum of 1 MiB",
            "[0].size: 0 is below the minimum of 1 MiB",
            "[0].containerPath: \"run\" is not an absolute path without ..",
            "[0].mountOptions[0]: remount makes no file system in memory",
            "[0].mountOptions[1]: mode needs a value, as in mode=…",
            "[0].mountOptions[2]: \"mode=888\" is not a mount option of ECS for a tmpfs",
            "[0].mountOptions[3]: \"uid=-1\" is not a mount option of ECS for a tmpfs",
            "[0].mountOptions[4]: \"noexecc\" is not a mount option of ECS for a tmpfs (did you mean noexec?)",
            "[0].mountOptions[5]: \"mode=1,size=9\" is not a mount option of ECS for a tmpfs",
            "[0].mountOptions[6]: \"size=9\" is not a mount option of ECS for a tmpfs",
            "[0].mountOptions[7]: \"gid=\" is not a mount option of ECS for a tmpfs",
            "[1].containerPath: / is the image's: use readonlyRootFilesystem and other paths",
            "[2].containerPath: \"/a/../b\" is not an absolute path without ..",
            "[3].containerPath: \"//proc/x\" is the kernel's",
            "[5].containerPath: \"/a\" is there twice",
        ]
        .map(|says| match says.strip_prefix("SHM") {
            Some(says) => format!("{PARAMETERS}.sharedMemorySize{says}"),
            None => format!("{PARAMETERS}.tmpfs{says}"),
        })
    );
    let definition = container(
        "linuxParameters",
        json!({"sharedMemorySize": 1, "tmpfs": [tmpfs("/a", 1, &[])]}),
    );
    assert_eq!(
        problems(&with(definition, "/requiresCompatibilities", json!(["FARGATE"]))),
        [
            format!("{PARAMETERS}.sharedMemorySize: FARGATE does not have it"),
            format!("{PARAMETERS}.tmpfs: FARGATE does not have it"),
        ]
    );
}

#[test]
fn devices_have_absolute_paths_and_a_place_each() {
    echoed(
        "linuxParameters",
        json!({"devices": [
            {"hostPath": "/dev/fuse"},
            {"hostPath": "/dev/fuse", "containerPath": "/dev/f", "permissions": ["read", "write", "mknod"]},
            {"hostPath": "/dev/snd/", "containerPath": "/snd"},
        ]}),
    );
    let device = |host: &str, place: &str| json!({"hostPath": host, "containerPath": place});
    assert_eq!(
        of(json!({"devices": [
            device("dev/a", "/dev/../b"),
            device("/", "/proc/x"),
            device("/dev/a", "/dev/a"),
            {"hostPath": "/dev//a/"},
            device("/dev/c", &"/x".repeat(2048)),
            {"hostPath": "/dev/d", "permissions": ["execute"]},
            {"containerPath": "/dev/e"},
            {"hostPath": "//sys/x"},
        ]})),
        [
            "[5].permissions[0]: expected one of read, write, mknod; got \"execute\"",
            "[6].hostPath: required",
            "[0].hostPath: \"dev/a\" is not an absolute path without ..",
            "[0].containerPath: \"/dev/../b\" is not an absolute path without ..",
            "[1].hostPath: / is no device",
            "[1].containerPath: \"/proc/x\" is the kernel's",
            "[3].hostPath: \"/dev/a\" is there twice",
            "[4].containerPath: 4096 bytes, the limit is 4095",
            "[7].hostPath: \"//sys/x\" is the kernel's",
        ]
        .map(|says| format!("{PARAMETERS}.devices{says}"))
    );
    let many = |n: usize| {
        of(json!({"devices": (0..n).map(|at| device("/dev/a", &format!("/a{at}"))).collect::<Vec<_>>()}))
    };
    assert_eq!(many(100), Vec::<String>::new());
    assert_eq!(
        many(101),
        [format!("{PARAMETERS}.devices: 101 entries, the limit is 100")]
    );
}

#[test]
fn swap_is_beyond_a_memory_limit_and_swappiness_is_of_swap() {
    for good in [
        json!({"maxSwap": 0}),
        json!({"maxSwap": 64, "swappiness": 0}),
        json!({"maxSwap": 64, "swappiness": 100}),
    ] {
        echoed("linuxParameters", good);
    }
    for (bad, says) in [
        (
            json!({"maxSwap": -1}),
            "maxSwap: -1 is below the minimum of 0 MiB, no swap",
        ),
        (
            json!({"maxSwap": 1, "swappiness": -1}),
            "swappiness: -1 is not 0 to 100",
        ),
        (
            json!({"maxSwap": 1, "swappiness": 101}),
            "swappiness: 101 is not 0 to 100",
        ),
        (
            json!({"swappiness": 60}),
            "swappiness: has an effect only with maxSwap: give both, or neither",
        ),
    ] {
        assert_eq!(of(bad), [format!("{PARAMETERS}.{says}")]);
    }
    let mut unlimited = container("linuxParameters", json!({"maxSwap": 1}));
    unlimited["containerDefinitions"][0]["memoryReservation"] = json!(64);
    unlimited["containerDefinitions"][0]
        .as_object_mut()
        .unwrap()
        .remove("memory");
    assert_eq!(
        problems(&unlimited),
        [format!(
            "{PARAMETERS}.maxSwap: needs the container's memory, which it is swap beyond"
        )]
    );
    let fargate = container(
        "linuxParameters",
        json!({"devices": [{"hostPath": "/dev/a"}], "maxSwap": 1, "swappiness": 1}),
    );
    let plain = accepted(&fargate).definition;
    assert!(
        !plain["compatibilities"].to_string().contains("FARGATE"),
        "{plain}"
    );
    assert_eq!(
        problems(&with(fargate, "/requiresCompatibilities", json!(["FARGATE"]))),
        ["devices", "maxSwap", "swappiness"]
            .map(|name| format!("{PARAMETERS}.{name}: FARGATE does not have it"))
    );
}
