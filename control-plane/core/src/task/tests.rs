use super::*;
use crate::definition::{StoredFile, register};
use serde_json::{Value, json};
use std::sync::LazyLock;

const TASK: &str = "00000000000000000000000000000001";
const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000001";

fn definition(input: Value) -> Definition {
    Definition::from_echo(&register(&input).unwrap().definition).unwrap()
}

fn full() -> Definition {
    let mut input = json!({
        "family": "web",
        "networkMode": "host",
        "pidMode": "host",
        "ipcMode": "none",
        "runtimePlatform": {"cpuArchitecture": "ARM64"},
        "placementConstraints": [{"type": "memberOf", "expression": "attribute:rack == 7"}],
        "requiresCompatibilities": ["EC2"],
        "containerDefinitions": [
            {
                "name": "setup", "image": "busybox", "essential": false, "memoryReservation": 16, "interactive": true,
                "logConfiguration": {"logDriver": "json-file", "options": {"max-size": "64k", "max-file": "2", "max-buffer-size": "2m"}},
            },
            {
                "name": "nginx", "image": "nginx", "cpu": 100, "memory": 64, "memoryReservation": 32,
                "entryPoint": ["/bin/sh"], "command": ["-c", "x"], "environment": [{"name": "A", "value": "1"}, {"name": "B"}],
                "environmentFiles": [{"type": "s3", "value": "arn:aws:s3:::config/web.env"}, {"type": "s3", "value": "http://a/b"}],
                "workingDirectory": "/srv", "user": "www", "stopTimeout": 5, "startTimeout": 7,
                "portMappings": [{"containerPort": 443}, {"containerPort": 80}, {"containerPort": 53, "protocol": "udp"}],
                "dependsOn": [{"containerName": "setup", "condition": "SUCCESS"}],
                "dockerLabels": {"a": "b"}, "readonlyRootFilesystem": true,
                "ulimits": [{"name": "nofile", "softLimit": 1024, "hardLimit": -1}],
            },
        ],
    });
    let rest = json!({
        "healthCheck": {"command": ["CMD-SHELL", "look", "x"], "interval": 7, "timeout": 2, "retries": 4, "startPeriod": 9},
        "privileged": true, "pseudoTerminal": true, "interactive": true, "restartPolicy": {"enabled": true, "ignoredExitCodes": [3], "restartAttemptPeriod": 60}, "dockerSecurityOptions": ["apparmor:other", "seccomp:other", "apparmor=my-profile", "seccomp=mine", "no-new-privileges"],
        "hostname": "web.local", "extraHosts": [{"hostname": "db", "ipAddress": "10.0.0.1"}],
        "dnsServers": ["10.0.0.2"], "dnsSearchDomains": ["a.b"],
        "systemControls": [{"namespace": "kernel.msgmax", "value": "9000"}],
        "mountPoints": [{"sourceVolume": "logs", "containerPath": "/logs//x/", "readOnly": true}],
        "volumesFrom": [{"sourceContainer": "setup", "readOnly": true}],
        "linuxParameters": {
            "capabilities": {"add": ["SYS_PTRACE"], "drop": ["ALL"]},
            "devices": [{"hostPath": "/dev/fuse"}, {"hostPath": "/dev/kvm", "containerPath": "/dev/k", "permissions": ["read"]}],
            "maxSwap": 32, "swappiness": 60, "initProcessEnabled": true,
            "tmpfs": [{"containerPath": "/scratch", "size": 16, "mountOptions": ["ro"]}],
        },
    });
    let nginx = input["containerDefinitions"][1].as_object_mut().unwrap();
    nginx.extend(rest.as_object().unwrap().clone());
    input["volumes"] = json!([
        {"name": "logs", "host": {"sourcePath": "/var//log/"}},
        {"name": "empty"},
        {"name": "memory", "dockerVolumeConfiguration": {"driverOpts": {"type": "tmpfs", "device": "x", "o": "ro,size=1m"}}},
        {"name": "bound", "dockerVolumeConfiguration": {
            "scope": "shared", "autoprovision": true, "labels": {"a": "b"},
            "driverOpts": {"type": "none", "device": "/srv/", "o": "ro,rbind"},
        }},
        {"name": "far", "dockerVolumeConfiguration": {
            "driverOpts": {"type": "nfs4", "device": ":/x", "o": "addr=10.0.0.1,rw"},
        }},
    ]);
    definition(input)
}

