//! Owns what the control plane stores: keys and records. Never talks to the store itself.
//!
//! Records are JSON, except desired specs, which are the protobuf message that goes over the wire. Usage and
//! heartbeats are never stored.
//!
//! | key | value |
//! |---|---|
//! | `/clusters/{cluster}` | [`Cluster`] |
//! | `/families/{family}` | [`Family`] |
//! | `/task-definitions/{family}/{revision, ten digits}` | [`TaskDefinition`] |
//! | `/image-pins/{family}/{revision, ten digits}` | [`ImagePins`] |
//! | `/nodes/{cluster}/{node}` | [`Node`] |
//! | `/node-clusters/{node}` | the cluster's name, as JSON string |
//! | `/tasks/{cluster}/{task}` | [`Task`] |
//! | `/names/{cluster}/{task}` | [`TaskName`] |
//! | `/desired/{node}/{task}` | `berth.node.v1.TaskSpec`, protobuf |
//! | `/applied/{node}` | highest applied `StateChange.sequence`, as JSON number |
//! | `/api-keys/{access key id}` | [`ApiKeyRecord`] |
//! | `/api-key-uses/{access key id}` | when it was last used, coarsely, as JSON number ([`Millis`]) |
//! | `/confirmations/{node}` | [`Confirmation`], under a lease |
//! | `/idempotency/{cluster}/{operation}/{token}` | [`Idempotent`] |
//! | `/join-tokens/{token}` | [`JoinToken`] |
//! | `/environment-files/{bucket}/{key}` | [`EnvironmentFile`] |
//! | `/environment-file-contents/{bucket}/{key}` | what it holds, as JSON string |
//! | `/identities/{node}` | [`Identity`] |
//! | `/revocations/{node}` | [`Revocation`] |
//! | `/subnets/{cluster}/{subnet}` | [`Subnet`] |
//! | `/subnet-ranges` | every subnet's range, as a JSON object from id to [`SubnetClaim`] |
//! | `/store` | [`StoreIdentity`] |
//!
//! A placed task is one transaction: the node's record by compare, the task, the desired spec. A stop is one too:
//! the task's desired status, the desired spec's, and the node's allocation. When a node reports STOPPED, one
//! transaction writes the task, `/applied`, removes the allocation, and deletes the desired spec and the name. A name comes
//! with the report of the task's address.

pub mod attribute;
pub mod keys;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use berth_control_plane_core::subnets::{Blocks, Ipv4Net, Ipv6Net, KINDS, Lan, Shape, ipv6, overlap};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub type Tags = BTreeMap<String, String>;
pub type Attributes = BTreeMap<String, Option<String>>;
/// Milliseconds since the Unix epoch.
pub type Millis = i64;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreIdentity {
    pub store_id: String,
    pub epoch: u64,
}

/// When the store was first served in its epoch: nodes could not speak before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStart {
    pub epoch: u64,
    pub since: Millis,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    /// ACTIVE or INACTIVE.
    pub status: String,
    #[serde(default)]
    pub tags: Tags,
    /// As CreateCluster got them, echoed.
    #[serde(default)]
    pub settings: Vec<Value>,
    pub created_at: Millis,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Family {
    pub latest_revision: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskDefinition {
    pub family: String,
    pub revision: u32,
    /// ACTIVE or INACTIVE.
    pub status: String,
    /// The definition as AWS would echo it: camelCase, defaults filled in, nothing invented.
    pub definition: Value,
    #[serde(default)]
    pub tags: Tags,
    pub registered_at: Millis,
    pub deregistered_at: Option<Millis>,
    pub registered_by: String,
}

/// The images of a revision as its first task resolved them, by container name: `sha256:…` of what the tag pointed to.
/// What is here stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePins {
    pub digests: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    pub id: String,
    pub cluster: String,
    /// ACTIVE, DRAINING or INACTIVE (deregistered).
    pub status: String,
    pub agent_connected: bool,
    pub hostname: String,
    pub boot_id: String,
    pub agent_version: String,
    pub runtime_version: String,
    pub kernel_version: String,
    pub architecture: String,
    pub cpu_units: u32,
    pub memory_bytes: u64,
    /// Of its own range.
    pub task_addresses: u32,
    /// Where other nodes reach its tasks, as it says. None: they do not.
    #[serde(default)]
    pub node_address: Option<IpAddr>,
    /// Likewise their IPv6 addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ipv6_address: Option<Ipv6Addr>,
    /// Ranges of subnets that it said it uses, when it last linked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<Ipv4Net>,
    /// The store's epoch of that time. Zero: before a version that wrote it, or never.
    #[serde(default)]
    pub linked_epoch: u64,
    pub reserved_tcp_ports: Vec<u16>,
    pub reserved_udp_ports: Vec<u16>,
    /// Ids of its GPUs.
    #[serde(default)]
    pub gpus: Vec<String>,
    pub features: Vec<String>,
    /// Found by or configured on the node; replaced at every Hello.
    pub node_attributes: Attributes,
    /// Put by PutAttributes.
    #[serde(default)]
    pub attributes: Attributes,
    #[serde(default)]
    pub tags: Tags,
    /// What is placed here, by task id. Placement reads only this.
    #[serde(default)]
    pub allocations: BTreeMap<String, Allocation>,
    pub registered_at: Millis,
    /// When `agent_connected` last changed.
    pub connectivity_at: Millis,
}

