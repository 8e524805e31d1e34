//! Owns the table of operations: which there are, which of ECS's are not here, and where each lives. Never reads a
//! field of a request.

use std::sync::Arc;

use axum::body::Body;
use serde_json::Value;

use super::{
    attributes, berth, clusters, container_instances,
    context::{Api, Caller},
    error::ApiError,
    fields::Fields,
    join_tokens, logs, nodes, tags, task_definitions, tasks,
};

const ECS: &str = "AmazonEC2ContainerServiceV20141113";
const BERTH: &str = "BerthV1";

/// What an operation answers with.
#[derive(Debug)]
pub(super) enum Answer {
    Json(Value),
    Xml(String),
    Stream(Body),
}

/// Runs the operation that X-Amz-Target names.
pub(super) async fn dispatch(
    api: &Arc<Api>,
    caller: &Caller,
    target: &str,
    input: Fields,
) -> Result<Answer, ApiError> {
    match target.split_once('.') {
        Some((ECS, name)) => ecs(api, caller, name, input).await.map(Answer::Json),
        Some((BERTH, "StreamLogs")) => logs::stream(api, input).await.map(Answer::Stream),
        Some((BERTH, "ExplainTask")) => berth::explain_task(api, input).await.map(Answer::Json),
        Some((BERTH, "GetUsage")) => berth::get_usage(api, input).await.map(Answer::Json),
        Some((BERTH, "GetServerInfo")) => berth::get_server_info(api, input).map(Answer::Json),
        Some((BERTH, "CreateJoinToken")) => join_tokens::create(api, caller, input).await.map(Answer::Json),
        Some((BERTH, "ListJoinTokens")) => join_tokens::list(api, input).await.map(Answer::Json),
        Some((BERTH, "DeleteJoinToken")) => join_tokens::delete(api, input).await.map(Answer::Json),
        Some((BERTH, "RevokeNode")) => nodes::revoke(api, caller, input).await.map(Answer::Json),
        _ => Err(unknown(target)),
    }
}

async fn ecs(api: &Api, caller: &Caller, name: &str, input: Fields) -> Result<Value, ApiError> {
    match name {
        "CreateCluster" => clusters::create(api, input).await,
        "DescribeClusters" => clusters::describe(api, input).await,
        "ListClusters" => clusters::list(api, input).await,
        "DeleteCluster" => clusters::delete(api, input).await,
        "RegisterTaskDefinition" => task_definitions::register(api, caller, input).await,
        "DescribeTaskDefinition" => task_definitions::describe(api, input).await,
        "ListTaskDefinitions" => task_definitions::list(api, input).await,
        "ListTaskDefinitionFamilies" => task_definitions::list_families(api, input).await,
        "DeregisterTaskDefinition" => task_definitions::deregister(api, input).await,
        "RunTask" => tasks::run::run(api, input).await,
        "StartTask" => tasks::run::start(api, input).await,
        "StopTask" => tasks::stop::stop(api, input).await,
        "DescribeTasks" => tasks::describe::describe(api, input).await,
        "ListTasks" => tasks::describe::list(api, input).await,
        "ListContainerInstances" => container_instances::list(api, input).await,
        "DescribeContainerInstances" => container_instances::describe(api, input).await,
        "UpdateContainerInstancesState" => container_instances::update_state(api, input).await,
        "DeregisterContainerInstance" => container_instances::deregister(api, caller, input).await,
        "TagResource" => tags::tag(api, input).await,
        "UntagResource" => tags::untag(api, input).await,
        "ListTagsForResource" => tags::list(api, input).await,
        "PutAttributes" => attributes::put(api, input).await,
        "DeleteAttributes" => attributes::delete(api, input).await,
        "ListAttributes" => attributes::list(api, input).await,
        name if ABSENT.contains(&name) => Err(ApiError::Client(format!(
            "{name} is not supported by this endpoint"
        ))),
        name => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> ApiError {
    ApiError::UnknownOperation(format!("'{name}' is not an operation of this endpoint"))
}

/// The rest of ECS's 88 operations (API model of 2026-11).
const ABSENT: [&str; 64] = [
    "AssociateGatewayWithCluster",
    "ContinueServiceDeployment",
    "CreateCapacityProvider",
    "CreateDaemon",
    "CreateExpressGatewayService",
    "CreateGateway",
    "CreateService",
    "CreateTaskSet",
    "DeleteAccountSetting",
    "DeleteCapacityProvider",
    "DeleteDaemon",
    "DeleteDaemonTaskDefinition",
    "DeleteExpressGatewayService",
    "DeleteGateway",
    "DeleteService",
    "DeleteTaskDefinitions",
    "DeleteTaskSet",
    "DescribeCapacityProviders",
    "DescribeDaemon",
    "DescribeDaemonDeployments",
    "DescribeDaemonRevisions",
    "DescribeDaemonTaskDefinition",
    "DescribeExpressGatewayService",
    "DescribeGateway",
    "DescribeGatewayResources",
    "DescribeGatewayRoute",
    "DescribeServiceDeployments",
    "DescribeServiceRevisions",
    "DescribeServices",
    "DescribeTaskSets",
    "DisassociateGatewayFromCluster",
    "DiscoverPollEndpoint",
    "ExecuteCommand",
    "GetTaskProtection",
    "ListAccountSettings",
    "ListDaemonDeployments",
    "ListDaemonTaskDefinitions",
    "ListDaemons",
    "ListGatewayClusterAssociations",
    "ListGatewayRoutes",
    "ListGateways",
    "ListServiceDeployments",
    "ListServices",
    "ListServicesByNamespace",
    "PutAccountSetting",
    "PutAccountSettingDefault",
    "PutClusterCapacityProviders",
    "RegisterContainerInstance",
    "RegisterDaemonTaskDefinition",
    "StopServiceDeployment",
    "SubmitAttachmentStateChanges",
    "SubmitContainerStateChange",
    "SubmitTaskStateChange",
    "UpdateCapacityProvider",
    "UpdateCluster",
    "UpdateClusterSettings",
    "UpdateContainerAgent",
    "UpdateDaemon",
    "UpdateExpressGatewayService",
    "UpdateGateway",
    "UpdateService",
    "UpdateServicePrimaryTaskSet",
    "UpdateTaskProtection",
    "UpdateTaskSet",
];
