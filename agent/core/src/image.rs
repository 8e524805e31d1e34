//! Owns what the core knows of an image: enough to build a container's spec from it.

use serde::{Deserialize, Serialize};

/// An image that is on this host, unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedImage {
    /// The reference as the user wrote it.
    pub reference: String,
    /// `sha256:…` of the manifest of this platform.
    pub digest: String,
    /// Likewise of what the reference points to: the manifest, or an index of it and other platforms'. Empty in what an
    /// older agent stored.
    #[serde(default)]
    pub resolved: String,
    /// Key of the committed snapshot that holds the unpacked layers (the OCI chain id).
    pub chain_id: String,
    pub config: ImageConfig,
}

/// What an image's configuration says about running it (OCI image spec, `config`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `KEY=value`.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// Empty: `/`.
    pub working_dir: String,
    /// Empty: root.
    pub user: String,
    /// As the image has it: `SIGQUIT`, `QUIT` or `3`. Empty: SIGTERM.
    pub stop_signal: String,
    /// Paths of volumes it declares. Absent in what an older agent stored.
    #[serde(default)]
    pub volumes: Vec<String>,
}