/// What one task holds on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    pub cpu_units: u32,
    pub memory_bytes: u64,
    pub tcp_ports: Vec<u16>,
    pub udp_ports: Vec<u16>,
    /// Whether it has addresses.
    pub address: bool,
    /// The subnet of which the address is; none: the node's own range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// How many. Zero with `address`: one, by an earlier version.
    #[serde(default)]
    pub addresses: u32,
    /// Ids of GPUs.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// The task's group: `spread` and constraints on `task:group` look at it.
    #[serde(default)]
    pub group: String,
    /// Its desired status is STOPPED: CPU and memory count as free; ports, GPUs and the address do not until the
    /// node reports STOPPED, which removes the allocation.
    pub stopping: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    pub id: String,
    pub cluster: String,
    pub node: String,
    pub family: String,
    pub revision: u32,
    /// `family:…` unless the caller named one.
    pub group: String,
    pub started_by: Option<String>,
    /// EC2, FARGATE or EXTERNAL, as asked for.
    pub launch_type: String,
    pub desired_status: String,
    /// PROVISIONING, PENDING, RUNNING, DEACTIVATING, STOPPING, DEPROVISIONING or STOPPED.
    pub last_status: String,
    /// Echoed in DescribeTasks.
    pub cpu: Option<String>,
    pub memory: Option<String>,
    #[serde(default)]
    pub ephemeral_storage_gib: Option<u32>,
    pub overrides: Value,
    pub network_mode: String,
    /// The subnet that it is in, and security groups as asked for.
    pub subnets: Vec<String>,
    pub security_groups: Vec<String>,
    /// Id of the network attachment of an awsvpc task.
    pub attachment_id: Option<String>,
    pub containers: Vec<TaskContainer>,
    #[serde(default)]
    pub tags: Tags,
    /// Rises with every change that clients can see; ECS's `version`.
    pub version: u64,
    pub ipv4_address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_address: Option<String>,
    pub mac_address: Option<String>,
    pub stop_code: Option<String>,
    pub stopped_reason: Option<String>,
    /// What people should know of it, as known at its launch.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Likewise, as its node says.
    #[serde(default)]
    pub node_warnings: Vec<String>,
    /// Why it waits, as its node says.
    pub waiting_reason: Option<String>,
    pub created_at: Millis,
    pub pull_started_at: Option<Millis>,
    pub pull_stopped_at: Option<Millis>,
    pub started_at: Option<Millis>,
    pub stopping_at: Option<Millis>,
    pub execution_stopped_at: Option<Millis>,
    pub stopped_at: Option<Millis>,
}

impl Task {
    /// What people should know of it, from whoever noticed.
    pub fn all_warnings(&self) -> impl Iterator<Item = &String> {
        self.warnings.iter().chain(&self.node_warnings)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskContainer {
    pub id: String,
    pub name: String,
    pub image: String,
    pub last_status: String,
    pub exit_code: Option<i32>,
    pub reason: Option<String>,
    pub runtime_id: Option<String>,
    pub image_digest: Option<String>,
    /// By its restart policy.
    #[serde(default)]
    pub restart_count: u32,
    /// What it resolves its image to becomes the revision's, if it is the first.
    #[serde(default)]
    pub pins: bool,
    /// What it did resolve it to; only if it `pins`.
    #[serde(default)]
    pub resolved_digest: Option<String>,
    pub cpu: String,
    pub memory: Option<String>,
    pub memory_reservation: Option<String>,
    /// For networkBindings in host mode: (container port, host port, protocol).
    pub ports: Vec<(u16, u16, String)>,
    /// Those of the host that lead to it, as its node says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bindings: Vec<PortBinding>,
    /// Ids of the GPUs it has to itself.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// Absent in what an earlier version stored, as is what has to do with health.
    #[serde(default)]
    pub essential: bool,
    /// Its log driver is `none`.
    #[serde(default)]
    pub discards_output: bool,
    /// None: it has no health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<ContainerHealth>,
}

/// A port of the host that leads to a container's, or as many as its range has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortBinding {
    /// tcp or udp.
    pub protocol: String,
    pub host_port: u16,
    pub container_port: u16,
    /// Of a range: the container's last.
    pub last_container_port: Option<u16>,
}

/// What a node says of a container's health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerHealth {
    /// HEALTHY, UNHEALTHY or UNKNOWN.
    pub status: String,
    pub since: Option<Millis>,
    /// Of the probe that said so; none where it was killed or could not be executed.
    pub exit_code: Option<i32>,
    pub output: Option<String>,
}

