//! Owns the certificate of the API's listener: read from the operator's files, and again when they change. Never makes
//! one, and never asks callers for theirs: they sign their requests.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// How often the files are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// Mode bits that no key may have: others' of any kind, and the group's right to write.
const EXPOSED: u32 = 0o027;

/// Why a certificate cannot be used. The key says which file.
#[derive(Debug, thiserror::Error)]
pub enum ApiTlsError {
    #[error("{key}: read {}", path.display())]
    Read {
        key: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "api_tls_key: {} can be read by others, or written by its group (mode {mode:04o}): run `chmod 640` or \
         `chmod 600` on it, and replace the key if somebody may have had it",
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{key}: there is no {what} in {}, which must be PEM", path.display())]
    Empty {
        key: &'static str,
        what: &'static str,
        path: PathBuf,
    },
    #[error("api_tls_certificate, api_tls_key: {} and {} cannot be used together", certificate.display(), key.display())]
    Unusable {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
}

/// What the files were when they were read.
type Seen = [Option<(u64, u64, SystemTime)>; 2];

/// The listener's certificate. Clones are the same.
#[derive(Clone, Debug)]
pub struct ApiTls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<ServerConfig>>,
    /// How callers name this host, and whether the file vouches for itself.
    name: Option<String>,
    self_signed: bool,
}

impl ApiTls {
    /// Reads both files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, ApiTlsError> {
        let (config, chain) = read(certificate, key)?;
        Ok(Self(Arc::new(Inner {
            certificate: certificate.into(),
            key: key.into(),
            current: RwLock::new(config),
            name: chain.first().and_then(|leaf| name_of(leaf)),
            self_signed: chain.last().is_some_and(|last| is_self_signed(last)),
        })))
    }

    /// By which name the certificate is good on this host, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// The file, if a client can take it for the authority itself.
    pub fn own_authority(&self) -> Option<&Path> {
        self.0.self_signed.then_some(&self.0.certificate)
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(current.clone())
    }

    /// Reads the files again when they change, until told to stop. What cannot be used is told once, and changes nothing.
    pub async fn watch(self, stop: CancellationToken) {
        let mut seen = self.seen();
        let mut refused = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let now = self.seen();
            if now == seen || Some(now) == refused {
                continue;
            }
            match read(&self.0.certificate, &self.0.key) {
                Ok((config, _)) => {
                    *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                    (seen, refused) = (now, None);
                    tracing::info!(certificate = %self.0.certificate.display(), "the API has a new certificate");
                }
                // Both files cannot change at once: the second one's change is seen next time.
                Err(error) => {
                    refused = Some(now);
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the API keeps its old certificate"
                    );
                }
            }
        }
    }

    fn seen(&self) -> Seen {
        [&self.0.certificate, &self.0.key].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
        })
    }
}

type Chain = Vec<CertificateDer<'static>>;

fn read(certificate: &Path, key: &Path) -> Result<(Arc<ServerConfig>, Chain), ApiTlsError> {
    let unreadable = |name, path: &Path| {
        let path = path.to_path_buf();
        move |source| ApiTlsError::Read {
            key: name,
            path,
            source,
        }
    };
    let empty = |name, what, path: &Path| ApiTlsError::Empty {
        key: name,
        what,
        path: path.into(),
    };
    let pem = fs::read(certificate).map_err(unreadable("api_tls_certificate", certificate))?;
    let chain: Chain = CertificateDer::pem_slice_iter(&pem)
        .filter_map(Result::ok)
        .collect();
    if chain.is_empty() {
        return Err(empty("api_tls_certificate", "certificate", certificate));
    }
    let metadata = fs::metadata(key).map_err(unreadable("api_tls_key", key))?;
    let mode = metadata.mode() & 0o7777;
    if metadata.is_file() && mode & EXPOSED != 0 {
        return Err(ApiTlsError::Exposed {
            path: key.into(),
            mode,
        });
    }
    let pem = fs::read(key).map_err(unreadable("api_tls_key", key))?;
    let private =
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| empty("api_tls_key", "private key", key))?;
    let config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain.clone(), private)
        });
    match config {
        Ok(mut config) => {
            config.alpn_protocols.push(b"http/1.1".to_vec());
            Ok((Arc::new(config), chain))
        }
        Err(source) => Err(ApiTlsError::Unusable {
            certificate: certificate.into(),
            key: key.into(),
            source,
        }),
    }
}

/// A name the certificate is good for: `localhost` if it is, as this is for callers on this host; else the first.
fn name_of(leaf: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut found = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::DNSName(name) if !name.starts_with('*') => found.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                    found.push(std::net::Ipv4Addr::from(v4).to_string());
                } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                    found.push(format!("[{}]", std::net::Ipv6Addr::from(v6)));
                }
            }
            _ => {}
        }
    }
    let local = found.iter().position(|name| name == "localhost");
    Some(found.swap_remove(local.unwrap_or(0).min(found.len().checked_sub(1)?)))
}

fn is_self_signed(last: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(last)
        .is_ok_and(|(_, certificate)| certificate.issuer() == certificate.subject())
}