fn device(host_path: &str, container_path: &str, all: bool) -> Device {
    Device {
        host_path: host_path.into(),
        container_path: container_path.into(),
        read: true,
        write: all,
        mknod: all,
    }
}

fn ids(n: usize) -> Vec<String> {
    (0..n).map(|at| format!("{:032x}", at + 100)).collect()
}

static NO_FILES: StoredFiles = StoredFiles::new();
static TAGS: LazyLock<BTreeMap<String, String>> =
    LazyLock::new(|| BTreeMap::from([("k".into(), "v".into())]));

fn stored() -> StoredFiles {
    let file = StoredFile::from_arn("arn:aws-cn:s3:::config/web.env").unwrap();
    StoredFiles::from([(file, vec![("C".into(), "3".into())])])
}

fn run<'a>(container_ids: &'a [String], digests: &'a BTreeMap<String, String>) -> Run<'a> {
    Run {
        task_id: TASK,
        task_arn: "arn:aws:ecs:eu-north-1:123456789012:task/c/1",
        cluster: "c",
        revision: 3,
        container_ids,
        image_digests: digests,
        environment_files: &NO_FILES,
        gpus: &[],
        restart_after_reboot: true,
        publish_ports: false,
        launch_type: "EC2",
        group: "family:f",
        tags: &TAGS,
        runtime: Some("crun"),
        subnet: None,
        lan: None,
        created_at_ms: 42,
    }
}

#[test]
fn gpus_are_dealt_to_the_containers_that_ask_for_them() {
    let asks = |n: &str| json!([{"type": "GPU", "value": n}]);
    let definition = definition(json!({
        "family": "train", "networkMode": "awsvpc", "memory": "512",
        "containerDefinitions": [
            {"name": "a", "image": "a", "resourceRequirements": asks("2")},
            {"name": "b", "image": "b"},
            {"name": "c", "image": "c", "resourceRequirements": asks("1")},
        ],
    }));
    let (ids, digests) = (ids(3), BTreeMap::new());
    let gpus: Vec<String> = ["x/gpu=2", "x/gpu=0", "x/gpu=7"].map(String::from).into();
    let with = |gpus| {
        let run = Run {
            gpus,
            ..run(&ids, &digests)
        };
        resolve(&definition, &run)
    };
    let task = with(&gpus).unwrap();
    let of = |at: usize| task.containers[at].gpus.clone();
    assert_eq!(of(0), ["x/gpu=2", "x/gpu=0"]);
    assert!(of(1).is_empty());
    assert_eq!(of(2), ["x/gpu=7"]);
    assert!(task.required_features.contains(&"gpu.cdi".into()));
    let needed = ResolveError::Gpus { given: 2, needed: 3 };
    assert_eq!(with(&gpus[..2]), Err(needed));
}

