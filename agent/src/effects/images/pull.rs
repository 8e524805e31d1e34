//! Owns one pull from beginning to end: is it here, what does the registry say, download, unpack, record. Never
//! coordinates callers; [`shared`](super::shared) does.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Inner,
    assemble::{Assembled, Verified, assemble},
    config::Limits,
    digest::Digest,
    document::{Document, choose},
    error::{Cause, ImageError},
    fetch::{Fetcher, Origin},
    local::{Local, index_depth_max, too_deep},
    reference::{ImageRef, Selector},
    registry::{RawManifest, Registry},
    retry::retry,
    workspace::Workspace,
};

impl Inner {
    /// Has the image here. `cancel` ends it early, with nothing left behind.
    pub(super) fn acquire<'a>(
        &'a self,
        image: &'a ImageRef,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Assembled, Cause>> {
        self.find_or_pull(image, cancel).boxed()
    }

    async fn find_or_pull(&self, image: &ImageRef, cancel: &CancellationToken) -> Result<Assembled, Cause> {
        let local = match self.memory.known(image) {
            Some(local) => local,
            None => {
                match unless_cancelled(cancel, self.containerd.local(image, &self.config.platform)).await? {
                    Some((local, _)) => local,
                    None => match self.imported_meanwhile(image, cancel).await? {
                        Some(local) => local,
                        None => return self.pull(image, None, cancel).await,
                    },
                }
            }
        };
        if image.is_digest() || local.imported {
            return self.use_local(image, local, cancel).await;
        }
        let resolved = unless_cancelled(cancel, self.resolve(image)).await;
        let failure = match resolved {
            Ok(resolved) if resolved.as_ref() == Some(&local.image.resolved) => {
                return self.use_local(image, local, cancel).await;
            }
            Ok(_) => match self.pull(image, None, cancel).await {
                Err(cause) if cause.registry_away() => cause,
                other => return other,
            },
            Err(cause) if cause.registry_away() => cause,
            Err(cause) => return Err(cause),
        };
        let error = ImageError::new(subject(image), failure);
        warn!(error = %error.reason(), "the registry is away: the image on this host is used");
        self.use_local(image, local, cancel).await
    }

    /// An image that was not here may be in an archive that is being imported.
    async fn imported_meanwhile(
        &self,
        image: &ImageRef,
        cancel: &CancellationToken,
    ) -> Result<Option<Local>, Cause> {
        let waited = unless_cancelled(cancel, async { Ok(self.archives_imported().await) }).await?;
        if !waited {
            return Ok(None);
        }
        let found = unless_cancelled(cancel, self.containerd.local(image, &self.config.platform)).await?;
        Ok(found.map(|(local, _)| local))
    }

    /// The tag's digest at the registry, within a time after which the local image is the better answer.
    async fn resolve(&self, image: &ImageRef) -> Result<Option<Digest>, Cause> {
        let limits = Limits {
            attempts: 2,
            ..self.config.limits.clone()
        };
        let patience = limits.resolve_with_local;
        let registry = self.clients.get(&self.config)?;
        let asked = timeout(patience, retry(&limits, || registry.resolve(image))).await;
        asked.unwrap_or(Err(Cause::Stalled(patience)))
    }

    /// Uses what is here. If its snapshot is gone it is unpacked again, with the network only if blobs are gone too.
    async fn use_local(
        &self,
        image: &ImageRef,
        local: Local,
        cancel: &CancellationToken,
    ) -> Result<Assembled, Cause> {
        if self
            .containerd
            .has_snapshot(local.image.chain_id.as_str())
            .await?
        {
            return self.used(image, local).await;
        }
        self.memory.forget(image);
        let recorded = self.containerd.local(image, &self.config.platform).await?;
        let known = recorded.map(|(local, verified)| Known {
            verified,
            resolved: local.image.resolved,
            imported: local.imported,
        });
        self.pull(image, known, cancel).await
    }

    /// Remembers what a task uses. Where no registry gives it again under its tag, it is kept by digest: a revision may
    /// want the very same once more.
    pub(super) async fn used(&self, image: &ImageRef, mut local: Local) -> Result<Assembled, Cause> {
        if (image.is_digest() || local.imported) && !local.kept {
            self.containerd
                .keep_by_digest(image, &local.image.resolved)
                .await?;
            local.kept = true;
        }
        let assembled = local.image.clone();
        self.memory.put(image, local, self.config.resolve_ttl);
        Ok(assembled)
    }

    async fn pull(
        &self,
        image: &ImageRef,
        known: Option<Known>,
        cancel: &CancellationToken,
    ) -> Result<Assembled, Cause> {
        let slot = self.pulls.acquire();
        let _slot = unless_cancelled(cancel, async { slot.await.map_err(|_| Cause::Cancelled) }).await?;
        let longest = self.config.limits.pull;
        let workspace = Workspace::open(self.containerd.clone(), longest).await?;
        let work = async {
            let pulled = timeout(longest, self.pull_into(image, known, &workspace)).await;
            pulled.unwrap_or(Err(Cause::Deadline(longest)))
        };
        let pulled = unless_cancelled(cancel, work).await;
        workspace.close(pulled.is_ok()).await;
        pulled
    }

    async fn pull_into(
        &self,
        image: &ImageRef,
        known: Option<Known>,
        workspace: &Workspace,
    ) -> Result<Assembled, Cause> {
        let limits = &self.config.limits;
        let registry: Arc<Registry> = self.clients.get(&self.config)?;
        let known = match known {
            Some(known) => known,
            None => self.find_manifest(&registry, image).await?,
        };
        let Known {
            verified,
            resolved,
            imported,
        } = known;
        let layers = verified
            .manifest
            .layers
            .iter()
            .map(|layer| (&layer.digest, layer.size));
        let meter = self.board.add(&image.to_string(), layers);
        let fetcher = Fetcher {
            workspace,
            origin: Origin::Registry {
                registry: &registry,
                image,
            },
            limits,
            locks: &self.blobs,
            downloads: Semaphore::new(limits.layers.max(1)),
        };
        let mut assembled = assemble(
            &fetcher,
            &self.unpacking,
            &self.config.platform,
            &verified,
            &meter,
        )
        .await?;
        assembled.resolved = resolved;
        let local = Local {
            image: assembled.clone(),
            imported,
            kept: false,
        };
        if !imported {
            self.containerd
                .record(image, &verified, &assembled.resolved, None)
                .await?;
            info!(image = %image, digest = %assembled.digest, "image pulled");
        }
        self.memory.put(image, local, self.config.resolve_ttl);
        Ok(assembled)
    }

    /// Asks the registry for the manifest for this platform, through indexes.
    async fn find_manifest(&self, registry: &Registry, image: &ImageRef) -> Result<Known, Cause> {
        let mut expected = match &image.selector {
            Selector::Digest(digest) => Some(digest.clone()),
            Selector::Tag(_) => None,
        };
        let mut selector = image.selector.as_str().to_owned();
        let mut resolved = None;
        for _ in 0..index_depth_max() {
            let raw = retry(&self.config.limits, || registry.manifest(image, &selector)).await?;
            let digest = verify(&raw, expected.as_ref())?;
            resolved.get_or_insert_with(|| digest.clone());
            match Document::parse(&raw.bytes)? {
                Document::Manifest(manifest) => {
                    let verified = Verified {
                        digest,
                        bytes: raw.bytes,
                        manifest,
                    };
                    let resolved = resolved.unwrap_or_else(|| verified.digest.clone());
                    return Ok(Known {
                        verified,
                        resolved,
                        imported: false,
                    });
                }
                Document::Index(entries) => {
                    let chosen = choose(&entries, &self.config.platform)?.digest.clone();
                    selector = chosen.to_string();
                    expected = Some(chosen);
                }
            }
        }
        Err(too_deep())
    }
}

/// The manifest of an image, however it was learnt.
#[derive(Debug)]
struct Known {
    verified: Verified,
    /// Digest of what the reference itself points to: the manifest, or an index above it.
    resolved: Digest,
    imported: bool,
}

/// What a message says is being done.
pub(super) fn subject(image: &ImageRef) -> String {
    format!("pull {image} from {}", image.host())
}

/// A manifest must be what was asked for and what the registry says it is.
fn verify(raw: &RawManifest, expected: Option<&Digest>) -> Result<Digest, Cause> {
    for promised in [expected, raw.claimed.as_ref()].into_iter().flatten() {
        let actual = promised.same_algorithm(&raw.bytes);
        if actual != *promised {
            let actual = actual.to_string();
            return Err(Cause::DigestMismatch {
                what: "manifest",
                expected: promised.clone(),
                actual,
            });
        }
    }
    let digest = expected.or(raw.claimed.as_ref()).cloned();
    Ok(digest.unwrap_or_else(|| Digest::of(&raw.bytes)))
}

/// Drops the work when it is no longer wanted.
async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Cause>>,
) -> Result<T, Cause> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Cause::Cancelled),
        done = work => done,
    }
}
