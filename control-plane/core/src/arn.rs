//! Owns the names under which the ECS API knows things: ARNs long and short, plain names and ids, and
//! `family:revision`. Never looks whether the thing exists.

mod reference;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use crate::subnets;

pub use reference::{DEFAULT_CLUSTER, Realm, RefError, TaskDefinitionRef};

/// Longest name of a cluster, family or container.
pub const NAME_CHARS_MAX: usize = 255;
/// Highest revision of a family: what fits ECS's `Integer`.
pub const REVISION_MAX: u32 = i32::MAX as u32;
/// Longest ARN that is looked at: three names and what is around them.
const ARN_BYTES_MAX: usize = 1024;

/// Whether `name` may name a cluster, family or container: 1–255 of `[A-Za-z0-9_-]`.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether `id` may be the id of a task or container instance: 32 hexadecimal digits, or the UUID of
/// 36 characters that ECS used before 2018 and that old scripts still pass.
pub fn is_id(id: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match id.len() {
        32 => id.bytes().all(hex),
        36 => id.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => hex(b),
        }),
        _ => false,
    }
}

/// What an ARN of this API names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `cluster/NAME`
    Cluster { name: String },
    /// `task/CLUSTER/ID`; the old short form has no cluster.
    Task { cluster: Option<String>, id: String },
    /// `container-instance/CLUSTER/ID`; the old short form has no cluster.
    ContainerInstance { cluster: Option<String>, id: String },
    /// `task-definition/FAMILY:REVISION`
    TaskDefinition { family: String, revision: u32 },
    /// `container/CLUSTER/TASK/ID`
    Container {
        cluster: String,
        task: String,
        id: String,
    },
    /// `subnet/CLUSTER/ID`: not one of ECS's.
    Subnet { cluster: String, id: String },
    /// `service/CLUSTER/NAME`; the old short form has no cluster.
    Service { cluster: Option<String>, name: String },
}

impl Resource {
    /// The resource type as the ARN spells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cluster { .. } => "cluster",
            Self::Task { .. } => "task",
            Self::ContainerInstance { .. } => "container-instance",
            Self::TaskDefinition { .. } => "task-definition",
            Self::Container { .. } => "container",
            Self::Subnet { .. } => "subnet",
            Self::Service { .. } => "service",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::Cluster { name } => write!(f, "/{name}"),
            Self::Task { cluster, id } | Self::ContainerInstance { cluster, id } => {
                slash(f, cluster.as_deref(), id)
            }
            Self::Service { cluster, name } => slash(f, cluster.as_deref(), name),
            Self::TaskDefinition { family, revision } => write!(f, "/{family}:{revision}"),
            Self::Subnet { cluster, id } => slash(f, Some(cluster), id),
            Self::Container { cluster, task, id } => write!(f, "/{cluster}/{task}/{id}"),
        }
    }
}

fn slash(f: &mut fmt::Formatter<'_>, cluster: Option<&str>, rest: &str) -> fmt::Result {
    match cluster {
        Some(cluster) => write!(f, "/{cluster}/{rest}"),
        None => write!(f, "/{rest}"),
    }
}

/// `arn:aws:ecs:REGION:ACCOUNT:RESOURCE`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arn {
    pub region: String,
    /// Digits, as in AWS; not interpreted.
    pub account: String,
    pub resource: Resource,
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "arn:aws:ecs:{}:{}:{}",
            self.region, self.account, self.resource
        )
    }
}

/// A string that is not an ARN of the ECS API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an ARN of the form arn:aws:ecs:REGION:ACCOUNT:TYPE/NAME")]
pub struct InvalidArn(pub String);

impl FromStr for Arn {
    type Err = InvalidArn;

    /// Accepts every partition (`aws`, `aws-cn` …), since the ARN only has to name the thing.
    fn from_str(s: &str) -> Result<Self, InvalidArn> {
        parse(s).ok_or_else(|| InvalidArn(s.chars().take(128).collect()))
    }
}

fn parse(s: &str) -> Option<Arn> {
    if s.len() > ARN_BYTES_MAX {
        return None;
    }
    let mut parts = s.splitn(6, ':');
    let (arn, partition, service) = (parts.next()?, parts.next()?, parts.next()?);
    let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
    let plain = |s: &str| is_name(s);
    if arn != "arn" || !partition.starts_with("aws") || service != "ecs" || !plain(region) || !plain(account)
    {
        return None;
    }
    Some(Arn {
        region: region.to_string(),
        account: account.to_string(),
        resource: parse_resource(resource)?,
    })
}

fn parse_resource(s: &str) -> Option<Resource> {
    let (kind, rest) = s.split_once('/')?;
    let parts: Vec<&str> = rest.split('/').collect();
    let name = |s: &str| is_name(s).then(|| s.to_string());
    let id = |s: &str| is_id(s).then(|| s.to_string());
    Some(match (kind, parts.as_slice()) {
        ("cluster", [n]) => Resource::Cluster { name: name(n)? },
        ("task", [i]) => Resource::Task {
            cluster: None,
            id: id(i)?,
        },
        ("task", [c, i]) => Resource::Task {
            cluster: Some(name(c)?),
            id: id(i)?,
        },
        ("container-instance", [i]) => Resource::ContainerInstance {
            cluster: None,
            id: id(i)?,
        },
        ("container-instance", [c, i]) => Resource::ContainerInstance {
            cluster: Some(name(c)?),
            id: id(i)?,
        },
        ("task-definition", [d]) => {
            let (family, revision) = d.split_once(':')?;
            Resource::TaskDefinition {
                family: name(family)?,
                revision: parse_revision(revision)?,
            }
        }
        ("container", [c, t, i]) => Resource::Container {
            cluster: name(c)?,
            task: id(t)?,
            id: id(i)?,
        },
        ("subnet", [c, i]) => Resource::Subnet {
            cluster: name(c)?,
            id: subnets::is_id(i).then(|| i.to_string())?,
        },
        ("service", [n]) => Resource::Service {
            cluster: None,
            name: name(n)?,
        },
        ("service", [c, n]) => Resource::Service {
            cluster: Some(name(c)?),
            name: name(n)?,
        },
        _ => return None,
    })
}

/// A revision as `family:REVISION` spells it: digits only, no sign, from 1.
fn parse_revision(s: &str) -> Option<u32> {
    let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let revision = if digits { s.parse().ok()? } else { return None };
    (1..=REVISION_MAX).contains(&revision).then_some(revision)
}