#[test]
fn a_task_is_resolved_field_for_field() {
    let ids = ids(2);
    let digests = BTreeMap::from([("nginx".to_owned(), DIGEST.to_owned())]);
    let files = stored();
    let run = Run {
        environment_files: &files,
        ..run(&ids, &digests)
    };
    let task = resolve(&full(), &run).unwrap();
    assert_eq!(task.containers[0].image_digest, "");
    assert_eq!(
        (task.task_id.as_str(), task.cluster.as_str(), task.revision),
        (TASK, "c", 3)
    );
    assert_eq!(
        (task.family.as_str(), task.network_mode),
        ("web", NetworkMode::Host)
    );
    assert_eq!((task.limit_cpu_units, task.limit_memory_bytes), (0, 0));
    assert_eq!(
        (task.charged_cpu_units, task.charged_memory_bytes),
        (100, 80 * MIB)
    );
    assert_eq!(
        task.required_features,
        [
            "net.host",
            "log.json-file",
            "log.buffer",
            "depends.success",
            "limits.container",
            "ulimits",
            "rootfs.readonly",
            "linux.capabilities",
            "linux.privileged",
            "linux.no-new-privileges",
            "linux.seccomp",
            "linux.apparmor",
            "linux.sysctls",
            "linux.tmpfs",
            "linux.devices",
            "linux.init",
            "linux.max-swap",
            "linux.swappiness",
            "pid.host",
            "ipc.none",
            "networking.hostname",
            "networking.extra-hosts",
            "networking.dns",
            "terminal",
            "interactive",
            "restart.policy",
            "volumes.host",
            "volumes.local",
            "volumes.from",
            "volumes.nfs",
            "health-check",
            "environment-files",
            "image.digest",
            "restart.after-reboot",
            "runtime.crun"
        ]
    );
    let local = |shared, mount, labels: &[(&str, &str)]| VolumeSource::Local {
        shared,
        autoprovision: shared,
        mount,
        labels: labels
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect(),
    };
    let bind = LocalMount::Bind {
        path: "/srv".into(),
        recursive: true,
        read_only: true,
    };
    let nfs = LocalMount::Nfs {
        server: "10.0.0.1".into(),
        path: "/x".into(),
        options: vec!["rw".into(), "nfsvers=4".into()],
    };
    let memory = LocalMount::Memory {
        options: vec!["ro".into(), "size=1m".into()],
    };
    let expected = [
        (
            "logs",
            VolumeSource::Host {
                path: "/var/log".into(),
            },
        ),
        ("empty", local(false, LocalMount::Directory, &[])),
        ("memory", local(false, memory, &[])),
        ("bound", local(true, bind, &[("a", "b")])),
        ("far", local(false, nfs, &[])),
    ];
    let expected = expected.map(|(name, source)| Volume {
        name: name.into(),
        source,
    });
    assert_eq!(task.volumes, expected);
    assert!(task.restart_after_reboot);
    assert_eq!((task.launch_type.as_str(), task.tags.len()), ("EC2", 1));
    assert_eq!(task.group, "family:f");
    assert_eq!(task.runtime, "crun");
    assert_eq!(
        task.containers[1],
        ResolvedContainer {
            container_id: ids[1].clone(),
            name: "nginx".into(),
            image: "nginx".into(),
            image_digest: DIGEST.into(),
            entry_point: vec!["/bin/sh".into()],
            command: vec!["-c".into(), "x".into()],
            environment: vec![("A".into(), "1".into()), ("B".into(), String::new())],
            environment_files: vec![
                EnvironmentFile::Variables(vec![("C".into(), "3".into())]),
                EnvironmentFile::Url("http://a/b".into()),
            ],
            working_directory: "/srv".into(),
            user: "www".into(),
            cpu_units: 100,
            memory_bytes: 64 * MIB,
            memory_reservation_bytes: 32 * MIB,
            essential: true,
            depends_on: vec![Dependency {
                container_name: "setup".into(),
                condition: Condition::Success
            }],
            stop_timeout_ms: 5_000,
            start_timeout_ms: 7_000,
            ports: vec![
                PortMapping {
                    container_port: 443,
                    host_port: 443,
                    protocol: Protocol::Tcp,
                    last_container_port: None,
                },
                PortMapping {
                    container_port: 80,
                    host_port: 80,
                    protocol: Protocol::Tcp,
                    last_container_port: None,
                },
                PortMapping {
                    container_port: 53,
                    host_port: 53,
                    protocol: Protocol::Udp,
                    last_container_port: None,
                },
            ],
            labels: BTreeMap::from([("a".into(), "b".into())]),
            readonly_root_filesystem: true,
            ulimits: vec![Ulimit {
                name: "nofile".into(),
                soft: 1024,
                hard: -1
            }],
            pseudo_terminal: true,
            interactive: true,
            restart: Some(RestartPolicy {
                ignored_exit_codes: vec![3],
                attempt_period_s: 60,
            }),
            mount_points: vec![MountPoint {
                volume: "logs".into(),
                path: "/logs/x".into(),
                read_only: true,
            }],
            volumes_from: vec![VolumesFrom {
                container: "setup".into(),
                read_only: true,
            }],
            health_check: Some(HealthCheck {
                command: ["/bin/sh", "-c", "look", "x"].map(String::from).into(),
                interval_ms: 7_000,
                timeout_ms: 2_000,
                retries: 4,
                start_period_ms: 9_000,
            }),
            gpus: vec![],
            networking: Networking {
                hostname: "web.local".into(),
                extra_hosts: vec![("db".into(), "10.0.0.1".into())],
                dns_servers: vec!["10.0.0.2".into()],
                dns_search_domains: vec!["a.b".into()],
                disabled: false,
            },
            linux: LinuxOptions {
                capabilities_add: vec!["SYS_PTRACE".into()],
                capabilities_drop: vec!["ALL".into()],
                privileged: true,
                no_new_privileges: true,
                seccomp: "mine".into(),
                apparmor: "my-profile".into(),
                shared_memory_bytes: 0,
                devices: vec![
                    device("/dev/fuse", "/dev/fuse", true),
                    device("/dev/kvm", "/dev/k", false)
                ],
                max_swap_bytes: Some(32 * MIB),
                swappiness: Some(60),
                init_process: true,
                tmpfs: vec![Tmpfs {
                    path: "/scratch".into(),
                    size_bytes: 16 * MIB,
                    options: vec!["ro".into()],
                }],
                sysctls: BTreeMap::from([("kernel.msgmax".into(), "9000".into())]),
            },
            log: LogSpec {
                max_size_bytes: 50 * MIB,
                max_files: 3,
                blocking: false,
                max_buffer_bytes: 0,
                discard: false,
                attributes: BTreeMap::new(),
            },
        }
    );
}

