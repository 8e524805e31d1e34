//! Owns all specifications of a node together: which devices there are, which of them count as GPUs, and what a container
//! with some of them is changed by.

use std::collections::{BTreeMap, BTreeSet};

use super::{CdiError, DeviceName, Edits, Kind, Spec};

/// The name that vendors give to all devices at once.
const ALL: &str = "all";
/// How the vendors' own ids begin, by which their tools name a GPU, or a part of one.
const UNIQUE: [&str; 2] = ["GPU-", "MIG-"];

/// The devices of a node.
#[derive(Clone, Debug, Default)]
pub struct Library {
    specs: Vec<Spec>,
    /// Where a device is: the specification, and its place there. `None`: in two of equal standing, so nobody knows which.
    devices: BTreeMap<DeviceName, Option<(usize, usize)>>,
}

impl Library {
    /// Of specifications by the directories they are in, the last of which wins over the others.
    pub fn new(directories: Vec<Vec<Spec>>) -> Self {
        let mut library = Self::default();
        for specs in directories {
            let mut here: BTreeMap<DeviceName, Option<(usize, usize)>> = BTreeMap::new();
            for spec in specs {
                let at = library.specs.len();
                for (place, (name, _)) in spec.devices.iter().enumerate() {
                    here.entry(name.clone())
                        .and_modify(|known| *known = None)
                        .or_insert(Some((at, place)));
                }
                library.specs.push(spec);
            }
            library.devices.extend(here);
        }
        library
    }

    /// Devices that two specifications of one directory have: none of them is used.
    pub fn ambiguous(&self) -> impl Iterator<Item = &DeviceName> {
        self.devices
            .iter()
            .filter(|(_, place)| place.is_none())
            .map(|(name, _)| name)
    }

    /// The GPUs: of each of `kinds`, in its order, every device in the order of the specifications. One GPU that has
    /// several names counts once, by its vendor's id if that is among them; what stands for several GPUs does not count.
    pub fn gpus(&self, kinds: &[Kind]) -> Vec<DeviceName> {
        kinds.iter().flat_map(|kind| self.of_kind(kind)).collect()
    }

    fn of_kind(&self, kind: &Kind) -> Vec<DeviceName> {
        let mut places: Vec<(usize, usize)> = self
            .devices
            .iter()
            .filter(|(name, _)| name.kind() == kind && name.name() != ALL)
            .filter_map(|(_, place)| *place)
            .collect();
        places.sort_unstable();
        let devices = places
            .iter()
            .map(|(spec, place)| &self.specs[*spec].devices[*place]);
        // By what they consist of.
        let mut gpus: Vec<(BTreeSet<&str>, &DeviceName)> = Vec::new();
        for (name, edits) in devices {
            let nodes: BTreeSet<&str> = edits.device_nodes.iter().map(|node| node.on_host()).collect();
            let same = gpus
                .iter_mut()
                .find(|(other, _)| !nodes.is_empty() && *other == nodes);
            match same {
                Some((_, known)) if !is_unique(known) && is_unique(name) => *known = name,
                Some(_) => {}
                None => gpus.push((nodes, name)),
            }
        }
        let single = |nodes: &BTreeSet<&str>| {
            let parts = gpus.iter().filter(|(other, _)| !other.is_empty());
            parts
                .filter(|(other, _)| other.is_subset(nodes) && other != nodes)
                .count()
                < 2
        };
        gpus.iter()
            .filter(|(nodes, _)| single(nodes))
            .map(|(_, name)| (*name).clone())
            .collect()
    }

    /// What a container with these devices is changed by: of each specification first what all its devices need, once, then
    /// what each does.
    ///
    /// # Errors
    /// [`CdiError::NoDevice`], by name.
    pub fn edits(&self, names: &[DeviceName]) -> Result<Edits, CdiError> {
        let (mut edits, mut seen) = (Edits::default(), BTreeSet::new());
        for name in names {
            let place = self.devices.get(name).copied().flatten();
            let (at, place) = place.ok_or_else(|| CdiError::NoDevice(name.clone()))?;
            let spec = &self.specs[at];
            if seen.insert(at) {
                edits.extend(&spec.edits);
            }
            edits.extend(&spec.devices[place].1);
        }
        Ok(edits)
    }
}

fn is_unique(name: &DeviceName) -> bool {
    UNIQUE.iter().any(|prefix| name.name().starts_with(prefix))
}
