//! Owns importing image archives (OCI layouts and `docker save`, plain or gzip) for sites without a registry. Reads
//! each archive once, as a stream into containerd. Never unpacks anything into the file system itself.

mod catalog;
mod reader;
mod tarball;

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tracing::info;

use self::{
    catalog::{ArchiveImage, Contents, Packing, Source, StoredBlob},
    reader::{Piece, Pieces, read_archive},
};
use super::{
    Inner,
    assemble::{Verified, assemble},
    containerd::{LABEL_IMPORTED, LABEL_IMPORTED_NAMES},
    digest::{Digest, excerpt},
    document::{Document, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST},
    error::{Cause, ImageError},
    fetch::{Fetcher, Origin},
    ingest::Incoming,
    local::{Imported, Local},
    reference::ImageRef,
    workspace::Workspace,
};

const ARCHIVES_MAX: usize = 256;
/// Pieces between the reader's thread and containerd.
const PIECES_QUEUED: usize = 4;
const ENDINGS: [&str; 3] = [".tar", ".tar.gz", ".tgz"];

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it ends in the middle")]
    Truncated,
    #[error("bad entry: {0}")]
    Header(&'static str),
    #[error("the path {0:?} leaves the archive")]
    Outside(String),
    #[error("a {what} is larger than {limit} bytes")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("it has more than {limit} {what}")]
    TooMany { what: &'static str, limit: usize },
    #[error("zstd archives are not supported: use gzip, or none")]
    Zstd,
}

impl Inner {
    pub(super) async fn import_archives(&self) -> Vec<(PathBuf, Result<Vec<String>, ImageError>)> {
        let Some(directory) = self.config.archives_dir.clone() else {
            return Vec::new();
        };
        let subject = |path: &Path| format!("import {}", path.display());
        let paths = match list(&directory).await {
            Ok(paths) => paths,
            Err(cause) => {
                let error = ImageError::new(subject(&directory), cause);
                return vec![(directory, Err(error))];
            }
        };
        let mut results = Vec::with_capacity(paths.len());
        for path in paths {
            let imported = self
                .import(&path)
                .await
                .map_err(|cause| ImageError::new(subject(&path), cause));
            results.push((path, imported));
        }
        results
    }

    async fn import(&self, path: &Path) -> Result<Vec<String>, Cause> {
        let mark = mark(path).await?;
        if let Some(names) = self.imported_before(&mark).await? {
            return Ok(names);
        }
        let longest = self.config.limits.pull;
        let workspace = Workspace::open(self.containerd.clone(), longest).await?;
        let work = timeout(longest, self.import_into(path, &mark, &workspace)).await;
        let imported = work.unwrap_or(Err(Cause::Deadline(longest)));
        workspace.close(imported.is_ok()).await;
        imported
    }

    /// The names an unchanged archive gave, if all of it is still here.
    async fn imported_before(&self, mark: &str) -> Result<Option<Vec<String>>, Cause> {
        let records = self.containerd.images_where(LABEL_IMPORTED, mark).await?;
        let given = records
            .first()
            .and_then(|record| record.labels.get(LABEL_IMPORTED_NAMES));
        if given.and_then(|count| count.parse().ok()) != Some(records.len()) {
            return Ok(None);
        }
        let mut names = Vec::with_capacity(records.len());
        for record in records {
            let Ok(image) = record.name.parse::<ImageRef>() else {
                return Ok(None);
            };
            let Some((local, _)) = self.containerd.local(&image, &self.config.platform).await? else {
                return Ok(None);
            };
            if !self
                .containerd
                .has_snapshot(local.image.chain_id.as_str())
                .await?
            {
                return Ok(None);
            }
            self.memory.put(&image, local, self.config.resolve_ttl);
            names.push(record.name);
        }
        Ok(Some(names))
    }

    async fn import_into(
        &self,
        path: &Path,
        mark: &str,
        workspace: &Workspace,
    ) -> Result<Vec<String>, Cause> {
        let contents = store(path, workspace).await?;
        let images = catalog::images(&contents, &stem(path))?;
        let mut finished = Vec::with_capacity(images.len());
        for image in images {
            let verified = self.archive_manifest(&image.source, workspace).await?;
            let layers = verified
                .manifest
                .layers
                .iter()
                .map(|layer| (&layer.digest, layer.size));
            let meter = self.board.add(&path.display().to_string(), layers);
            let fetcher = Fetcher {
                workspace,
                origin: Origin::Archive,
                limits: &self.config.limits,
                locks: &self.blobs,
                downloads: Semaphore::new(1),
            };
            let assembled = assemble(
                &fetcher,
                &self.unpacking,
                &self.config.platform,
                &verified,
                &meter,
            )
            .await?;
            finished.push((image, verified, assembled));
        }
        // Records last: an archive gives all of its images or none.
        let given = finished.iter().map(|(image, ..)| image.names.len()).sum();
        let imported = Imported { mark, names: given };
        let mut names = Vec::with_capacity(given);
        for (ArchiveImage { names: given, source }, verified, assembled) in finished {
            let resolved = match source {
                Source::Manifest(digest) => digest,
                Source::Docker { .. } => verified.digest.clone(),
            };
            for name in given {
                self.containerd
                    .record(&name, &verified, &resolved, Some(imported))
                    .await?;
                let mut image = assembled.clone();
                image.resolved = resolved.clone();
                let local = Local {
                    image,
                    imported: true,
                    kept: false,
                };
                self.memory.put(&name, local, self.config.resolve_ttl);
                names.push(name.to_string());
            }
        }
        info!(archive = %path.display(), images = ?names, "archive imported");
        Ok(names)
    }

    async fn archive_manifest(&self, source: &Source, workspace: &Workspace) -> Result<Verified, Cause> {
        match source {
            Source::Manifest(digest) => {
                let found = workspace
                    .containerd
                    .manifest(digest.clone(), &self.config.platform)
                    .await?;
                found.ok_or_else(|| {
                    Cause::ArchiveLacks(format!("the manifest {digest}, or one for this platform"))
                })
            }
            Source::Docker { config, layers } => make_manifest(config, layers),
        }
    }
}

/// docker's archives have no manifest that names compressed layers: one is made for the layers as they are.
fn make_manifest(config: &StoredBlob, layers: &[StoredBlob]) -> Result<Verified, Cause> {
    let describe = |blob: &StoredBlob, media_type: String| json!({"mediaType": media_type, "digest": blob.digest.as_str(), "size": blob.size});
    let layer = |blob: &StoredBlob| {
        let packing = match blob.packing {
            Packing::Plain => "",
            Packing::Gzip => "+gzip",
            Packing::Zstd => "+zstd",
        };
        describe(blob, format!("{OCI_LAYER}{packing}"))
    };
    let document = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": describe(config, OCI_CONFIG.to_owned()),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    let bytes = Bytes::from(document.to_string());
    match Document::parse(&bytes)? {
        Document::Manifest(manifest) => Ok(Verified {
            digest: Digest::of(&bytes),
            bytes,
            manifest,
        }),
        Document::Index(_) => Err(Cause::Invalid {
            what: "manifest",
            why: "it is an index".to_owned(),
        }),
    }
}

/// Streams every file of the archive into containerd.
async fn store(path: &Path, workspace: &Workspace) -> Result<Contents, Cause> {
    let (taker, mut pieces) = mpsc::channel(PIECES_QUEUED);
    let file = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || read_archive(&file, &taker));
    let stored = store_pieces(&mut pieces, workspace).await;
    // Ends the reader if the pieces were not all taken.
    drop(pieces);
    let read = reading.await;
    let contents = stored?;
    match read {
        Ok(()) => Ok(contents),
        Err(_) => Err(Cause::Archive {
            source: ArchiveError::Header("the reader died on it"),
        }),
    }
}

