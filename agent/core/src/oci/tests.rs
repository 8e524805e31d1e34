//! What the builder writes, and what it refuses.

mod edits;
mod init;
mod options;

use serde_json::{Value, json};

use super::*;
use crate::{
    desired::{ContainerSpec, LogSpec},
    image::ImageConfig,
};

const V1: HostFacts = HostFacts {
    arch: Arch::X86_64 { x32: false },
    kernel: (6, 1),
    cgroups: Cgroups::V1,
    swap_limit: true,
    apparmor: true,
    oom_score_adj_min: 0,
    nofile_max: u64::MAX,
    capabilities: (1 << 41) - 1,
};
const V2: HostFacts = HostFacts {
    cgroups: Cgroups::Unified,
    ..V1
};
const MIB: u64 = 1 << 20;

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| (*s).to_owned()).collect()
}

fn some() -> OciSpec {
    OciSpec::new(strings(&["/bin/true"]), "/berth/t/c/x", V1)
}

fn at<'a>(spec: &'a Value, pointer: &str) -> &'a Value {
    spec.pointer(pointer).unwrap_or(&Value::Null)
}

pub(crate) fn container() -> ContainerSpec {
    ContainerSpec {
        id: "c".repeat(32).parse().unwrap(),
        name: "app".into(),
        image: "busybox".into(),
        image_digest: String::new(),
        entry_point: vec![],
        command: vec![],
        environment: vec![],
        environment_files: vec![],
        working_directory: String::new(),
        user: String::new(),
        cpu_units: 0,
        memory_bytes: 0,
        memory_reservation_bytes: 0,
        essential: true,
        depends_on: vec![],
        stop_timeout_ms: 30_000,
        start_timeout_ms: 0,
        ports: vec![],
        labels: BTreeMap::new(),
        readonly_root_filesystem: false,
        ulimits: vec![],
        log: LogSpec {
            max_size_bytes: MIB,
            max_files: 1,
            blocking: false,
            max_buffer_bytes: 0,
            discard: false,
            attributes: Default::default(),
        },
        linux: Default::default(),
        networking: Default::default(),
        pseudo_terminal: false,
        interactive: false,
        restart: None,
        volumes: Default::default(),
        health_check: None,
        gpus: vec![],
    }
}

fn ulimit(name: &str, soft: i64, hard: i64) -> Ulimit {
    Ulimit {
        name: name.into(),
        soft,
        hard,
    }
}

#[test]
fn entry_point_and_command_replace_the_images_as_docker_has_it() {
    let image = ImageConfig {
        entrypoint: strings(&["e"]),
        cmd: strings(&["c"]),
        ..ImageConfig::default()
    };
    let table: [(&[&str], &[&str], &[&str]); 6] = [
        (&[], &[], &["e", "c"]),
        (&[], &["x"], &["e", "x"]),
        (&["y"], &[], &["y"]),
        (&["y"], &["x"], &["y", "x"]),
        (&[""], &["x"], &["x"]),
        (&[""], &[], &[]),
    ];
    for (entry, command, want) in table {
        let spec = ContainerSpec {
            entry_point: strings(entry),
            command: strings(command),
            ..container()
        };
        assert_eq!(argv(&image, &spec), strings(want), "{entry:?} {command:?}");
    }
}

#[test]
fn the_last_of_a_variable_wins_and_defaults_come_first() {
    let own = [
        ("B".to_owned(), "3".to_owned()),
        ("HOSTNAME".to_owned(), "mine".to_owned()),
    ];
    let spec = some()
        .hostname("h")
        .environment(&strings(&["A=1", "B=2", "odd", "E="]), &own)
        .build()
        .unwrap();
    let path = format!("PATH={DEFAULT_PATH}");
    assert_eq!(
        at(&spec, "/process/env"),
        &json!([path, "HOSTNAME=mine", "A=1", "B=3", "E="])
    );

    let spec = some()
        .hostname("h")
        .environment(&strings(&["PATH=/bin"]), &[])
        .build()
        .unwrap();
    assert_eq!(at(&spec, "/process/env"), &json!(["PATH=/bin", "HOSTNAME=h"]));
}

