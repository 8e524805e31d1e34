//! Owns what a node may ask a certificate for: a key of its own, proved by a signature. Never looks at the subject or
//! at extensions of a request: the control plane names its nodes.

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use sha2::{Digest, Sha256};
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ED25519},
    prelude::FromDer,
    x509::SubjectPublicKeyInfo as Spki,
};

/// Longest request, bytes; one with an elliptic key takes some 300.
pub const REQUEST_BYTES_MAX: usize = 8 << 10;

/// Why a request gets no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("certificate request of {bytes} bytes is over the limit of {REQUEST_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("certificate request is not a PKCS #10 request in DER")]
    Unreadable,
    #[error(
        "certificate request is for a key that is not taken: make one of type ECDSA P-256, ECDSA P-384 or Ed25519"
    )]
    Key,
    #[error("certificate request is not signed by the key it is for")]
    Signature,
}

/// A checked request.
#[derive(Debug)]
pub struct NodeRequest {
    key: SubjectPublicKeyInfo,
    key_sha256: String,
}

impl NodeRequest {
    /// Checks size, form, key type and signature.
    pub fn from_der(der: &[u8]) -> Result<Self, RequestError> {
        if der.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLarge { bytes: der.len() });
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| RequestError::Unreadable)?;
        if !rest.is_empty() {
            return Err(RequestError::Unreadable);
        }
        let key = &request.certification_request_info.subject_pki;
        if !is_taken(key) {
            return Err(RequestError::Key);
        }
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        Ok(Self {
            key: SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| RequestError::Key)?,
            key_sha256: hex::encode(Sha256::digest(key.raw)),
        })
    }

    pub(super) fn key(&self) -> &impl PublicKeyData {
        &self.key
    }

    /// SHA-256 of the public key, 64 hexadecimal digits: the same key asks for the same node.
    pub fn key_sha256(&self) -> &str {
        &self.key_sha256
    }
}

/// Small keys of fixed sizes, which every TLS library here verifies.
fn is_taken(key: &Spki<'_>) -> bool {
    let algorithm = &key.algorithm;
    if algorithm.algorithm == OID_SIG_ED25519 {
        return true;
    }
    let curve = algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
    algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384)
}
