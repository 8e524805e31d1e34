//! Owns the task that is measured.

use berth_proto::node::v1 as wire;

use crate::host::{ARGS, CPU_UNITS, IMAGE, MEMORY_BYTES};

fn id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

pub fn task(network: wire::NetworkMode) -> wire::TaskSpec {
    let feature = if network == wire::NetworkMode::Awsvpc {
        "net.awsvpc"
    } else {
        "net.host"
    };
    spec(network, vec![feature.into()], vec![container("main")])
}

/// A task of a container with a health check and one that waits for it to be healthy; their ids.
pub fn pair() -> (wire::TaskSpec, String, String) {
    let (mut main, mut side) = (container("main"), container("side"));
    main.health_check = Some(wire::HealthCheck {
        command: ["/bin/busybox", "true"].map(Into::into).to_vec(),
        interval_ms: 5_000,
        timeout_ms: 2_000,
        retries: 3,
        start_period_ms: 0,
    });
    side.depends_on = vec![wire::Dependency {
        container_name: "main".into(),
        condition: wire::DependencyCondition::Healthy.into(),
    }];
    let ids = (main.container_id.clone(), side.container_id.clone());
    let features = ["net.awsvpc", "health-check", "depends.healthy"].map(Into::into);
    let task = spec(wire::NetworkMode::Awsvpc, features.into(), vec![main, side]);
    (task, ids.0, ids.1)
}

fn container(name: &str) -> wire::ContainerSpec {
    wire::ContainerSpec {
        container_id: id(),
        name: name.into(),
        image: IMAGE.into(),
        command: ARGS.map(Into::into).to_vec(),
        essential: true,
        stop_timeout_ms: 1,
        start_timeout_ms: 60_000,
        memory_bytes: MEMORY_BYTES,
        log: Some(wire::LogSpec {
            max_size_bytes: 50 << 20,
            max_files: 3,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn spec(
    network: wire::NetworkMode,
    required_features: Vec<String>,
    containers: Vec<wire::ContainerSpec>,
) -> wire::TaskSpec {
    wire::TaskSpec {
        task_id: id(),
        cluster: "default".into(),
        family: "bench".into(),
        revision: 1,
        desired_status: wire::DesiredStatus::Running.into(),
        network_mode: network.into(),
        limits: Some(wire::Limits {
            cpu_units: CPU_UNITS,
            memory_bytes: MEMORY_BYTES,
        }),
        containers,
        required_features,
        ..Default::default()
    }
}