async fn store_pieces(pieces: &mut Pieces, workspace: &Workspace) -> Result<Contents, Cause> {
    let mut contents = Contents::default();
    while let Some(piece) = pieces.recv().await {
        match piece.map_err(|source| Cause::Archive { source })? {
            Piece::Document { path, bytes } if path == "index.json" => contents.index = Some(bytes),
            Piece::Document { bytes, .. } => contents.docker = Some(bytes),
            Piece::Link { path, target } => drop(contents.links.insert(path, target)),
            Piece::Begin { path, size, packing } => {
                let name = format!("file-{}", contents.blobs.len());
                let digest = store_file(pieces, workspace, &name, &path, size).await?;
                contents.blobs.insert(
                    path,
                    StoredBlob {
                        digest,
                        size,
                        packing,
                    },
                );
            }
            Piece::Data(_) | Piece::End(_) => {
                return Err(Cause::Archive {
                    source: ArchiveError::Header("data without a file"),
                });
            }
        }
    }
    Ok(contents)
}

/// Takes one file's pieces. A file of a layout must be what its name says.
async fn store_file(
    pieces: &mut Pieces,
    workspace: &Workspace,
    name: &str,
    path: &str,
    size: u64,
) -> Result<Digest, Cause> {
    let promised = promised_digest(path);
    if let Some(promised) = &promised {
        workspace.hold_blob(promised).await?;
    }
    let mut end = None;
    let chunks = stream::try_unfold((&mut *pieces, &mut end), async |(pieces, end)| {
        match pieces.recv().await {
            Some(Ok(Piece::Data(bytes))) => Ok(Some((bytes, (pieces, end)))),
            Some(Ok(Piece::End(digest))) => {
                *end = Some(digest);
                Ok(None)
            }
            Some(Err(source)) => Err(Cause::Archive { source }),
            Some(Ok(_)) | None => Err(Cause::Archive {
                source: ArchiveError::Truncated,
            }),
        }
    });
    workspace
        .ingest(
            Incoming {
                digest: promised.as_ref(),
                size,
                name,
            },
            chunks,
        )
        .await?;
    // containerd had it already and did not want the rest.
    while end.is_none() {
        match pieces.recv().await {
            Some(Ok(Piece::Data(_))) => {}
            Some(Ok(Piece::End(digest))) => end = Some(digest),
            Some(Err(source)) => return Err(Cause::Archive { source }),
            Some(Ok(_)) | None => {
                return Err(Cause::Archive {
                    source: ArchiveError::Truncated,
                });
            }
        }
    }
    let Some(actual) = end else {
        return Err(Cause::Archive {
            source: ArchiveError::Truncated,
        });
    };
    match promised {
        Some(promised) if promised.as_str().starts_with("sha256:") && promised != actual => {
            let actual = actual.to_string();
            Err(Cause::DigestMismatch {
                what: "file of the archive",
                expected: promised,
                actual,
            })
        }
        Some(promised) => Ok(promised),
        None => {
            workspace.hold_blob(&actual).await?;
            match workspace.containerd.blob_size(&actual).await? {
                Some(_) => Ok(actual),
                None => Err(Cause::LostWrite(excerpt(path))),
            }
        }
    }
}

