//! Owns what is stored of one address.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::{
    desired::Millis,
    ids::{ContainerId, SubnetId, TaskId},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Lease {
    Held(Holder),
    Quarantined { until: Millis },
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub(super) struct Holder {
    pub(super) task: TaskId,
    /// In bridge mode, which of its containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) container: Option<ContainerId>,
    /// None: it is of the node's own range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subnet: Option<SubnetId>,
    /// That goes with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ipv6: Option<Ipv6Addr>,
    /// The boot of the host in which it was last given. Empty: not known.
    pub(super) boot: String,
}

/// Earlier versions stored the task alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Task(TaskId),
    Whole {
        task: TaskId,
        #[serde(default)]
        container: Option<ContainerId>,
        #[serde(default)]
        subnet: Option<SubnetId>,
        #[serde(default)]
        ipv6: Option<Ipv6Addr>,
        #[serde(default)]
        boot: String,
    },
}

impl From<Stored> for Holder {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Task(task) => Self {
                task,
                container: None,
                subnet: None,
                ipv6: None,
                boot: String::new(),
            },
            Stored::Whole {
                task,
                container,
                subnet,
                ipv6,
                boot,
            } => Self {
                task,
                container,
                subnet,
                ipv6,
                boot,
            },
        }
    }
}
