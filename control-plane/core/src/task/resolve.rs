//! Owns the step from a definition to one task with every default filled in: field for field what `TaskSpec` and
//! `ContainerSpec` carry on the wire. Never holds protobuf types.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    ContainerDefinition, Definition, Dependency, EnvironmentFile, HealthCheck, IpcMode, LinuxOptions,
    LogSpec, MIB, MountPoint, NetworkMode, Networking, PidMode, PortMapping, RUNTIME_PREFIX, RestartPolicy,
    StoredFiles, Ulimit, Volume, VolumesFrom,
};
use crate::{arn::is_id, definition::log_attributes::Named, subnets::Lan};

/// From the stop signal to SIGKILL, unless the definition says otherwise: as in ECS.
pub const STOP_TIMEOUT_S: u32 = 30;
/// How long others wait for a container's COMPLETE, SUCCESS or HEALTHY, unless the definition says otherwise.
pub const START_TIMEOUT_S: u32 = 180;
/// What is kept of a container's output unless the definition says otherwise.
pub const LOG: LogSpec = LogSpec {
    max_size_bytes: 50 * MIB,
    max_files: 3,
    blocking: false,
    max_buffer_bytes: 0,
    discard: false,
    attributes: BTreeMap::new(),
};

/// What is particular to one run of a definition.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// 32 hexadecimal digits.
    pub task_id: &'a str,
    pub task_arn: &'a str,
    pub cluster: &'a str,
    pub revision: u32,
    /// One for each container, in the definition's order; 32 hexadecimal digits.
    pub container_ids: &'a [String],
    /// By container name: what an earlier task of the revision resolved its image to.
    pub image_digests: &'a BTreeMap<String, String>,
    /// All that the definition's environment files name of the store.
    pub environment_files: &'a StoredFiles,
    /// Those that the task holds, as many as its containers ask for together.
    pub gpus: &'a [String],
    /// Start again after the host restarted, instead of reporting the task as stopped.
    pub restart_after_reboot: bool,
    /// Its ports are the host's too, in awsvpc.
    pub publish_ports: bool,
    /// For its metadata.
    pub launch_type: &'a str,
    pub group: &'a str,
    pub tags: &'a BTreeMap<String, String>,
    /// The runtime its tag names.
    pub runtime: Option<&'a str>,
    /// Of which its address is; none: it is of the node's own range.
    pub subnet: Option<&'a str>,
    /// What that is, where nodes do not route to it.
    pub lan: Option<&'a Lan>,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: i64,
}

/// Ids or files that do not go with the definition: a mistake of the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("{given} container ids for {needed} containers")]
    ContainerIds { given: usize, needed: usize },
    #[error("{given} GPUs for containers that ask for {needed}")]
    Gpus { given: usize, needed: usize },
    #[error("{0:?} is not an id: ids are 32 lower-case hexadecimal digits")]
    InvalidId(String),
    #[error("the id {0} is given twice")]
    RepeatedId(String),
    #[error("an environment file of container {0} was not read")]
    EnvironmentFile(String),
}

/// One task, resolved; the fields of `TaskSpec`. Its desired status is RUNNING and it has no stop reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedTask {
    pub task_id: String,
    pub task_arn: String,
    pub cluster: String,
    pub family: String,
    pub revision: u32,
    pub network_mode: NetworkMode,
    pub pid_mode: PidMode,
    pub ipc_mode: IpcMode,
    /// Ceilings of all containers together; zero: none.
    pub limit_cpu_units: u32,
    pub limit_memory_bytes: u64,
    /// What it may write; zero: no bound.
    pub ephemeral_storage_bytes: u64,
    /// What admission charges: the same figures as in `Requirements`.
    pub charged_cpu_units: u32,
    pub charged_memory_bytes: u64,
    pub volumes: Vec<Volume>,
    pub containers: Vec<ResolvedContainer>,
    pub required_features: Vec<Cow<'static, str>>,
    pub restart_after_reboot: bool,
    /// Its ports are the host's too, in awsvpc.
    pub publish_ports: bool,
    /// For its metadata.
    pub launch_type: String,
    pub group: String,
    pub tags: BTreeMap<String, String>,
    /// Empty: the node's own choice.
    pub runtime: String,
    /// Empty: its address is of the node's own range, if it has one.
    pub subnet: String,
    /// Where nodes do not route to that.
    pub lan: Option<Lan>,
    pub created_at_ms: i64,
}

