//! Owns the table of operations: which there are, which of ECS's are not here, and where each lives. Never reads a
//! field of a request.

use std::sync::Arc;

use axum::body::Body;
use serde_json::Value;

use super::{
    attributes, audit_events, authority, berth, clusters, container_instances,
    context::{Api, Caller},
    environment_files,
    error::ApiError,
    fields::Fields,
    join_tokens, keys, logs, nodes, subnets, tags, task_definitions, tasks,
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

/// Whether an operation changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing. Every key may call it.
    Read,
    /// Something: for admins, and written into the audit log.
    Write,
}

/// One operation of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    service: &'static str,
    pub name: &'static str,
    pub access: Access,
}

impl Operation {
    /// The operation that X-Amz-Target names.
    pub fn find(target: &str) -> Result<Self, ApiError> {
        let (service, name) = target.split_once('.').ok_or_else(|| unknown(target))?;
        let found = OPERATIONS
            .iter()
            .find(|one| one.service == service && one.name == name);
        match found {
            Some(found) => Ok(*found),
            None if service == ECS && ABSENT.contains(&name) => Err(ApiError::Client(format!(
                "{name} is not supported by this endpoint"
            ))),
            None if service == ECS => Err(unknown(name)),
            None => Err(unknown(target)),
        }
    }

    /// As an IAM policy would name it.
    pub fn action(&self) -> String {
        let prefix = if self.service == ECS { "ecs" } else { "berth" };
        format!("{prefix}:{}", self.name)
    }
}

const fn ecs(name: &'static str, access: Access) -> Operation {
    Operation {
        service: ECS,
        name,
        access,
    }
}

const fn berth(name: &'static str, access: Access) -> Operation {
    Operation {
        service: BERTH,
        name,
        access,
    }
}

/// Every operation there is. One that is not here cannot be called, so a new one has to say what it does.
const OPERATIONS: &[Operation] = &[
    ecs("CreateCluster", Access::Write),
    ecs("DescribeClusters", Access::Read),
    ecs("ListClusters", Access::Read),
    ecs("DeleteCluster", Access::Write),
    ecs("RegisterTaskDefinition", Access::Write),
    ecs("DescribeTaskDefinition", Access::Read),
    ecs("ListTaskDefinitions", Access::Read),
    ecs("ListTaskDefinitionFamilies", Access::Read),
    ecs("DeregisterTaskDefinition", Access::Write),
    ecs("RunTask", Access::Write),
    ecs("StartTask", Access::Write),
    ecs("StopTask", Access::Write),
    ecs("DescribeTasks", Access::Read),
    ecs("ListTasks", Access::Read),
    ecs("GetTaskProtection", Access::Read),
    ecs("UpdateTaskProtection", Access::Write),
    ecs("ListContainerInstances", Access::Read),
    ecs("DescribeContainerInstances", Access::Read),
    ecs("UpdateContainerInstancesState", Access::Write),
    ecs("DeregisterContainerInstance", Access::Write),
    ecs("TagResource", Access::Write),
    ecs("UntagResource", Access::Write),
    ecs("ListTagsForResource", Access::Read),
    ecs("PutAttributes", Access::Write),
    ecs("DeleteAttributes", Access::Write),
    ecs("ListAttributes", Access::Read),
    berth("StreamLogs", Access::Read),
    berth("ExplainTask", Access::Read),
    berth("GetUsage", Access::Read),
    berth("GetServerInfo", Access::Read),
    berth("CreateJoinToken", Access::Write),
    berth("ListJoinTokens", Access::Read),
    berth("DeleteJoinToken", Access::Write),
    berth("RevokeNode", Access::Write),
    berth("ConfirmDesiredState", Access::Write),
    berth("DescribeAuthority", Access::Read),
    berth("RotateAuthority", Access::Write),
    berth("CreateApiKey", Access::Write),
    berth("ListApiKeys", Access::Read),
    berth("DeleteApiKey", Access::Write),
    berth("ListAuditEvents", Access::Read),
    berth("PutEnvironmentFile", Access::Write),
    berth("ListEnvironmentFiles", Access::Read),
    berth("DeleteEnvironmentFile", Access::Write),
    berth("CreateSubnet", Access::Write),
    berth("ListSubnets", Access::Read),
    berth("DeleteSubnet", Access::Write),
];

/// Runs an operation. Whether the caller may call it was checked.
pub(super) async fn dispatch(
    api: &Arc<Api>,
    caller: &Caller,
    operation: Operation,
    input: Fields,
) -> Result<Answer, ApiError> {
    match (operation.service, operation.name) {
        (BERTH, "StreamLogs") => logs::stream(api, input).await.map(Answer::Stream),
        (BERTH, name) => call_berth(api, caller, name, input).await.map(Answer::Json),
        (_, name) => call_ecs(api, caller, name, input).await.map(Answer::Json),
    }
}