#[test]
fn defaults_are_filled_in() {
    let ids = ids(2);
    let (digests, files) = (BTreeMap::new(), stored());
    let run = Run {
        environment_files: &files,
        ..run(&ids, &digests)
    };
    let setup = resolve(&full(), &run).unwrap().containers.remove(0);
    assert_eq!((setup.stop_timeout_ms, setup.start_timeout_ms), (30_000, 180_000));
    assert_eq!(
        setup.log,
        LogSpec {
            max_size_bytes: 64 << 10,
            max_files: 2,
            blocking: false,
            max_buffer_bytes: 2 << 20,
            discard: false,
            attributes: BTreeMap::new(),
        }
    );
    assert_eq!(
        (setup.memory_bytes, setup.memory_reservation_bytes),
        (0, 16 * MIB)
    );
    assert!(setup.user.is_empty() && setup.working_directory.is_empty() && setup.command.is_empty());
}

#[test]
fn what_a_host_mode_task_needs() {
    let needs = full().requirements();
    assert_eq!((needs.cpu_units, needs.memory_bytes), (100, 80 * MIB));
    assert_eq!(
        (needs.tcp_ports.as_slice(), needs.udp_ports.as_slice()),
        (&[80, 443][..], &[53][..])
    );
    assert_eq!(needs.addresses, 0);
    assert_eq!(needs.architecture, Some(Architecture::Arm64));
    assert_eq!(needs.constraints.len(), 1);
}

#[test]
fn what_an_awsvpc_task_needs() {
    let needs = definition(json!({
        "family": "web", "networkMode": "awsvpc", "cpu": "256", "memory": "512",
        "containerDefinitions": [
            {"name": "a", "image": "x", "cpu": 10, "memory": 64, "portMappings": [{"containerPort": 80}]},
        ],
    }))
    .requirements();
    // The task's own size is charged, and its ports are its own.
    assert_eq!((needs.cpu_units, needs.memory_bytes), (256, 512 * MIB));
    assert_eq!((needs.tcp_ports.len(), needs.addresses), (0, 1));
    assert_eq!(
        needs.features,
        ["net.awsvpc", "log.json-file", "limits.task", "limits.container"]
    );
    assert_eq!(needs.architecture, None);
}

#[test]
fn shared_memory_has_its_size() {
    let input = json!({
        "family": "a", "networkMode": "none",
        "containerDefinitions": [{"name": "a", "image": "x", "memory": 64, "linuxParameters": {"sharedMemorySize": 8}}],
    });
    let ids = ids(1);
    let task = resolve(&definition(input), &run(&ids, &BTreeMap::new())).unwrap();
    assert_eq!(task.containers[0].linux.shared_memory_bytes, 8 * MIB);
    assert_eq!(
        (task.pid_mode, task.ipc_mode),
        (PidMode::Container, IpcMode::Container)
    );
}