/// One container, resolved; the fields of `ContainerSpec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedContainer {
    pub container_id: String,
    pub name: String,
    pub image: String,
    /// Empty: what the image's tag says.
    pub image_digest: String,
    /// Empty: the image's.
    pub entry_point: Vec<String>,
    /// Empty: the image's, unless `entry_point` is set.
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub environment_files: Vec<EnvironmentFile>,
    /// Empty: the image's, or `/`.
    pub working_directory: String,
    /// Empty: the image's.
    pub user: String,
    pub cpu_units: u32,
    /// Zero: none but the task's.
    pub memory_bytes: u64,
    /// Zero: none.
    pub memory_reservation_bytes: u64,
    pub essential: bool,
    pub depends_on: Vec<Dependency>,
    pub stop_timeout_ms: u32,
    pub start_timeout_ms: u32,
    pub ports: Vec<PortMapping>,
    pub labels: BTreeMap<String, String>,
    pub readonly_root_filesystem: bool,
    pub ulimits: Vec<Ulimit>,
    pub linux: LinuxOptions,
    pub networking: Networking,
    pub pseudo_terminal: bool,
    pub interactive: bool,
    pub restart: Option<RestartPolicy>,
    pub mount_points: Vec<MountPoint>,
    pub volumes_from: Vec<VolumesFrom>,
    pub health_check: Option<HealthCheck>,
    /// Ids of its GPUs.
    pub gpus: Vec<String>,
    pub log: LogSpec,
}

/// One task of a definition, with defaults filled in.
///
/// # Errors
/// When the ids are not ids, not unique, or not one per container; or a file of the store is missing.
pub fn resolve(definition: &Definition, run: &Run<'_>) -> Result<ResolvedTask, ResolveError> {
    check_ids(definition, run)?;
    let mut requirements = if run.publish_ports {
        definition.requirements_published()
    } else {
        definition.requirements()
    };
    if !run.image_digests.is_empty() {
        requirements = requirements.running_digests();
    }
    if run.restart_after_reboot {
        requirements = requirements.restarting_after_reboot();
    }
    requirements = requirements.in_subnets(run.subnet.map(str::to_owned).into_iter().collect());
    if run.lan.is_some() {
        requirements = requirements.on_lan();
    }
    let mut required_features: Vec<_> = requirements.features.into_iter().map(Cow::Borrowed).collect();
    required_features.extend(
        run.runtime
            .map(|name| Cow::Owned(format!("{RUNTIME_PREFIX}{name}"))),
    );
    let containers = definition.containers.iter().zip(run.container_ids);
    let gpus = deal_gpus(definition, run)?;
    Ok(ResolvedTask {
        task_id: run.task_id.to_string(),
        task_arn: run.task_arn.to_string(),
        cluster: run.cluster.to_string(),
        family: definition.family.clone(),
        revision: run.revision,
        network_mode: definition.network_mode,
        pid_mode: definition.pid_mode,
        ipc_mode: definition.ipc_mode,
        limit_cpu_units: definition.cpu_units.unwrap_or(0),
        limit_memory_bytes: bytes(definition.memory_mib),
        ephemeral_storage_bytes: u64::from(definition.ephemeral_storage_gib.unwrap_or(0)) << 30,
        charged_cpu_units: requirements.cpu_units,
        charged_memory_bytes: requirements.memory_bytes,
        volumes: definition.volumes.clone(),
        containers: containers
            .zip(gpus)
            .map(|((container, id), gpus)| resolve_container(container, id, gpus, run))
            .collect::<Result<_, _>>()?,
        required_features,
        restart_after_reboot: run.restart_after_reboot,
        launch_type: run.launch_type.to_owned(),
        group: run.group.to_owned(),
        tags: run.tags.clone(),
        publish_ports: run.publish_ports,
        runtime: run.runtime.unwrap_or_default().to_string(),
        subnet: run.subnet.unwrap_or_default().to_string(),
        lan: run.lan.cloned(),
        created_at_ms: run.created_at_ms,
    })
}

