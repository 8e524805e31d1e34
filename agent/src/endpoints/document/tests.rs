use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use berth_agent_core::desired::Millis;

use super::*;
use crate::{
    convert,
    endpoints::{
        on_host::{Mounted, Resolver},
        stats,
    },
    telemetry::{ContainerUsage, NetworkUsage, NodeUsage, Sample, TaskSample, TaskUsage, Usage},
};

/// What version 4 of ECS's endpoint has, as its agent's source says (`ecs-agent/tmds/handlers/v4/state/response.go`).
const TASK: &[&str] = &[
    "Cluster",
    "TaskARN",
    "Family",
    "Revision",
    "DesiredStatus",
    "KnownStatus",
    "Containers",
    "Limits",
    "PullStartedAt",
    "PullStoppedAt",
    "ExecutionStoppedAt",
    "AvailabilityZone",
    "AvailabilityZoneID",
    "TaskTags",
    "ContainerInstanceTags",
    "LaunchType",
    "Errors",
    "VPCID",
    "ServiceName",
    "Group",
    "ClockDrift",
    "EphemeralStorageMetrics",
    "FaultInjectionEnabled",
];
const CONTAINER: &[&str] = &[
    "DockerId",
    "Name",
    "DockerName",
    "Image",
    "ImageID",
    "Ports",
    "Labels",
    "DesiredStatus",
    "KnownStatus",
    "ExitCode",
    "Limits",
    "CreatedAt",
    "StartedAt",
    "FinishedAt",
    "Type",
    "Health",
    "Volumes",
    "LogDriver",
    "LogOptions",
    "ContainerARN",
    "Snapshotter",
    "RestartCount",
    "Networks",
];
const NETWORK: &[&str] = &[
    "NetworkMode",
    "IPv4Addresses",
    "IPv6Addresses",
    "AttachmentIndex",
    "MACAddress",
    "IPv4SubnetCIDRBlock",
    "IPv6SubnetCIDRBlock",
    "DomainNameServers",
    "DomainNameSearchList",
    "PrivateDNSName",
    "SubnetGatewayIpv4Address",
    "SubnetGatewayIpv6Address",
];
const HEALTH: &[&str] = &["status", "statusSince", "exitCode", "output"];
/// Docker's, and ECS's rates.
const STATS: &[&str] = &[
    "id",
    "name",
    "read",
    "preread",
    "cpu_stats",
    "precpu_stats",
    "memory_stats",
    "blkio_stats",
    "networks",
    "pids_stats",
    "num_procs",
    "storage_stats",
    "network_rate_stats",
];
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/task-metadata.md");

fn id() -> ContainerId {
    "c".repeat(32).parse().unwrap()
}

/// A task that has everything that a task can have, in awsvpc mode.
fn whole_task() -> Task {
    let wire: berth_proto::node::v1::TaskSpec = spec();
    let spec = convert::task_spec(wire).unwrap();
    let mut task = Task::new(spec, 1, Millis(0));
    task.address = Some(berth_agent_core::addresses::Address {
        ipv4: "10.91.0.7".parse().unwrap(),
        ipv6: "fd00::a5b:7".parse().ok(),
    });
    task.mac_address = Some("0a:00:00:00:00:07".into());
    task.times.pull_started = Some(Millis(1_000));
    task.times.pull_stopped = Some(Millis(2_000));
    task.times.execution_stopped = Some(Millis(5_000));
    // What events make of a container that was started again.
    let mut value = serde_json::to_value(&task).unwrap();
    let container = &mut value["containers"][id().as_str()];
    for (name, fact) in [
        ("attempted", json!(true)),
        ("life", json!("Running")),
        ("started", json!(3_000)),
        ("finished", json!(4_000)),
        ("exit", json!(7)),
        (
            "health",
            json!({"status": "Healthy", "since": 3_500, "probe": {"exit_code": 0, "output": "fine"}}),
        ),
    ] {
        container[name] = fact;
    }
    container["restarts"]["count"] = json!(2);
    container["image"] = json!({"Ready": {
        "reference": "web", "digest": "sha256:1", "chain_id": "",
        "config": {"env": [], "entrypoint": [], "cmd": [], "working_dir": "", "user": "", "stop_signal": "", "volumes": []},
    }});
    serde_json::from_value(value).unwrap()
}

