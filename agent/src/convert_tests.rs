use berth_agent_core::{
    desired::{Condition, DeviceMapping, LinuxOptions, Networking, Tmpfs},
    report::Report,
    volumes::{LocalMount, MountPoint, Scope, Volume, VolumeKind, VolumesFrom},
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn good() -> wire::TaskSpec {
    let container = |n: u8, name: &str| wire::ContainerSpec {
        container_id: format!("{n:032x}"),
        name: name.into(),
        image: "localhost/busy".into(),
        essential: true,
        stop_timeout_ms: 30_000,
        start_timeout_ms: 60_000,
        log: Some(wire::LogSpec {
            max_size_bytes: 1 << 20,
            max_files: 2,
            ..Default::default()
        }),
        ..Default::default()
    };
    wire::TaskSpec {
        task_id: format!("{:032x}", 9),
        desired_status: wire::DesiredStatus::Running.into(),
        network_mode: wire::NetworkMode::Awsvpc.into(),
        containers: vec![container(1, "a"), container(2, "b")],
        required_features: vec!["net.awsvpc".into()],
        ..Default::default()
    }
}

fn tmpfs(path: &str, size_bytes: u64, option: &str) -> wire::Tmpfs {
    wire::Tmpfs {
        path: path.into(),
        size_bytes,
        options: vec![option.into()],
    }
}

fn device(host_path: &str, container_path: &str) -> wire::Device {
    wire::Device {
        host_path: host_path.into(),
        container_path: container_path.into(),
        read: true,
        ..Default::default()
    }
}

fn networking(task: &mut wire::TaskSpec) -> &mut wire::Networking {
    task.containers[0].networking.get_or_insert_default()
}

fn host(name: &str, address: &str) -> wire::HostEntry {
    wire::HostEntry {
        hostname: name.into(),
        address: address.into(),
    }
}

fn linux(task: &mut wire::TaskSpec) -> &mut wire::LinuxOptions {
    task.containers[0].linux.get_or_insert_default()
}

fn restart(attempt_period_ms: u32, codes: &[i32]) -> wire::RestartPolicy {
    wire::RestartPolicy {
        ignored_exit_codes: codes.to_vec(),
        attempt_period_ms,
    }
}

fn bind(path: &str) -> wire::local_volume::Mount {
    wire::local_volume::Mount::Bind(wire::BindMount {
        path: path.into(),
        recursive: true,
        read_only: true,
    })
}

fn memory(option: &str) -> wire::local_volume::Mount {
    wire::local_volume::Mount::Memory(wire::MemoryMount {
        options: vec![option.into()],
    })
}

fn nfs(server: &str, path: &str, options: &[&str]) -> wire::local_volume::Mount {
    wire::local_volume::Mount::Nfs(wire::NfsMount {
        server: server.into(),
        path: path.into(),
        options: options.iter().map(|&option| option.into()).collect(),
    })
}

fn local(name: &str, shared: bool, mount: Option<wire::local_volume::Mount>) -> wire::Volume {
    let local = wire::LocalVolume {
        shared,
        autoprovision: shared,
        mount,
        labels: [("a".to_owned(), "b".to_owned())].into(),
    };
    wire::Volume {
        name: name.into(),
        kind: Some(wire::volume::Kind::Local(local)),
    }
}

fn on_host(name: &str, path: &str) -> wire::Volume {
    wire::Volume {
        name: name.into(),
        kind: Some(wire::volume::Kind::Host(wire::HostVolume { path: path.into() })),
    }
}

fn mounted(volume: &str, path: &str) -> wire::MountPoint {
    wire::MountPoint {
        volume: volume.into(),
        path: path.into(),
        read_only: true,
    }
}

fn taken(container: &str) -> wire::VolumesFrom {
    wire::VolumesFrom {
        container: container.into(),
        read_only: true,
    }
}

fn depends(on: &str) -> wire::Dependency {
    wire::Dependency {
        container_name: on.into(),
        condition: wire::DependencyCondition::Start.into(),
    }
}

fn healthy(on: &str) -> wire::Dependency {
    wire::Dependency {
        condition: wire::DependencyCondition::Healthy.into(),
        ..depends(on)
    }
}

/// The first container's health check, a good one.
fn checked(task: &mut wire::TaskSpec) -> &mut wire::HealthCheck {
    task.containers[0].health_check.insert(wire::HealthCheck {
        command: vec!["look".into(), "x".into()],
        interval_ms: 5_000,
        timeout_ms: 2_000,
        retries: 1,
        start_period_ms: 0,
    })
}

#[test]
fn a_health_check_is_taken_over_and_health_is_told() {
    let mut wire = good();
    *checked(&mut wire) = wire::HealthCheck {
        interval_ms: 300_000,
        timeout_ms: 60_000,
        retries: 10,
        start_period_ms: 300_000,
        ..checked(&mut wire).clone()
    };
    wire.containers[1].depends_on = vec![healthy("a")];
    wire.required_features = vec!["health-check".into(), "depends.healthy".into()];
    let spec = task_spec(wire).unwrap();
    let check = spec.containers[0].health_check.as_ref().unwrap();
    assert_eq!(
        (&check.command[..], check.interval_ms, check.timeout_ms),
        (&["look".to_owned(), "x".to_owned()][..], 300_000, 60_000)
    );
    assert_eq!((check.retries, check.start_period_ms), (10, 300_000));
    assert_eq!(spec.containers[1].depends_on[0].condition, Condition::Healthy);
    assert_eq!(spec.containers[1].health_check, None);

    use berth_agent_core::health::{HealthState, HealthStatus, Outcome};
    let mut state = berth_agent_core::task::Task::new(spec, 1, Millis(1)).state();
    let told = |state: &berth_agent_core::report::TaskState| {
        let report = Report {
            sequence: 1,
            task: state.clone(),
        };
        state_change(&report).task.unwrap().containers
    };
    let before = told(&state);
    assert_eq!(before[0].health(), wire::HealthStatus::Unknown);
    assert_eq!(before[1].health(), wire::HealthStatus::Unspecified);
    for (status, wire) in [
        (HealthStatus::Healthy, wire::HealthStatus::Healthy),
        (HealthStatus::Unhealthy, wire::HealthStatus::Unhealthy),
    ] {
        state.facts.containers[0].health = Some(HealthState {
            status,
            since: Some(Millis(7)),
            probe: Some(Outcome {
                exit_code: Some(3),
                output: "no".into(),
            }),
        });
        let after = told(&state).remove(0);
        assert_eq!((after.health(), after.health_since_ms), (wire, 7));
        let probe = after.health_probe.unwrap();
        assert_eq!((probe.exit_code, probe.output.as_str()), (Some(3), "no"));
    }
}

#[test]
fn every_bound_is_checked_and_named() {
    type Spoil = fn(&mut wire::TaskSpec);
    assert!(task_spec(good()).is_ok());
    let table: &[(&str, Spoil)] = &[
        ("task_id", |t| t.task_id = "../x".into()),
        ("desired_status", |t| t.desired_status = 0),
        ("ephemeral_storage_bytes", |t| {
            t.ephemeral_storage_bytes = (1 << 40) + 1
        }),
        ("network_mode", |t| t.network_mode = 9),
        ("required_features", |t| t.required_features.push("gpu".into())),
        ("limits.cpu_units", |t| {
            t.limits = Some(wire::Limits {
                cpu_units: u32::MAX,
                memory_bytes: 0,
            })
        }),
        ("containers", |t| t.containers.clear()),
        ("containers", |t| t.containers[1].name = "a".into()),
        ("containers", |t| {
            t.containers.iter_mut().for_each(|c| c.essential = false)
        }),
        ("containers[1].container_id", |t| {
            t.containers[1].container_id.clear()
        }),
        ("containers[0].gpu_ids", |t| {
            t.containers[0].gpu_ids = vec!["nvidia.com/gpu".into()];
        }),
        ("containers[0].gpu_ids", |t| {
            t.containers[0].gpu_ids = (0..65).map(|n| format!("a/b={n}")).collect();
        }),
        ("gpu_ids", |t| {
            t.containers[0].gpu_ids = vec!["a/b=0".into()];
            t.containers[1].gpu_ids = vec!["a/b=0".into()];
        }),
        ("containers[0].name", |t| t.containers[0].name = "a/b".into()),
        ("containers[0].image", |t| t.containers[0].image.clear()),
        ("containers[0].image_digest", |t| {
            t.containers[0].image_digest = "sha256:../../x".into();
        }),
        ("containers[0].image_digest", |t| {
            t.containers[0].image_digest = format!("sha512:{}", "0".repeat(64));
        }),
        ("containers[0].stop_timeout_ms", |t| {
            t.containers[0].stop_timeout_ms = 0
        }),
        ("containers[0].log", |t| t.containers[0].log = None),
        ("containers[0].log", |t| {
            let log = t.containers[0].log.as_mut().unwrap();
            log.max_buffer_bytes = (256 << 20) + 1;
        }),
        ("containers[0].log.attributes", |t| {
            let log = t.containers[0].log.as_mut().unwrap();
            log.attributes.insert("a".into(), "x".repeat(16 << 10));
        }),
        ("containers[0].log.attributes", |t| {
            let log = t.containers[0].log.as_mut().unwrap();
            log.attributes.insert("a".into(), "\0".into());
        }),
        ("containers[0].environment", |t| {
            t.containers[0].environment.push(wire::KeyValue {
                key: "A=B".into(),
                value: String::new(),
            });
        }),
        ("containers[0].ports.container_port", |t| {
            let port = wire::PortMapping {
                container_port: 70_000,
                host_port: 1,
                protocol: 1,
                last_container_port: 0,
            };
            t.containers[0].ports.push(port);
        }),
        ("containers[0].restart_policy.attempt_period_ms", |t| {
            t.containers[0].restart_policy = Some(restart(59_999, &[]));
        }),
        ("containers[0].restart_policy.attempt_period_ms", |t| {
            t.containers[0].restart_policy = Some(restart(1_800_001, &[]));
        }),
        ("containers[0].restart_policy.ignored_exit_codes", |t| {
            t.containers[0].restart_policy = Some(restart(60_000, &[256]));
        }),
        ("containers[0].restart_policy.ignored_exit_codes", |t| {
            t.containers[0].restart_policy = Some(restart(60_000, &[1; 51]));
        }),
        ("containers[0].health_check.interval_ms", |t| {
            checked(t).interval_ms = 4_999
        }),
        ("containers[0].health_check.interval_ms", |t| {
            checked(t).interval_ms = 300_001
        }),
        ("containers[0].health_check.timeout_ms", |t| {
            checked(t).timeout_ms = 1_999
        }),
        ("containers[0].health_check.timeout_ms", |t| {
            checked(t).timeout_ms = 60_001
        }),
        ("containers[0].health_check.retries", |t| checked(t).retries = 0),
        ("containers[0].health_check.retries", |t| checked(t).retries = 11),
        ("containers[0].health_check.start_period_ms", |t| {
            checked(t).start_period_ms = 300_001
        }),
        ("containers[0].health_check.command", |t| {
            checked(t).command.clear()
        }),
        ("containers[0].health_check.command", |t| {
            checked(t).command[0].clear()
        }),
        ("containers[0].health_check.command", |t| {
            checked(t).command[1].push('\0')
        }),
        ("containers[0].health_check.command", |t| {
            checked(t).command = vec!["x".into(); ENTRIES_MAX + 1];
        }),
        ("depends_on", |t| {
            t.containers[1].depends_on = vec![healthy("a")];
        }),
        ("containers[0].linux.capabilities_add", |t| {
            linux(t).capabilities_add.push("CAP_CHOWN".into());
        }),
        ("containers[0].linux.capabilities_drop", |t| {
            linux(t).capabilities_drop = vec!["CHOWN".into(); ENTRIES_MAX + 1];
        }),
        ("containers[0].linux.sysctls", |t| {
            linux(t)
                .sysctls
                .insert("kernel.core_pattern".into(), "|/x".into());
        }),
        ("containers[0].linux.sysctls", |t| {
            linux(t).sysctls.insert("net.x".into(), "1\n".into());
        }),
        ("containers[0].linux.devices", |t| {
            linux(t).devices.push(device("dev/x", "/x"))
        }),
        ("containers[0].linux.devices", |t| {
            linux(t).devices.push(device("/x", "/../x"))
        }),
        ("containers[0].linux.devices", |t| {
            linux(t).devices = vec![device("/x", "/y"); 2];
        }),
        ("containers[0].linux.devices", |t| {
            linux(t).devices = (0..101).map(|at| device("/x", &format!("/{at}"))).collect();
        }),
        ("containers[0].linux.devices", |t| {
            linux(t).devices = vec![wire::Device {
                read: false,
                ..device("/x", "/x")
            }];
        }),
        ("containers[0].linux.swappiness", |t| {
            linux(t).swappiness = Some(101);
        }),
        ("pid_mode", |t| t.pid_mode = 99),
        ("ipc_mode", |t| t.ipc_mode = 99),
        ("linux.shared_memory_bytes", |t| {
            t.ipc_mode = wire::IpcMode::None.into();
            linux(t).shared_memory_bytes = 1;
        }),
        ("containers[0].linux.tmpfs", |t| {
            linux(t).tmpfs.push(tmpfs("../x", 1, ""))
        }),
        ("containers[0].linux.tmpfs", |t| {
            linux(t).tmpfs.push(tmpfs("/x", 0, "ro"))
        }),
        ("containers[0].linux.tmpfs", |t| {
            linux(t).tmpfs.push(tmpfs("/x", 1, "mode=1,size=9"))
        }),
        ("containers[0].linux.tmpfs", |t| {
            linux(t).tmpfs = vec![tmpfs("/x", 1, "ro"), tmpfs("/x", 1, "ro")]
        }),
        ("containers[0].networking.hostname", |t| {
            networking(t).hostname = "a b".into()
        }),
        ("containers[0].networking.hostname", |t| {
            networking(t).hostname = "h".repeat(65)
        }),
        ("containers[0].linux.apparmor", |t| {
            linux(t).apparmor = "a b".into()
        }),
        ("containers[0].linux.apparmor", |t| {
            linux(t).apparmor = ":ns:x".into()
        }),
        ("containers[0].linux.apparmor", |t| {
            linux(t).apparmor = "x".repeat(256)
        }),
        ("containers[0].linux.seccomp", |t| {
            linux(t).seccomp = "../x".into()
        }),
        ("containers[0].linux.seccomp", |t| linux(t).seccomp = ".x".into()),
        ("containers[0].linux.seccomp", |t| {
            linux(t).seccomp = "x".repeat(65)
        }),
        ("containers[0].networking.extra_hosts", |t| {
            networking(t).extra_hosts.push(host("a\n", "10.0.0.1"))
        }),
        ("containers[0].networking.extra_hosts", |t| {
            networking(t).extra_hosts.push(host("a", "b"))
        }),
        ("containers[0].networking.dns_servers", |t| {
            networking(t).dns_servers = vec!["10.0.0.1".into(), "x".into()]
        }),
        ("containers[0].networking.dns_search_domains", |t| {
            networking(t).dns_search_domains.push("a b".into())
        }),
        ("depends_on", |t| {
            t.containers[0].depends_on.push(depends("nobody"))
        }),
        ("depends_on", |t| {
            t.containers[0].depends_on.push(depends("b"));
            t.containers[1].depends_on.push(depends("a"));
        }),
        ("depends_on", |t| {
            t.containers[0].depends_on.push(depends("b"));
            t.containers[1].volumes_from.push(taken("a"));
        }),
        ("volumes[0].name", |t| t.volumes = vec![on_host("../x", "/x")]),
        ("volumes[1].name", |t| {
            t.volumes = vec![on_host("x", "/x"), on_host("x", "/y")]
        }),
        ("volumes[0].kind", |t| {
            t.volumes = vec![wire::Volume {
                name: "x".into(),
                kind: None,
            }]
        }),
        ("volumes", |t| {
            t.volumes = vec![on_host("x", "/x"); ENTRIES_MAX + 1]
        }),
        ("volumes[0].host.path", |t| {
            t.volumes = vec![on_host("x", "/x/../y")]
        }),
        ("volumes[0].host.path", |t| t.volumes = vec![on_host("x", "/x\0")]),
        ("volumes[0].host.path", |t| {
            t.volumes = vec![on_host("x", &format!("/{}", "x".repeat(4095)))]
        }),
        ("volumes[0].local.bind.path", |t| {
            t.volumes = vec![local("x", true, Some(bind("x")))]
        }),
        ("volumes[0].local.nfs.server", |t| {
            t.volumes = vec![local("x", true, Some(nfs("a,sec=none", "/x", &[])))]
        }),
        ("volumes[0].local.nfs.server", |t| {
            t.volumes = vec![local("x", true, Some(nfs("", "/x", &[])))]
        }),
        ("volumes[0].local.nfs.path", |t| {
            t.volumes = vec![local("x", true, Some(nfs("a", "x", &[])))]
        }),
        ("volumes[0].local.nfs.options", |t| {
            t.volumes = vec![local("x", true, Some(nfs("a", "/x", &["ro,addr=b"])))]
        }),
        ("volumes[0].local.nfs.options", |t| {
            t.volumes = vec![local("x", true, Some(nfs("a", "/x", &["ro", "addr=b"])))]
        }),
        ("volumes[0].local.nfs.options", |t| {
            t.volumes = vec![local("x", true, Some(nfs("a", "/x", &["ro"; ENTRIES_MAX + 1])))]
        }),
        ("volumes[0].local.memory", |t| {
            t.volumes = vec![local("x", true, Some(memory("ro")))]
        }),
        ("volumes[0].local.memory", |t| {
            t.volumes = vec![local("x", false, Some(memory("size=1,x")))]
        }),
        ("containers[1].mount_points.path", |t| {
            t.containers[1].mount_points.push(mounted("x", "x"))
        }),
        ("containers[1].mount_points.path", |t| {
            t.containers[1].mount_points.push(mounted("x", "//"))
        }),
        ("containers[1].mount_points.path", |t| {
            t.containers[1].mount_points = vec![mounted("x", "/x"), mounted("x", "/x/")]
        }),
        ("mount_points.volume", |t| {
            t.containers[1].mount_points.push(mounted("x", "/x"))
        }),
        ("volumes_from", |t| t.containers[1].volumes_from.push(taken("x"))),
    ];
    for (field, spoil) in table {
        let mut spec = good();
        spoil(&mut spec);
        assert_eq!(&task_spec(spec).unwrap_err().field, field);
    }
}

#[test]
fn tags_are_as_many_as_ecs_allows() {
    let mut spec = good();
    spec.tags = (0..50).map(|n| (format!("k{n}"), "v".to_owned())).collect();
    spec.tags.insert("aws:ecs:clusterName".into(), "c".into());
    assert_eq!(task_spec(spec.clone()).unwrap().tags.len(), 51);
    spec.tags.insert("one more".into(), String::new());
    assert_eq!(task_spec(spec).unwrap_err().field, "tags");
}

#[test]
fn a_task_knows_its_group() {
    let mut spec = good();
    spec.group = "g".repeat(255);
    assert_eq!(task_spec(spec.clone()).unwrap().group, spec.group);
    spec.group.push('g');
    assert_eq!(task_spec(spec).unwrap_err().field, "group");
}

#[test]
fn a_task_that_starts_again_after_a_reboot_is_known_as_such() {
    let mut spec = good();
    spec.required_features.push("restart.after-reboot".into());
    assert!(!task_spec(spec.clone()).unwrap().restart_after_reboot);
    spec.restart_after_reboot = true;
    assert!(task_spec(spec).unwrap().restart_after_reboot);
}

#[test]
fn a_task_requires_its_own_runtime_and_no_other() {
    let mut spec = good();
    assert_eq!(task_spec(spec.clone()).unwrap().runtime, "");
    spec.required_features.push("runtime.crun".into());
    let refused = |spec: &wire::TaskSpec| task_spec(spec.clone()).unwrap_err().field;
    assert_eq!(refused(&spec), "required_features");
    spec.runtime = "crun".into();
    assert_eq!(task_spec(spec.clone()).unwrap().runtime, "crun");
    spec.required_features = vec!["runtime.runc".into()];
    assert_eq!(refused(&spec), "required_features");
    for name in ["../crun", "Crun", &"x".repeat(33)] {
        (spec.runtime, spec.required_features) = (name.into(), vec![]);
        assert_eq!(refused(&spec), "runtime", "{name}");
    }
}

#[test]
fn what_may_be_done_to_the_kernel_is_taken_over_field_for_field() {
    let mut spec = good();
    *linux(&mut spec) = wire::LinuxOptions {
        capabilities_add: vec!["SYS_PTRACE".into()],
        capabilities_drop: vec!["ALL".into()],
        privileged: true,
        no_new_privileges: true,
        seccomp: "mine".into(),
        apparmor: "/usr/bin/x".into(),
        sysctls: [("net.core.somaxconn".to_owned(), "1".to_owned())].into(),
        shared_memory_bytes: 1 << 20,
        tmpfs: vec![wire::Tmpfs {
            path: "/scratch".into(),
            size_bytes: 4096,
            options: vec!["mode=700".into()],
        }],
        devices: vec![device("/dev/a", "/dev/b")],
        max_swap_bytes: Some(4096),
        swappiness: Some(100),
        init_process: true,
    };
    let containers = task_spec(spec).unwrap().containers;
    let expected = LinuxOptions {
        capabilities_add: vec!["SYS_PTRACE".into()],
        capabilities_drop: vec!["ALL".into()],
        privileged: true,
        no_new_privileges: true,
        seccomp: "mine".into(),
        apparmor: "/usr/bin/x".into(),
        sysctls: [("net.core.somaxconn".to_owned(), "1".to_owned())].into(),
        shared_memory_bytes: 1 << 20,
        tmpfs: vec![Tmpfs {
            path: "/scratch".into(),
            size_bytes: 4096,
            options: vec!["mode=700".into()],
        }],
        devices: vec![DeviceMapping {
            host_path: "/dev/a".into(),
            container_path: "/dev/b".into(),
            read: true,
            write: false,
            mknod: false,
        }],
        max_swap_bytes: Some(4096),
        swappiness: Some(100),
        init_process: true,
    };
    assert_eq!(containers[0].linux, expected);
    assert_eq!(containers[1].linux, LinuxOptions::default());
}

#[test]
fn what_is_asked_of_the_network_is_taken_over_field_for_field() {
    let mut spec = good();
    *networking(&mut spec) = wire::Networking {
        hostname: "db-1.local".into(),
        extra_hosts: vec![host("db", "fd00::1")],
        dns_servers: vec!["10.0.0.2".into()],
        dns_search_domains: vec!["a.b".into()],
        disabled: true,
    };
    let containers = task_spec(spec).unwrap().containers;
    let expected = Networking {
        hostname: "db-1.local".into(),
        extra_hosts: vec![("db".into(), "fd00::1".parse().unwrap())],
        dns_servers: vec!["10.0.0.2".parse().unwrap()],
        dns_search_domains: vec!["a.b".into()],
        disabled: true,
    };
    assert_eq!(containers[0].networking, expected);
    assert_eq!(containers[1].networking, Networking::default());
}

#[test]
fn volumes_are_taken_over_field_for_field() {
    let mut spec = good();
    spec.volumes = vec![
        on_host("host", "//srv/"),
        local("empty", false, None),
        local("memory", false, Some(memory("size=10m"))),
        local("shared", true, Some(bind("/data/"))),
        local(
            "far",
            true,
            Some(nfs("fd00::1", "/a/", &["ro", "timeo=9", "vers=4.1"])),
        ),
    ];
    spec.containers[0].mount_points = vec![mounted("host", "/srv//x")];
    spec.containers[1].volumes_from = vec![taken("a")];
    let task = task_spec(spec).unwrap();
    let kind = |scope, mount| VolumeKind::Local {
        scope,
        mount,
        labels: [("a".to_owned(), "b".to_owned())].into(),
    };
    let expected = [
        ("host", VolumeKind::Host { path: "/srv".into() }),
        ("empty", kind(Scope::Task, LocalMount::Directory)),
        (
            "memory",
            kind(
                Scope::Task,
                LocalMount::Memory {
                    options: vec!["size=10m".into()],
                },
            ),
        ),
        (
            "shared",
            kind(
                Scope::Shared { autoprovision: true },
                LocalMount::Bind {
                    path: "/data".into(),
                    recursive: true,
                    read_only: true,
                },
            ),
        ),
    ];
    let far = kind(
        Scope::Shared { autoprovision: true },
        LocalMount::Nfs {
            server: "fd00::1".into(),
            path: "/a".into(),
            options: ["ro", "timeo=9", "vers=4.1"].map(str::to_owned).into(),
        },
    );
    let expected: Vec<Volume> = expected
        .into_iter()
        .chain([("far", far)])
        .map(|(name, kind)| Volume {
            name: name.into(),
            kind,
        })
        .collect();
    assert_eq!(task.volumes, expected);
    let point = MountPoint {
        volume: "host".into(),
        path: "/srv/x".into(),
        read_only: true,
    };
    assert_eq!(task.containers[0].volumes.mount_points, [point]);
    let from = VolumesFrom {
        container: "a".into(),
        read_only: true,
    };
    assert_eq!(task.containers[1].volumes.from, [from]);
}

#[test]
fn one_bad_spec_is_refused_and_the_others_are_taken() {
    let mut bad = good();
    bad.task_id = format!("{:032x}", 10);
    bad.required_features.push("gpu".into());
    let position = Some(wire::Position {
        store_id: "s".into(),
        epoch: 1,
        revision: 2,
    });
    let event = snapshot(wire::Snapshot {
        position,
        tasks: vec![good(), bad],
        removals_confirmed: false,
        more: false,
    })
    .unwrap();
    let Event::Snapshot { tasks, refused, .. } = event else {
        panic!("{event:?}")
    };
    assert_eq!((tasks.len(), refused.len(), refused[0].stop), (1, 1, false));
    assert!(refused[0].reason.contains("gpu"), "{}", refused[0].reason);
}

proptest! {
    /// Whatever comes over the wire is converted or refused.
    #[test]
    fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(spec) = wire::TaskSpec::decode(bytes.as_slice()) {
            let _ = task_spec(spec);
        }
    }

    #[test]
    fn foreign_fields_never_panic(
        task in ".{0,40}", name in ".{0,20}", image in ".{0,20}", desired in any::<i32>(), network in any::<i32>(),
        cpu in any::<u32>(), port in any::<u32>(), key in ".{0,5}", timeout in any::<u32>(),
    ) {
        let mut spec = good();
        (spec.task_id, spec.desired_status, spec.network_mode) = (task, desired, network);
        spec.limits = Some(wire::Limits { cpu_units: cpu, memory_bytes: u64::from(port) });
        let c = &mut spec.containers[0];
        (c.name, c.image, c.stop_timeout_ms) = (name, image, timeout);
        c.ports.push(wire::PortMapping { container_port: port, host_port: port, protocol: network, last_container_port: port });
        c.environment.push(wire::KeyValue { key, value: String::new() });
        let _ = task_spec(spec);
    }
}

#[test]
fn whose_processes_and_ipc_a_task_has_is_taken_over() {
    let modes = |pid: wire::PidMode, ipc: wire::IpcMode| {
        let mut spec = good();
        (spec.pid_mode, spec.ipc_mode) = (pid.into(), ipc.into());
        task_spec(spec).map(|task| (task.pid, task.ipc)).unwrap()
    };
    let own = modes(wire::PidMode::Unspecified, wire::IpcMode::Unspecified);
    assert_eq!(own, (PidMode::Container, IpcMode::Container));
    let host = modes(wire::PidMode::Host, wire::IpcMode::Host);
    assert_eq!(host, (PidMode::Host, IpcMode::Host));
    assert_eq!(modes(wire::PidMode::Host, wire::IpcMode::None).1, IpcMode::None);
    let task = modes(wire::PidMode::Task, wire::IpcMode::Task);
    assert_eq!(task, (PidMode::Task, IpcMode::Task));
}
