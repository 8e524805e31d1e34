//! Owns putting a snapshot together that comes in parts. Never gives one away before its last part, nor holds more than
//! [`wire::SNAPSHOT_BYTES_MAX`].

use berth_proto::node::v1 as wire;
use prost::Message as _;

use super::LinkError;

/// What came of a snapshot so far.
#[derive(Debug, Default)]
pub(super) struct Parts {
    before: Option<wire::Snapshot>,
    bytes: usize,
}

impl Parts {
    /// The whole snapshot, if this is its last part.
    ///
    /// # Errors
    /// It is no part of the one that is coming, or that is too large.
    pub fn add(&mut self, part: wire::Snapshot) -> Result<Option<wire::Snapshot>, LinkError> {
        let protocol = |what: &str| LinkError::Protocol {
            what: what.to_owned(),
        };
        self.bytes += part.encoded_len();
        if self.bytes > wire::SNAPSHOT_BYTES_MAX {
            return Err(protocol("a snapshot that is too large"));
        }
        let mut whole = match self.before.take() {
            None => part,
            Some(before) if before.position != part.position => {
                return Err(protocol("a part of another snapshot than the one that is coming"));
            }
            Some(mut before) => {
                before.tasks.extend(part.tasks);
                before.removals_confirmed = part.removals_confirmed;
                before.more = part.more;
                before
            }
        };
        if whole.more {
            self.before = Some(whole);
            return Ok(None);
        }
        self.bytes = 0;
        whole.more = false;
        Ok(Some(whole))
    }

    /// Whether there is more to come.
    pub fn begun(&self) -> bool {
        self.before.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(revision: u64, tasks: &[&str], more: bool) -> wire::Snapshot {
        let task = |id: &&str| wire::TaskSpec {
            task_id: (*id).to_owned(),
            ..Default::default()
        };
        wire::Snapshot {
            position: Some(wire::Position {
                store_id: "s".to_owned(),
                epoch: 1,
                revision,
            }),
            tasks: tasks.iter().map(task).collect(),
            removals_confirmed: false,
            more,
        }
    }

    #[test]
    fn nothing_counts_before_the_last_part() {
        let mut parts = Parts::default();
        assert_eq!(
            parts.add(part(1, &["a"], false)).unwrap(),
            Some(part(1, &["a"], false))
        );
        assert_eq!(parts.add(part(2, &["a", "b"], true)).unwrap(), None);
        assert_eq!(parts.add(part(2, &[], true)).unwrap(), None);
        assert!(parts.begun());
        let whole = parts.add(part(2, &["c"], false)).unwrap();
        assert_eq!(whole, Some(part(2, &["a", "b", "c"], false)));
        assert!(!parts.begun());
    }

    #[test]
    fn what_is_no_part_of_it_or_too_large_ends_the_link() {
        let mut parts = Parts::default();
        parts.add(part(1, &["a"], true)).unwrap();
        parts.add(part(2, &["b"], false)).unwrap_err();
        let mut parts = Parts::default();
        let large = "x".repeat(wire::SNAPSHOT_BYTES_MAX / 2);
        parts.add(part(1, &[&large], true)).unwrap();
        parts.add(part(1, &[&large], false)).unwrap_err();
    }
}