fn check_ids(definition: &Definition, run: &Run<'_>) -> Result<(), ResolveError> {
    let (given, needed) = (run.container_ids.len(), definition.containers.len());
    if given != needed {
        return Err(ResolveError::ContainerIds { given, needed });
    }
    let mut seen = BTreeSet::new();
    for id in run.container_ids.iter().map(String::as_str).chain([run.task_id]) {
        if id.len() != 32 || !is_id(id) {
            return Err(ResolveError::InvalidId(id.chars().take(64).collect()));
        }
        if !seen.insert(id) {
            return Err(ResolveError::RepeatedId(id.to_string()));
        }
    }
    Ok(())
}

/// Each container's part of the task's GPUs, in the definition's order.
fn deal_gpus(definition: &Definition, run: &Run<'_>) -> Result<Vec<Vec<String>>, ResolveError> {
    let mut left = run.gpus.iter();
    let mut take = |container: &ContainerDefinition| {
        let count = usize::try_from(container.gpus).unwrap_or(usize::MAX);
        let gpus: Vec<String> = left.by_ref().take(count).cloned().collect();
        gpus
    };
    let dealt: Vec<Vec<String>> = definition.containers.iter().map(&mut take).collect();
    let needed = usize::try_from(definition.requirements().gpus).unwrap_or(usize::MAX);
    match run.gpus.len() {
        given if given == needed => Ok(dealt),
        given => Err(ResolveError::Gpus { given, needed }),
    }
}

fn resolve_container(
    container: &ContainerDefinition,
    id: &str,
    gpus: Vec<String>,
    run: &Run<'_>,
) -> Result<ResolvedContainer, ResolveError> {
    let container = container.clone();
    let files = container.environment_files.iter();
    let files = files.map(|source| EnvironmentFile::resolve(source, run.environment_files));
    let environment_files = files
        .collect::<Option<_>>()
        .ok_or_else(|| ResolveError::EnvironmentFile(container.name.clone()))?;
    let log = container.log.resolve(Named {
        id,
        name: &container.name,
        image: &container.image,
    });
    Ok(ResolvedContainer {
        image_digest: run
            .image_digests
            .get(&container.name)
            .cloned()
            .unwrap_or_default(),
        container_id: id.to_string(),
        name: container.name,
        image: container.image,
        entry_point: container.entry_point,
        command: container.command,
        environment: container.environment,
        environment_files,
        working_directory: container.working_directory.unwrap_or_default(),
        user: container.user.unwrap_or_default(),
        cpu_units: container.cpu_units,
        memory_bytes: bytes(container.memory_mib),
        memory_reservation_bytes: bytes(container.memory_reservation_mib),
        essential: container.essential,
        depends_on: container.depends_on,
        stop_timeout_ms: milliseconds(container.stop_timeout_s, STOP_TIMEOUT_S),
        start_timeout_ms: milliseconds(container.start_timeout_s, START_TIMEOUT_S),
        ports: container.ports,
        labels: container.labels,
        readonly_root_filesystem: container.readonly_root_filesystem,
        ulimits: container.ulimits,
        linux: container.linux,
        networking: container.networking,
        pseudo_terminal: container.pseudo_terminal,
        interactive: container.interactive,
        restart: container.restart,
        mount_points: container.mount_points,
        volumes_from: container.volumes_from,
        health_check: container.health_check,
        gpus,
        log,
    })
}

fn bytes(mib: Option<u32>) -> u64 {
    u64::from(mib.unwrap_or(0)) * MIB
}

fn milliseconds(seconds: Option<u32>, default: u32) -> u32 {
    seconds.unwrap_or(default).saturating_mul(1_000)
}