impl ContainerHealth {
    /// Before its node says anything.
    pub fn unknown() -> Self {
        Self {
            status: "UNKNOWN".into(),
            since: None,
            exit_code: None,
            output: None,
        }
    }
}

impl Task {
    /// ECS's word for the health of a task: that of its essential containers that have a health check.
    pub fn health(&self) -> &'static str {
        let essential = self.containers.iter().filter(|one| one.essential);
        let mut statuses = essential
            .filter_map(|one| one.health.as_ref())
            .map(|health| health.status.as_str())
            .peekable();
        if statuses.peek().is_none() {
            return "UNKNOWN";
        }
        let (mut unhealthy, mut healthy) = (false, true);
        for status in statuses {
            unhealthy |= status == "UNHEALTHY";
            healthy &= status == "HEALTHY";
        }
        match (unhealthy, healthy) {
            (true, _) => "UNHEALTHY",
            (false, true) => "HEALTHY",
            (false, false) => "UNKNOWN",
        }
    }
}

/// Where a task is reached, for resolvers: all that a node of the cluster has to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskName {
    pub ipv4_address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_address: Option<String>,
    /// They are its node's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_node: bool,
}

/// A range of which nodes of one cluster have parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub id: String,
    pub cluster: String,
    /// Unique in the cluster.
    pub name: String,
    pub kind: SubnetKind,
    /// Of which nodes have parts.
    pub range: Ipv4Net,
    /// Of a node's part.
    pub node_prefix_len: u8,
    /// Below which tasks have IPv6 addresses too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_prefix: Option<Ipv6Net>,
    /// It is being deleted: no task is placed in it any more.
    #[serde(default)]
    pub deleting: bool,
    #[serde(default)]
    pub tags: Tags,
    pub created_at: Millis,
    #[serde(default)]
    pub blocks: Blocks,
}

impl Subnet {
    pub fn shape(&self) -> Shape {
        Shape {
            range: self.range,
            node_prefix_len: self.node_prefix_len,
        }
    }

    /// The network outside whose hosts its tasks are; none: nodes route to it.
    pub fn lan(&self) -> Option<&Lan> {
        match &self.kind {
            SubnetKind::Routed => None,
            SubnetKind::Lan(lan) => Some(lan),
        }
    }
}

/// How tasks of a subnet are connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubnetKind {
    /// Each by a link of its own to its node, which routes.
    Routed,
    /// As hosts of a network that is there.
    Lan(Lan),
}

impl SubnetKind {
    /// As the API and its clients spell it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Routed => KINDS[0],
            Self::Lan(lan) => lan.link.kind(),
        }
    }
}

/// A range that no other subnet may overlap, whatever its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetClaim {
    pub cluster: String,
    pub range: Ipv4Net,
    /// The network that it is a range of: no routed subnet may overlap that, but other ranges of it may be other subnets'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lan: Option<Ipv4Net>,
    /// A host of that network, whose address is no task's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_prefix: Option<Ipv6Net>,
}

impl SubnetClaim {
    /// Tasks of `self` could get the address of the other one's gateway.
    pub fn takes_gateway_of(&self, other: &Self) -> Option<Ipv4Addr> {
        other.gateway.filter(|gateway| self.range.contains(gateway))
    }

    /// Likewise of their IPv6 prefixes.
    pub fn overlap_ipv6(&self, other: &Self) -> Option<(Ipv6Net, Ipv6Net)> {
        let both = self.ipv6_prefix.zip(other.ipv6_prefix);
        both.filter(|(mine, theirs)| ipv6::overlap(*mine, *theirs))
    }

