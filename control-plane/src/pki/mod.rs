//! Owns the control plane's authority: the key that makes nodes believe the control plane and the control plane
//! believe its nodes. Never decides who may have a certificate.
//!
//! A node's certificate names the node (CN) and its cluster (O), is good for TLS clients only, and is made from the
//! node's own request: keys of nodes that join never come here. The server's is made anew at every start and before it
//! runs out, and its key never touches the disk.

mod authorities;
mod files;
mod peer;
mod request;

#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use rand::TryRngCore;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

pub(crate) use self::peer::{good_until, is_id};
pub use self::{
    authorities::{Authorities, Phase, STATE_FILE, Trusted},
    files::{read_private, write_private},
    peer::Peer,
    request::{NodeRequest, RequestError},
};

/// The authority's certificate, in its directory.
pub const CERTIFICATE_FILE: &str = "authority.pem";
/// The authority's key, in its directory; readable by its owner alone.
pub const KEY_FILE: &str = "authority.key";

const AUTHORITY_DAYS: i64 = 3_650;
/// What the first authority of a control plane is called; later ones have a number.
const FIRST_NAME: &str = "Berth node authority";
/// How long the server's own certificate is good; it is made again after two thirds of that.
pub const SERVER_LIFETIME: Duration = Duration::days(90);
/// Of identities whose keys are made here, by [`Authority::issue_node`].
const NODE_LIFETIME: Duration = Duration::days(365);
/// Certificates are good from a little before they are made: clocks differ. A short-lived one from less before, so
/// that who renews after a part of its life does not find that part over at once.
const BACKDATED_MAX: Duration = Duration::HOUR;
/// RFC 5280, 4.1.2.2 allows 20.
const SERIAL_BYTES: usize = 16;

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
    #[error("the system has no randomness to give")]
    Random,
    #[error("{}, which says which authorities there are, cannot be read: restore it from a backup", path.display())]
    State {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{0}")]
    Step(&'static str),
}

/// A certificate with its key, PEM. Behind the certificate are those of the authority: a host that joins knows only
/// the authority's hash.
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

/// A certificate that was made for somebody's own key.
#[derive(Clone, Debug)]
pub struct Issued {
    pub certificate_der: Vec<u8>,
    pub not_after: OffsetDateTime,
}

/// One authority: a key that signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    facts: peer::AuthorityFacts,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &self.fingerprint())
            .field("not_after", &self.facts.not_after)
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
        match (key_path.exists(), certificate_path.exists()) {
            // A key alone is an authority whose making was cut short: nothing can have been issued by it.
            (true, false) => {
                let key = parse_key(&key_path)?;
                files::write_public(&certificate_path, &self_signed(&key, FIRST_NAME)?)?;
            }
            (true, true) => {}
            (false, true) => {
                return Err(PkiError::KeyMissing {
                    certificate: certificate_path,
                    key: key_path,
                });
            }
            (false, false) => Self::create(&key_path, &certificate_path, FIRST_NAME)?,
        }
        Self::load_pair(&key_path, &certificate_path)
    }

    /// Makes one whose subject is unlike that of others: who verifies finds the right one by it.
    fn create(key_path: &Path, certificate_path: &Path, subject: &str) -> Result<(), PkiError> {
        let key = generate("the authority")?;
        write_private(key_path, &key.serialize_pem())?;
        files::write_public(certificate_path, &self_signed(&key, subject)?)
    }

    fn load_pair(key_path: &Path, certificate_path: &Path) -> Result<Self, PkiError> {
        Self::load(certificate_path, parse_key(key_path)?)
    }

    /// A certificate of ours for another authority's key: who believes us alone believes what that one signs.
    fn vouch_for(&self, other: &Self) -> Result<Certificate, PkiError> {
        let mut params = authority_params(&other.facts.common_name);
        params.not_before = other.facts.not_before.max(self.facts.not_before);
        params.not_after = other.facts.not_after.min(self.facts.not_after);
        params.serial_number = Some(serial()?);
        params.use_authority_key_identifier_extension = true;
        params
            .signed_by(other.issuer.key(), &self.issuer)
            .map_err(|source| PkiError::Issue {
                subject: other.facts.common_name.clone(),
                source,
            })
    }

    fn load(path: &Path, key: KeyPair) -> Result<Self, PkiError> {
        let certificate_pem = files::read(path)?;
        let unfit = |source| PkiError::NotAnAuthority {
            path: path.into(),
            source,
        };
        let facts = peer::AuthorityFacts::read(&certificate_pem, key.public_key_raw()).map_err(unfit)?;
        let now = OffsetDateTime::now_utc();
        if now < facts.not_before || now >= facts.not_after {
            return Err(PkiError::Expired {
                path: path.into(),
                from: facts.not_before,
                to: facts.not_after,
            });
        }
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|source| unfit(source.into()))?;
        Ok(Self {
            issuer,
            certificate_pem,
            facts,
        })
    }

    /// The certificate that nodes have to believe.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// As [`certificate_pem`](Self::certificate_pem), DER.
    pub fn certificate_der(&self) -> &[u8] {
        &self.facts.der
    }

    /// SHA-256 of the certificate's DER, 64 hexadecimal digits: what an operator carries to a host that joins.
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(&self.facts.der))
    }

    /// It is good from here on.
    pub fn not_before(&self) -> OffsetDateTime {
        self.facts.not_before
    }

    /// Nothing it signs is good for longer.
    pub fn not_after(&self) -> OffsetDateTime {
        self.facts.not_after
    }

    /// An identity for the node listener, under host names and addresses by which nodes reach it.
    pub fn issue_server(&self, names: &[String]) -> Result<ServerIdentity, PkiError> {
        let (key, issued) = self.server_leaf(names, SERVER_LIFETIME)?;
        Ok(ServerIdentity {
            certificate_pem: format!("{}{}", issued.pem(), self.certificate_pem),
            key_pem: key.serialize_pem(),
        })
    }

    fn server_leaf(&self, names: &[String], lifetime: Duration) -> Result<(KeyPair, Certificate), PkiError> {
        let subject = "the control plane";
        let mut params = CertificateParams::new(names).map_err(|source| PkiError::Issue {
            subject: subject.into(),
            source,
        })?;
        params.distinguished_name = name(&[(DnType::CommonName, "berth-control-plane")]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = generate(subject)?;
        let (certificate, _) = self.sign(params, &key, lifetime, subject)?;
        Ok((key, certificate))
    }

    /// An identity for a node, key and all: for who has both control plane and node in hand.
    pub fn issue_node(&self, node_id: &str, cluster: &str) -> Result<NodeIdentity, PkiError> {
        let peer = Peer::new(node_id, cluster)?;
        let key = generate("a node")?;
        let (certificate, _) = self.node_leaf(&peer, &key, NODE_LIFETIME)?;
        Ok(NodeIdentity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            authority_pem: self.certificate_pem.clone(),
        })
    }

    /// A certificate for a node's own key. Of the request only the key counts.
    pub fn sign_node(
        &self,
        request: &NodeRequest,
        peer: &Peer,
        lifetime: Duration,
    ) -> Result<Issued, PkiError> {
        let (certificate, not_after) = self.node_leaf(peer, request.key(), lifetime)?;
        Ok(Issued {
            certificate_der: certificate.der().to_vec(),
            not_after,
        })
    }

    /// The node's id in the common name, its cluster in the organization.
    fn node_leaf(
        &self,
        peer: &Peer,
        key: &impl PublicKeyData,
        lifetime: Duration,
    ) -> Result<(Certificate, OffsetDateTime), PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&[
            (DnType::CommonName, &peer.node_id),
            (DnType::OrganizationName, &peer.cluster),
        ]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, key, lifetime, &format!("node {}", peer.node_id))
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        lifetime: Duration,
        subject: &str,
    ) -> Result<(Certificate, OffsetDateTime), PkiError> {
        let now = OffsetDateTime::now_utc();
        let not_after = (now + lifetime).min(self.facts.not_after);
        params.not_before = now - BACKDATED_MAX.min(lifetime);
        params.not_after = not_after;
        params.serial_number = Some(serial()?);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        match params.signed_by(key, &self.issuer) {
            Ok(certificate) => Ok((certificate, not_after)),
            Err(source) => Err(PkiError::Issue {
                subject: subject.to_owned(),
                source,
            }),
        }
    }
}

fn serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0_u8; SERIAL_BYTES];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|_| PkiError::Random)?;
    // Positive, and of one length.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
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

fn authority_params(subject: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&[(DnType::CommonName, subject)]);
    // One more authority behind it: the one that replaces it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn self_signed(key: &KeyPair, subject: &str) -> Result<String, PkiError> {
    let mut params = authority_params(subject);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED_MAX;
    params.not_after = now + Duration::days(AUTHORITY_DAYS);
    match params.self_signed(key) {
        Ok(certificate) => Ok(certificate.pem()),
        Err(source) => Err(PkiError::Issue {
            subject: subject.into(),
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
