//! Owns images on this host: pulled from registries into containerd, or imported from archives; unpacked, recorded,
//! and found again. Works with containerd 1.6 through 2.x over its content, snapshot, diff, image and lease
//! services. Never runs a container, and never removes an image.
//!
//! A tag is resolved at its registry whenever it is wanted, except within
//! [`resolve_ttl`](ImagesConfig::resolve_ttl) of the last time; if the registry is away and the image is here, the
//! one here is used (ECS's default pull behaviour). A digest, or an image from an archive, needs no registry.

mod archive;
mod assemble;
mod clients;
mod config;
mod containerd;
mod digest;
mod document;
mod error;
mod fetch;
mod ingest;
mod keyed;
mod local;
mod progress;
mod pull;
mod reference;
mod registry;
mod retry;
mod shared;
mod unpack;
mod workspace;

use std::{path::PathBuf, sync::Arc};

use berth_agent_core::image::ResolvedImage;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use self::{
    assemble::Assembled, clients::Clients, containerd::Containerd, error::Cause, keyed::KeyedLocks,
    local::Memory, progress::Board, reference::ImageRef, shared::Flights,
};
pub use self::{
    config::{ImagesConfig, Limits, Platform, RegistryCredential},
    error::ImageError,
    progress::{ImageProgress, LayerProgress, LayerState, PullProgress},
};

/// The images of this host. Cheap to clone; all clones share downloads and memory.
#[derive(Clone, Debug)]
pub struct Images {
    inner: Arc<Inner>,
    flights: Flights,
}

#[derive(Debug)]
struct Inner {
    config: ImagesConfig,
    containerd: Containerd,
    clients: Clients,
    memory: Memory,
    board: Board,
    /// Archives are being imported, or will be in a moment: what is not here may be here soon.
    importing: watch::Sender<bool>,
    /// Pulls at once.
    pulls: Semaphore,
    /// By digest: one download of a layer, however many images have it.
    blobs: KeyedLocks,
    /// By chain id.
    unpacking: KeyedLocks,
}

