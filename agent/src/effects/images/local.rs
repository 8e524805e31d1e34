//! Owns what is known of images that are on this host: containerd's records, and a memory of them that keeps a
//! cached start to one call. Never changes a record except after a pull or import.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    assemble::{Assembled, Verified, describe, read_config},
    config::{MANIFEST_BYTES_MAX, Platform},
    containerd::{
        Containerd, LABEL_IMPORTED, LABEL_IMPORTED_NAMES, LABEL_INSTANCE, LABEL_RESOLVED, descriptor,
    },
    digest::Digest,
    document::{Configuration, Document, choose},
    error::Cause,
    reference::{ImageRef, Selector},
};

/// Images remembered at most; a node runs far fewer at a time.
const REMEMBERED_MAX: usize = 256;
/// Indexes inside indexes.
const INDEX_DEPTH_MAX: usize = 3;

/// An image that has a record here. Its snapshot may be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Local {
    /// `resolved` is what its tag pointed to at the registry when it was pulled.
    pub image: Assembled,
    /// From an archive: no registry is asked.
    pub imported: bool,
    /// It has a record by digest besides, so that it stays when its tag moves on.
    pub kept: bool,
}

/// Where an image came from, if from an archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Imported<'a> {
    /// Tells the archive, as it was, from others.
    pub mark: &'a str,
    /// Records it gave: with one less, it is read again.
    pub names: usize,
}

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<HashMap<String, Remembered>>);

#[derive(Debug)]
struct Remembered {
    local: Local,
    fresh_until: Instant,
}

impl Memory {
    /// An image that may be used without asking anybody: by digest, from an archive, or resolved a moment ago.
    pub fn fresh(&self, image: &ImageRef) -> Option<Local> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = memory.get(&image.to_string())?;
        let fresh = image.is_digest() || entry.local.imported || entry.fresh_until > Instant::now();
        fresh.then(|| entry.local.clone())
    }

    /// An image that was here a while ago, however long.
    pub fn known(&self, image: &ImageRef) -> Option<Local> {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.get(&image.to_string()).map(|entry| entry.local.clone())
    }

    /// Remembers an image; its tag counts as resolved for `ttl`.
    pub fn put(&self, image: &ImageRef, local: Local, ttl: Duration) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.len() >= REMEMBERED_MAX
            && let Some(oldest) = memory
                .iter()
                .min_by_key(|(_, entry)| entry.fresh_until)
                .map(|(key, _)| key.clone())
        {
            memory.remove(&oldest);
        }
        let now = Instant::now();
        let fresh_until = now.checked_add(ttl).unwrap_or(now);
        memory.insert(image.to_string(), Remembered { local, fresh_until });
    }

    pub fn forget(&self, image: &ImageRef) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&image.to_string());
    }
}

impl Containerd {
    /// Reads an image's record and documents. None if any of it is missing or unusable: then it is pulled anew.
    pub async fn local(
        &self,
        image: &ImageRef,
        platform: &Platform,
    ) -> Result<Option<(Local, Verified)>, Cause> {
        let record = match self.image(&image.to_string()).await? {
            Some(record) => Some(record),
            None => self.same_digest(image).await?,
        };
        let Some(record) = record else { return Ok(None) };
        let Some(target) = record
            .target
            .as_ref()
            .and_then(|target| target.digest.parse::<Digest>().ok())
        else {
            return Ok(None);
        };
        let verified = match self.manifest(target.clone(), platform).await {
            Ok(Some(verified)) => verified,
            Err(cause @ Cause::Containerd { .. }) => return Err(cause),
            Ok(None) | Err(_) => return Ok(None),
        };
        let Ok(config) = read_config(self, &verified.manifest.config.digest).await else {
            return Ok(None);
        };
        let layers = verified.manifest.layers.len();
        let Ok(configuration) = Configuration::parse(&config, layers, platform) else {
            return Ok(None);
        };
        let Some(chain_id) = configuration.chain_ids().pop() else {
            return Ok(None);
        };
        let resolved = record
            .labels
            .get(LABEL_RESOLVED)
            .and_then(|label| label.parse().ok())
            .unwrap_or(target);
        let local = Local {
            image: Assembled {
                digest: verified.digest.clone(),
                resolved,
                chain_id,
                config: configuration.run,
            },
            imported: record.labels.contains_key(LABEL_IMPORTED),
            kept: false,
        };
        Ok(Some((local, verified)))
    }

    /// For a digest without a record of its own: a record of the same repository that resolved to it.
    async fn same_digest(
        &self,
        image: &ImageRef,
    ) -> Result<Option<containerd_client::services::v1::Image>, Cause> {
        let Selector::Digest(digest) = &image.selector else {
            return Ok(None);
        };
        let name = image.name();
        let candidates = self.images_where(LABEL_RESOLVED, digest.as_str()).await?;
        Ok(candidates.into_iter().find(|candidate| {
            candidate
                .name
                .strip_prefix(&name)
                .is_some_and(|rest| rest.starts_with([':', '@']))
        }))
    }