    /// What of the two cannot be both subnets'.
    pub fn overlap(&self, other: &Self) -> Option<(Ipv4Net, Ipv4Net)> {
        let (mine, theirs) = match (self.lan, other.lan) {
            (Some(lan), None) => (lan, other.range),
            (None, Some(lan)) => (self.range, lan),
            _ => (self.range, other.range),
        };
        overlap(mine, theirs).then_some((mine, theirs))
    }
}

/// The answer to a call that carried a client token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Idempotent {
    /// SHA-256 of the request without its token, hex.
    pub request_sha256: String,
    pub response: Value,
    pub created_at: Millis,
}

/// Lets hosts join, as often as it says. Its secret is not stored, only the secret's hash.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinToken {
    /// 16 hexadecimal digits; not a secret.
    pub id: String,
    /// SHA-256 of the secret, hex.
    pub secret_sha256: String,
    pub cluster: String,
    /// What every node that joins with it has; as if put by PutAttributes.
    #[serde(default)]
    pub attributes: Attributes,
    pub uses: u32,
    pub uses_left: u32,
    /// Nodes that joined with it, by SHA-256 of their public key: the same key gets the same node again.
    #[serde(default)]
    pub joined: BTreeMap<String, String>,
    pub created_by: String,
    pub created_at: Millis,
    pub expires_at: Millis,
}

/// An environment file of the control plane's own store: what may be shown of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentFile {
    /// By which task definitions name it.
    pub arn: String,
    pub bytes: usize,
    pub variables: usize,
    pub changed_by: String,
    pub changed_at: Millis,
}

/// What the control plane knows of a node's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub node: String,
    pub cluster: String,
    /// Fingerprint of the authority that signed the certificate it last showed, or was first given.
    pub authority: String,
    /// When the latest of that authority's ends, as far as is known.
    pub not_after: Option<Millis>,
    /// Issued to it by another authority, and not shown yet: it may never have arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingCertificate>,
    /// Id of the join token, if it joined by one.
    pub joined_with: Option<String>,
    pub changed_at: Millis,
}

/// A certificate that a node was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingCertificate {
    /// Fingerprint of the authority that signed it.
    pub authority: String,
    /// When it ends.
    pub not_after: Millis,
}

/// Why a deregistered node is revoked.
pub const DEREGISTERED: &str = "it was deregistered";

/// Nothing that is signed for this node is believed any more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Revocation {
    pub node: String,
    pub cluster: String,
    /// For people, the node's among them.
    pub reason: String,
    pub revoked_by: String,
    pub revoked_at: Millis,
}

/// What the owner of an access key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything.
    Admin,
    /// Calls that change nothing.
    ReadOnly,
}

impl Role {
    /// As the API and its clients spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ReadOnly => "read-only",
        }
    }
}

/// An access key. The secret itself is kept: a signature cannot be checked with less.
#[derive(Clone, Serialize, Deserialize)]
pub struct ApiKeyRecord {
    pub access_key_id: String,
    pub secret: String,
    /// Whose it is, for people.
    pub name: String,
    pub role: Role,
    pub created_at: Millis,
    /// The access key it was made with; none for the control plane's own first one.
    pub created_by: Option<String>,
}

impl fmt::Debug for ApiKeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeyRecord")
            .field("access_key_id", &self.access_key_id)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// An operator's word that what a node holds back is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Confirmation {
    pub node: String,
    pub confirmed_by: String,
    pub confirmed_at: Millis,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(of: &[(bool, Option<&str>)]) -> &'static str {
        let mut task = crate::link::test_task("a", "b");
        let one = task.containers.remove(0);
        let container = |(essential, status): &(bool, Option<&str>)| TaskContainer {
            essential: *essential,
            health: status.map(|status| ContainerHealth {
                status: status.into(),
                ..ContainerHealth::unknown()
            }),
            ..one.clone()
        };
        task.containers = of.iter().map(container).collect();
        task.health()
    }

    #[test]
    fn a_task_is_as_healthy_as_its_essential_containers_that_are_checked() {
        let (healthy, unhealthy, unknown) = (Some("HEALTHY"), Some("UNHEALTHY"), Some("UNKNOWN"));
        assert_eq!(health(&[(true, None)]), "UNKNOWN");
        assert_eq!(
            health(&[(true, healthy), (true, None), (false, unhealthy)]),
            "HEALTHY"
        );
        assert_eq!(health(&[(true, healthy), (true, unknown)]), "UNKNOWN");
        assert_eq!(
            health(&[(true, healthy), (true, unknown), (true, unhealthy)]),
            "UNHEALTHY"
        );
        assert_eq!(health(&[(false, healthy)]), "UNKNOWN");
    }
}
