//! Owns the JSON documents of images: manifests, indexes and configurations, docker's and OCI's. Foreign input:
//! everything is bounded and nothing panics. Never fetches or stores one.

use std::collections::BTreeMap;

use berth_agent_core::image::ImageConfig;
use serde::Deserialize;

use super::{
    config::{CONFIG_BYTES_MAX, LAYER_BYTES_MAX, LAYERS_MAX, Platform},
    digest::{Digest, excerpt},
    error::Cause,
};

/// Volumes that one image may declare: each is a directory to be made and filled.
const VOLUMES_MAX: usize = 100;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What a descriptor points at (OCI image spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<PlatformDocument>,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct PlatformDocument {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// A manifest or an index.
#[derive(Debug)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

/// An image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct RawDocument {
    #[serde(rename = "schemaVersion", default)]
    schema_version: u32,
    #[serde(rename = "mediaType", default)]
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Reads a manifest or an index. Something that could be read as both is refused (CVE-2021-41190).
    pub fn parse(bytes: &[u8]) -> Result<Self, Cause> {
        let raw: RawDocument = serde_json::from_slice(bytes).map_err(|source| Cause::Malformed {
            what: "manifest",
            source,
        })?;
        if raw.schema_version == 1 {
            return Err(Cause::Unsupported("docker manifest schema 1".to_owned()));
        }
        let media_type = raw.media_type.unwrap_or_default();
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) if !matches!(media_type.as_str(), OCI_INDEX | DOCKER_LIST) => {
                let manifest = Manifest {
                    media_type,
                    config,
                    layers,
                };
                manifest.check()?;
                Ok(Self::Manifest(manifest))
            }
            (None, None, Some(manifests))
                if !matches!(media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST) =>
            {
                Ok(Self::Index(manifests))
            }
            _ => Err(Cause::Invalid {
                what: "manifest",
                why: "it is neither an image manifest nor an index".to_owned(),
            }),
        }
    }
}

impl Manifest {
    fn check(&self) -> Result<(), Cause> {
        if !matches!(self.media_type.as_str(), "" | OCI_MANIFEST | DOCKER_MANIFEST) {
            return Err(Cause::Unsupported(excerpt(&self.media_type)));
        }
        if self.config.size > CONFIG_BYTES_MAX {
            return Err(Cause::TooLarge {
                what: "image configuration",
                limit: CONFIG_BYTES_MAX,
            });
        }
        if self.layers.len() > LAYERS_MAX {
            return Err(Cause::TooManyLayers {
                count: self.layers.len(),
                limit: LAYERS_MAX,
            });
        }
        if self.layers.is_empty() {
            return Err(Cause::Invalid {
                what: "manifest",
                why: "it has no layers".to_owned(),
            });
        }
        for layer in &self.layers {
            if layer.size > LAYER_BYTES_MAX {
                return Err(Cause::TooLarge {
                    what: "layer",
                    limit: LAYER_BYTES_MAX,
                });
            }
            if !is_layer(&layer.media_type) {
                return Err(Cause::Unsupported(excerpt(&layer.media_type)));
            }
        }
        Ok(())
    }

    /// As it is recorded in containerd.
    pub fn media_type(&self) -> &str {
        if self.media_type.is_empty() {
            OCI_MANIFEST
        } else {
            &self.media_type
        }
    }
}

/// Layers that containerd's differ takes: OCI's and docker's, also the non-distributable ones.
fn is_layer(media_type: &str) -> bool {
    let bare = media_type
        .strip_suffix(".gzip")
        .or_else(|| media_type.strip_suffix("+gzip"));
    let bare = bare
        .or_else(|| media_type.strip_suffix("+zstd"))
        .or_else(|| media_type.strip_suffix(".zstd"));
    matches!(
        bare.unwrap_or(media_type),
        OCI_LAYER
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
    )
}

