//! Images made on the spot.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use rand::RngCore;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rand::rng().fill_bytes(&mut noise);
    noise
}

pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[derive(Clone, Debug)]
pub struct Layer {
    pub tar: Vec<u8>,
    /// As it travels.
    pub blob: Vec<u8>,
    pub gzip: bool,
}

impl Layer {
    pub fn gzip(files: &[(&str, &[u8])]) -> Self {
        let tar = tar_of(files);
        Self {
            blob: gzip(&tar),
            tar,
            gzip: true,
        }
    }

    pub fn plain(files: &[(&str, &[u8])]) -> Self {
        let tar = tar_of(files);
        Self {
            blob: tar.clone(),
            tar,
            gzip: false,
        }
    }

    pub fn digest(&self) -> String {
        digest(&self.blob)
    }
}

#[derive(Clone, Debug)]
pub struct Image {
    pub config: Vec<u8>,
    pub layers: Vec<Layer>,
    pub manifest: Vec<u8>,
    pub media_type: &'static str,
}

impl Image {
    pub fn new(layers: Vec<Layer>) -> Self {
        Self::of(layers, OCI_MANIFEST, architecture())
    }

    /// A root file system with busybox in it, and a layer of noise that makes it unlike any other.
    pub fn busybox() -> Self {
        let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
        Self::new(vec![
            Layer::gzip(&[("bin/busybox", &busybox), ("etc/over", b"below")]),
            Layer::plain(&[("etc/over", b"above"), ("etc/noise", &noise(2000))]),
        ])
    }

    /// One small layer of noise.
    pub fn small() -> Self {
        Self::new(vec![Layer::gzip(&[("noise", &noise(500))])])
    }

    pub fn of(layers: Vec<Layer>, media_type: &'static str, architecture: &str) -> Self {
        let config = json!({
            "os": "linux",
            "architecture": architecture,
            "config": {
                "Env": ["A=1", "B=two words"],
                "Entrypoint": ["/bin/busybox"],
                "Cmd": ["echo", "hi"],
                "WorkingDir": "/tmp",
                "User": "1000:1000",
                "StopSignal": "SIGQUIT",
            },
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| digest(&l.tar)).collect::<Vec<_>>()},
        });
        let config = config.to_string().into_bytes();
        let docker = media_type == DOCKER_MANIFEST;
        let kind = |layer: &Layer| match (docker, layer.gzip) {
            (true, true) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (true, false) => "application/vnd.docker.image.rootfs.diff.tar",
            (false, true) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, false) => "application/vnd.oci.image.layer.v1.tar",
        };
        let config_type = match docker {
            true => "application/vnd.docker.container.image.v1+json",
            false => "application/vnd.oci.image.config.v1+json",
        };
        let layer = |layer: &Layer| json!({"mediaType": kind(layer), "digest": layer.digest(), "size": layer.blob.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": {"mediaType": config_type, "digest": digest(&config), "size": config.len()},
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        Self {
            config,
            layers,
            manifest: manifest.to_string().into_bytes(),
            media_type,
        }
    }

    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.manifest.len()})
    }

    /// Chain id of the top layer.
    pub fn chain_id(&self) -> String {
        let mut diff_ids = self.layers.iter().map(|layer| digest(&layer.tar));
        let first = diff_ids.next().unwrap();
        diff_ids.fold(first, |chain, diff_id| {
            digest(format!("{chain} {diff_id}").as_bytes())
        })
    }

    pub fn blobs(&self) -> Vec<Vec<u8>> {
        let layers = self.layers.iter().map(|layer| layer.blob.clone());
        std::iter::once(self.config.clone()).chain(layers).collect()
    }

    /// As an OCI layout.
    pub fn layout(&self, annotations: Value) -> Vec<u8> {
        let mut entry = self.descriptor();
        entry["annotations"] = annotations;
        let index = json!({"schemaVersion": 2, "manifests": [entry]})
            .to_string()
            .into_bytes();
        let mut files = vec![
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), index),
        ];
        for blob in self.blobs().into_iter().chain([self.manifest.clone()]) {
            files.push((format!("blobs/{}", digest(&blob).replace(':', "/")), blob));
        }
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
            .collect();
        tar_of(&files)
    }

    /// As `docker save` wrote it for years: uncompressed layers in directories, the list last.
    pub fn docker_save(&self, tags: &[&str]) -> Vec<u8> {
        let config = format!("{}.json", &digest(&self.config)[7..]);
        let paths: Vec<String> = (0..self.layers.len())
            .map(|n| format!("layer{n}/layer.tar"))
            .collect();
        let list = json!([{"Config": config, "RepoTags": tags, "Layers": paths}]).to_string();
        let mut files: Vec<(&str, &[u8])> = vec![(&config, &self.config)];
        for (path, layer) in paths.iter().zip(&self.layers) {
            files.push((path, &layer.tar));
        }
        files.push(("repositories", b"{}"));
        files.push(("manifest.json", list.as_bytes()));
        tar_of(&files)
    }
}
