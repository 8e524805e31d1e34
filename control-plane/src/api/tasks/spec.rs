//! Owns the step from a resolved task to the message its node gets. Field for field: nothing is decided here.

use std::borrow::Cow;

use berth_control_plane_core::task::{
    Condition, Dependency, Device, EnvironmentFile, HealthCheck, IpcMode, LinuxOptions, LogSpec, NetworkMode,
    Networking, PidMode, PortMapping, Protocol, ResolvedContainer, ResolvedTask, RestartPolicy, Tmpfs,
    Ulimit,
};
use berth_proto::node::v1 as wire;

use super::volumes;
use crate::subnets;

/// The desired spec of a task that is to run.
pub(super) fn message(task: ResolvedTask) -> wire::TaskSpec {
    let limits = wire::Limits {
        cpu_units: task.limit_cpu_units,
        memory_bytes: task.limit_memory_bytes,
    };
    wire::TaskSpec {
        task_id: task.task_id,
        task_arn: task.task_arn,
        cluster: task.cluster,
        family: task.family,
        revision: task.revision,
        desired_status: wire::DesiredStatus::Running.into(),
        network_mode: network_mode(task.network_mode).into(),
        pid_mode: pid_mode(task.pid_mode).into(),
        ipc_mode: ipc_mode(task.ipc_mode).into(),
        limits: Some(limits),
        charged_cpu_units: task.charged_cpu_units,
        charged_memory_bytes: task.charged_memory_bytes,
        containers: task.containers.into_iter().map(container).collect(),
        required_features: task.required_features.into_iter().map(Cow::into_owned).collect(),
        restart_after_reboot: task.restart_after_reboot,
        publish_ports: task.publish_ports,
        launch_type: task.launch_type,
        group: task.group,
        tags: task.tags.into_iter().collect(),
        runtime: task.runtime,
        ephemeral_storage_bytes: task.ephemeral_storage_bytes,
        stop_reason: String::new(),
        created_at_ms: task.created_at_ms,
        subnet_id: task.subnet,
        lan: task.lan.as_ref().map(subnets::lan_to_wire),
        volumes: task.volumes.into_iter().map(volumes::volume).collect(),
    }
}

fn variables(variables: Vec<(String, String)>) -> Vec<wire::KeyValue> {
    let variable = |(key, value)| wire::KeyValue { key, value };
    variables.into_iter().map(variable).collect()
}

fn environment_file(file: EnvironmentFile) -> wire::EnvironmentFile {
    use wire::environment_file::Source;
    let source = match file {
        EnvironmentFile::Variables(all) => Source::Variables(wire::Variables {
            variables: variables(all),
        }),
        EnvironmentFile::Url(url) => Source::Url(url),
    };
    wire::EnvironmentFile { source: Some(source) }
}

fn container(container: ResolvedContainer) -> wire::ContainerSpec {
    wire::ContainerSpec {
        container_id: container.container_id,
        name: container.name,
        image: container.image,
        image_digest: container.image_digest,
        entry_point: container.entry_point,
        command: container.command,
        environment: variables(container.environment),
        environment_files: container
            .environment_files
            .into_iter()
            .map(environment_file)
            .collect(),
        working_directory: container.working_directory,
        user: container.user,
        cpu_units: container.cpu_units,
        memory_bytes: container.memory_bytes,
        memory_reservation_bytes: container.memory_reservation_bytes,
        essential: container.essential,
        depends_on: container.depends_on.into_iter().map(dependency).collect(),
        stop_timeout_ms: container.stop_timeout_ms,
        start_timeout_ms: container.start_timeout_ms,
        ports: container.ports.into_iter().map(port).collect(),
        labels: container.labels.into_iter().collect(),
        readonly_root_filesystem: container.readonly_root_filesystem,
        ulimits: container.ulimits.into_iter().map(ulimit).collect(),
        log: Some(log(container.log)),
        linux: Some(linux(container.linux)),
        networking: Some(networking(container.networking)),
        pseudo_terminal: container.pseudo_terminal,
        interactive: container.interactive,
        mount_points: container
            .mount_points
            .into_iter()
            .map(volumes::mount_point)
            .collect(),
        volumes_from: container
            .volumes_from
            .into_iter()
            .map(volumes::volumes_from)
            .collect(),
        restart_policy: container.restart.map(restart_policy),
        health_check: container.health_check.map(health_check),
        gpu_ids: container.gpus,
    }
}