#[test]
fn the_working_directory_is_the_definitions_else_the_images_else_the_root() {
    for (image, own, want) in [
        ("", "", "/"),
        ("/a", "", "/a"),
        ("a", "", "/a"),
        ("/a", "/b", "/b"),
    ] {
        let spec = some().working_directory(image, own).build().unwrap();
        assert_eq!(at(&spec, "/process/cwd"), want);
    }
}

#[test]
fn capabilities_are_dockers_and_only_root_has_them_effective() {
    let root = some().build().unwrap();
    assert_eq!(
        at(&root, "/process/capabilities/effective")
            .as_array()
            .unwrap()
            .len(),
        14
    );
    assert_eq!(at(&root, "/process/capabilities/inheritable"), &Value::Null);
    let user = User {
        uid: 7,
        gid: 8,
        additional_gids: vec![8, 9],
    };
    let other = some().user(user).build().unwrap();
    assert_eq!(
        at(&other, "/process/user"),
        &json!({"uid": 7, "gid": 8, "additionalGids": [8, 9]})
    );
    assert_eq!(at(&other, "/process/capabilities/effective"), &json!([]));
    assert_eq!(
        at(&other, "/process/capabilities/bounding")
            .as_array()
            .unwrap()
            .len(),
        14
    );
    assert_eq!(at(&other, "/process/noNewPrivileges"), &json!(false));
}

#[test]
fn the_oom_score_is_always_written_and_never_below_what_the_host_allows() {
    for (min, want) in [(0, 0), (-998, 0), (300, 300)] {
        let host = HostFacts {
            oom_score_adj_min: min,
            ..V1
        };
        let spec = OciSpec::new(strings(&["x"]), "/c", host).build().unwrap();
        assert_eq!(at(&spec, "/process/oomScoreAdj"), &json!(want));
    }
}

