//! Owns the control plane's authority: the key that makes nodes believe the control plane and the control plane
//! believe its nodes. Never decides who may have a certificate.
//!
//! A node's certificate names the node (CN) and its cluster (O), is good for TLS clients only, and for a year. The
//! server's is made anew at every start, and its key never touches the disk.

mod files;
mod peer;

#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

pub(crate) use self::peer::is_id;
pub use self::{
    files::{read_private, write_private},
    peer::Peer,
};

/// The authority's certificate, in its directory.
pub const CERTIFICATE_FILE: &str = "authority.pem";
/// The authority's key, in its directory; readable by its owner alone.
pub const KEY_FILE: &str = "authority.key";

const AUTHORITY_DAYS: i64 = 3_650;
/// A control plane that runs for longer without a restart would lose its nodes.
const SERVER_DAYS: i64 = 825;
const NODE_DAYS: i64 = 365;
/// Certificates are good from a little before they are made: clocks differ.
const BACKDATED: Duration = Duration::HOUR;

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{} can be read by others than its owner (mode {mode:04o}): if nobody had it, run `chmod 600 {}`; else \
         delete the authority and issue all certificates again",
        path.display(), path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "{} is there, but its key {} is not: restore the key from a backup, or remove the certificate to begin \
         with a new authority that no node knows",
        certificate.display(), key.display()
    )]
    KeyMissing { certificate: PathBuf, key: PathBuf },
    #[error("{} is not an authority's certificate that fits its key", path.display())]
    NotAnAuthority {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the authority in {} is good from {from} to {to} only: check the clock, or begin a new authority", path.display())]
    Expired {
        path: PathBuf,
        from: OffsetDateTime,
        to: OffsetDateTime,
    },
    #[error("{value:?} is not {what}")]
    Name { value: String, what: &'static str },
    #[error("make a certificate for {subject}")]
    Issue { subject: String, source: rcgen::Error },
}

/// A certificate with its key, PEM.
#[derive(Clone)]
pub struct ServerIdentity {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// What a node proves itself with, and whom it believes; all PEM.
#[derive(Clone)]
pub struct NodeIdentity {
    pub certificate_pem: String,
    pub key_pem: String,
    pub authority_pem: String,
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity").finish_non_exhaustive()
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity").finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// Writes `node.pem`, `node.key` (for its owner alone) and `authority.pem` into an existing directory.
    pub fn write_to(&self, directory: &Path) -> Result<(), PkiError> {
        write_private(&directory.join("node.key"), &self.key_pem)?;
        files::write_public(&directory.join("node.pem"), &self.certificate_pem)?;
        files::write_public(&directory.join("authority.pem"), &self.authority_pem)
    }
}

/// The authority of one control plane.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    /// Nothing it signs is good for longer than itself.
    not_after: OffsetDateTime,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority that lives in `directory`; on the first call it is made, and the directory with it.
    ///
    /// # Errors
    /// [`PkiError::Exposed`] if others can read the key, [`PkiError::KeyMissing`], [`PkiError::Expired`], and what
    /// the files do.
    pub fn load_or_create(directory: &Path) -> Result<Self, PkiError> {
        files::create_directory(directory)?;
        let (key_path, certificate_path) = (directory.join(KEY_FILE), directory.join(CERTIFICATE_FILE));
        let key = match (key_path.exists(), certificate_path.exists()) {
            (true, _) => parse_key(&key_path)?,
            (false, true) => {
                return Err(PkiError::KeyMissing {
                    certificate: certificate_path,
                    key: key_path,
                });
            }
            (false, false) => {
                let key = generate("the authority")?;
                write_private(&key_path, &key.serialize_pem())?;
                key
            }
        };
        // A key alone is an authority whose making was cut short: nothing can have been issued by it.
        if !certificate_path.exists() {
            files::write_public(&certificate_path, &self_signed(&key)?)?;
        }
        Self::load(&certificate_path, key)
    }

    fn load(path: &Path, key: KeyPair) -> Result<Self, PkiError> {
        let certificate_pem = files::read(path)?;
        let (from, to) =
            peer::authority_validity(&certificate_pem, key.public_key_raw()).map_err(|source| {
                PkiError::NotAnAuthority {
                    path: path.into(),
                    source,
                }
            })?;
        let now = OffsetDateTime::now_utc();
        if now < from || now >= to {
            return Err(PkiError::Expired {
                path: path.into(),
                from,
                to,
            });
        }
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|source| PkiError::NotAnAuthority {
                path: path.into(),
                source: source.into(),
            })?;
        Ok(Self {
            issuer,
            certificate_pem,
            not_after: to,
        })
    }

    /// The certificate that nodes have to believe.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// An identity for the node listener, under host names and addresses by which nodes reach it.
    pub fn issue_server(&self, names: &[String]) -> Result<ServerIdentity, PkiError> {
        let subject = || "the control plane".to_owned();
        let mut params = CertificateParams::new(names).map_err(|source| PkiError::Issue {
            subject: subject(),
            source,
        })?;
        params.distinguished_name = name(&[(DnType::CommonName, "berth-control-plane")]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (certificate_pem, key_pem) = self.sign(params, SERVER_DAYS, subject())?;
        Ok(ServerIdentity {
            certificate_pem,
            key_pem,
        })
    }

    /// An identity for a node: its id in the common name, its cluster in the organization.
    pub fn issue_node(&self, node_id: &str, cluster: &str) -> Result<NodeIdentity, PkiError> {
        let peer = Peer::new(node_id, cluster)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&[
            (DnType::CommonName, &peer.node_id),
            (DnType::OrganizationName, &peer.cluster),
        ]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate_pem, key_pem) = self.sign(params, NODE_DAYS, format!("node {node_id}"))?;
        Ok(NodeIdentity {
            certificate_pem,
            key_pem,
            authority_pem: self.certificate_pem.clone(),
        })
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        days: i64,
        subject: String,
    ) -> Result<(String, String), PkiError> {
        let key = generate(&subject)?;
        let now = OffsetDateTime::now_utc();
        params.not_before = now - BACKDATED;
        params.not_after = (now + Duration::days(days)).min(self.not_after);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        match params.signed_by(&key, &self.issuer) {
            Ok(certificate) => Ok((certificate.pem(), key.serialize_pem())),
            Err(source) => Err(PkiError::Issue { subject, source }),
        }
    }
}

fn generate(subject: &str) -> Result<KeyPair, PkiError> {
    KeyPair::generate().map_err(|source| PkiError::Issue {
        subject: subject.to_owned(),
        source,
    })
}

fn parse_key(path: &Path) -> Result<KeyPair, PkiError> {
    let pem = read_private(path)?;
    KeyPair::from_pem(&pem).map_err(|source| PkiError::NotAnAuthority {
        path: path.into(),
        source: source.into(),
    })
}

fn self_signed(key: &KeyPair) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&[(DnType::CommonName, "Berth node authority")]);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(AUTHORITY_DAYS);
    match params.self_signed(key) {
        Ok(certificate) => Ok(certificate.pem()),
        Err(source) => Err(PkiError::Issue {
            subject: "the authority".into(),
            source,
        }),
    }
}

fn name(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in parts {
        name.push(kind.clone(), *value);
    }
    name
}
