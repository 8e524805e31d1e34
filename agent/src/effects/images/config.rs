//! Owns what an operator may set about images, and the bounds that nobody may set. Never reads a file or opens a
//! connection.

use std::{fmt, path::PathBuf, time::Duration};

/// Largest manifest or index that is read. The distribution spec asks registries to accept 4 MiB.
pub(super) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Largest image configuration that is read.
pub(super) const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Most layers of one image: overlayfs takes no more lower directories than this in one mount.
pub(super) const LAYERS_MAX: usize = 128;
/// Largest single layer, compressed.
pub(super) const LAYER_BYTES_MAX: u64 = 64 << 30;

/// How images get onto this host. Build it from [`ImagesConfig::default`].
#[derive(Clone, Debug)]
pub struct ImagesConfig {
    /// The containerd namespace that images, content and snapshots live in.
    pub containerd_namespace: String,
    /// Name of this agent on its host: in labels and lease names, so that several agents can share a containerd.
    pub instance: String,
    /// containerd's snapshotter, `overlayfs` unless the host needs another.
    pub snapshotter: String,
    /// Registries (`host` or `host:port`) spoken to in plain HTTP. Loopback hosts need no entry.
    pub plain_http_hosts: Vec<String>,
    pub credentials: Vec<RegistryCredential>,
    /// PEM files with certificate authorities trusted besides the system's.
    pub extra_ca_pem: Vec<PathBuf>,
    /// Directory of image archives for [`import_archives`](super::Images::import_archives).
    pub archives_dir: Option<PathBuf>,
    /// Which image of a multi-platform index is taken.
    pub platform: Platform,
    /// For how long a tag that was resolved at its registry is not asked for again, as long as its snapshot exists.
    /// Keeps the registry off the path of most task starts; a moved tag is seen this much later.
    pub resolve_ttl: Duration,
    pub limits: Limits,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            containerd_namespace: "berth".to_owned(),
            instance: "berth".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            plain_http_hosts: Vec::new(),
            credentials: Vec::new(),
            extra_ca_pem: Vec::new(),
            archives_dir: None,
            platform: Platform::detect(),
            resolve_ttl: Duration::from_secs(30),
            limits: Limits::default(),
        }
    }
}

/// A name and password for one registry, used for Basic and to get Bearer tokens.
#[derive(Clone)]
pub struct RegistryCredential {
    /// `host` or `host:port`, as image references name it.
    pub host: String,
    pub username: String,
    pub password: String,
}

impl fmt::Debug for RegistryCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryCredential")
            .field("host", &self.host)
            .field("username", &self.username)
            .field("password", &"<redacted>")
            .finish()
    }
}

/// A Linux architecture, in the names of the OCI image index (`amd64`, `arm64`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub architecture: String,
}

impl Platform {
    /// The architecture this agent was built for.
    pub fn detect() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            architecture: architecture.to_owned(),
        }
    }
}

/// How much at once, how often, and for how long.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Images pulled at once; others wait. Resolving a tag never waits.
    pub pulls: usize,
    /// Layers of one image downloaded at once.
    pub layers: usize,
    /// Attempts of one request without progress before the pull fails. At least 1.
    pub attempts: u32,
    /// Wait before the second attempt; doubles with each one after, with jitter.
    pub backoff: Duration,
    /// Longest wait between two attempts, whatever the registry's Retry-After asks.
    pub backoff_max: Duration,
    pub connect: Duration,
    /// Longest silence of a registry, before its answer or inside it.
    pub stall: Duration,
    /// Longest try to resolve a tag when the image is already here and could be used instead.
    pub resolve_with_local: Duration,
    /// Longest pull, from its lease to its image record.
    pub pull: Duration,
    /// After how long without use the HTTP clients are dropped, with their certificates and buffers.
    pub client_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pulls: 3,
            layers: 4,
            attempts: 6,
            backoff: Duration::from_millis(250),
            backoff_max: Duration::from_secs(15),
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            resolve_with_local: Duration::from_secs(5),
            pull: Duration::from_secs(2 * 60 * 60),
            client_idle: Duration::from_secs(60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        let credential = RegistryCredential {
            host: "registry.example".into(),
            username: "who".into(),
            password: "hunter2".into(),
        };
        let config = ImagesConfig {
            credentials: vec![credential],
            ..ImagesConfig::default()
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
