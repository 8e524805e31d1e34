//! Owns RunTask and StartTask from request to answer. Never places or writes anything itself: `launch` does.

use std::collections::BTreeMap;

use berth_control_plane_core::{
    definition::{Overridden, override_definition},
    tags::{RESTART_AFTER_REBOOT, RUNTIME, RUNTIME_NAME_BYTES_MAX, is_runtime_name},
    task,
};
use serde_json::{Map, Value};

use super::{
    launch::{Launch, Want},
    request::{Common, RunRequest, StartRequest},
    rules,
};
use crate::{
    api::{context::Api, environment_files, error::ApiError, fields::Fields, records, task_definitions},
    model::{ImagePins, Subnet, Tags, TaskDefinition, keys},
    subnets::of_cluster,
};

/// Most tags of one task, with those of its definition.
const TAGS_MAX: usize = 50;

pub(in crate::api) async fn run(api: &Api, input: Fields) -> Result<Value, ApiError> {
    let request = RunRequest::parse(input)?;
    let cluster = records::active_cluster(api, request.common.cluster.as_deref()).await?;
    if let Some(token) = &request.token
        && let Some(earlier) = token.earlier(api, &cluster).await?
    {
        return Ok(earlier);
    }
    let definition = definition(api, &request.common).await?;
    let pins = pins(api, &definition).await?;
    let subnets = subnets(api, &cluster).await?;
    let given = (definition, pins, subnets);
    let mut launch = prepare(cluster, given, request.common, request.launch_type)?;
    rules::check_log_drivers(&launch.parsed, api.unsupported_log_driver)?;
    launch.environment_files = environment_files::of_tasks(api, &launch.parsed).await?;
    rules::check_platform(&launch.launch_type, request.platform_version.as_deref())?;
    let want = Want::Place {
        count: request.count,
        constraints: &request.constraints,
        strategy: &request.strategy,
    };
    launch.commit(api, &want, request.token.as_ref()).await
}

/// On exactly these container instances, one task each, without placement.
pub(in crate::api) async fn start(api: &Api, input: Fields) -> Result<Value, ApiError> {
    let request = StartRequest::parse(input)?;
    let cluster = records::active_cluster(api, request.common.cluster.as_deref()).await?;
    let resolve = |named: &String| api.realm.container_instance_id(&cluster, named);
    let nodes: Vec<String> = request.nodes.iter().map(resolve).collect::<Result<_, _>>()?;
    if let Some((at, id)) = nodes
        .iter()
        .enumerate()
        .find(|(at, id)| nodes[..*at].contains(id))
    {
        return Err(ApiError::field(
            format!("containerInstances[{at}]"),
            format_args!("{id} comes twice"),
        ));
    }
    let definition = definition(api, &request.common).await?;
    let pins = pins(api, &definition).await?;
    let subnets = subnets(api, &cluster).await?;
    let given = (definition, pins, subnets);
    let mut launch = prepare(cluster, given, request.common, None)?;
    rules::check_log_drivers(&launch.parsed, api.unsupported_log_driver)?;
    launch.environment_files = environment_files::of_tasks(api, &launch.parsed).await?;
    launch.commit(api, &Want::On(&nodes), None).await
}

async fn definition(api: &Api, common: &Common) -> Result<TaskDefinition, ApiError> {
    let found = task_definitions::find(api, &common.definition).await?;
    let definition = found.ok_or_else(|| {
        ApiError::Client(format!(
            "TaskDefinition not found: {}. Register it first",
            common.definition
        ))
    })?;
    rules::check_active(&definition.value)?;
    Ok(definition.value)
}

/// What the first tasks of the revision resolved its images to.
async fn pins(api: &Api, definition: &TaskDefinition) -> Result<ImagePins, ApiError> {
    let key = keys::image_pins(&definition.family, definition.revision);
    let found = records::get::<ImagePins>(api, &key).await?;
    Ok(found.map(|found| found.value).unwrap_or_default())
}

/// Those that the cluster has.
async fn subnets(api: &Api, cluster: &str) -> Result<Vec<Subnet>, ApiError> {
    let all = of_cluster(api.store.as_ref(), cluster).await?;
    Ok(all.into_iter().map(|subnet| subnet.value).collect())
}

