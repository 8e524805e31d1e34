//! Owns the border for the names of tasks. Checks each as if nobody had checked before: tasks are sent where they say.

use std::str::FromStr;

use berth_proto::node::v1 as wire;

use super::{Refusal, refuse};
use crate::dns::{Addresses, Key, NamesChange};

/// Bytes of a cluster's name, as ECS has it.
const CLUSTER_BYTES_MAX: usize = 255;

/// What the control plane says of them.
pub fn names(message: wire::TaskNames) -> Result<NamesChange, Refusal> {
    let count = message.changed.len().max(message.removed_task_ids.len());
    if count > wire::NAMES_MAX {
        return refuse("names", format!("{count} are more than {}", wire::NAMES_MAX));
    }
    if message.cluster.is_empty() || message.cluster.len() > CLUSTER_BYTES_MAX {
        return refuse("names.cluster", "it is not the name of a cluster");
    }
    let changed = message.changed.iter().map(|name| {
        let addresses = Addresses {
            ipv4: address("names.ipv4_address", &name.ipv4_address)?,
            ipv6: address("names.ipv6_address", &name.ipv6_address)?,
            of_node: name.of_node,
        };
        Ok((key(&name.task_id)?, addresses))
    });
    Ok(NamesChange {
        changed: changed.collect::<Result<_, _>>()?,
        removed: message
            .removed_task_ids
            .iter()
            .map(|id| key(id))
            .collect::<Result<_, _>>()?,
        cluster: message.cluster,
        whole: message.whole,
    })
}

fn key(id: &str) -> Result<Key, Refusal> {
    Key::parse(id).map_or_else(|| refuse("names.task_id", format!("{id:?} is not an id")), Ok)
}

fn address<T: FromStr>(field: &str, text: &str) -> Result<Option<T>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .or_else(|_| refuse(field, format!("{text:?} is not an address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, ipv4: &str) -> wire::TaskNames {
        wire::TaskNames {
            cluster: "default".into(),
            whole: true,
            changed: vec![wire::TaskName {
                task_id: id.into(),
                ipv4_address: ipv4.into(),
                ipv6_address: String::new(),
                of_node: false,
            }],
            removed_task_ids: vec![],
        }
    }

    #[test]
    fn a_name_that_cannot_be_one_is_refused_by_its_field() {
        let id = "0123456789abcdef0123456789abcdef";
        let good = names(message(id, "10.0.0.1")).unwrap();
        assert_eq!(good.changed[0].1.ipv4, Some([10, 0, 0, 1].into()));
        let refused = |message| names(message).unwrap_err().field;
        assert_eq!(refused(message("../../etc", "10.0.0.1")), "names.task_id");
        assert_eq!(refused(message(id, "10.0.0.256")), "names.ipv4_address");
        let mut one = message(id, "");
        one.cluster = String::new();
        assert_eq!(refused(one), "names.cluster");
        let mut many = message(id, "");
        many.removed_task_ids = vec![id.into(); wire::NAMES_MAX + 1];
        assert_eq!(refused(many), "names");
    }
}
