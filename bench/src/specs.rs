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
    let container = wire::ContainerSpec {
        container_id: id(),
        name: "main".into(),
        image: IMAGE.into(),
        command: ARGS.map(Into::into).to_vec(),
        essential: true,
        stop_timeout_ms: 1,
        start_timeout_ms: 60_000,
        memory_bytes: MEMORY_BYTES,
        log: Some(wire::LogSpec {
            max_size_bytes: 50 << 20,
            max_files: 3,
        }),
        ..Default::default()
    };
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
        containers: vec![container],
        required_features: vec![feature.into()],
        ..Default::default()
    }
}
