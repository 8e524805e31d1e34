//! Owns how the keys of the records are spelled. A prefix ends with `/`, so that no name is a prefix of another's.

/// Every cluster.
pub const CLUSTERS: &str = "/clusters/";
/// Every revision of every family.
pub const TASK_DEFINITIONS: &str = "/task-definitions/";
/// Every join token.
pub const JOIN_TOKENS: &str = "/join-tokens/";
/// Every node's identity.
pub const IDENTITIES: &str = "/identities/";
/// Every revoked node.
pub const REVOCATIONS: &str = "/revocations/";
/// Every access key that is not the configuration's.
pub const API_KEYS: &str = "/api-keys/";

/// Every environment file, without its content.
pub const ENVIRONMENT_FILES: &str = "/environment-files/";

/// Every subnet.
pub const SUBNETS: &str = "/subnets/";
/// The ranges of all subnets.
pub const SUBNET_RANGES: &str = "/subnet-ranges";

/// When the store was first served in its epoch.
pub const EPOCH_START: &str = "/epoch-start";

/// Every subnet of a cluster.
pub fn subnets(cluster: &str) -> String {
    format!("{SUBNETS}{cluster}/")
}

pub fn subnet(cluster: &str, id: &str) -> String {
    format!("{SUBNETS}{cluster}/{id}")
}

pub fn environment_file(bucket: &str, key: &str) -> String {
    format!("{ENVIRONMENT_FILES}{bucket}/{key}")
}

/// What an environment file holds: as secret as the environment of tasks is.
pub fn environment_file_content(bucket: &str, key: &str) -> String {
    format!("/environment-file-contents/{bucket}/{key}")
}

pub fn api_key(access_key_id: &str) -> String {
    format!("{API_KEYS}{access_key_id}")
}

/// That a node may stop what its desired state does not name.
pub fn confirmation(node: &str) -> String {
    format!("/confirmations/{node}")
}

/// When an access key was last used.
pub fn api_key_use(access_key_id: &str) -> String {
    format!("/api-key-uses/{access_key_id}")
}

pub fn cluster(name: &str) -> String {
    format!("{CLUSTERS}{name}")
}

pub fn family(family: &str) -> String {
    format!("/families/{family}")
}

pub fn task_definition(family: &str, revision: u32) -> String {
    format!("{TASK_DEFINITIONS}{family}/{revision:010}")
}

/// What the images of a revision were resolved to.
pub fn image_pins(family: &str, revision: u32) -> String {
    format!("/image-pins/{family}/{revision:010}")
}

/// Every revision of one family.
pub fn revisions(family: &str) -> String {
    format!("{TASK_DEFINITIONS}{family}/")
}

pub fn node(cluster: &str, node: &str) -> String {
    format!("/nodes/{cluster}/{node}")
}

/// Every node of a cluster.
pub fn nodes(cluster: &str) -> String {
    format!("/nodes/{cluster}/")
}

pub fn task(cluster: &str, task: &str) -> String {
    format!("/tasks/{cluster}/{task}")
}

/// Every task of every cluster.
pub const ALL_TASKS: &str = "/tasks/";
/// Every name of a task.
pub const NAMES: &str = "/names/";

/// Where a task is reached.
pub fn name(cluster: &str, task: &str) -> String {
    format!("{NAMES}{cluster}/{task}")
}

/// Likewise, of every task of a cluster.
pub fn names(cluster: &str) -> String {
    format!("{NAMES}{cluster}/")
}

/// Every task of a cluster.
pub fn tasks(cluster: &str) -> String {
    format!("/tasks/{cluster}/")
}

pub fn desired(node: &str, task: &str) -> String {
    format!("/desired/{node}/{task}")
}

pub fn idempotency(cluster: &str, operation: &str, token: &str) -> String {
    format!("/idempotency/{cluster}/{operation}/{token}")
}

pub fn join_token(id: &str) -> String {
    format!("{JOIN_TOKENS}{id}")
}

pub fn identity(node: &str) -> String {
    format!("{IDENTITIES}{node}")
}

pub fn revocation(node: &str) -> String {
    format!("{REVOCATIONS}{node}")
}

/// Where the cluster of a node is written, for who knows the node alone.
pub fn node_cluster(node: &str) -> String {
    format!("/node-clusters/{node}")
}
