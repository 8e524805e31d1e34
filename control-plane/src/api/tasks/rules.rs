//! Owns whether a request fits its task definition and this cluster: launch type, network, platform. Pure.

use berth_control_plane_core::{
    definition::UnsupportedLogDriver,
    subnets::DEFAULT_SUBNET,
    task::{Definition, NetworkMode},
};

use super::request::{Common, Network};
use crate::{
    api::error::ApiError,
    model::{Subnet, TaskDefinition},
};

/// The one security group of a cluster.
pub(super) const SECURITY_GROUP: &str = "sg-default";

/// The network mode as ECS spells it.
pub(super) fn network_mode(definition: &Definition) -> &'static str {
    match definition.network_mode {
        NetworkMode::Awsvpc => "awsvpc",
        NetworkMode::Host => "host",
        NetworkMode::None => "none",
        NetworkMode::Bridge => "bridge",
    }
}

/// Only an ACTIVE definition starts tasks.
pub(super) fn check_active(definition: &TaskDefinition) -> Result<(), ApiError> {
    if definition.status == "ACTIVE" {
        return Ok(());
    }
    let (family, revision) = (&definition.family, definition.revision);
    Err(ApiError::Client(format!(
        "TaskDefinition is inactive: {family}:{revision}. Register a new revision, or name one that is ACTIVE"
    )))
}

/// A definition may be older than the decision to refuse its log driver.
pub(super) fn check_log_drivers(
    definition: &Definition,
    absent: UnsupportedLogDriver,
) -> Result<(), ApiError> {
    match (absent, definition.refused_log_driver()) {
        (UnsupportedLogDriver::Refuse, Some(refused)) => Err(ApiError::Client(refused)),
        _ => Ok(()),
    }
}

/// The launch type a task gets: as asked for, else EC2, else what the definition requires.
pub(super) fn launch_type(
    definition: &Definition,
    asked: Option<&'static str>,
) -> Result<&'static str, ApiError> {
    let lists = [&definition.compatibilities, &definition.requires_compatibilities];
    let compatible = |name: &str| lists.iter().any(|list| list.iter().any(|entry| entry == name));
    let unrestricted = lists.iter().all(|list| list.is_empty());
    match asked {
        Some("MANAGED_INSTANCES") => Err(ApiError::field(
            "launchType",
            "'MANAGED_INSTANCES' is not supported by this endpoint: use EC2",
        )),
        Some(name) if unrestricted || compatible(name) => Ok(name),
        Some(name) => Err(ApiError::InvalidParameter(format!(
            "Task definition does not support launch_type {name}."
        ))),
        None if unrestricted || compatible("EC2") => Ok("EC2"),
        None => Ok(if compatible("FARGATE") {
            "FARGATE"
        } else {
            "EXTERNAL"
        }),
    }
}

/// platformVersion means something for FARGATE alone, and there is one.
pub(super) fn check_platform(launch_type: &str, version: Option<&str>) -> Result<(), ApiError> {
    match version {
        None => Ok(()),
        Some(_) if launch_type != "FARGATE" => Err(ApiError::InvalidParameter(format!(
            "platformVersion: must be absent with launch type {launch_type}"
        ))),
        Some("LATEST" | "1.4.0") => Ok(()),
        Some(other) => Err(ApiError::PlatformUnknown(format!(
            "platformVersion: '{other}' is unknown: use LATEST or 1.4.0"
        ))),
    }
}

/// The network a task gets: subnets and security groups. Empty unless its mode is awsvpc. `subnets` are the ids of the
/// cluster's; one without any has [`DEFAULT_SUBNET`].
pub(super) fn network(
    definition: &Definition,
    common: &Common,
    subnets: &[String],
) -> Result<(Vec<String>, Vec<String>), ApiError> {
    let mode = network_mode(definition);
    match (&common.network, mode) {
        (None, "awsvpc") => Err(ApiError::InvalidParameter(format!(
            "Network Configuration must be provided when networkMode 'awsvpc' is specified: set \
             networkConfiguration.awsvpcConfiguration.subnets to {}",
            known(subnets)
        ))),
        (None, _) => Ok((Vec::new(), Vec::new())),
        (Some(network), "awsvpc") => awsvpc(network, subnets),
        (Some(_), _) => Err(ApiError::InvalidParameter(format!(
            "Network Configuration is not valid for the given networkMode of this task definition: {mode}"
        ))),
    }
}

