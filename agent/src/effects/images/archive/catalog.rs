//! Owns finding the images in what an archive holds: an OCI layout (`index.json`) or `docker save`'s
//! `manifest.json`. Foreign input: bounded, and nothing panics. Never reads the archive itself.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    super::{
        digest::{Digest, excerpt},
        document::{Descriptor, Document},
        error::Cause,
        reference::ImageRef,
    },
    tarball::resolve,
};

/// Images of one archive.
const IMAGES_MAX: usize = 64;
const NAMES_MAX: usize = 64;
/// A link to a link to a link.
const LINKS_MAX: usize = 8;

/// What was read of an archive. Every file but the two documents is a blob in containerd.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub index: Option<Vec<u8>>,
    pub docker: Option<Vec<u8>>,
    pub blobs: BTreeMap<String, StoredBlob>,
    pub links: BTreeMap<String, String>,
}

/// A file of the archive, now a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredBlob {
    pub digest: Digest,
    pub size: u64,
    pub packing: Packing,
}

/// As its first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// One image of the archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ArchiveImage {
    pub names: Vec<ImageRef>,
    pub source: Source,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A manifest or index that is a blob of the archive.
    Manifest(Digest),
    /// docker's own form: a manifest has to be made.
    Docker {
        config: StoredBlob,
        layers: Vec<StoredBlob>,
    },
}

/// An entry of docker's `manifest.json` (moby, image/spec/v1.2.md).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images of an archive. `stem` names an image that has no name: the file's name without its endings.
pub(super) fn images(contents: &Contents, stem: &str) -> Result<Vec<ArchiveImage>, Cause> {
    let docker = match &contents.docker {
        Some(text) => docker_images(contents, text, stem)?,
        None => Vec::new(),
    };
    let layout = match &contents.index {
        Some(text) => layout_images(text, stem)?,
        None => Vec::new(),
    };
    // Newer dockers write both; the layout has the image's own manifest, docker's file the better names.
    let images = if layout.is_empty() || (docker.len() == layout.len() && docker.len() > 1) {
        docker
    } else {
        adopt_names(layout, docker)
    };
    match images.len() {
        0 => Err(Cause::ArchiveLacks(
            "index.json or manifest.json with an image".to_owned(),
        )),
        count if count > IMAGES_MAX => Err(too_many("images", IMAGES_MAX)),
        _ => Ok(images),
    }
}

fn too_many(what: &'static str, limit: usize) -> Cause {
    Cause::Archive {
        source: super::ArchiveError::TooMany { what, limit },
    }
}

/// With one image in both forms, its names are those of both.
fn adopt_names(mut layout: Vec<ArchiveImage>, mut docker: Vec<ArchiveImage>) -> Vec<ArchiveImage> {
    if let ([image], [same]) = (layout.as_mut_slice(), docker.as_mut_slice()) {
        for name in std::mem::take(&mut same.names) {
            if !image.names.contains(&name) {
                image.names.push(name);
            }
        }
    }
    layout
}

fn layout_images(text: &[u8], stem: &str) -> Result<Vec<ArchiveImage>, Cause> {
    let Document::Index(entries) = Document::parse(text)? else {
        return Err(Cause::Invalid {
            what: "index.json",
            why: "it is a manifest".to_owned(),
        });
    };
    let mut images: Vec<ArchiveImage> = Vec::new();
    for entry in &entries {
        let names = layout_names(entry, stem)?;
        let source = Source::Manifest(entry.digest.clone());
        // Several names of one image are several entries.
        match images.iter_mut().find(|image| image.source == source) {
            Some(image) => image.names.extend(names),
            None => images.push(ArchiveImage { names, source }),
        }
        if images.len() > IMAGES_MAX {
            return Err(too_many("images", IMAGES_MAX));
        }
    }
    Ok(images)
}

/// containerd's full name; else the reference, which the layout specification lets be a tag alone.
fn layout_names(entry: &Descriptor, stem: &str) -> Result<Vec<ImageRef>, Cause> {
    let annotation = |key: &str| {
        entry
            .annotations
            .as_ref()
            .and_then(|all| all.get(key))
            .map(String::as_str)
    };
    if let Some(full) = annotation("io.containerd.image.name") {
        return Ok(vec![full.parse()?]);
    }
    match annotation("org.opencontainers.image.ref.name") {
        Some(name) if name.contains(['/', ':']) => Ok(vec![name.parse()?]),
        Some(tag) => Ok(vec![format!("{stem}:{tag}").parse()?]),
        None => Ok(vec![stem.parse()?]),
    }
}

fn docker_images(contents: &Contents, text: &[u8], stem: &str) -> Result<Vec<ArchiveImage>, Cause> {
    let entries: Vec<DockerImage> = serde_json::from_slice(text).map_err(|source| Cause::Malformed {
        what: "manifest.json",
        source,
    })?;
    if entries.len() > IMAGES_MAX {
        return Err(too_many("images", IMAGES_MAX));
    }
    entries
        .iter()
        .map(|entry| docker_image(contents, entry, stem))
        .collect()
}