#[test]
fn ids_must_go_with_the_definition() {
    let (two, short, same) = (ids(2), ids(1), vec![TASK.to_string(), ids(1).remove(0)]);
    let odd = vec!["../../etc".to_string(), two[1].clone()];
    let uuid = vec!["01234567-89ab-cdef-0123-456789abcdef".to_string(), two[1].clone()];
    for (ids, error) in [
        (&short, ResolveError::ContainerIds { given: 1, needed: 2 }),
        (&odd, ResolveError::InvalidId("../../etc".into())),
        (&uuid, ResolveError::InvalidId(uuid[0].clone())),
        (&same, ResolveError::RepeatedId(TASK.into())),
    ] {
        assert_eq!(resolve(&full(), &run(ids, &BTreeMap::new())), Err(error));
    }
}

#[test]
fn what_a_bridge_task_needs_and_one_whose_ports_are_published() {
    let in_mode = |mode: Value, ports: Value| {
        definition(json!({
            "family": "web", "networkMode": mode, "memory": "64",
            "containerDefinitions": [
                {"name": "a", "image": "x", "portMappings": ports},
                {"name": "b", "image": "x"},
                {"name": "c", "image": "x", "disableNetworking": true},
            ],
        }))
    };
    let ports = json!([
        {"containerPort": 80, "hostPort": 0},
        {"containerPort": 80, "hostPort": 8080},
        {"containerPortRange": "90-92"},
    ]);
    for mode in [json!("bridge"), Value::Null] {
        let bridge = in_mode(mode, ports.clone());
        let needs = bridge.requirements();
        // What the node chooses is no fact of placement; a container without a network needs no address.
        assert_eq!((needs.tcp_ports, needs.addresses), (vec![8080], 2));
        assert!(needs.features.contains(&"net.bridge"));
        assert_eq!(bridge.containers[0].ports[2].host_port, 0);
        assert_eq!(bridge.containers[0].ports[2].last_container_port, Some(92));
    }
    let awsvpc = in_mode(
        json!("awsvpc"),
        json!([{"containerPort": 80, "hostPort": 80}, {"containerPortRange": "90-92"}]),
    );
    assert_eq!(awsvpc.requirements().tcp_ports, Vec::<u16>::new());
    let published = awsvpc.requirements_published();
    assert_eq!(
        (published.tcp_ports, published.addresses),
        (vec![80, 90, 91, 92], 1)
    );
    assert!(published.features.contains(&"net.published-ports"));
}

#[test]
fn what_was_not_registered_is_not_guessed() {
    for (echo, says) in [
        (json!({}), "the stored task definition cannot be read"),
        (
            json!({"family": "a", "networkMode": "mesh", "containerDefinitions": []}),
            "networkMode of the stored task definition is \"mesh\"",
        ),
        (
            json!({"family": "a", "networkMode": "host", "cpu": "1 vCPU", "containerDefinitions": []}),
            "cpu of the stored task definition is \"1 vCPU\"",
        ),
        (
            json!({"family": "a", "networkMode": "host", "containerDefinitions": [], "volumes": [
                {"name": "v", "dockerVolumeConfiguration": {"driverOpts": {"type": "later", "device": "x"}}},
            ]}),
            "driverOpts of the stored task definition is \"type=later\"",
        ),
    ] {
        assert_eq!(Definition::from_echo(&echo).unwrap_err().to_string(), says);
    }
}

#[test]
fn a_tag_is_pinned_unless_the_definition_says_otherwise() {
    let pinned = |image: &str, consistency: Value| {
        let container = json!({"name": "a", "image": image, "memory": 64, "versionConsistency": consistency});
        definition(json!({"family": "a", "networkMode": "none", "containerDefinitions": [container]}))
            .containers[0]
            .is_pinned()
    };
    assert!(pinned("app:v1", Value::Null));
    assert!(pinned("app", json!("enabled")));
    assert!(!pinned("app:v1", json!("disabled")));
    assert!(!pinned(&format!("app@{DIGEST}"), json!("enabled")));
}