/// `blobs/sha256/HEX` (OCI image layout).
fn promised_digest(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

async fn list(directory: &Path) -> Result<Vec<PathBuf>, Cause> {
    let failed = |source| Cause::File {
        path: directory.to_owned(),
        source,
    };
    let mut entries = tokio::fs::read_dir(directory).await.map_err(failed)?;
    let mut paths = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            paths.push(entry.path());
        }
        if paths.len() > ARCHIVES_MAX {
            let source = ArchiveError::TooMany {
                what: "archives",
                limit: ARCHIVES_MAX,
            };
            return Err(Cause::Archive { source });
        }
    }
    paths.sort();
    Ok(paths)
}

/// Tells an archive from a changed one of the same name.
async fn mark(path: &Path) -> Result<String, Cause> {
    let failed = |source| Cause::File {
        path: path.to_owned(),
        source,
    };
    let metadata = tokio::fs::metadata(path).await.map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name
        .chars()
        .filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\'))
        .take(200)
        .collect();
    Ok(format!(
        "{name}-{}-{}.{:09}",
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    ))
}

/// The file's name without its endings, as far as it can be a repository.
fn stem(path: &Path) -> String {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase();
    let bare = ENDINGS
        .iter()
        .rev()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(&name);
    let stem: String = bare
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    match stem.trim_matches('-') {
        "" => "archive".to_owned(),
        stem => stem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unnamed_image_gets_its_files_name() {
        for (file, name) in [
            ("/a/My App.tar.gz", "my-app"),
            ("x.tgz", "x"),
            ("nginx-1.27.tar", "nginx-1-27"),
            ("---.tar", "archive"),
        ] {
            assert_eq!(stem(Path::new(file)), name);
            assert!(stem(Path::new(file)).parse::<ImageRef>().is_ok());
        }
    }

    #[test]
    fn only_blob_paths_promise_a_digest() {
        let hex = "ab".repeat(32);
        assert!(promised_digest(&format!("blobs/sha256/{hex}")).is_some());
        assert!(promised_digest(&format!("blobs/sha256/{hex}/x")).is_none());
        assert!(promised_digest("blobs/md5/x").is_none());
        assert!(promised_digest("layer.tar").is_none());
    }
}