fn spec() -> berth_proto::node::v1::TaskSpec {
    use berth_proto::node::v1 as wire;
    wire::TaskSpec {
        task_id: "a".repeat(32),
        task_arn: "arn:aws:ecs:eu-north-1:123456789012:task/default/a".into(),
        cluster: "default".into(),
        family: "shop".into(),
        revision: 3,
        desired_status: wire::DesiredStatus::Running.into(),
        network_mode: wire::NetworkMode::Awsvpc.into(),
        limits: Some(wire::Limits {
            cpu_units: 512,
            memory_bytes: 64 << 20,
        }),
        launch_type: "FARGATE".into(),
        group: "family:shop".into(),
        tags: [("team".into(), "shop".into())].into(),
        ephemeral_storage_bytes: 21 << 30,
        volumes: vec![wire::Volume {
            name: "data".into(),
            kind: Some(wire::volume::Kind::Host(wire::HostVolume { path: "/srv".into() })),
        }],
        containers: vec![wire::ContainerSpec {
            container_id: id().to_string(),
            name: "web".into(),
            image: "web".into(),
            essential: true,
            stop_timeout_ms: 1_000,
            start_timeout_ms: 1_000,
            ports: vec![wire::PortMapping {
                container_port: 80,
                host_port: 80,
                protocol: wire::Protocol::Tcp.into(),
                last_container_port: 0,
            }],
            log: Some(wire::LogSpec {
                max_size_bytes: 10 << 20,
                max_files: 3,
                max_buffer_bytes: 1 << 20,
                attributes: [("PASSWORD".into(), "hush".into())].into(),
                ..Default::default()
            }),
            mount_points: vec![wire::MountPoint {
                volume: "data".into(),
                path: "/data".into(),
                read_only: false,
            }],
            restart_policy: Some(wire::RestartPolicy {
                ignored_exit_codes: vec![],
                attempt_period_ms: 60_000,
            }),
            health_check: Some(wire::HealthCheck {
                command: vec!["true".into()],
                interval_ms: 5_000,
                timeout_ms: 2_000,
                retries: 1,
                start_period_ms: 0,
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn context() -> Context {
    let found = OfContainer {
        resolver: Resolver {
            servers: vec!["169.254.170.3".into()],
            search: vec!["corp.example".into()],
        },
        mounts: vec![Mounted {
            name: "data".into(),
            source: "/srv".into(),
            path: "/data".into(),
        }],
    };
    Context {
        range: Range::both(
            "10.91.0.0/24".parse().unwrap(),
            "fd00::a5b:0/120".parse().unwrap(),
        )
        .ok(),
        found: Found {
            snapshotter: "overlayfs".into(),
            name: Some(format!("{}.default.berth", "a".repeat(32))),
            written: Some(261 << 20),
            containers: BTreeMap::from([(id(), found)]),
        },
    }
}

fn usage(cpu_used_usec: u64, rx_bytes: u64) -> TaskUsage {
    let usage = Usage {
        cpu_used_usec,
        ..Usage::default()
    };
    let network = NetworkUsage {
        rx_bytes,
        tx_bytes: 2 * rx_bytes,
        ..NetworkUsage::default()
    };
    TaskUsage {
        task: "a".repeat(32).parse().unwrap(),
        total: usage,
        containers: vec![ContainerUsage {
            container: id(),
            name: "web".into(),
            usage,
            network: None,
        }],
        overhead: Usage::default(),
        network: Some(network),
    }
}

/// Two seconds after the sample before, if there is one.
fn stats(before: Option<TaskUsage>, now: TaskUsage) -> Value {
    let begun = Instant::now();
    let sample = TaskSample {
        at: begun + Duration::from_secs(2),
        node: NodeUsage {
            cpu_used_usec: 14_000_000,
            memory_total_bytes: 1 << 30,
            ..NodeUsage::default()
        },
        usage: now,
        before: before.map(|usage| Sample {
            at: begun,
            host_cpu_usec: 10_000_000,
            usage,
        }),
    };
    let task = whole_task();
    let all = stats::of_task(
        &task,
        &sample,
        OffsetDateTime::UNIX_EPOCH + Duration::from_secs(2),
    );
    all[&runtime_id(&task, &id()).unwrap()].clone()
}

/// Names of the documentation's table of what is absent, each with a reason.
fn documented_as_absent() -> BTreeSet<String> {
    let docs = std::fs::read_to_string(DOCS).unwrap();
    let (_, after) = docs
        .split_once("## Absent fields")
        .expect("a table of what is absent");
    let section = after.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.flat_map(|row| {
        let (names, reason) = row.split_once(" | ").unwrap();
        assert!(reason.len() > 10, "{row} says why");
        let names = names.split(", ").map(|name| name.trim_matches('`').to_owned());
        names.collect::<Vec<_>>()
    });
    names.collect()
}

/// Every field of ECS's endpoint is there, or the documentation says why not; and there is no other.
#[test]
fn every_field_is_there_or_documented_as_absent() {
    let (task, context) = (whole_task(), context());
    let tagged = task_with_tags(&task, &context);
    let container = container(&task, &id(), &context).unwrap();
    let stats = stats(Some(usage(0, 0)), usage(1, 1));
    let mut absent = BTreeSet::new();
    for (document, fields) in [
        (&tagged, TASK),
        (&container, CONTAINER),
        (&container["Networks"][0], NETWORK),
        (&container["Health"], HEALTH),
        (&stats, STATS),
    ] {
        let document = document.as_object().unwrap_or_else(|| panic!("{document}"));
        let other: Vec<_> = document
            .keys()
            .filter(|name| !fields.contains(&name.as_str()))
            .collect();
        assert!(other.is_empty(), "{other:?} are not ECS's");
        let missing = fields.iter().filter(|name| !document.contains_key(**name));
        absent.extend(missing.map(|name| (*name).to_owned()));
    }
    assert_eq!(
        absent,
        documented_as_absent(),
        "left: absent; right: docs/task-metadata.md"
    );
}

#[test]
fn a_network_is_described_as_the_task_has_it() {
    let container = container(&whole_task(), &id(), &context()).unwrap();
    let expected = json!({
        "NetworkMode": "awsvpc",
        "IPv4Addresses": ["10.91.0.7"],
        "IPv6Addresses": ["fd00::a5b:7"],
        "AttachmentIndex": 0,
        "MACAddress": "0a:00:00:00:00:07",
        "IPv4SubnetCIDRBlock": "10.91.0.0/24",
        "IPv6SubnetCIDRBlock": "fd00::a5b:0/120",
        "SubnetGatewayIpv4Address": "169.254.1.1/32",
        "SubnetGatewayIpv6Address": "fe80::1/128",
        "DomainNameServers": ["169.254.170.3"],
        "DomainNameSearchList": ["corp.example"],
        "PrivateDNSName": format!("{}.default.berth", "a".repeat(32)),
    });
    assert_eq!(container["Networks"], json!([expected]));
}

#[test]
fn what_happened_to_a_task_and_its_container_is_told() {
    let (task, context) = (whole_task(), context());
    let tagged = task_with_tags(&task, &context);
    for (name, expected) in [
        ("PullStartedAt", json!("1970-01-01T00:00:01Z")),
        ("PullStoppedAt", json!("1970-01-01T00:00:02Z")),
        ("ExecutionStoppedAt", json!("1970-01-01T00:00:05Z")),
        ("Group", json!("family:shop")),
        ("FaultInjectionEnabled", json!(false)),
        (
            "EphemeralStorageMetrics",
            json!({"Utilized": 261, "Reserved": 21 << 10}),
        ),
        ("TaskTags", json!({"team": "shop"})),
    ] {
        assert_eq!(tagged[name], expected, "{name}");
    }
    assert_eq!(tagged["Errors"][0]["ErrorField"], "ContainerInstanceTags");
    let container = container(&task, &id(), &context).unwrap();
    for (name, expected) in [
        ("CreatedAt", json!("1970-01-01T00:00:03Z")),
        ("FinishedAt", json!("1970-01-01T00:00:04Z")),
        ("ExitCode", json!(7)),
        ("RestartCount", json!(2)),
        ("Snapshotter", json!("overlayfs")),
        (
            "Health",
            json!({"status": "HEALTHY", "statusSince": "1970-01-01T00:00:03.5Z", "exitCode": 0, "output": "fine"}),
        ),
        (
            "Volumes",
            json!([{"DockerName": "data", "Source": "/srv", "Destination": "/data"}]),
        ),
        (
            "LogOptions",
            json!({"max-size": "10485760", "max-file": "3", "mode": "non-blocking", "max-buffer-size": "1048576"}),
        ),
    ] {
        assert_eq!(container[name], expected, "{name}");
    }
}

#[test]
fn output_that_nobody_keeps_has_no_options() {
    let mut task = whole_task();
    task.spec.containers[0].log.discard = true;
    let container = container(&task, &id(), &context()).unwrap();
    assert_eq!(container["LogDriver"], "none");
    assert_eq!(container.get("LogOptions"), None);
}

#[test]
fn rates_are_of_the_time_since_the_sample_before() {
    let said = stats(Some(usage(1_000_000, 500)), usage(3_000_000, 2_500));
    let cpu = |part: &str, path: &str| said[part].pointer(path).and_then(Value::as_u64).unwrap();
    let used = cpu("cpu_stats", "/cpu_usage/total_usage") - cpu("precpu_stats", "/cpu_usage/total_usage");
    let all = cpu("cpu_stats", "/system_cpu_usage") - cpu("precpu_stats", "/system_cpu_usage");
    assert_eq!((used, all), (2_000_000_000, 4_000_000_000), "half of all CPUs");
    assert_eq!(
        said["network_rate_stats"],
        json!({"rx_bytes_per_sec": 1_000.0, "tx_bytes_per_sec": 2_000.0})
    );
    assert_eq!(
        (&said["preread"], &said["read"]),
        (&json!("1970-01-01T00:00:00Z"), &json!("1970-01-01T00:00:02Z"))
    );
}

#[test]
fn without_a_sample_before_nothing_is_made_up() {
    // Counters of a container that was started again went back.
    for before in [None, Some(usage(9_000_000, 500)), Some(usage(1, 9_000))] {
        let said = stats(before, usage(3_000_000, 2_500));
        assert_eq!(said["precpu_stats"]["cpu_usage"]["total_usage"], 0);
        assert_eq!(said["precpu_stats"]["system_cpu_usage"], 0);
        assert_eq!(said["preread"], "0001-01-01T00:00:00Z");
        assert_eq!(said.get("network_rate_stats"), None);
    }
}