async fn call_berth(api: &Api, caller: &Caller, name: &str, input: Fields) -> Result<Value, ApiError> {
    match name {
        "ExplainTask" => berth::explain_task(api, input).await,
        "GetUsage" => berth::get_usage(api, input).await,
        "GetServerInfo" => berth::get_server_info(api, input),
        "CreateJoinToken" => join_tokens::create(api, caller, input).await,
        "ListJoinTokens" => join_tokens::list(api, input).await,
        "DeleteJoinToken" => join_tokens::delete(api, input).await,
        "ConfirmDesiredState" => nodes::confirm(api, caller, input).await,
        "RevokeNode" => nodes::revoke(api, caller, input).await,
        "DescribeAuthority" => authority::describe(api, input).await,
        "RotateAuthority" => authority::rotate(api, input).await,
        "CreateApiKey" => keys::create(api, caller, input).await,
        "ListApiKeys" => keys::list(api, input).await,
        "DeleteApiKey" => keys::delete(api, caller, input).await,
        "ListAuditEvents" => audit_events::list(api, input).await,
        "PutEnvironmentFile" => environment_files::put(api, caller, input).await,
        "ListEnvironmentFiles" => environment_files::list(api, input).await,
        "DeleteEnvironmentFile" => environment_files::delete(api, input).await,
        "CreateSubnet" => subnets::create(api, input).await,
        "ListSubnets" => subnets::list(api, input).await,
        "DeleteSubnet" => subnets::delete(api, input).await,
        name => Err(unknown(name)),
    }
}

async fn call_ecs(api: &Api, caller: &Caller, name: &str, input: Fields) -> Result<Value, ApiError> {
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
        "GetTaskProtection" => tasks::protection::get(api, input).await,
        "UpdateTaskProtection" => tasks::protection::update(api, input).await,
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
        name => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> ApiError {
    ApiError::UnknownOperation(format!("'{name}' is not an operation of this endpoint"))
}

/// The rest of ECS's 88 operations (API model of 2026-11).
const ABSENT: [&str; 62] = [
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
    "UpdateTaskSet",
];

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use berth_proto::node::v1::{Heartbeat, LogRequest, Pulls};
    use serde_json::json;

    use super::*;
    use crate::{
        api::{ApiConfig, CLOCK_SKEW_MAX, audited},
        audit::{AUDIT_FILE, Audit, Listing},
        model::Role,
        nodes::{Held, LogReceiver, NodeError, Nodes},
        pki::Authorities,
        store::sqlite::SqliteStore,
    };

    #[derive(Debug)]
    struct NoNodes(Arc<Authorities>);

    #[async_trait]
    impl Nodes for NoNodes {
        fn latest_heartbeat(&self, _: &str) -> Option<Heartbeat> {
            None
        }

        fn latest_pulls(&self, _: &str) -> Option<Pulls> {
            None
        }

        fn held(&self, _: &str) -> Option<Held> {
            None
        }

        fn advertised(&self) -> String {
            "cp.example:8781".into()
        }

        fn authorities(&self) -> Arc<Authorities> {
            self.0.clone()
        }

        async fn open_logs(&self, node: &str, _: LogRequest) -> Result<LogReceiver, NodeError> {
            Err(NodeError::NotConnected(node.into()))
        }
    }

    fn api(directory: &std::path::Path) -> Arc<Api> {
        let config = ApiConfig {
            region: "us-east-1".into(),
            account_id: "000000000000".into(),
            keys: vec![],
            clock_skew_max: CLOCK_SKEW_MAX,
            unsupported_log_driver: Default::default(),
        };
        let store = SqliteStore::open(directory.join("store.db")).unwrap();
        let audit = Audit::open(&directory.join(AUDIT_FILE)).unwrap();
        let nodes = NoNodes(Arc::new(Authorities::load_or_create(directory).unwrap()));
        Arc::new(Api::new(config, Arc::new(store), Arc::new(nodes), audit))
    }

    async fn code(api: &Arc<Api>, role: Role, operation: Operation) -> &'static str {
        let caller = api.caller("AKIDEXAMPLE00001", role, None);
        let answer = audited::call(api, &caller, operation, Fields::top(json!({})), "r").await;
        answer.err().map_or("", |error| error.code())
    }

    #[test]
    fn what_only_reads_is_named_so() {
        for operation in OPERATIONS {
            let reads = ["Describe", "List", "Get", "Stream", "Explain"];
            let named = reads.iter().any(|prefix| operation.name.starts_with(prefix));
            assert_eq!(named, operation.access == Access::Read, "{}", operation.name);
            let twins = OPERATIONS.iter().filter(|other| other.name == operation.name);
            assert_eq!(twins.count(), 1, "{}", operation.name);
            assert!(!ABSENT.contains(&operation.name), "{}", operation.name);
        }
    }

    #[tokio::test]
    async fn a_read_only_key_may_call_what_reads_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let api = api(directory.path());
        for operation in OPERATIONS {
            let refused = code(&api, Role::ReadOnly, *operation).await == "AccessDeniedException";
            assert_eq!(refused, operation.access == Access::Write, "{}", operation.name);
        }
        let listing = Listing {
            before: None,
            since_ms: 0,
            max: 1_000,
        };
        let written = api.audit.list(listing).await.unwrap().events;
        let writes = OPERATIONS.iter().filter(|one| one.access == Access::Write);
        assert_eq!(written.len(), writes.count(), "each refusal is in the audit log");
    }

    #[tokio::test]
    async fn every_operation_of_the_table_is_there_for_an_admin() {
        let directory = tempfile::tempdir().unwrap();
        let api = api(directory.path());
        for operation in OPERATIONS {
            let code = code(&api, Role::Admin, *operation).await;
            let odd = [
                "UnknownOperationException",
                "AccessDeniedException",
                "ServerException",
            ];
            assert!(!odd.contains(&code), "{}: {code}", operation.name);
        }
    }
}
