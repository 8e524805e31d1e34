//! Owns which authorities are believed, and which of them issues. Never decides when that changes.

use std::{path::Path, sync::Arc};

use rcgen::KeyPair;
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;

use super::{Authority, NodeIdentity, PkiError, peer};

/// The authorities of one control plane.
#[derive(Debug)]
pub struct Authorities {
    trusted: watch::Sender<Arc<Trusted>>,
}

/// Whom to believe at one point in time.
#[derive(Debug)]
pub struct Trusted {
    active: Arc<Authority>,
    others: Vec<Arc<Authority>>,
}

/// The server's certificate, DER, with what stands behind it, and its key.
pub(crate) struct ServerChain {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: KeyPair,
    /// When to make another.
    pub(crate) renew_at: OffsetDateTime,
}

impl Authorities {
    /// Those that live in `directory`; on the first call one is made, and the directory with it.
    ///
    /// # Errors
    /// As [`Authority::load_or_create`].
    pub fn load_or_create(directory: &Path) -> Result<Self, PkiError> {
        let active = Arc::new(Authority::load_or_create(directory)?);
        let trusted = Trusted {
            active,
            others: vec![],
        };
        Ok(Self {
            trusted: watch::Sender::new(Arc::new(trusted)),
        })
    }

    /// Whom to believe now.
    pub fn trusted(&self) -> Arc<Trusted> {
        self.trusted.borrow().clone()
    }

    /// Whom to believe, from now on.
    pub fn watch(&self) -> watch::Receiver<Arc<Trusted>> {
        self.trusted.subscribe()
    }

    /// The certificates that nodes have to believe, PEM.
    pub fn certificate_pem(&self) -> String {
        self.trusted().all().map(|one| one.certificate_pem()).collect()
    }

    /// An identity for a node, key and all: for who has both control plane and node in hand.
    pub fn issue_node(&self, node_id: &str, cluster: &str) -> Result<NodeIdentity, PkiError> {
        let identity = self.trusted().active.issue_node(node_id, cluster)?;
        Ok(NodeIdentity {
            authority_pem: self.certificate_pem(),
            ..identity
        })
    }
}

impl Trusted {
    /// The one that issues.
    pub fn active(&self) -> &Authority {
        &self.active
    }

    /// The one that issues first.
    pub fn all(&self) -> impl Iterator<Item = &Authority> {
        std::iter::once(&self.active)
            .chain(&self.others)
            .map(|one| &**one)
    }

    /// Every certificate to believe, DER.
    pub fn certificates_der(&self) -> Vec<Vec<u8>> {
        self.all().map(|one| one.certificate_der().to_vec()).collect()
    }

    /// Which of them signed this certificate, if one did. The signature itself was verified by TLS.
    pub fn issuer_of(&self, certificate_der: &[u8]) -> Option<&Authority> {
        let signer = peer::signed_by(certificate_der)?;
        self.all().find(|one| one.facts.key_identifier == signer)
    }

    /// What the node listener shows: its own certificate, then all that leads from it to an authority a node may know.
    pub(crate) fn server_chain(&self, names: &[String], lifetime: Duration) -> Result<ServerChain, PkiError> {
        let (key, leaf) = self.active.server_leaf(names, lifetime)?;
        let mut chain = vec![leaf.der().to_vec()];
        chain.extend(self.certificates_der());
        let good_for = (self.active.not_after() - OffsetDateTime::now_utc()).min(lifetime);
        Ok(ServerChain {
            chain,
            key,
            renew_at: OffsetDateTime::now_utc() + good_for * 2 / 3,
        })
    }
}

impl std::fmt::Debug for ServerChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerChain")
            .field("renew_at", &self.renew_at)
            .finish_non_exhaustive()
    }
}
