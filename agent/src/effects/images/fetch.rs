//! Owns getting one blob from a registry into containerd: once per host however many pulls want it, resumed where a
//! connection broke. Never believes a length; containerd checks the digest.

use bytes::Bytes;
use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::sync::Semaphore;

use super::{
    config::Limits,
    document::Descriptor,
    error::Cause,
    ingest::Incoming,
    keyed::KeyedLocks,
    progress::{LayerState, Meter},
    reference::ImageRef,
    registry::{BlobBody, Registry},
    retry::Backoff,
    workspace::Workspace,
};

/// Where blobs come from that are not in containerd yet.
#[derive(Debug)]
pub(super) enum Origin<'a> {
    Registry {
        registry: &'a Registry,
        image: &'a ImageRef,
    },
    /// Everything an archive has is in containerd already: a missing blob is the archive's fault.
    Archive,
}

/// What fetching needs besides a blob.
#[derive(Debug)]
pub(super) struct Fetcher<'a> {
    pub workspace: &'a Workspace,
    pub origin: Origin<'a>,
    pub limits: &'a Limits,
    /// By digest, shared by all pulls.
    pub locks: &'a KeyedLocks,
    /// Downloads of this image at once.
    pub downloads: Semaphore,
}

/// A layer's place on the progress board.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gauge<'a> {
    pub meter: &'a Meter,
    pub layer: usize,
}

impl Fetcher<'_> {
    /// Has the blob in containerd, held by the workspace's lease.
    pub async fn fetch(&self, blob: &Descriptor, gauge: Option<Gauge<'_>>) -> Result<(), Cause> {
        let _one_at_a_time = self.locks.lock(blob.digest.as_str()).await;
        // Held before asked for: otherwise it could be collected in between.
        self.workspace.hold_blob(&blob.digest).await?;
        if let Some(size) = self.workspace.containerd.blob_size(&blob.digest).await? {
            return check_size(blob, size);
        }
        let Origin::Registry { registry, image } = self.origin else {
            return Err(Cause::ArchiveLacks(format!("blob {}", blob.digest)));
        };
        let _slot = self.downloads.acquire().await.map_err(|_| Cause::Cancelled)?;
        if let Some(gauge) = gauge {
            gauge.meter.state(gauge.layer, LayerState::Downloading);
        }
        let download = Download {
            registry,
            image,
            blob,
            gauge,
            offset: 0,
            body: None,
            backoff: Backoff::new(self.limits),
        };
        let incoming = Incoming {
            digest: Some(&blob.digest),
            size: blob.size,
            name: blob.digest.as_str(),
        };
        self.workspace.ingest(incoming, download.into_stream()).await
    }
}

fn check_size(blob: &Descriptor, size: u64) -> Result<(), Cause> {
    if size == blob.size {
        return Ok(());
    }
    let detail = format!("the one with this digest has {size}");
    Err(Cause::SizeMismatch {
        digest: blob.digest.clone(),
        expected: blob.size,
        detail,
    })
}

/// One blob on its way, over as many connections as it takes.
struct Download<'a> {
    registry: &'a Registry,
    image: &'a ImageRef,
    blob: &'a Descriptor,
    gauge: Option<Gauge<'a>>,
    /// Bytes handed on so far.
    offset: u64,
    body: Option<BlobBody>,
    backoff: Backoff,
}

impl<'a> Download<'a> {
    fn into_stream(self) -> BoxStream<'a, Result<Bytes, Cause>> {
        stream::try_unfold(self, |mut download| async move {
            let chunk = download.next().await?;
            Ok(chunk.map(|chunk| (chunk, download)))
        })
        .boxed()
    }

    /// The next bytes, or none at the end of the blob.
    async fn next(&mut self) -> Result<Option<Bytes>, Cause> {
        loop {
            match self.step().await {
                Ok(Some(chunk)) if chunk.is_empty() => {}
                Ok(Some(chunk)) => {
                    self.backoff.reset();
                    return Ok(Some(chunk));
                }
                Ok(None) => return Ok(None),
                Err(cause) => {
                    self.body = None;
                    self.backoff.wait(cause).await?;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Cause> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.connect().await?,
        };
        // A registry that cannot resume sends from the start: what was handed on already is skipped.
        let position = body.offset;
        let Some(mut chunk) = body.chunk().await? else {
            return if self.offset == self.blob.size {
                Ok(None)
            } else {
                Err(self.truncated())
            };
        };
        crate::metrics::METRICS
            .pulled_bytes
            .fetch_add(chunk.len() as u64, std::sync::atomic::Ordering::Relaxed);
        body.offset = position.saturating_add(chunk.len() as u64);
        if body.offset > self.blob.size {
            return Err(self.wrong_size("the registry sends more"));
        }
        let known = self.offset.saturating_sub(position).min(chunk.len() as u64);
        let fresh = chunk.split_off(known as usize);
        self.offset += fresh.len() as u64;
        self.body = Some(body);
        if let Some(gauge) = self.gauge {
            gauge.meter.bytes(gauge.layer, self.offset);
        }
        Ok(Some(fresh))
    }

    async fn connect(&mut self) -> Result<BlobBody, Cause> {
        let body = match self
            .registry
            .blob(self.image, &self.blob.digest, self.offset)
            .await
        {
            Err(Cause::Refused { status: 416, .. }) => {
                return Err(self.wrong_size("the registry has no more"));
            }
            other => other?,
        };
        match body.announced() {
            Some(length) if body.offset.saturating_add(length) != self.blob.size => Err(self.wrong_size(
                &format!("the registry announces {length} from {} on", body.offset),
            )),
            _ => Ok(body),
        }
    }

    fn truncated(&self) -> Cause {
        Cause::Truncated {
            digest: self.blob.digest.clone(),
            got: self.offset,
            expected: self.blob.size,
        }
    }

    fn wrong_size(&self, detail: &str) -> Cause {
        Cause::SizeMismatch {
            digest: self.blob.digest.clone(),
            expected: self.blob.size,
            detail: detail.to_owned(),
        }
    }
}