fn docker_image(contents: &Contents, entry: &DockerImage, stem: &str) -> Result<ArchiveImage, Cause> {
    let tags = entry.repo_tags.as_deref().unwrap_or_default();
    if tags.len() > NAMES_MAX {
        return Err(too_many("names of one image", NAMES_MAX));
    }
    let mut names = tags
        .iter()
        .map(|tag| tag.parse())
        .collect::<Result<Vec<ImageRef>, _>>()?;
    if names.is_empty() {
        names.push(stem.parse()?);
    }
    let config = find(contents, &entry.config)?;
    let layers = entry
        .layers
        .iter()
        .map(|layer| find(contents, layer))
        .collect::<Result<_, _>>()?;
    Ok(ArchiveImage {
        names,
        source: Source::Docker { config, layers },
    })
}

fn find(contents: &Contents, path: &str) -> Result<StoredBlob, Cause> {
    let mut path = resolve("", path).map_err(|source| Cause::Archive { source })?;
    for _ in 0..LINKS_MAX {
        if let Some(blob) = contents.blobs.get(&path) {
            return Ok(blob.clone());
        }
        match contents.links.get(&path) {
            Some(target) => path.clone_from(target),
            None => break,
        }
    }
    Err(Cause::ArchiveLacks(excerpt(&path)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn blob(fill: u8) -> StoredBlob {
        StoredBlob {
            digest: Digest::of(&[fill]),
            size: 1,
            packing: Packing::Plain,
        }
    }

    fn contents() -> Contents {
        Contents {
            blobs: [("c.json".into(), blob(1)), ("a/layer.tar".into(), blob(2))].into(),
            links: [
                ("b/layer.tar".into(), "a/layer.tar".into()),
                ("loop".into(), "loop".into()),
            ]
            .into(),
            ..Contents::default()
        }
    }

    fn names(images: &[ArchiveImage]) -> Vec<String> {
        images
            .iter()
            .flat_map(|image| &image.names)
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn docker_archives_name_their_images_and_may_link_layers() {
        let docker = json!([{"Config": "c.json", "RepoTags": ["app:v1", "reg.example/app:v1"],
                             "Layers": ["a/layer.tar", "b/layer.tar"]}]);
        let contents = Contents {
            docker: Some(docker.to_string().into()),
            ..contents()
        };
        let images = images(&contents, "file").unwrap();
        assert_eq!(names(&images), ["docker.io/library/app:v1", "reg.example/app:v1"]);
        assert_eq!(
            images[0].source,
            Source::Docker {
                config: blob(1),
                layers: vec![blob(2), blob(2)]
            }
        );
    }

    #[test]
    fn a_layout_names_its_images_in_one_of_three_ways() {
        let entry = |fill: u8, annotations: serde_json::Value| json!({"mediaType": "x", "digest": Digest::of(&[fill]).as_str(), "size": 1, "annotations": annotations});
        let index = json!({"schemaVersion": 2, "manifests": [
            entry(1, json!({"io.containerd.image.name": "docker.io/library/a:1"})),
            entry(2, json!({"org.opencontainers.image.ref.name": "reg.example/b:2"})),
            entry(3, json!({"org.opencontainers.image.ref.name": "3"})),
            entry(4, json!(null)),
        ]});
        let contents = Contents {
            index: Some(index.to_string().into()),
            ..Contents::default()
        };
        assert_eq!(
            names(&images(&contents, "file").unwrap()),
            [
                "docker.io/library/a:1",
                "reg.example/b:2",
                "docker.io/library/file:3",
                "docker.io/library/file:latest"
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let with = |config: &str, layer: &str| {
            let docker = json!([{"Config": config, "Layers": [layer]}]).to_string();
            images(
                &Contents {
                    docker: Some(docker.into()),
                    ..contents()
                },
                "file",
            )
            .unwrap_err()
            .to_string()
        };
        assert!(with("c.json", "z/layer.tar").contains("z/layer.tar"));
        assert!(with("gone.json", "a/layer.tar").contains("gone.json"));
        assert!(with("c.json", "loop").contains("loop"));
        assert!(matches!(images(&contents(), "file"), Err(Cause::ArchiveLacks(_))));
    }

    proptest! {
        #[test]
        fn documents_never_panic(index in "[ -~]{0,200}", docker in "[ -~]{0,200}") {
            let contents = Contents { index: Some(index.into()), docker: Some(docker.into()), ..contents() };
            let _ = images(&contents, "file");
        }

        #[test]
        fn strange_paths_never_panic(config in "[./a-z\\\\]{0,30}", layer in "[./a-z]{0,30}", tag in "[ -~]{0,30}") {
            let docker = json!([{"Config": config, "RepoTags": [tag], "Layers": [layer]}]).to_string();
            let _ = images(&Contents { docker: Some(docker.into()), ..contents() }, "file");
        }
    }
}
