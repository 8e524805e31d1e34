//! Owns making an image out of a manifest: its blobs fetched, its layers unpacked as they arrive, its records
//! labelled so that containerd keeps all of it. The same for pulls and imports. Never resolves a name.

use std::collections::HashMap;

use berth_agent_core::image::ImageConfig;
use bytes::Bytes;
use futures_util::{
    FutureExt, TryStreamExt,
    future::{BoxFuture, try_join},
    stream::FuturesUnordered,
};
use tokio::sync::watch;

use super::{
    config::{CONFIG_BYTES_MAX, Platform},
    containerd::{Containerd, LABEL_INSTANCE},
    digest::Digest,
    document::{Configuration, Descriptor, Manifest},
    error::Cause,
    fetch::{Fetcher, Gauge},
    keyed::KeyedLocks,
    progress::{LayerState, Meter},
    unpack::Layer,
    workspace::Workspace,
};

/// An image that is here and unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assembled {
    /// Of the manifest.
    pub digest: Digest,
    /// Of what its reference points to: the manifest, or an index above it.
    pub resolved: Digest,
    pub chain_id: Digest,
    pub config: ImageConfig,
}

/// A manifest with the bytes it was read from.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    pub digest: Digest,
    pub bytes: Bytes,
    pub manifest: Manifest,
}

/// Fetches what is missing and unpacks it. Afterwards the lease holds everything, and labels tie it together; an
/// image record makes it stay.
pub(super) async fn assemble(
    fetcher: &Fetcher<'_>,
    unpacking: &KeyedLocks,
    platform: &Platform,
    image: &Verified,
    meter: &Meter,
) -> Result<Assembled, Cause> {
    let workspace = fetcher.workspace;
    let containerd = &workspace.containerd;
    let manifest = &image.manifest;
    fetcher.fetch(&manifest.config, None).await?;
    let config = read_config(containerd, &manifest.config.digest).await?;
    let configuration = Configuration::parse(&config, manifest.layers.len(), platform)?;
    let chain = configuration.chain_ids();
    let Some(chain_id) = chain.last() else {
        return Err(Cause::Invalid {
            what: "image configuration",
            why: "it has no layers".to_owned(),
        });
    };
    let layers = layers(manifest, &configuration, &chain);
    unpack_all(fetcher, unpacking, &layers, meter).await?;

    workspace.ingest_bytes(&image.digest, image.bytes.clone()).await?;
    let snapshot = format!("containerd.io/gc.ref.snapshot.{}", containerd.snapshotter);
    containerd
        .label_blob(
            &manifest.config.digest,
            HashMap::from([(snapshot, chain_id.to_string())]),
        )
        .await?;
    containerd
        .label_blob(&image.digest, manifest_labels(manifest, &containerd.instance))
        .await?;
    Ok(Assembled {
        digest: image.digest.clone(),
        resolved: image.digest.clone(),
        chain_id: chain_id.clone(),
        config: configuration.run,
    })
}

pub(super) async fn read_config(containerd: &Containerd, digest: &Digest) -> Result<Bytes, Cause> {
    let config = containerd
        .read_blob(digest, "image configuration", CONFIG_BYTES_MAX)
        .await?;
    config.ok_or_else(|| Cause::NotFound {
        what: "image configuration".to_owned(),
        detail: format!("{digest} is not in containerd"),
    })
}

fn layers<'a>(
    manifest: &'a Manifest,
    configuration: &'a Configuration,
    chain: &'a [Digest],
) -> Vec<Layer<'a>> {
    let parents = std::iter::once(None).chain(chain.iter().map(Some));
    let rows = manifest
        .layers
        .iter()
        .zip(&configuration.diff_ids)
        .zip(chain)
        .zip(parents);
    rows.map(|(((blob, diff_id), chain_id), parent)| Layer {
        blob,
        diff_id,
        parent,
        chain_id,
    })
    .collect()
}

