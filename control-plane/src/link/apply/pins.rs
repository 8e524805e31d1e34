//! Owns how the first task of a revision decides which images all of them run. Never changes what is decided: a later
//! task that resolved a tag to something else, at the same time, keeps what it has and changes nothing.

use std::collections::BTreeMap;

use super::ApplyError;
use crate::{
    model::{ImagePins, Task, keys},
    store::{Compare, Store, Transaction, typed},
};

/// What tasks of one batch resolved, by the key of their revision's record: digests by container name.
#[derive(Debug, Default)]
pub(super) struct Pins(BTreeMap<String, BTreeMap<String, String>>);

impl Pins {
    pub(super) fn note(&mut self, task: &Task) {
        let resolved = self
            .0
            .entry(keys::image_pins(&task.family, task.revision))
            .or_default();
        for container in task.containers.iter().filter(|container| container.pins) {
            if let Some(digest) = &container.resolved_digest {
                resolved
                    .entry(container.name.clone())
                    .or_insert_with(|| digest.clone());
            }
        }
    }

    /// Adds the records that change, by compare.
    pub(super) async fn add_to(
        &self,
        store: &dyn Store,
        transaction: &mut Transaction,
    ) -> Result<(), ApplyError> {
        for (key, resolved) in &self.0 {
            let found = typed::get_json::<ImagePins>(store, key).await?;
            let compare = found
                .as_ref()
                .map_or_else(|| Compare::Missing(key.clone()), |found| found.unchanged());
            let before = found.map(|found| found.value).unwrap_or_default();
            let mut pins = before.clone();
            for (name, digest) in resolved {
                pins.digests.entry(name.clone()).or_insert_with(|| digest.clone());
            }
            if pins != before {
                transaction.compare.push(compare);
                transaction.operations.push(typed::put_json(key.as_str(), &pins)?);
            }
        }
        Ok(())
    }
}
