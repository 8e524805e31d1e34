//! Owns made-up task specs.

use berth_agent_core::{
    desired::{
        Condition, ContainerSpec, Dependency, DesiredStatus, HealthCheck, IpcMode, Limits, LogSpec, Millis,
        NetworkMode, PidMode, PortMapping, Protocol, RestartPolicy, TaskSpec,
    },
    environment::EnvironmentFile,
};

use crate::random::Random;

pub fn task(number: u64, random: &mut Random) -> TaskSpec {
    let count = 1 + random.up_to(3);
    let essential = random.up_to(count - 1);
    let network = match random.up_to(5) {
        0 => NetworkMode::Host,
        1 => NetworkMode::None,
        2 => NetworkMode::Bridge,
        _ => NetworkMode::Awsvpc,
    };
    TaskSpec {
        id: format!("{number:032x}").parse().unwrap(),
        arn: format!("arn:aws:ecs:here:0:task/default/{number:032x}"),
        cluster: "default".into(),
        family: "sim".into(),
        revision: 1,
        desired: DesiredStatus::Running,
        subnet: None,
        lan: None,
        network,
        pid: match random.up_to(3) {
            0 => PidMode::Task,
            _ => PidMode::Container,
        },
        ipc: match random.up_to(3) {
            0 => IpcMode::Task,
            _ => IpcMode::Container,
        },
        limits: Limits::default(),
        charge: Limits {
            cpu_units: 64 * u32::try_from(random.up_to(8)).unwrap(),
            memory_bytes: (64 * random.up_to(8)) << 20,
        },
        containers: (0..count)
            .map(|i| container(number, i, i == essential, network, random))
            .collect(),
        restart_after_reboot: random.percent(40),
        stop_reason: String::new(),
        created_at: Millis(0),
        volumes: Vec::new(),
        runtime: String::new(),
        ephemeral_storage_bytes: 0,
        publish_ports: false,
        launch_type: "EC2".into(),
        group: String::new(),
        tags: Default::default(),
    }
}

/// Some containers have one of their own and one that all of the task share.
fn environment_files(task: u64, container: u64) -> Vec<EnvironmentFile> {
    if !(task + container).is_multiple_of(3) {
        return Vec::new();
    }
    let url = |name: String| EnvironmentFile::Url(format!("https://config.example/{name}"));
    vec![url(container.to_string()), url("all".into())]
}

/// Whether a container has a health check; those that depend on it ask before it is made.
fn is_checked(task: u64, container: u64) -> bool {
    !(task + container).is_multiple_of(2)
}

fn container(task: u64, i: u64, essential: bool, network: NetworkMode, random: &mut Random) -> ContainerSpec {
    let depends_on = (0..i)
        .filter(|_| random.percent(40))
        .map(|on| on.to_string())
        .collect::<Vec<_>>();
    let depends_on = depends_on
        .into_iter()
        .map(|container| {
            let mut conditions = vec![Condition::Start, Condition::Complete, Condition::Success];
            if is_checked(task, container.parse().unwrap()) {
                conditions.push(Condition::Healthy);
            }
            let condition = *random.pick(&conditions).unwrap();
            Dependency { container, condition }
        })
        .collect();
    let port = u16::try_from(8000 + random.up_to(3)).unwrap();
    let mapping = |host_port| PortMapping {
        container_port: port,
        host_port,
        protocol: Protocol::Tcp,
        last_container_port: None,
    };
    let ports = match network {
        NetworkMode::Host if i == 0 => vec![mapping(port)],
        // One that the node chooses, and from the same few that others name.
        NetworkMode::Bridge if i == 0 => vec![mapping(port), mapping(0)],
        NetworkMode::Bridge => vec![mapping(0)],
        _ => Vec::new(),
    };
    ContainerSpec {
        id: format!("{:032x}", (task << 8) + i + (1 << 60)).parse().unwrap(),
        name: i.to_string(),
        image: format!("image-{}", random.up_to(3)),
        image_digest: String::new(),
        entry_point: Vec::new(),
        command: Vec::new(),
        environment: Vec::new(),
        environment_files: environment_files(task, i),
        working_directory: String::new(),
        user: String::new(),
        cpu_units: 0,
        memory_bytes: 0,
        memory_reservation_bytes: 0,
        essential,
        depends_on,
        stop_timeout_ms: 1_000 + u32::try_from(random.up_to(20_000)).unwrap(),
        start_timeout_ms: 5_000 + u32::try_from(random.up_to(60_000)).unwrap(),
        ports,
        labels: Default::default(),
        readonly_root_filesystem: false,
        ulimits: Vec::new(),
        log: LogSpec {
            max_size_bytes: 1 << 20,
            max_files: 2,
            blocking: false,
            max_buffer_bytes: 0,
            discard: false,
            attributes: Default::default(),
        },
        linux: Default::default(),
        networking: Default::default(),
        pseudo_terminal: false,
        interactive: false,
        restart: random.percent(30).then(|| RestartPolicy {
            ignored_exit_codes: if random.percent(50) { vec![0] } else { vec![] },
            attempt_period_ms: 60_000,
        }),
        volumes: Default::default(),
        gpus: vec![],
        health_check: is_checked(task, i).then(|| HealthCheck {
            command: vec!["look".into()],
            interval_ms: 5_000 + u32::try_from(random.up_to(5_000)).unwrap(),
            timeout_ms: 2_000,
            retries: 1 + u32::try_from(random.up_to(2)).unwrap(),
            start_period_ms: 1_000 * u32::try_from(random.up_to(10)).unwrap(),
        }),
    }
}