/// What keeps the blobs of a manifest from being collected (containerd's garbage collection labels).
fn manifest_labels(manifest: &Manifest, instance: &str) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        (
            "containerd.io/gc.ref.content.config".to_owned(),
            manifest.config.digest.to_string(),
        ),
        (LABEL_INSTANCE.to_owned(), instance.to_owned()),
    ]);
    for (index, layer) in manifest.layers.iter().enumerate() {
        labels.insert(
            format!("containerd.io/gc.ref.content.l.{index}"),
            layer.digest.to_string(),
        );
    }
    labels
}

/// Downloads and unpacks side by side: a layer is unpacked once it and the one below it are there.
async fn unpack_all(
    fetcher: &Fetcher<'_>,
    unpacking: &KeyedLocks,
    layers: &[Layer<'_>],
    meter: &Meter,
) -> Result<(), Cause> {
    let present = count_present(fetcher.workspace, layers).await?;
    for layer in 0..present {
        meter.state(layer, LayerState::Done);
    }
    let missing = &layers[present..];
    let arrived = watch::Sender::new(vec![false; missing.len()]);
    // All at once: the fetcher has the limit, and layers that are here already do not queue behind downloads.
    let mut downloads = FuturesUnordered::new();
    for (index, layer) in missing.iter().enumerate() {
        let gauge = Gauge {
            meter,
            layer: present + index,
        };
        downloads.push(download(fetcher, layer.blob, gauge, &arrived, index));
    }
    let downloads = async move {
        while downloads.try_next().await?.is_some() {}
        Ok(())
    };
    let unpack = async {
        let mut arrivals = arrived.subscribe();
        for (index, layer) in missing.iter().enumerate() {
            let here = arrivals.wait_for(|arrived| arrived[index]).await;
            here.map_err(|_| Cause::Cancelled)?;
            meter.state(present + index, LayerState::Unpacking);
            unpack_once(fetcher.workspace, unpacking, layer).await?;
            meter.state(present + index, LayerState::Done);
        }
        Ok(())
    };
    try_join(downloads, unpack).await.map(drop)
}

/// Boxed: behind a plain future type the compiler sees that all of this can move between threads.
fn download<'a>(
    fetcher: &'a Fetcher<'_>,
    blob: &'a Descriptor,
    gauge: Gauge<'a>,
    arrived: &'a watch::Sender<Vec<bool>>,
    index: usize,
) -> BoxFuture<'a, Result<(), Cause>> {
    async move {
        fetcher.fetch(blob, Some(gauge)).await?;
        gauge.meter.state(gauge.layer, LayerState::Downloaded);
        arrived.send_modify(|arrived| arrived[index] = true);
        Ok(())
    }
    .boxed()
}

/// How many layers, from the bottom, need nothing: their snapshot is there, and is now held.
async fn count_present(workspace: &Workspace, layers: &[Layer<'_>]) -> Result<usize, Cause> {
    for (index, layer) in layers.iter().enumerate().rev() {
        workspace.hold_snapshot(layer.chain_id).await?;
        if workspace.containerd.has_snapshot(layer.chain_id.as_str()).await? {
            return Ok(index + 1);
        }
    }
    Ok(0)
}

async fn unpack_once(workspace: &Workspace, unpacking: &KeyedLocks, layer: &Layer<'_>) -> Result<(), Cause> {
    let _one_at_a_time = unpacking.lock(layer.chain_id.as_str()).await;
    workspace.hold_snapshot(layer.chain_id).await?;
    if workspace.containerd.has_snapshot(layer.chain_id.as_str()).await? {
        return Ok(());
    }
    workspace.unpack(layer).await
}

/// A descriptor for bytes that are at hand.
pub(super) fn describe(bytes: &[u8], digest: Digest, media_type: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size: bytes.len() as u64,
        platform: None,
        annotations: None,
    }
}