impl Images {
    /// Checks the configuration and reads its certificates; connects to nothing.
    ///
    /// # Errors
    /// A name that containerd would not take, or an `extra_ca_pem` that cannot be read.
    pub fn new(channel: Channel, config: ImagesConfig) -> Result<Self, ImageError> {
        let failed = |cause| ImageError::new("images", cause);
        registry::read_extra_ca(&config).map_err(failed)?;
        let containerd = Containerd::new(channel, &config).map_err(failed)?;
        let pulls = Semaphore::new(config.limits.pulls.max(1));
        let inner = Inner {
            importing: watch::Sender::new(false),
            config,
            containerd,
            clients: Clients::default(),
            memory: Memory::default(),
            board: Board::new(),
            pulls,
            blobs: KeyedLocks::default(),
            unpacking: KeyedLocks::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
            flights: Flights::new(),
        })
    }

    /// Removes what a killed agent of this instance left half made: leases, unfinished writes, active snapshots.
    /// Call it once, before the first [`ensure`](Self::ensure). Returns how many things it removed.
    ///
    /// # Errors
    /// containerd cannot be reached.
    pub async fn recover(&self) -> Result<usize, ImageError> {
        let swept = workspace::sweep(&self.inner.containerd).await;
        swept.map_err(|cause| ImageError::new("clean up unfinished pulls", cause))
    }

    /// Has the image on this host, unpacked. Concurrent calls for one image share one download, which goes on while
    /// anyone waits for it; it is given up, with nothing left behind, when the last caller drops this or cancels.
    ///
    /// # Errors
    /// In ECS's words, see [`ImageError::reason`]; cancelled if `cancel` was.
    pub async fn ensure(
        &self,
        reference: &str,
        cancel: CancellationToken,
    ) -> Result<ResolvedImage, ImageError> {
        let image: ImageRef = reference
            .parse()
            .map_err(|invalid| ImageError::new("pull image", Cause::Reference(invalid)))?;
        let failed = |cause| ImageError::new(pull::subject(&image), cause);
        let resolved = |found: Assembled| ResolvedImage {
            reference: reference.to_owned(),
            digest: found.digest.to_string(),
            resolved: found.resolved.to_string(),
            chain_id: found.chain_id.to_string(),
            config: found.config,
        };
        if let Some(found) = self.inner.remembered(&image).await.map_err(failed)? {
            return Ok(resolved(found));
        }
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            outcome = self.fly(&image) => outcome,
        };
        outcome
            .unwrap_or_else(|| Err(failed(Cause::Cancelled)))
            .map(resolved)
    }

    /// None if the flights are closed, or the flight's task died.
    async fn fly(&self, image: &ImageRef) -> Option<Result<Assembled, ImageError>> {
        let start = |cancel: CancellationToken| {
            let (inner, image) = (Arc::clone(&self.inner), image.clone());
            async move {
                let acquired = inner.acquire(&image, &cancel).await;
                acquired.map_err(|cause| ImageError::new(pull::subject(&image), cause))
            }
        };
        let seat = self.flights.join(&image.to_string(), start).await?;
        let outcome = seat.outcome().await;
        self.drop_clients_when_idle();
        outcome
    }

    /// Downloads under way; the latest state only.
    pub fn progress(&self) -> watch::Receiver<PullProgress> {
        self.inner.board.watch()
    }

    /// Imports every OCI or docker archive (`.tar`, `.tar.gz`, `.tgz`) of
    /// [`archives_dir`](ImagesConfig::archives_dir), one after the other, by name. An archive that was imported
    /// before and has not changed is not read again. Per file: the canonical names it gave, or why it gave none.
    pub async fn import_archives(&self) -> Vec<(PathBuf, Result<Vec<String>, ImageError>)> {
        self.inner.import_archives().await
    }

    /// From now until the guard is dropped, an image that is not here is waited for before a registry is asked: an
    /// archive may have it. For a start that does not wait for [`import_archives`](Self::import_archives).
    pub fn expect_archives(&self) -> ExpectedArchives {
        self.inner.importing.send_replace(true);
        ExpectedArchives(Arc::clone(&self.inner))
    }

    /// Cancels every pull and waits until each has cleaned up. Afterwards every [`ensure`](Self::ensure) that is
    /// not answered from memory is cancelled.
    pub async fn close(&self) {
        self.flights.close().await;
    }

    fn drop_clients_when_idle(&self) {
        if self.flights.closing.is_cancelled() || !self.inner.clients.claim_janitor() {
            return;
        }
        let (inner, flights) = (Arc::clone(&self.inner), self.flights.clone());
        self.flights.tracker.spawn(async move {
            let idle = inner.config.limits.client_idle;
            let wait = || flights.closing.run_until_cancelled(tokio::time::sleep(idle));
            while wait().await.is_some() {
                if flights.is_empty() && inner.clients.drop_if_unused(idle) {
                    break;
                }
            }
        });
    }
}

/// Archives are being imported for as long as this lives.
pub struct ExpectedArchives(Arc<Inner>);

impl std::fmt::Debug for ExpectedArchives {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExpectedArchives").finish_non_exhaustive()
    }
}

impl Drop for ExpectedArchives {
    fn drop(&mut self) {
        self.0.importing.send_replace(false);
    }
}

impl Inner {
    /// Waits until no archives are being imported. Whether it had to.
    async fn archives_imported(&self) -> bool {
        let mut importing = self.importing.subscribe();
        let wait = *importing.borrow();
        // The sender is ours: it outlives this call.
        let _ = importing.wait_for(|importing| !importing).await;
        wait
    }

    /// The image, if it needs nobody's word and its snapshot is there: one call to containerd, but for the first use of
    /// an image from an archive.
    async fn remembered(&self, image: &ImageRef) -> Result<Option<Assembled>, Cause> {
        let Some(local) = self.memory.fresh(image) else {
            return Ok(None);
        };
        if self
            .containerd
            .has_snapshot(local.image.chain_id.as_str())
            .await?
        {
            if local.imported && !local.kept {
                return self.used(image, local).await.map(Some);
            }
            return Ok(Some(local.image));
        }
        self.memory.forget(image);
        Ok(None)
    }
}
