//! Owns what RunTask and StartTask accept, field by field. Never looks at the store: whether the parts fit together
//! and exist is `rules`.

use berth_control_plane_core::placement::{
    CONSTRAINTS_MAX, Constraint, InvalidConstraint, STRATEGIES_MAX, Strategy,
};
use serde_json::Value;

use crate::{
    api::{error::ApiError, fields::Fields, idempotency::ClientToken, tags},
    model::Tags,
};

/// Most tasks of one RunTask, and most container instances of one StartTask.
const TASKS_MAX: usize = 10;
const SUBNETS_MAX: usize = 16;
const SECURITY_GROUPS_MAX: usize = 5;
const STARTED_BY_CHARS_MAX: usize = 128;
const GROUP_CHARS_MAX: usize = 255;
const REFERENCE_CHARS_MAX: usize = 1024;
const LAUNCH_TYPES: [&str; 4] = ["EC2", "FARGATE", "EXTERNAL", "MANAGED_INSTANCES"];

/// What both operations have.
#[derive(Debug)]
pub(super) struct Common {
    pub cluster: Option<String>,
    pub definition: String,
    pub group: Option<String>,
    pub started_by: Option<String>,
    pub network: Option<Network>,
    /// As they came: whether they fit the definition is the core's question.
    pub overrides: Option<Value>,
    pub tags: Tags,
    /// Tag the task with its cluster, as `aws:ecs:clusterName`.
    pub managed_tags: bool,
    /// The definition's tags are the task's, too.
    pub propagate_tags: bool,
}

/// awsvpcConfiguration.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub subnets: Vec<String>,
    pub security_groups: Vec<String>,
    pub public_ip: bool,
}

/// RunTask.
#[derive(Debug)]
pub(super) struct RunRequest {
    pub common: Common,
    pub count: usize,
    pub constraints: Vec<Constraint>,
    pub strategy: Vec<Strategy>,
    pub launch_type: Option<&'static str>,
    pub platform_version: Option<String>,
    pub token: Option<ClientToken>,
}

/// StartTask.
#[derive(Debug)]
pub(super) struct StartRequest {
    pub common: Common,
    pub nodes: Vec<String>,
}

impl RunRequest {
    pub fn parse(mut input: Fields) -> Result<Self, ApiError> {
        let whole = input.rest();
        let token = ClientToken::take(&mut input, "RunTask", &whole)?;
        let count = input.integer("count", 1, TASKS_MAX as i64)?.unwrap_or(1);
        let launch_type = input.choice("launchType", &LAUNCH_TYPES)?;
        let providers = input.objects("capacityProviderStrategy", 20)?;
        if launch_type.is_some() && !providers.is_empty() {
            return Err(ApiError::InvalidParameter(
                "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try \
                 again."
                    .to_owned(),
            ));
        }
        if !providers.is_empty() {
            return Err(ApiError::field(
                "capacityProviderStrategy",
                "not supported yet: use launchType",
            ));
        }
        let request = Self {
            count: usize::try_from(count).unwrap_or(1),
            constraints: constraints(&mut input)?,
            strategy: strategy(&mut input)?,
            launch_type,
            platform_version: input
                .string("platformVersion")?
                .filter(|version| !version.is_empty()),
            token,
            common: Common::take(&mut input)?,
        };
        input.finish()?;
        Ok(request)
    }
}

impl StartRequest {
    pub fn parse(mut input: Fields) -> Result<Self, ApiError> {
        let nodes = input.required_strings("containerInstances", TASKS_MAX)?;
        let common = Common::take(&mut input)?;
        input.finish()?;
        Ok(Self { common, nodes })
    }
}