fn restart_policy(policy: RestartPolicy) -> wire::RestartPolicy {
    wire::RestartPolicy {
        ignored_exit_codes: policy.ignored_exit_codes,
        attempt_period_ms: policy.attempt_period_s.saturating_mul(1_000),
    }
}

fn network_mode(mode: NetworkMode) -> wire::NetworkMode {
    match mode {
        NetworkMode::Awsvpc => wire::NetworkMode::Awsvpc,
        NetworkMode::Host => wire::NetworkMode::Host,
        NetworkMode::None => wire::NetworkMode::None,
        NetworkMode::Bridge => wire::NetworkMode::Bridge,
    }
}

fn pid_mode(mode: PidMode) -> wire::PidMode {
    match mode {
        PidMode::Container => wire::PidMode::Unspecified,
        PidMode::Host => wire::PidMode::Host,
        PidMode::Task => wire::PidMode::Task,
    }
}

fn ipc_mode(mode: IpcMode) -> wire::IpcMode {
    match mode {
        IpcMode::Container => wire::IpcMode::Unspecified,
        IpcMode::Host => wire::IpcMode::Host,
        IpcMode::None => wire::IpcMode::None,
        IpcMode::Task => wire::IpcMode::Task,
    }
}

fn device(device: Device) -> wire::Device {
    wire::Device {
        host_path: device.host_path,
        container_path: device.container_path,
        read: device.read,
        write: device.write,
        mknod: device.mknod,
    }
}

fn dependency(dependency: Dependency) -> wire::Dependency {
    let condition = match dependency.condition {
        Condition::Start => wire::DependencyCondition::Start,
        Condition::Complete => wire::DependencyCondition::Complete,
        Condition::Success => wire::DependencyCondition::Success,
        Condition::Healthy => wire::DependencyCondition::Healthy,
    };
    wire::Dependency {
        container_name: dependency.container_name,
        condition: condition.into(),
    }
}

fn health_check(check: HealthCheck) -> wire::HealthCheck {
    wire::HealthCheck {
        command: check.command,
        interval_ms: check.interval_ms,
        timeout_ms: check.timeout_ms,
        retries: check.retries,
        start_period_ms: check.start_period_ms,
    }
}

fn port(port: PortMapping) -> wire::PortMapping {
    let protocol = match port.protocol {
        Protocol::Tcp => wire::Protocol::Tcp,
        Protocol::Udp => wire::Protocol::Udp,
    };
    wire::PortMapping {
        container_port: port.container_port.into(),
        host_port: port.host_port.into(),
        protocol: protocol.into(),
        last_container_port: port.last_container_port.map_or(0, u32::from),
    }
}

fn ulimit(ulimit: Ulimit) -> wire::Ulimit {
    wire::Ulimit {
        name: ulimit.name,
        soft: ulimit.soft,
        hard: ulimit.hard,
    }
}

fn linux(linux: LinuxOptions) -> wire::LinuxOptions {
    wire::LinuxOptions {
        capabilities_add: linux.capabilities_add,
        capabilities_drop: linux.capabilities_drop,
        privileged: linux.privileged,
        no_new_privileges: linux.no_new_privileges,
        seccomp: linux.seccomp,
        apparmor: linux.apparmor,
        sysctls: linux.sysctls.into_iter().collect(),
        shared_memory_bytes: linux.shared_memory_bytes,
        tmpfs: linux.tmpfs.into_iter().map(tmpfs).collect(),
        devices: linux.devices.into_iter().map(device).collect(),
        max_swap_bytes: linux.max_swap_bytes,
        swappiness: linux.swappiness,
        init_process: linux.init_process,
    }
}

fn networking(networking: Networking) -> wire::Networking {
    let host = |(hostname, address)| wire::HostEntry { hostname, address };
    wire::Networking {
        hostname: networking.hostname,
        extra_hosts: networking.extra_hosts.into_iter().map(host).collect(),
        dns_servers: networking.dns_servers,
        dns_search_domains: networking.dns_search_domains,
        disabled: networking.disabled,
    }
}

fn tmpfs(tmpfs: Tmpfs) -> wire::Tmpfs {
    wire::Tmpfs {
        path: tmpfs.path,
        size_bytes: tmpfs.size_bytes,
        options: tmpfs.options,
    }
}

fn log(log: LogSpec) -> wire::LogSpec {
    wire::LogSpec {
        max_size_bytes: log.max_size_bytes,
        max_files: log.max_files,
        blocking: log.blocking,
        max_buffer_bytes: log.max_buffer_bytes,
        discard: log.discard,
        attributes: log.attributes.into_iter().collect(),
    }
}