/// The entry of an index for this platform. Among several the plainest variant wins: it runs on every such machine.
pub(super) fn choose<'a>(entries: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor, Cause> {
    let wanted = platform.architecture.as_str();
    let rank = |entry: &Descriptor| match &entry.platform {
        // A lone entry without a platform is for whoever asks; its configuration is checked later.
        None => (entries.len() == 1).then_some(9),
        Some(p) if p.os != "linux" || p.architecture != wanted => None,
        Some(p) => match (wanted, p.variant.as_deref()) {
            (_, None | Some("")) | ("arm64", Some("v8")) | ("amd64", Some("v1")) => Some(0),
            ("arm64", Some(_)) => Some(1),
            // amd64/v3 and the like do not run on every amd64 machine.
            _ => None,
        },
    };
    let best = entries
        .iter()
        .filter_map(|entry| rank(entry).map(|rank| (rank, entry)))
        .min_by_key(|(rank, _)| *rank);
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let offered: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|p| p.os != "unknown")
            .map(|p| match &p.variant {
                Some(variant) => format!("{}/{}/{variant}", p.os, p.architecture),
                None => format!("{}/{}", p.os, p.architecture),
            })
            .collect();
        let offered = if offered.is_empty() {
            "none".to_owned()
        } else {
            offered.join(", ")
        };
        Cause::NoPlatform {
            wanted: wanted.to_owned(),
            offered: excerpt(&offered),
        }
    })
}

/// What an image's configuration says, and the digests of its unpacked layers.
#[derive(Debug)]
pub(super) struct Configuration {
    pub run: ImageConfig,
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawConfiguration {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<RawRun>,
    rootfs: Option<RawRootfs>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Vec<Digest>,
}

impl Configuration {
    /// Reads a configuration and checks that it fits the manifest's layers and this host.
    pub fn parse(bytes: &[u8], layers: usize, platform: &Platform) -> Result<Self, Cause> {
        let raw: RawConfiguration = serde_json::from_slice(bytes).map_err(|source| Cause::Malformed {
            what: "image configuration",
            source,
        })?;
        // Empty: some builders leave it out.
        let fits = |value: &str, wanted: &str| value.is_empty() || value == wanted;
        if !fits(&raw.os, "linux") || !fits(&raw.architecture, &platform.architecture) {
            return Err(Cause::NoPlatform {
                wanted: platform.architecture.clone(),
                offered: excerpt(&format!("{}/{}", raw.os, raw.architecture)),
            });
        }
        let diff_ids = raw.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default();
        if diff_ids.len() != layers {
            return Err(Cause::Invalid {
                what: "image configuration",
                why: format!("it names {} layers, the manifest {layers}", diff_ids.len()),
            });
        }
        let run = raw.config.unwrap_or_default();
        let volumes: Vec<String> = run.volumes.unwrap_or_default().into_keys().collect();
        if volumes.len() > VOLUMES_MAX {
            return Err(Cause::Invalid {
                what: "image configuration",
                why: format!(
                    "it declares {} volumes, at most {VOLUMES_MAX} are made",
                    volumes.len()
                ),
            });
        }
        let run = ImageConfig {
            env: run.env.unwrap_or_default(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            stop_signal: run.stop_signal.unwrap_or_default(),
            volumes,
        };
        Ok(Self { run, diff_ids })
    }

    /// The chain id of every layer, bottom first (OCI image spec, config.md): snapshots are named by them.
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.diff_ids.len());
        for diff_id in &self.diff_ids {
            let id = match chain.last() {
                None => diff_id.clone(),
                Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
            };
            chain.push(id);
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn digest(fill: &str) -> String {
        format!("sha256:{}", fill.repeat(32))
    }

    fn entry(os: &str, architecture: &str, variant: Option<&str>, fill: &str) -> Descriptor {
        Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: digest(fill).parse().unwrap(),
            size: 1,
            platform: Some(PlatformDocument {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.map(str::to_owned),
            }),
            annotations: None,
        }
    }

    fn platform(architecture: &str) -> Platform {
        Platform {
            architecture: architecture.into(),
        }
    }