#[test]
fn open_files_have_a_default_and_ulimits_replace_it() {
    let nofile = |soft: u64, hard: u64| json!({"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard});
    assert_eq!(
        at(&some().build().unwrap(), "/process/rlimits"),
        &json!([nofile(65_535, 65_535)])
    );
    let bounded = OciSpec::new(
        strings(&["x"]),
        "/c",
        HostFacts {
            nofile_max: 20_000,
            ..V1
        },
    )
    .build()
    .unwrap();
    assert_eq!(at(&bounded, "/process/rlimits"), &json!([nofile(20_000, 20_000)]));
    let own = some()
        .ulimits(&[ulimit("nofile", 10, 20), ulimit("core", -1, -1)])
        .build()
        .unwrap();
    let core = json!({"type": "RLIMIT_CORE", "soft": u64::MAX, "hard": u64::MAX});
    assert_eq!(at(&own, "/process/rlimits"), &json!([nofile(10, 20), core]));
}

#[test]
fn memory_has_no_swap_beyond_it_and_cpu_is_a_weight() {
    let limits = Limits {
        cpu_units: 512,
        memory_bytes: 64 * MIB,
        memory_reservation_bytes: 32 * MIB,
    };
    let spec = some().limits(limits).build().unwrap();
    let memory = json!({"limit": 64 * MIB, "swap": 64 * MIB, "reservation": 32 * MIB});
    assert_eq!(at(&spec, "/linux/resources/memory"), &memory);
    assert_eq!(at(&spec, "/linux/resources/cpu"), &json!({"shares": 512}));
    assert_eq!(at(&spec, "/linux/resources/pids/limit"), &json!(PIDS_MAX_DEFAULT));
    assert_eq!(at(&spec, "/linux/resources/unified"), &Value::Null);

    let none = some().build().unwrap();
    assert_eq!(at(&none, "/linux/resources/memory"), &json!({}));
    assert_eq!(at(&none, "/linux/resources/cpu"), &json!({"shares": 2}));

    let host = HostFacts {
        swap_limit: false,
        ..V1
    };
    let without = OciSpec::new(strings(&["x"]), "/c", host)
        .limits(limits)
        .build()
        .unwrap();
    assert_eq!(at(&without, "/linux/resources/memory/swap"), &Value::Null);
}

#[test]
fn only_on_v2_the_container_dies_as_a_whole_and_sees_its_own_cgroup() {
    let spec = OciSpec::new(strings(&["x"]), "/c", V2).build().unwrap();
    assert_eq!(
        at(&spec, "/linux/resources/unified"),
        &json!({"memory.oom.group": "1"})
    );
    assert!(
        at(&spec, "/linux/namespaces")
            .as_array()
            .unwrap()
            .contains(&json!({"type": "cgroup"}))
    );
    let v1 = some().build().unwrap();
    assert!(
        !at(&v1, "/linux/namespaces")
            .as_array()
            .unwrap()
            .contains(&json!({"type": "cgroup"}))
    );
}

#[test]
fn the_network_is_joined_new_or_the_hosts() {
    let joined = json!({"type": "network", "path": "/run/n"});
    let table = [
        (Network::Join("/run/n".into()), Some(joined), true),
        (Network::Private, Some(json!({"type": "network"})), true),
        (Network::Host, None, false),
    ];
    for (network, want, sysctls) in table {
        let spec = some().network(network).build().unwrap();
        let all = at(&spec, "/linux/namespaces").as_array().unwrap();
        assert_eq!(all.iter().find(|n| n["type"] == "network"), want.as_ref());
        assert_eq!(!at(&spec, "/linux/sysctl").is_null(), sysctls);
        assert!(at(&spec, "/mounts").to_string().contains("sysfs"));
    }
}

#[test]
fn own_mounts_follow_the_default_ones() {
    let spec = some()
        .mount(Mount::bind("/a", "/etc/hosts"))
        .mount(Mount::read_only("/s", "/run/s"))
        .build()
        .unwrap();
    let all = at(&spec, "/mounts").as_array().unwrap();
    assert_eq!(all.len(), 9);
    assert_eq!(all[7]["options"], json!(["rbind", "rprivate", "rw"]));
    assert_eq!(all[8]["options"], json!(["rbind", "rprivate", "ro"]));
    assert_eq!(
        all.iter().find(|m| m["destination"] == "/sys").unwrap()["options"][3],
        "ro"
    );
}

#[test]
fn volumes_are_mounted_from_the_root_down_and_over_what_they_replace() {
    let destinations = |spec: &Value| -> Vec<String> {
        let all = at(spec, "/mounts").as_array().unwrap();
        all.iter()
            .map(|mount| mount["destination"].as_str().unwrap().to_owned())
            .collect()
    };
    let linux = LinuxOptions {
        tmpfs: vec![crate::desired::Tmpfs {
            path: "/a/b".into(),
            size_bytes: 1,
            options: vec![],
        }],
        ..LinuxOptions::default()
    };
    let spec = some()
        .linux(&linux)
        .mount(Mount::bind("/h", "/etc/hosts"))
        .mount(Mount::bind("/n", "/etc/hostname"))
        .mount(Mount::volume("/v", "/a/b/c"))
        .mount(Mount::volume("/w", "/a"))
        .mount(Mount::volume("/x", "/etc/hosts"))
        .mount(Mount::volume("/y", "/dev/shm"))
        .build()
        .unwrap();
    assert_eq!(
        destinations(&spec)[6..],
        ["/a", "/a/b", "/etc/hostname", "/etc/hosts", "/dev/shm", "/a/b/c"]
    );
    let dev = some().mount(Mount::volume("/dev", "/dev")).build().unwrap();
    assert_eq!(
        destinations(&dev),
        ["/proc", "/sys", "/sys/fs/cgroup", "/dev"],
        "{dev}"
    );
    let root = some().mount(Mount::volume("/v", "//.")).build();
    assert_eq!(root, Err(OciError::MountOverRoot));
}

#[test]
fn a_readonly_volume_is_so_as_a_whole_where_the_kernel_can() {
    let options = |host: HostFacts, mount: Mount| {
        let spec = OciSpec::new(strings(&["x"]), "/c", host)
            .mount(mount)
            .build()
            .unwrap();
        spec["mounts"].as_array().unwrap().last().unwrap()["options"].clone()
    };
    let host = |kernel| HostFacts { kernel, ..V1 };
    let volume = || Mount::volume("/v", "/a").readonly(true);
    assert_eq!(
        options(host((5, 12)), volume()),
        json!(["rbind", "rprivate", "ro", "rro"])
    );
    assert_eq!(
        options(host((5, 11)), volume()),
        json!(["rbind", "rprivate", "ro"])
    );
    assert_eq!(
        options(host((6, 1)), volume().alone()),
        json!(["bind", "rprivate", "ro"])
    );
    assert_eq!(
        options(host((6, 1)), volume().readonly(false).following()),
        json!(["rbind", "rslave", "rw"])
    );
    assert_eq!(
        options(host((6, 1)), Mount::read_only("/f", "/etc/x").following().alone()),
        json!(["rbind", "rprivate", "ro"])
    );
}

#[test]
fn devices_are_denied_but_for_the_usual() {
    let spec = some().build().unwrap();
    let rules = at(&spec, "/linux/resources/devices").as_array().unwrap();
    assert_eq!(rules[0], json!({"allow": false, "access": "rwm"}));
    assert!(rules[1..].iter().all(|rule| rule["allow"] == true));
    assert!(rules.contains(&json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"})));
}

#[test]
fn a_request_becomes_a_specification() {
    let request = StartContainer {
        task: "a".repeat(32).parse().unwrap(),
        attempt: crate::ids::Attempt(2),
        spec: ContainerSpec {
            readonly_root_filesystem: true,
            command: strings(&["sleep", "1"]),
            ..container()
        },
        image: crate::image::ResolvedImage {
            reference: "busybox".into(),
            digest: "sha256:0".into(),
            resolved: "sha256:0".into(),
            chain_id: "sha256:1".into(),
            config: ImageConfig::default(),
        },
        network: crate::desired::NetworkMode::Awsvpc,
        address: None,
        task_limits: crate::desired::Limits::default(),
        task_privileged: false,
        task_sysctls: vec![],
        mounts: vec![],
        task_swaps: false,
        ephemeral_storage_bytes: 0,
        pid: Default::default(),
        ipc: Default::default(),
        runtime: String::new(),
        task_arn: String::new(),
        cluster: String::new(),
        family: String::new(),
        revision: 1,
    };
    let facts = TaskFacts {
        edits: DeviceEdits::default(),
        cgroup_parent: "berth".into(),
        hostname: "aaaaaaaaaaaa".into(),
        network: Network::Join("/run/n".into()),
        environment: vec![("ECS_X".into(), "own".into())],
        mounts: vec![Mount::bind("/run/h", "/etc/hosts")],
        devices: vec![],
        seccomp: None,
        init: Some("/usr/bin/berth-init".into()),
        holder: None,
        shared_memory: None,
    };
    let spec = OciSpec::for_container(&request, User::ROOT, facts.clone(), V1)
        .build()
        .unwrap();
    let (task, id) = ("a".repeat(32), "c".repeat(32));
    assert_eq!(
        at(&spec, "/linux/cgroupsPath"),
        &json!(format!("/berth/{task}/c/{id}"))
    );
    assert_eq!(spec["annotations"][SHIM_GROUP], task);
    assert_eq!(at(&spec, "/root/readonly"), &json!(true));
    assert_eq!(at(&spec, "/process/args"), &json!(["sleep", "1"]));
    assert_eq!(shim_cgroup("/berth/", &request.task), format!("/berth/{task}/rt"));
    let env = at(&spec, "/process/env").as_array().unwrap();
    assert!(env.contains(&json!("ECS_X=own")), "{env:?}");
    let mut claims = request.clone();
    claims.spec.environment = vec![("ECS_X".into(), "its".into())];
    let claimed = OciSpec::for_container(&claims, User::ROOT, facts.clone(), V1);
    assert_eq!(at(&claimed.build().unwrap(), "/process/env"), &json!(env));

    // Its own limits.
    let mut limited = request.clone();
    (limited.spec.cpu_units, limited.spec.memory_bytes) = (512, 64 << 20);
    limited.spec.memory_reservation_bytes = 32 << 20;
    let spec = OciSpec::for_container(&limited, User::ROOT, facts.clone(), V1)
        .build()
        .unwrap();
    assert_eq!(at(&spec, "/linux/resources/cpu/shares"), &json!(512));
    assert_eq!(at(&spec, "/linux/resources/memory/limit"), &json!(64 << 20));
    assert_eq!(at(&spec, "/linux/resources/memory/reservation"), &json!(32 << 20));

    // Beside a privileged container, /sys is the task's to write: others must not. A privileged one may.
    let closed = |spec: &Value| {
        let paths = spec.pointer("/linux/readonlyPaths");
        paths.is_none_or(|paths| paths.as_array().unwrap().contains(&json!("/sys")))
    };
    for (task_privileged, privileged, expected) in [
        (false, false, false),
        (true, false, true),
        // Has no such list at all.
        (true, true, true),
    ] {
        let mut beside = request.clone();
        beside.task_privileged = task_privileged;
        beside.spec.linux.privileged = privileged;
        let built = OciSpec::for_container(&beside, User::ROOT, facts.clone(), V1);
        assert_eq!(built.beside_privileged, task_privileged && !privileged);
        assert_eq!(closed(&built.build().unwrap()), expected);
    }

    // Cut off from the task's network, and from the host's as well.
    let mut alone = request;
    alone.spec.networking.disabled = true;
    for network in [Network::Join("/run/n".into()), Network::Host] {
        let facts = TaskFacts {
            network,
            ..facts.clone()
        };
        let spec = OciSpec::for_container(&alone, User::ROOT, facts, V1)
            .build()
            .unwrap();
        let all = at(&spec, "/linux/namespaces").as_array().unwrap();
        assert!(all.contains(&json!({"type": "network"})), "{all:?}");
    }
}

#[test]
fn a_hostname_is_1_to_64_bytes() {
    for (bytes, good) in [(0, false), (1, true), (64, true), (65, false)] {
        let built = some().hostname("h".repeat(bytes)).build();
        assert_eq!(built.is_ok(), good, "{bytes}");
    }
}

#[test]
fn bad_input_is_refused_by_name() {
    let nothing = OciSpec::new(vec![], "/c", V1).build();
    let env = |name: &str, value: &str| {
        some()
            .environment(&[], &[(name.to_owned(), value.to_owned())])
            .build()
    };
    let limits = |all: &[Ulimit]| some().ulimits(all).build();
    let reservation = Limits {
        memory_bytes: 1,
        memory_reservation_bytes: 2,
        cpu_units: 0,
    };
    let table = [
        (nothing, OciError::NoCommand),
        (
            OciSpec::new(strings(&["a\0"]), "/c", V1).build(),
            OciError::NulByte { what: "the command" },
        ),
        (
            OciSpec::new(strings(&["a"]), "c", V1).build(),
            OciError::RelativeCgroup("c".into()),
        ),
        (env("", "x"), OciError::EnvironmentName(String::new())),
        (env("A=B", "x"), OciError::EnvironmentName("A=B".into())),
        (
            env("A", "\0"),
            OciError::NulByte {
                what: "the environment",
            },
        ),
        (
            some().working_directory("", "a").build(),
            OciError::RelativeWorkingDirectory("a".into()),
        ),
        (
            some().mount(Mount::bind("/a", "b")).build(),
            OciError::RelativeMount("b".into()),
        ),
        (
            some().mount(Mount::bind("/a", "/b/../c")).build(),
            OciError::RelativeMount("/b/../c".into()),
        ),
        (
            some().hostname("h".repeat(65)).build(),
            OciError::Hostname("h".repeat(65)),
        ),
        (
            limits(&[ulimit("files", 1, 1)]),
            OciError::UnknownUlimit("files".into()),
        ),
        (
            limits(&[ulimit("core", 1, 1), ulimit("core", 2, 2)]),
            OciError::RepeatedUlimit("core".into()),
        ),
        (
            limits(&[ulimit("core", 2, 1)]),
            OciError::UlimitRange {
                name: "core".into(),
                soft: 2,
                hard: 1,
            },
        ),
        (
            limits(&[ulimit("core", -1, 1)]),
            OciError::UlimitRange {
                name: "core".into(),
                soft: -1,
                hard: 1,
            },
        ),
        (
            limits(&[ulimit("core", -2, 1)]),
            OciError::UlimitRange {
                name: "core".into(),
                soft: -2,
                hard: 1,
            },
        ),
        (
            some().limits(reservation).build(),
            OciError::Reservation {
                reservation: 2,
                limit: 1,
            },
        ),
    ];
    for (built, want) in table {
        assert_eq!(built, Err(want));
    }
}