impl Common {
    fn take(input: &mut Fields) -> Result<Self, ApiError> {
        input.unsupported("enableExecuteCommand")?;
        input.unsupported("volumeConfigurations")?;
        // Deprecated in ECS, where it has no effect either.
        if input
            .string("referenceId")?
            .is_some_and(|id| id.chars().count() > REFERENCE_CHARS_MAX)
        {
            return Err(ApiError::field("referenceId", "can have at most 1024 characters"));
        }
        let propagate = input.choice("propagateTags", &["TASK_DEFINITION", "SERVICE", "NONE"])?;
        if propagate == Some("SERVICE") {
            return Err(ApiError::field(
                "propagateTags",
                "'SERVICE' is only valid for tasks of a service",
            ));
        }
        Ok(Self {
            cluster: input.string("cluster")?,
            definition: input.required("taskDefinition")?,
            group: group(input)?,
            started_by: started_by(input)?,
            network: network(input)?,
            overrides: input.raw("overrides"),
            tags: tags::take(input)?,
            managed_tags: input.boolean("enableECSManagedTags")?,
            propagate_tags: propagate == Some("TASK_DEFINITION"),
        })
    }
}

fn group(input: &mut Fields) -> Result<Option<String>, ApiError> {
    let Some(group) = input.string("group")?.filter(|group| !group.is_empty()) else {
        return Ok(None);
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_:/.".contains(c);
    if group.len() > GROUP_CHARS_MAX || !group.chars().all(allowed) {
        return Err(ApiError::field(
            "group",
            "must be at most 255 letters, digits and -_:/.",
        ));
    }
    if group.starts_with("service:") {
        return Err(ApiError::field(
            "group",
            "the prefix service: belongs to tasks of services",
        ));
    }
    Ok(Some(group))
}

fn started_by(input: &mut Fields) -> Result<Option<String>, ApiError> {
    let started_by = input.string("startedBy")?.filter(|by| !by.is_empty());
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_/".contains(c);
    match &started_by {
        Some(by) if by.len() > STARTED_BY_CHARS_MAX || !by.chars().all(allowed) => Err(ApiError::field(
            "startedBy",
            "must be at most 128 letters, digits and -_/",
        )),
        _ => Ok(started_by),
    }
}

fn network(input: &mut Fields) -> Result<Option<Network>, ApiError> {
    let Some(mut outer) = input.object("networkConfiguration")? else {
        return Ok(None);
    };
    let inner = outer.object("awsvpcConfiguration")?;
    outer.finish()?;
    let Some(mut inner) = inner else { return Ok(None) };
    let network = Network {
        subnets: inner.required_strings("subnets", SUBNETS_MAX)?,
        security_groups: inner.strings("securityGroups")?.unwrap_or_default(),
        public_ip: inner.choice("assignPublicIp", &["ENABLED", "DISABLED"])? == Some("ENABLED"),
    };
    if network.security_groups.len() > SECURITY_GROUPS_MAX {
        return Err(ApiError::field(
            inner.path("securityGroups"),
            "can have at most 5 entries",
        ));
    }
    inner.finish()?;
    Ok(Some(network))
}

fn constraints(input: &mut Fields) -> Result<Vec<Constraint>, ApiError> {
    let one = |mut fields: Fields| {
        let kind = fields.choice("type", &["distinctInstance", "memberOf"])?;
        let kind = kind.ok_or_else(|| ApiError::field(fields.path("type"), "is required"))?;
        let expression = fields.string("expression")?;
        let path = fields.path("expression");
        fields.finish()?;
        Constraint::parse(kind, expression.as_deref()).map_err(|error| match error {
            // The column is what helps.
            InvalidConstraint::Expression { source, .. } => ApiError::field(path, source),
            other => ApiError::field(path, other),
        })
    };
    input
        .objects("placementConstraints", CONSTRAINTS_MAX)?
        .into_iter()
        .map(one)
        .collect()
}

fn strategy(input: &mut Fields) -> Result<Vec<Strategy>, ApiError> {
    let one = |mut fields: Fields| {
        let kind = fields.choice("type", &["random", "spread", "binpack"])?;
        let kind = kind.ok_or_else(|| ApiError::field(fields.path("type"), "is required"))?;
        let field = fields.string("field")?;
        let path = fields.path("field");
        fields.finish()?;
        Strategy::parse(kind, field.as_deref()).map_err(|error| ApiError::field(path, error))
    };
    input
        .objects("placementStrategy", STRATEGIES_MAX)?
        .into_iter()
        .map(one)
        .collect()
}