#[test]
fn every_feature_is_needed_by_some_definition() {
    let start = definition(json!({
        "family": "a", "networkMode": "none", "memory": "64",
        "containerDefinitions": [
            {"name": "a", "image": "x", "dependsOn": [
                {"containerName": "b", "condition": "START"}, {"containerName": "b", "condition": "COMPLETE"},
                {"containerName": "c", "condition": "HEALTHY"},
            ]},
            {"name": "b", "image": "x", "essential": false},
            {"name": "c", "image": "x", "healthCheck": {"command": ["CMD", "x"]}},
        ],
    }));
    let awsvpc = definition(json!({
        "family": "a", "networkMode": "awsvpc",
        "containerDefinitions": [{"name": "a", "image": "x", "memory": 64, "disableNetworking": true,
            "logConfiguration": {"logDriver": "none"},
            "linuxParameters": {"sharedMemorySize": 8}}],
    }));
    let host = definition(json!({
        "family": "a", "networkMode": "none", "ipcMode": "host",
        "containerDefinitions": [{"name": "a", "image": "x", "memory": 64,
            "logConfiguration": {"logDriver": "json-file", "options": {"tag": "x"}}}],
    }));
    let shared = definition(json!({
        "family": "a", "networkMode": "bridge", "pidMode": "task", "ipcMode": "task",
        "ephemeralStorage": {"sizeInGiB": 21},
        "containerDefinitions": [{"name": "a", "image": "x", "memory": 64,
            "resourceRequirements": [{"type": "GPU", "value": "1"}]}],
    }));
    assert_eq!((shared.pid_mode, shared.ipc_mode), (PidMode::Task, IpcMode::Task));
    let needed: Vec<&str> = [start, awsvpc, host, shared, full()]
        .iter()
        .flat_map(required_features)
        .chain([
            IMAGE_DIGEST,
            NET_IPV6,
            NET_LAN,
            NET_SUBNETS,
            RESTART_AFTER_REBOOT,
            PUBLISHED_PORTS,
        ])
        .collect();
    for feature in FEATURES {
        assert!(needed.contains(feature), "{feature}");
    }
}

#[test]
fn a_dependency_on_health_is_a_feature_and_a_program_is_executed_as_it_is() {
    let definition = definition(json!({
        "family": "f", "networkMode": "none", "containerDefinitions": [
            {"name": "a", "image": "i", "memory": 64, "dependsOn": [{"containerName": "b", "condition": "HEALTHY"}]},
            {"name": "b", "image": "i", "memory": 64, "healthCheck": {"command": ["CMD", "look", "x"]}},
        ],
    }));
    assert_eq!(
        definition.containers[0].depends_on[0].condition,
        Condition::Healthy
    );
    let check = HealthCheck {
        command: ["look", "x"].map(String::from).into(),
        interval_ms: 30_000,
        timeout_ms: 5_000,
        retries: 3,
        start_period_ms: 0,
    };
    assert_eq!(definition.containers[1].health_check, Some(check));
    let features = required_features(&definition);
    assert!(
        features.contains(&"depends.healthy") && features.contains(&"health-check"),
        "{features:?}"
    );
}

#[test]
fn a_file_of_the_store_that_was_not_read_is_a_mistake_of_the_caller() {
    let (ids, digests) = (ids(2), BTreeMap::new());
    let error = resolve(&full(), &run(&ids, &digests)).unwrap_err();
    assert_eq!(error, ResolveError::EnvironmentFile("nginx".into()));
}

#[test]
fn a_definition_names_the_files_it_needs_of_the_store_and_what_they_weigh() {
    let definition = full();
    let needed: Vec<_> = definition
        .stored_files()
        .map(|(path, file)| (path, file.to_string()))
        .collect();
    let path = "containerDefinitions[1].environmentFiles[0].value".to_owned();
    assert_eq!(needed, [(path, "arn:aws:s3:::config/web.env".into())]);
    assert_eq!(definition.stored_bytes(&stored()), 2);
}

#[test]
fn a_file_that_is_fetched_in_clear_is_told_once_per_container() {
    let warned = full().warnings(TASK);
    assert_eq!(
        warned,
        [
            "container nginx: an environment file is fetched over http: whoever is on the way to its server can read and \
             change it; use https"
        ]
    );
    for (value, open) in [
        ("https://a/b", 0),
        ("http://localhost/b", 0),
        ("http://127.0.0.1:8080/b", 0),
        ("http://[::1]:1/b", 0),
        ("http://[::2]/b", 1),
        ("http://localhost.example", 1),
    ] {
        let container = json!({
            "name": "a", "image": "a", "memory": 16, "environmentFiles": [
                {"type": "s3", "value": value}, {"type": "s3", "value": value},
            ],
        });
        let input = json!({"family": "a", "networkMode": "host", "containerDefinitions": [container]});
        assert_eq!(definition(input).warnings(TASK).len(), open, "{value}");
    }
}