    /// Records what is here under its digest too: its content stays when the tag is given to another image, and tasks
    /// that want this digest find it without a registry.
    pub async fn keep_by_digest(&self, image: &ImageRef, resolved: &Digest) -> Result<(), Cause> {
        let name = format!("{}@{resolved}", image.name());
        if self.image(&name).await?.is_some() {
            return Ok(());
        }
        let record = match self.image(&image.to_string()).await? {
            Some(record) => Some(record),
            None => self.same_digest(image).await?,
        };
        // Gone meanwhile: whoever needs it pulls it again.
        let Some(target) = record.and_then(|record| record.target) else {
            return Ok(());
        };
        let labels = HashMap::from([
            (LABEL_INSTANCE.to_owned(), self.instance.clone()),
            (LABEL_RESOLVED.to_owned(), resolved.to_string()),
        ]);
        self.put_image(&name, target, labels).await
    }

    /// The manifest under a digest in the content store, through indexes. None if it is not there or is none.
    pub async fn manifest(&self, mut digest: Digest, platform: &Platform) -> Result<Option<Verified>, Cause> {
        for _ in 0..INDEX_DEPTH_MAX {
            let Some(bytes) = self.read_blob(&digest, "manifest", MANIFEST_BYTES_MAX).await? else {
                return Ok(None);
            };
            match Document::parse(&bytes)? {
                Document::Manifest(manifest) => {
                    return Ok(Some(Verified {
                        digest,
                        bytes,
                        manifest,
                    }));
                }
                Document::Index(entries) => digest = choose(&entries, platform)?.digest.clone(),
            }
        }
        Err(too_deep())
    }

    /// Records an image under a name.
    pub async fn record(
        &self,
        image: &ImageRef,
        verified: &Verified,
        resolved: &Digest,
        imported: Option<Imported<'_>>,
    ) -> Result<(), Cause> {
        let mut labels = HashMap::from([
            (LABEL_INSTANCE.to_owned(), self.instance.clone()),
            (LABEL_RESOLVED.to_owned(), resolved.to_string()),
        ]);
        if let Some(imported) = imported {
            labels.insert(LABEL_IMPORTED.to_owned(), imported.mark.to_owned());
            labels.insert(LABEL_IMPORTED_NAMES.to_owned(), imported.names.to_string());
        }
        let media_type = verified.manifest.media_type();
        let target = describe(&verified.bytes, verified.digest.clone(), media_type);
        self.put_image(&image.to_string(), descriptor(&target, media_type), labels)
            .await
    }
}

pub(super) fn too_deep() -> Cause {
    Cause::Invalid {
        what: "index",
        why: format!("more than {INDEX_DEPTH_MAX} indexes inside each other"),
    }
}

/// How many indexes deep a manifest may be.
pub(super) const fn index_depth_max() -> usize {
    INDEX_DEPTH_MAX
}

#[cfg(test)]
mod tests {
    use berth_agent_core::image::ImageConfig;

    use super::*;

    fn local(imported: bool) -> Local {
        let digest = Digest::of(b"x");
        let image = Assembled {
            digest: digest.clone(),
            resolved: digest.clone(),
            chain_id: digest,
            config: ImageConfig::default(),
        };
        Local {
            image,
            imported,
            kept: false,
        }
    }

    #[test]
    fn a_tag_is_remembered_for_its_time_and_a_digest_or_archive_for_good() {
        let memory = Memory::default();
        let tag: ImageRef = "app:v1".parse().unwrap();
        memory.put(&tag, local(false), Duration::from_secs(60));
        assert!(memory.fresh(&tag).is_some());
        memory.put(&tag, local(false), Duration::ZERO);
        assert!(memory.fresh(&tag).is_none());
        memory.put(&tag, local(true), Duration::ZERO);
        assert!(memory.fresh(&tag).is_some());
        let digest: ImageRef = format!("app@{}", Digest::of(b"x")).parse().unwrap();
        memory.put(&digest, local(false), Duration::ZERO);
        assert!(memory.fresh(&digest).is_some());
        memory.forget(&digest);
        assert!(memory.fresh(&digest).is_none());
    }

    #[test]
    fn the_memory_is_bounded() {
        let memory = Memory::default();
        for n in 0..REMEMBERED_MAX + 50 {
            memory.put(&format!("app:v{n}").parse().unwrap(), local(true), Duration::ZERO);
        }
        assert!(memory.0.lock().unwrap().len() <= REMEMBERED_MAX);
    }
}
