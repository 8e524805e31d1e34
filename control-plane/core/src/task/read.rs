//! Owns reading a stored echo. What it refuses was not registered by this version: it never guesses.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    Architecture, Condition, ContainerDefinition, Definition, Dependency, Device, HealthCheck, IpcMode,
    LinuxOptions, LogOptions, MIB, NetworkMode, Networking, PidMode, PortMapping, Protocol, RestartPolicy,
    Tmpfs, Ulimit, volumes,
};
use crate::definition::{
    EnvironmentSource,
    linux::{apparmor, no_new_privileges, seccomp},
};
use crate::expression::{Expression, ExpressionError};

/// A stored definition that this version cannot read.
#[derive(Debug, thiserror::Error)]
pub enum EchoError {
    #[error("the stored task definition cannot be read")]
    Shape { source: serde_json::Error },
    #[error("{field} of the stored task definition is {value:?}")]
    Value { field: &'static str, value: String },
    #[error("constraint {expression:?} of the stored task definition")]
    Constraint {
        expression: String,
        source: ExpressionError,
    },
}

impl Definition {
    /// Reads what [`crate::definition::register`] returned.
    ///
    /// # Errors
    /// When it was not made by `register`, or by a version that honours more.
    pub fn from_echo(echo: &Value) -> Result<Self, EchoError> {
        let echo = Echo::deserialize(echo).map_err(|source| EchoError::Shape { source })?;
        let size = |field, text: Option<String>| -> Result<Option<u32>, EchoError> {
            text.map(|value| value.parse().map_err(|_| EchoError::Value { field, value }))
                .transpose()
        };
        let constraints = echo.placement_constraints.into_iter().map(|constraint| {
            Expression::parse(&constraint.expression).map_err(|source| EchoError::Constraint {
                expression: constraint.expression,
                source,
            })
        });
        let mode = network_mode(echo.network_mode)?;
        Ok(Self {
            network_mode: mode,
            pid_mode: pid_mode(echo.pid_mode)?,
            ipc_mode: ipc_mode(echo.ipc_mode)?,
            family: echo.family,
            cpu_units: size("cpu", echo.cpu)?,
            memory_mib: size("memory", echo.memory)?,
            ephemeral_storage_gib: echo.ephemeral_storage.map(|storage| storage.size_in_gi_b),
            architecture: echo
                .runtime_platform
                .cpu_architecture
                .map(architecture)
                .transpose()?,
            constraints: constraints.collect::<Result<_, _>>()?,
            requires_compatibilities: echo.requires_compatibilities,
            compatibilities: echo.compatibilities,
            volumes: echo
                .volumes
                .into_iter()
                .map(volumes::volume)
                .collect::<Result<_, _>>()?,
            containers: echo
                .container_definitions
                .into_iter()
                .map(|echo| container(echo, mode))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn network_mode(value: Option<String>) -> Result<NetworkMode, EchoError> {
    match value.as_deref() {
        Some("awsvpc") => Ok(NetworkMode::Awsvpc),
        Some("host") => Ok(NetworkMode::Host),
        Some("none") => Ok(NetworkMode::None),
        None | Some("bridge") => Ok(NetworkMode::Bridge),
        Some(_) => Err(EchoError::Value {
            field: "networkMode",
            value: value.unwrap_or_default(),
        }),
    }
}

fn pid_mode(value: Option<String>) -> Result<PidMode, EchoError> {
    match value.as_deref() {
        None => Ok(PidMode::Container),
        Some("host") => Ok(PidMode::Host),
        Some("task") => Ok(PidMode::Task),
        Some(_) => Err(EchoError::Value {
            field: "pidMode",
            value: value.unwrap_or_default(),
        }),
    }
}

fn ipc_mode(value: Option<String>) -> Result<IpcMode, EchoError> {
    match value.as_deref() {
        None => Ok(IpcMode::Container),
        Some("host") => Ok(IpcMode::Host),
        Some("none") => Ok(IpcMode::None),
        Some("task") => Ok(IpcMode::Task),
        Some(_) => Err(EchoError::Value {
            field: "ipcMode",
            value: value.unwrap_or_default(),
        }),
    }
}

fn architecture(value: String) -> Result<Architecture, EchoError> {
    match value.as_str() {
        "X86_64" => Ok(Architecture::Amd64),
        "ARM64" => Ok(Architecture::Arm64),
        _ => Err(EchoError::Value {
            field: "cpuArchitecture",
            value,
        }),
    }
}

fn container(echo: EchoContainer, mode: NetworkMode) -> Result<ContainerDefinition, EchoError> {
    let log = echo
        .log_configuration
        .map(|log| LogOptions::read(log.log_driver, &log.options, &echo.docker_labels));
    Ok(ContainerDefinition {
        name: echo.name,
        image: echo.image,
        consistent_version: echo.version_consistency.as_deref() != Some("disabled"),
        entry_point: echo.entry_point,
        command: echo.command,
        environment: echo.environment.into_iter().map(|v| (v.name, v.value)).collect(),
        environment_files: echo
            .environment_files
            .into_iter()
            .map(environment_file)
            .collect::<Result<_, _>>()?,
        working_directory: echo.working_directory,
        user: echo.user,
        cpu_units: echo.cpu,
        memory_mib: echo.memory,
        memory_reservation_mib: echo.memory_reservation,
        essential: echo.essential,
        depends_on: echo
            .depends_on
            .into_iter()
            .map(dependency)
            .collect::<Result<_, _>>()?,
        stop_timeout_s: echo.stop_timeout,
        start_timeout_s: echo.start_timeout,
        ports: echo
            .port_mappings
            .into_iter()
            .map(|echo| port(echo, mode))
            .collect::<Result<_, _>>()?,
        labels: echo.docker_labels,
        readonly_root_filesystem: echo.readonly_root_filesystem,
        ulimits: echo
            .ulimits
            .into_iter()
            .map(|u| Ulimit {
                name: u.name,
                soft: u.soft_limit,
                hard: u.hard_limit,
            })
            .collect(),
        linux: LinuxOptions {
            capabilities_add: echo.linux_parameters.capabilities.add,
            capabilities_drop: echo.linux_parameters.capabilities.drop,
            privileged: echo.privileged,
            no_new_privileges: no_new_privileges(&echo.docker_security_options),
            seccomp: seccomp(&echo.docker_security_options),
            apparmor: apparmor(&echo.docker_security_options),
            shared_memory_bytes: u64::from(echo.linux_parameters.shared_memory_size.unwrap_or(0)) * MIB,
            tmpfs: echo.linux_parameters.tmpfs.into_iter().map(tmpfs).collect(),
            devices: echo.linux_parameters.devices.into_iter().map(device).collect(),
            max_swap_bytes: echo.linux_parameters.max_swap.map(|mib| u64::from(mib) * MIB),
            swappiness: echo.linux_parameters.swappiness,
            init_process: echo.linux_parameters.init_process_enabled,
            sysctls: echo
                .system_controls
                .into_iter()
                .map(|c| (c.namespace, c.value))
                .collect(),
        },
        pseudo_terminal: echo.pseudo_terminal,
        interactive: echo.interactive,
        restart: echo.restart_policy.and_then(restart),
        mount_points: echo.mount_points.into_iter().map(volumes::mount_point).collect(),
        volumes_from: echo.volumes_from.into_iter().map(volumes::volumes_from).collect(),
        health_check: echo.health_check.map(health_check),
        gpus: gpus(&echo.resource_requirements)?,
        networking: Networking {
            hostname: echo.hostname,
            extra_hosts: echo
                .extra_hosts
                .into_iter()
                .map(|host| (host.hostname, host.ip_address))
                .collect(),
            dns_servers: echo.dns_servers,
            dns_search_domains: echo.dns_search_domains,
            disabled: echo.disable_networking,
        },
        log: log.transpose()?.unwrap_or_default(),
    })
}

fn environment_file(echo: EchoEnvironmentFile) -> Result<EnvironmentSource, EchoError> {
    EnvironmentSource::parse(&echo.value).map_err(|_| EchoError::Value {
        field: "environmentFiles",
        value: echo.value,
    })
}

fn dependency(echo: EchoDependency) -> Result<Dependency, EchoError> {
    let condition = match echo.condition.as_str() {
        "START" => Condition::Start,
        "COMPLETE" => Condition::Complete,
        "SUCCESS" => Condition::Success,
        "HEALTHY" => Condition::Healthy,
        _ => {
            return Err(EchoError::Value {
                field: "condition",
                value: echo.condition,
            });
        }
    };
    Ok(Dependency {
        container_name: echo.container_name,
        condition,
    })
}

/// As in ECS: 300 s.
const RESTART_PERIOD_S: u32 = 300;

fn restart(echo: EchoRestart) -> Option<RestartPolicy> {
    echo.enabled.then(|| RestartPolicy {
        ignored_exit_codes: echo.ignored_exit_codes,
        attempt_period_s: echo.restart_attempt_period.unwrap_or(RESTART_PERIOD_S),
    })
}

/// As Docker has it, a shell takes what comes after the first as its own arguments.
fn health_check(echo: EchoHealthCheck) -> HealthCheck {
    let mut command = echo.command;
    let kind = if command.is_empty() {
        String::new()
    } else {
        command.remove(0)
    };
    if kind == "CMD-SHELL" {
        command.splice(0..0, ["/bin/sh", "-c"].map(str::to_owned));
    }
    HealthCheck {
        command,
        interval_ms: echo.interval * 1_000,
        timeout_ms: echo.timeout * 1_000,
        retries: echo.retries,
        start_period_ms: echo.start_period * 1_000,
    }
}

fn gpus(echo: &[EchoResource]) -> Result<u32, EchoError> {
    echo.iter().try_fold(0, |sum: u32, requirement| {
        let value = &requirement.value;
        let count = crate::definition::gpus::count(value).map_err(|_| EchoError::Value {
            field: "resourceRequirements",
            value: value.clone(),
        })?;
        Ok(sum.saturating_add(count))
    })
}

fn tmpfs(echo: EchoTmpfs) -> Tmpfs {
    Tmpfs {
        path: echo.container_path,
        size_bytes: u64::from(echo.size) * MIB,
        options: echo.mount_options,
    }
}

/// Without permissions, ECS gives all.
fn device(echo: EchoDevice) -> Device {
    let may = |what: &str| echo.permissions.is_empty() || echo.permissions.iter().any(|p| p == what);
    Device {
        read: may("read"),
        write: may("write"),
        mknod: may("mknod"),
        container_path: echo.container_path.unwrap_or_else(|| echo.host_path.clone()),
        host_path: echo.host_path,
    }
}

fn port(echo: EchoPort, mode: NetworkMode) -> Result<PortMapping, EchoError> {
    let protocol = match echo.protocol.as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => {
            return Err(EchoError::Value {
                field: "protocol",
                value: echo.protocol,
            });
        }
    };
    let Some(range) = echo.container_port_range else {
        return Ok(PortMapping {
            container_port: echo.container_port,
            host_port: echo.host_port,
            protocol,
            last_container_port: None,
        });
    };
    let Some((first, last)) = crate::definition::port_range(&range) else {
        return Err(EchoError::Value {
            field: "containerPortRange",
            value: range,
        });
    };
    Ok(PortMapping {
        container_port: first,
        // But for bridge, where it is the node's to choose, the host's are the container's own.
        host_port: if mode == NetworkMode::Bridge { 0 } else { first },
        protocol,
        last_container_port: Some(last),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Echo {
    family: String,
    /// ECS's default is bridge.
    network_mode: Option<String>,
    pid_mode: Option<String>,
    ipc_mode: Option<String>,
    cpu: Option<String>,
    memory: Option<String>,
    ephemeral_storage: Option<EchoStorage>,
    #[serde(default)]
    runtime_platform: EchoPlatform,
    #[serde(default)]
    placement_constraints: Vec<EchoConstraint>,
    #[serde(default)]
    requires_compatibilities: Vec<String>,
    #[serde(default)]
    compatibilities: Vec<String>,
    #[serde(default)]
    volumes: Vec<volumes::EchoVolume>,
    container_definitions: Vec<EchoContainer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoStorage {
    size_in_gi_b: u32,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoPlatform {
    cpu_architecture: Option<String>,
}

#[derive(Deserialize)]
struct EchoConstraint {
    expression: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoContainer {
    name: String,
    image: String,
    version_consistency: Option<String>,
    #[serde(default)]
    entry_point: Vec<String>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    environment: Vec<EchoVariable>,
    #[serde(default)]
    environment_files: Vec<EchoEnvironmentFile>,
    working_directory: Option<String>,
    user: Option<String>,
    #[serde(default)]
    cpu: u32,
    memory: Option<u32>,
    memory_reservation: Option<u32>,
    essential: bool,
    #[serde(default)]
    depends_on: Vec<EchoDependency>,
    stop_timeout: Option<u32>,
    start_timeout: Option<u32>,
    #[serde(default)]
    port_mappings: Vec<EchoPort>,
    #[serde(default)]
    docker_labels: BTreeMap<String, String>,
    #[serde(default)]
    readonly_root_filesystem: bool,
    #[serde(default)]
    ulimits: Vec<EchoUlimit>,
    log_configuration: Option<EchoLog>,
    #[serde(default)]
    linux_parameters: EchoLinux,
    #[serde(default)]
    privileged: bool,
    #[serde(default)]
    docker_security_options: Vec<String>,
    #[serde(default)]
    system_controls: Vec<EchoSystemControl>,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    extra_hosts: Vec<EchoHost>,
    #[serde(default)]
    dns_servers: Vec<String>,
    #[serde(default)]
    dns_search_domains: Vec<String>,
    #[serde(default)]
    disable_networking: bool,
    #[serde(default)]
    pseudo_terminal: bool,
    #[serde(default)]
    interactive: bool,
    #[serde(default)]
    mount_points: Vec<volumes::EchoMountPoint>,
    #[serde(default)]
    volumes_from: Vec<volumes::EchoVolumesFrom>,
    restart_policy: Option<EchoRestart>,
    health_check: Option<EchoHealthCheck>,
    #[serde(default)]
    resource_requirements: Vec<EchoResource>,
}

/// GPU is the only type that is accepted.
#[derive(Deserialize)]
struct EchoResource {
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoRestart {
    enabled: bool,
    #[serde(default)]
    ignored_exit_codes: Vec<i32>,
    restart_attempt_period: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoHost {
    hostname: String,
    ip_address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoHealthCheck {
    command: Vec<String>,
    /// Seconds, and bounded, as the others.
    interval: u32,
    timeout: u32,
    retries: u32,
    #[serde(default)]
    start_period: u32,
}

#[derive(Deserialize)]
struct EchoSystemControl {
    namespace: String,
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoLinux {
    #[serde(default)]
    capabilities: EchoCapabilities,
    shared_memory_size: Option<u32>,
    #[serde(default)]
    tmpfs: Vec<EchoTmpfs>,
    #[serde(default)]
    devices: Vec<EchoDevice>,
    max_swap: Option<u32>,
    swappiness: Option<u32>,
    #[serde(default)]
    init_process_enabled: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoDevice {
    host_path: String,
    container_path: Option<String>,
    #[serde(default)]
    permissions: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoTmpfs {
    container_path: String,
    size: u32,
    #[serde(default)]
    mount_options: Vec<String>,
}

#[derive(Default, Deserialize)]
struct EchoCapabilities {
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    drop: Vec<String>,
}

#[derive(Deserialize)]
struct EchoVariable {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct EchoEnvironmentFile {
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoDependency {
    container_name: String,
    condition: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoPort {
    /// Absent in a range, which is then there.
    #[serde(default)]
    container_port: u16,
    #[serde(default)]
    host_port: u16,
    container_port_range: Option<String>,
    protocol: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoUlimit {
    name: String,
    soft_limit: i64,
    hard_limit: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EchoLog {
    log_driver: String,
    #[serde(default)]
    options: BTreeMap<String, String>,
}
