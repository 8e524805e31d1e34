//! Owns what is kept beside a volume: what it is, for who looks at the disk, and for a shared one so that it is never taken for
//! another. Written before the volume is used, and never changed.

use std::{collections::BTreeMap, io, path::Path};

use berth_agent_core::volumes::LocalMount;
use serde::{Deserialize, Serialize};

use super::places::Places;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) mount: LocalMount,
}

impl Record {
    /// None: there is no such volume.
    pub(super) fn read(home: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(Places::record(home)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whole or not at all.
    pub(super) fn write(&self, home: &Path) -> io::Result<()> {
        let path = Places::record(home);
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(new, path)
    }
}
