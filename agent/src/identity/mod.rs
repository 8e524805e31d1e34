//! Owns who this node is: its certificate and key, and whom it believes. Gets them by a join token, keeps them on the
//! disk as one unit, renews them before they end. Never decides what may be done with them: the control plane does.
//!
//! They lie in `STATE_DIR/identity/` (0700): `node.pem`, `node.key` (0600), `authority.pem`. Where the configuration
//! names other files, somebody else keeps them: they are read at every connection and never written.

pub mod certificate;
mod files;
mod issued;
mod keeper;
#[cfg(test)]
mod keeper_tests;
pub mod register;
#[cfg(test)]
pub(crate) mod testing;
pub mod verify;
#[cfg(test)]
mod verify_tests;

use std::{fmt, io, path::PathBuf, time::SystemTime};

use berth_agent_core::ids::NodeId;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use certificate::Facts;
pub use files::IdentityFiles;
pub use keeper::{IdentityState, Keeper, TrustOrder};

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "this host has not joined: {} is not there. Get a token with `berth token create` on the control plane, and run \
         the command that it prints here",
        directory.display()
    )]
    Missing { directory: PathBuf },
    #[error("{}: mode {mode:o} lets others read it: chmod 600", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{what} cannot be used: {problem}")]
    Malformed { what: &'static str, problem: String },
    #[error(
        "{} cannot be used: {problem}. Put back the file that was there, or join anew: `berth-agent register --force`",
        path.display()
    )]
    Unusable { path: PathBuf, problem: String },
    #[error("another process is changing {}", directory.display())]
    Busy { directory: PathBuf },
    #[error("the identity is node {found}'s now, not {expected}'s: restart the agent")]
    Replaced { expected: NodeId, found: NodeId },
    #[error("make a key and a certificate request")]
    Request { source: rcgen::Error },
    #[error("the control plane's answer is refused: {problem}")]
    Answer { problem: String },
}

/// A whole identity.
#[derive(Clone)]
pub struct Identity {
    pub node_id: NodeId,
    /// The cluster that the certificate is for.
    pub cluster: String,
    pub certificate_pem: String,
    pub key_pem: String,
    pub authorities: Vec<CertificateDer<'static>>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// When the certificate came: certificates are backdated, so their own dates do not tell.
    pub since: SystemTime,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("node_id", &self.node_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A file of an identity, and what is in it.
struct Pem {
    path: PathBuf,
    text: String,
}

impl Pem {
    /// Says of which file it is that something is wrong.
    fn unusable(&self, error: IdentityError) -> IdentityError {
        match error {
            IdentityError::Malformed { problem, .. } => IdentityError::Unusable {
                path: self.path.clone(),
                problem,
            },
            other => other,
        }
    }

    fn certificates(&self, what: &'static str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        certificate::from_pem(what, self.text.as_bytes()).map_err(|error| self.unusable(error))
    }
}

impl Identity {
    /// All that can be wrong with the files themselves is found here, before anything is done with them.
    fn from_files(
        certificate: Pem,
        key: Pem,
        authority: &Pem,
        since: SystemTime,
    ) -> Result<Self, IdentityError> {
        let chain = certificate.certificates("the node's certificate")?;
        let of_certificate = |error| certificate.unusable(error);
        let facts = Facts::of(&chain[0]).map_err(of_certificate)?;
        let node_id = facts.node_id().map_err(of_certificate)?;
        certificate::check_key(&key.text, &facts.public_key).map_err(|problem| IdentityError::Unusable {
            path: key.path,
            problem,
        })?;
        Ok(Self {
            node_id,
            cluster: facts.organization,
            authorities: authority.certificates("the authority's certificate")?,
            certificate_pem: certificate.text,
            key_pem: key.text,
            not_before: facts.not_before,
            not_after: facts.not_after,
            since,
        })
    }

    /// Whether it is good at this time of the host's clock.
    pub fn is_valid_at(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// Where the identity comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The agent's own directory: renewed here.
    Own(IdentityFiles),
    /// Files that the operator keeps.
    Configured {
        certificate: PathBuf,
        key: PathBuf,
        authority: PathBuf,
    },
}

impl Source {
    /// Reads it anew: it changes while the agent runs.
    pub fn load(&self) -> Result<Identity, IdentityError> {
        match self {
            Self::Own(files) => files.load()?.ok_or_else(|| IdentityError::Missing {
                directory: files.directory().into(),
            }),
            Self::Configured {
                certificate,
                key,
                authority,
            } => {
                let pem = |path: &PathBuf, text| Pem {
                    path: path.clone(),
                    text,
                };
                Identity::from_files(
                    pem(certificate, files::read_text(certificate)?),
                    pem(key, files::read_secret(key)?),
                    &pem(authority, files::read_text(authority)?),
                    SystemTime::now(),
                )
            }
        }
    }

    /// The same, of one node alone: an agent speaks for the node it was started as.
    pub fn load_of(&self, node: &NodeId) -> Result<Identity, IdentityError> {
        let identity = self.load()?;
        if identity.node_id == *node {
            Ok(identity)
        } else {
            Err(IdentityError::Replaced {
                expected: node.clone(),
                found: identity.node_id,
            })
        }
    }
}