    #[test]
    fn the_plainest_variant_of_this_platform_is_chosen() {
        let entries = [
            entry("unknown", "unknown", None, "00"),
            entry("windows", "amd64", None, "01"),
            entry("linux", "amd64", Some("v3"), "02"),
            entry("linux", "amd64", None, "03"),
            entry("linux", "arm64", Some("v8"), "04"),
        ];
        assert_eq!(
            choose(&entries, &platform("amd64")).unwrap().digest.as_str(),
            digest("03")
        );
        assert_eq!(
            choose(&entries, &platform("arm64")).unwrap().digest.as_str(),
            digest("04")
        );
        let error = choose(&entries, &platform("riscv64")).unwrap_err().to_string();
        assert!(
            error.contains("linux/riscv64") && error.contains("linux/arm64/v8"),
            "{error}"
        );
    }

    #[test]
    fn a_document_that_could_be_two_things_is_refused() {
        let both = json!({
            "schemaVersion": 2,
            "config": {"digest": digest("aa"), "size": 1},
            "layers": [{"mediaType": OCI_LAYER, "digest": digest("aa"), "size": 1}],
            "manifests": [],
        });
        assert!(Document::parse(both.to_string().as_bytes()).is_err());
        let disguised = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": []});
        assert!(Document::parse(disguised.to_string().as_bytes()).is_err());
    }

    #[test]
    fn limits_of_manifests_are_kept() {
        let layer = json!({"mediaType": OCI_LAYER, "digest": digest("aa"), "size": 1});
        let with = |config_size: u64, layers: Vec<serde_json::Value>| {
            let document = json!({
                "schemaVersion": 2,
                "config": {"digest": digest("bb"), "size": config_size},
                "layers": layers,
            });
            Document::parse(document.to_string().as_bytes())
        };
        assert!(with(1, vec![layer.clone(); 128]).is_ok());
        assert!(matches!(
            with(1, vec![layer.clone(); 129]),
            Err(Cause::TooManyLayers { count: 129, .. })
        ));
        assert!(matches!(
            with(9 << 20, vec![layer.clone()]),
            Err(Cause::TooLarge { .. })
        ));
        assert!(matches!(with(1, vec![]), Err(Cause::Invalid { .. })));
        let wasm = json!({"mediaType": "application/wasm", "digest": digest("aa"), "size": 1});
        assert!(matches!(with(1, vec![wasm]), Err(Cause::Unsupported(_))));
        let negative = json!({"mediaType": OCI_LAYER, "digest": digest("aa"), "size": -1});
        assert!(matches!(with(1, vec![negative]), Err(Cause::Malformed { .. })));
    }

    #[test]
    fn a_configuration_may_leave_everything_out_but_its_layers() {
        let text =
            json!({"rootfs": {"type": "layers", "diff_ids": [digest("aa")]}, "config": null}).to_string();
        let configuration = Configuration::parse(text.as_bytes(), 1, &platform("amd64")).unwrap();
        assert_eq!(configuration.run, ImageConfig::default());
        assert!(Configuration::parse(text.as_bytes(), 2, &platform("amd64")).is_err());
        let foreign = json!({"os": "linux", "architecture": "s390x"}).to_string();
        assert!(matches!(
            Configuration::parse(foreign.as_bytes(), 0, &platform("amd64")),
            Err(Cause::NoPlatform { .. })
        ));
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let diff_ids = vec![digest("aa").parse().unwrap(), digest("bb").parse().unwrap()];
        let chain = Configuration {
            run: ImageConfig::default(),
            diff_ids,
        }
        .chain_ids();
        assert_eq!(chain[0].as_str(), digest("aa"));
        assert_eq!(
            chain[1],
            Digest::of(format!("{} {}", digest("aa"), digest("bb")).as_bytes())
        );
    }

    proptest! {
        #[test]
        fn documents_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Document::parse(&bytes);
            let _ = Configuration::parse(&bytes, 1, &platform("amd64"));
        }

        #[test]
        fn mutated_documents_never_panic(at in 0usize..400, with in any::<u8>()) {
            let layer = json!({"mediaType": OCI_LAYER, "digest": digest("aa"), "size": 1});
            let mut text = json!({"schemaVersion": 2, "config": layer, "layers": [layer]}).to_string().into_bytes();
            let at = at % text.len();
            text[at] = with;
            let _ = Document::parse(&text);
        }
    }
}
