//! Owns how a parameter names a thing (by name, id, short or long ARN) and turns it into the plain key. Never
//! accepts an ARN of another region, account, cluster or type as if it were ours.

use super::{Arn, Resource, is_id, is_name, parse_revision};

/// The cluster that is meant when a request names none.
pub const DEFAULT_CLUSTER: &str = "default";

/// Where this control plane says it is: one region and one account, configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    pub region: String,
    pub account: String,
}

/// A reference that cannot name anything here. Which ECS exception it becomes is the API's choice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    #[error("{input:?} is not a {what}: expected {expected}")]
    Malformed {
        what: &'static str,
        input: String,
        expected: &'static str,
    },
    #[error("{input} names a {kind}, expected a {what}")]
    WrongKind {
        what: &'static str,
        input: String,
        kind: &'static str,
    },
    #[error("{input} is of region {region} and account {account}; this endpoint serves {here}")]
    Foreign {
        input: String,
        region: String,
        account: String,
        here: String,
    },
    #[error("{input} belongs to cluster {named}, the request is for cluster {cluster}")]
    OtherCluster {
        input: String,
        named: String,
        cluster: String,
    },
}

/// How RunTask and friends name a task definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskDefinitionRef {
    /// The family's latest ACTIVE revision.
    Family(String),
    /// One revision.
    Revision(String, u32),
}

const NAME: &str = "1 to 255 of A-Z a-z 0-9 - _, or an ARN";
const ID: &str = "32 hexadecimal digits, or an ARN";
const DEFINITION: &str = "FAMILY, FAMILY:REVISION, or an ARN";

impl Realm {
    /// The ARN of a cluster.
    pub fn cluster(&self, name: &str) -> String {
        self.arn(Resource::Cluster { name: name.into() })
    }

    /// The ARN of a task.
    pub fn task(&self, cluster: &str, id: &str) -> String {
        self.arn(Resource::Task {
            cluster: Some(cluster.into()),
            id: id.into(),
        })
    }

    /// The ARN of a container instance.
    pub fn container_instance(&self, cluster: &str, id: &str) -> String {
        self.arn(Resource::ContainerInstance {
            cluster: Some(cluster.into()),
            id: id.into(),
        })
    }

    /// The ARN of one revision of a task definition.
    pub fn task_definition(&self, family: &str, revision: u32) -> String {
        self.arn(Resource::TaskDefinition {
            family: family.into(),
            revision,
        })
    }

    /// The ARN of a container of a task.
    pub fn container(&self, cluster: &str, task: &str, id: &str) -> String {
        self.arn(Resource::Container {
            cluster: cluster.into(),
            task: task.into(),
            id: id.into(),
        })
    }

    /// The ARN of a subnet.
    pub fn subnet(&self, cluster: &str, id: &str) -> String {
        self.arn(Resource::Subnet {
            cluster: cluster.into(),
            id: id.into(),
        })
    }

    /// The cluster's name; `None` and the empty string mean [`DEFAULT_CLUSTER`].
    pub fn cluster_name(&self, input: Option<&str>) -> Result<String, RefError> {
        let Some(input) = input.filter(|s| !s.is_empty()) else {
            return Ok(DEFAULT_CLUSTER.into());
        };
        match self.resolve("cluster", NAME, input)? {
            None if is_name(input) => Ok(input.into()),
            None => Err(malformed("cluster", NAME, input)),
            Some(Resource::Cluster { name }) => Ok(name),
            Some(other) => Err(wrong("cluster", &other, input)),
        }
    }

    /// The id of a task that a request for `cluster` names.
    pub fn task_id(&self, cluster: &str, input: &str) -> Result<String, RefError> {
        match self.resolve("task", ID, input)? {
            None if is_id(input) => Ok(input.into()),
            None => Err(malformed("task", ID, input)),
            Some(Resource::Task { cluster: named, id }) => in_cluster(cluster, named, id, input),
            Some(other) => Err(wrong("task", &other, input)),
        }
    }

    /// The id of a container instance that a request for `cluster` names.
    pub fn container_instance_id(&self, cluster: &str, input: &str) -> Result<String, RefError> {
        const WHAT: &str = "container instance";
        match self.resolve(WHAT, ID, input)? {
            None if is_id(input) => Ok(input.into()),
            None => Err(malformed(WHAT, ID, input)),
            Some(Resource::ContainerInstance { cluster: named, id }) => in_cluster(cluster, named, id, input),
            Some(other) => Err(wrong(WHAT, &other, input)),
        }
    }

    /// The task definition a request names.
    pub fn task_definition_ref(&self, input: &str) -> Result<TaskDefinitionRef, RefError> {
        const WHAT: &str = "task definition";
        match self.resolve(WHAT, DEFINITION, input)? {
            Some(Resource::TaskDefinition { family, revision }) => {
                return Ok(TaskDefinitionRef::Revision(family, revision));
            }
            Some(other) => return Err(wrong(WHAT, &other, input)),
            None => {}
        }
        match input.split_once(':') {
            None if is_name(input) => Ok(TaskDefinitionRef::Family(input.into())),
            Some((family, revision)) if is_name(family) => parse_revision(revision)
                .map(|revision| TaskDefinitionRef::Revision(family.into(), revision))
                .ok_or_else(|| malformed(WHAT, DEFINITION, input)),
            _ => Err(malformed(WHAT, DEFINITION, input)),
        }
    }

    /// The thing of ours that a full ARN names (TagResource and friends take nothing shorter).
    pub fn own(&self, input: &str) -> Result<Resource, RefError> {
        const EXPECTED: &str = "an ARN of the form arn:aws:ecs:REGION:ACCOUNT:TYPE/NAME";
        self.resolve("resource", EXPECTED, input)?
            .ok_or_else(|| malformed("resource ARN", EXPECTED, input))
    }

    fn arn(&self, resource: Resource) -> String {
        Arn {
            region: self.region.clone(),
            account: self.account.clone(),
            resource,
        }
        .to_string()
    }

    /// `None` when the input is no ARN; an error when it is one that is broken or not of this realm.
    fn resolve(
        &self,
        what: &'static str,
        expected: &'static str,
        input: &str,
    ) -> Result<Option<Resource>, RefError> {
        if !input.starts_with("arn:") {
            return Ok(None);
        }
        let arn: Arn = input.parse().map_err(|_| malformed(what, expected, input))?;
        if arn.region != self.region || arn.account != self.account {
            return Err(RefError::Foreign {
                input: input.into(),
                region: arn.region,
                account: arn.account,
                here: format!("{} and {}", self.region, self.account),
            });
        }
        Ok(Some(arn.resource))
    }
}

fn in_cluster(cluster: &str, named: Option<String>, id: String, input: &str) -> Result<String, RefError> {
    match named {
        Some(named) if named != cluster => Err(RefError::OtherCluster {
            input: input.into(),
            named,
            cluster: cluster.into(),
        }),
        _ => Ok(id),
    }
}

fn malformed(what: &'static str, expected: &'static str, input: &str) -> RefError {
    RefError::Malformed {
        what,
        input: input.chars().take(128).collect(),
        expected,
    }
}

fn wrong(what: &'static str, found: &Resource, input: &str) -> RefError {
    RefError::WrongKind {
        what,
        input: input.into(),
        kind: found.kind(),
    }
}