/// `assignPublicIp`: there is no gateway to a public network, so the task's ports are published on its node's address.
pub(super) fn publishes(definition: &Definition, common: &Common) -> bool {
    let asked = common.network.as_ref().is_some_and(|network| network.public_ip);
    asked && definition.network_mode == NetworkMode::Awsvpc
}

/// Tasks that are hosts of a network have no port of their node's.
pub(super) fn check_published(lans: &[&Subnet]) -> Result<(), ApiError> {
    let Some(lan) = lans.first() else {
        return Ok(());
    };
    Err(ApiError::field(
        "networkConfiguration.awsvpcConfiguration.assignPublicIp",
        format_args!(
            "a task in subnet {} ({}) is itself a host of {}: it is reached at its own address, and its ports are not \
             published by its node",
            lan.id,
            lan.kind.name(),
            lan.lan().map_or(lan.range, |lan| lan.network)
        ),
    ))
}

/// For people.
fn known(subnets: &[String]) -> String {
    if subnets.is_empty() {
        DEFAULT_SUBNET.to_owned()
    } else {
        subnets.join(" or ")
    }
}

fn awsvpc(network: &Network, subnets: &[String]) -> Result<(Vec<String>, Vec<String>), ApiError> {
    let path = |field: &str| format!("networkConfiguration.awsvpcConfiguration.{field}");
    let exists = |id: &&String| match subnets {
        [] => *id == DEFAULT_SUBNET,
        subnets => subnets.contains(id),
    };
    if let Some(other) = network.subnets.iter().find(|id| !exists(id)) {
        let problem = format!(
            "The subnet ID '{other}' does not exist: this cluster has {}",
            known(subnets)
        );
        return Err(ApiError::field(path("subnets"), problem));
    }
    if let Some(other) = network.security_groups.iter().find(|id| *id != SECURITY_GROUP) {
        let problem =
            format!("The security group '{other}' does not exist: this cluster has {SECURITY_GROUP}");
        return Err(ApiError::field(path("securityGroups"), problem));
    }
    Ok((network.subnets.clone(), vec![SECURITY_GROUP.to_owned()]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn launch_type_is_as_asked_for_if_the_definition_allows_it() {
        let definition = |compatible: &[&str], required: &[&str]| {
            let echo = json!({
                "family": "f", "networkMode": "awsvpc", "containerDefinitions": [],
                "compatibilities": compatible, "requiresCompatibilities": required,
            });
            Definition::from_echo(&echo).unwrap()
        };
        let fargate = definition(&["EC2", "FARGATE"], &["FARGATE"]);
        let only_ec2 = definition(&["EC2"], &["EC2"]);
        let only_external = definition(&[], &["EXTERNAL"]);
        for (definition, asked, expected) in [
            (&fargate, None, Some("EC2")),
            (&fargate, Some("FARGATE"), Some("FARGATE")),
            (&only_ec2, Some("FARGATE"), None),
            (&only_ec2, None, Some("EC2")),
            (&only_external, None, Some("EXTERNAL")),
            (&definition(&[], &[]), Some("EXTERNAL"), Some("EXTERNAL")),
            (&fargate, Some("MANAGED_INSTANCES"), None),
        ] {
            assert_eq!(
                launch_type(definition, asked).ok(),
                expected,
                "{definition:?} {asked:?}"
            );
        }
    }

    #[test]
    fn platform_versions_belong_to_fargate() {
        assert!(check_platform("FARGATE", Some("LATEST")).is_ok());
        assert_eq!(
            check_platform("FARGATE", Some("9")).unwrap_err().code(),
            "PlatformUnknownException"
        );
        assert_eq!(
            check_platform("EC2", Some("LATEST")).unwrap_err().code(),
            "InvalidParameterException"
        );
    }
}