fn prepare(
    cluster: String,
    (definition, pins, known): (TaskDefinition, ImagePins, Vec<Subnet>),
    common: Common,
    launch_type: Option<&'static str>,
) -> Result<Launch, ApiError> {
    let Overridden {
        definition: effective,
        echo: overrides,
    } = overridden(&definition, common.overrides.as_ref())?;
    let parsed = task::Definition::from_echo(&effective).map_err(|source| ApiError::Definition {
        family: definition.family.clone(),
        revision: definition.revision,
        source,
    })?;
    let launch_type = rules::launch_type(&parsed, launch_type)?;
    let ids: Vec<String> = known.iter().map(|subnet| subnet.id.clone()).collect();
    let (subnets, security_groups) = rules::network(&parsed, &common, &ids)?;
    let lans = known.iter().filter(|subnet| subnet.lan().is_some());
    let lans: Vec<&Subnet> = lans.filter(|subnet| subnets.contains(&subnet.id)).collect();
    let tags = tags(&cluster, &definition, &common)?;
    let restart_after_reboot = restarts(&tags)?;
    let runtime = runtime(&tags)?;
    let publish_ports = rules::publishes(&parsed, &common);
    if publish_ports {
        rules::check_published(&lans)?;
    }
    let requirements = if publish_ports {
        parsed.requirements_published()
    } else {
        parsed.requirements()
    };
    let mut requirements = requirements.on_runtime(runtime.clone());
    let wanted = |name: &String| parsed.containers.iter().any(|c| c.name == *name && c.is_pinned());
    let image_digests: BTreeMap<_, _> = pins
        .digests
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .collect();
    if !image_digests.is_empty() {
        requirements = requirements.running_digests();
    }
    if !known.is_empty() {
        let on_lan = !lans.is_empty() && lans.len() == subnets.len();
        requirements = requirements.in_subnets(subnets.clone());
        if on_lan {
            requirements = requirements.on_lan();
        }
        let mut asked = known.iter().filter(|subnet| subnets.contains(&subnet.id));
        if asked.any(|subnet| subnet.ipv6_prefix.is_some()) {
            requirements = requirements.with_ipv6();
        }
    }
    if restart_after_reboot {
        requirements = requirements.restarting_after_reboot();
    }
    Ok(Launch {
        group: common
            .group
            .unwrap_or_else(|| format!("family:{}", definition.family)),
        requirements,
        cluster,
        definition,
        parsed,
        overrides,
        image_digests,
        environment_files: Default::default(),
        started_by: common.started_by,
        launch_type: launch_type.to_owned(),
        subnets,
        security_groups,
        tags,
        restart_after_reboot,
        publish_ports,
        runtime,
    })
}

/// The definition as these tasks run it.
fn overridden(definition: &TaskDefinition, overrides: Option<&Value>) -> Result<Overridden, ApiError> {
    let none = Value::Object(Map::new());
    override_definition(&definition.definition, overrides.unwrap_or(&none))
        .map_err(|problems| ApiError::InvalidParameter(problems.to_string()))
}

/// What the caller set wins over what the definition has.
fn tags(cluster: &str, definition: &TaskDefinition, common: &Common) -> Result<Tags, ApiError> {
    let mut tags = if common.propagate_tags {
        definition.tags.clone()
    } else {
        BTreeMap::new()
    };
    tags.extend(common.tags.clone());
    if tags.len() > TAGS_MAX {
        return Err(ApiError::field(
            "tags",
            "a task can have at most 50, with those of its definition",
        ));
    }
    if common.managed_tags {
        tags.insert("aws:ecs:clusterName".to_owned(), cluster.to_owned());
    }
    Ok(tags)
}

/// Whether the task's tag wants it to start again after its host restarted.
fn restarts(tags: &Tags) -> Result<bool, ApiError> {
    match tags.get(RESTART_AFTER_REBOOT).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(ApiError::field(
            "tags",
            format_args!("{RESTART_AFTER_REBOOT} is {other:?}: it is \"true\" or \"false\""),
        )),
    }
}

/// The runtime that the task's tag names. Whether a node offers it, placement says.
fn runtime(tags: &Tags) -> Result<Option<String>, ApiError> {
    match tags.get(RUNTIME) {
        Some(name) if !is_runtime_name(name) => Err(ApiError::field(
            "tags",
            format_args!(
                "{RUNTIME} is {name:?}: it is the name of a runtime, 1 to {RUNTIME_NAME_BYTES_MAX} of a-z, 0-9 and _ . -"
            ),
        )),
        name => Ok(name.cloned()),
    }
}
