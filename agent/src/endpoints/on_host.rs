//! Owns what the host has to say of a task besides the agent's record of it: the resolver its containers were given, where what
//! is mounted into them comes from, and what it has written. Reads; never changes anything.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use berth_agent_core::{
    ids::ContainerId,
    task::Task,
    volumes::{MountSource, VolumeMount},
};

use super::document::runtime_id;
use crate::{
    dns,
    effects::{quotas::Quotas, runtime::resolv_conf, volumes::Volumes},
};

/// A container may have written its own.
const RESOLV_CONF_BYTES_MAX: u64 = 64 << 10;

/// Where to look.
#[derive(Clone, Debug)]
pub struct OnHost {
    pub run_dir: PathBuf,
    pub volumes: Volumes,
    pub quotas: Quotas,
    /// containerd's, of all containers.
    pub snapshotter: String,
    /// Tasks have names that are answered here.
    pub names: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) snapshotter: String,
    /// The task's name for others, where it has an address.
    pub(super) name: Option<String>,
    /// Bytes; None: nothing bounds what it writes.
    pub(super) written: Option<u64>,
    pub(super) containers: BTreeMap<ContainerId, OfContainer>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OfContainer {
    pub(super) resolver: Resolver,
    pub(super) mounts: Vec<Mounted>,
}

/// A volume in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) name: String,
    pub(super) source: PathBuf,
    pub(super) path: String,
}

/// What a resolv.conf(5) says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resolver {
    pub(super) servers: Vec<String>,
    pub(super) search: Vec<String>,
}

impl OnHost {
    /// Blocks for as long as the host's disks take.
    pub(super) fn look(&self, task: &Task) -> Found {
        let spec = &task.spec;
        let containers = spec.containers.iter().map(|container| {
            let mounts = task.mounts_of(container).into_iter();
            let found = OfContainer {
                resolver: self.resolver(task, &container.id),
                mounts: mounts.map(|mount| self.mounted(task, mount)).collect(),
            };
            (container.id.clone(), found)
        });
        let bounded = spec.ephemeral_storage_bytes > 0;
        let written = bounded.then(|| self.quotas.used(&spec.id));
        Found {
            snapshotter: self.snapshotter.clone(),
            name: dns::name_of(&spec.id, &spec.cluster).filter(|_| self.names && task.address.is_some()),
            written: written.and_then(|read| {
                read.inspect_err(|error| tracing::debug!(task = %spec.id, %error, "what a task has written cannot be read"))
                    .ok()
                    .flatten()
            }),
            containers: containers.collect(),
        }
    }

    fn mounted(&self, task: &Task, mount: VolumeMount) -> Mounted {
        let (source, _) = self.volumes.source(&task.spec.id, &mount.source);
        let name = match mount.source {
            MountSource::Host { volume, .. }
            | MountSource::Task { volume }
            | MountSource::Shared { volume } => volume,
            MountSource::Image { container, number } => format!("{container}-{number}"),
        };
        Mounted {
            name,
            source,
            path: mount.path,
        }
    }

    /// Of the latest attempt. Nothing, before it was started and after it was removed.
    fn resolver(&self, task: &Task, container: &ContainerId) -> Resolver {
        let Some(id) = runtime_id(task, container) else {
            return Resolver::default();
        };
        let path = resolv_conf(&self.run_dir, &task.spec.id, &id);
        let text = read(&path).unwrap_or_default();
        Resolver::parse(&String::from_utf8_lossy(&text))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?
        .take(RESOLV_CONF_BYTES_MAX)
        .read_to_end(&mut text)?;
    Ok(text)
}

impl Resolver {
    /// The last of `search` and `domain` holds.
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => found.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => found.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_resolver_is_what_resolv_conf_says() {
        let text = "# nameserver 1.1.1.1\nnameserver 169.254.170.3\n domain a\nsearch b c.d\noptions ndots:1\nnameserver\nnameserver fd00::1 x\n";
        let found = Resolver::parse(text);
        assert_eq!(found.servers, ["169.254.170.3", "fd00::1"]);
        assert_eq!(found.search, ["b", "c.d"]);
        assert_eq!(Resolver::parse(""), Resolver::default());
    }

    proptest! {
        #[test]
        fn whatever_a_container_wrote_there_is_words(text in "(nameserver|search|domain|\\PC|[ \t\n\0])*") {
            let found = Resolver::parse(&text);
            let mut words = found.servers.iter().chain(&found.search);
            prop_assert!(words.all(|word| !word.is_empty() && !word.contains(char::is_whitespace)));
        }
    }
}
