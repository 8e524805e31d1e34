//! Owns what is read out of certificates and written as PEM. Never checks a signature.

use std::{fmt, str::FromStr};

use base64::Engine as _;
use berth_agent_core::ids::NodeId;
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, prelude::FromDer, x509::AttributeTypeAndValue};

use super::IdentityError;

const PEM_LINE: usize = 64;
const HASH_PREFIX: &str = "sha256:";

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The only common name; empty if there is none, or more than one.
    pub common_name: String,
    /// The same of the organization.
    pub organization: String,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// May sign others.
    pub is_authority: bool,
    /// The public key as in the certificate, DER.
    pub public_key: Vec<u8>,
}

impl Facts {
    pub fn of(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|source| IdentityError::Malformed {
                what: "a certificate",
                problem: source.to_string(),
            })?;
        if !rest.is_empty() {
            return Err(IdentityError::Malformed {
                what: "a certificate",
                problem: "more follows it".into(),
            });
        }
        let subject = certificate.subject();
        Ok(Self {
            common_name: only(subject.iter_common_name()),
            organization: only(subject.iter_organization()),
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            is_authority: certificate.is_ca(),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }

    /// The id of the node whose certificate it is.
    pub fn node_id(&self) -> Result<NodeId, IdentityError> {
        self.common_name.parse().map_err(|_| IdentityError::Malformed {
            what: "a node's certificate",
            problem: format!("its common name is {:?}, not a node id", self.common_name),
        })
    }
}

fn only<'a>(mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> String {
    let value = values.next().and_then(|v| v.as_str().ok()).unwrap_or_default();
    if values.next().is_some() {
        String::new()
    } else {
        value.to_owned()
    }
}

/// That this is a private key, and the one of this public key (DER, as in the certificate). Says what is wrong otherwise, and
/// nothing of what is in it.
pub fn check_key(pem: &str, public: &[u8]) -> Result<(), String> {
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| "there is no private key in it, in PEM form (empty or damaged?)".to_owned())?;
    let key = ring::sign::any_supported_type(&key)
        .map_err(|_| "its private key is damaged, or neither ECDSA, Ed25519 nor RSA".to_owned())?;
    match key.public_key() {
        Some(found) if found.as_ref() != public => Err("it is not the key of the certificate".into()),
        _ => Ok(()),
    }
}

/// All certificates of a PEM file, at least one.
pub fn from_pem(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let malformed = |problem: String| IdentityError::Malformed { what, problem };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| malformed(source.to_string()))?;
    if found.is_empty() {
        return Err(malformed("no certificate in it".into()));
    }
    Ok(found)
}

pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut pem = String::new();
    for der in certificates {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, tail) = rest.split_at(rest.len().min(PEM_LINE));
            pem.push_str(line);
            pem.push('\n');
            rest = tail;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

/// The hash by which an operator tells a joining host its authority: SHA-256 of the certificate's DER, written
/// `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CaHash([u8; 32]);

impl CaHash {
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate.as_ref()).into())
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "{value:?} is not a CA hash: those are `sha256:` and 64 hexadecimal digits, as `berth token create` prints them"
)]
pub struct InvalidCaHash {
    value: String,
}

impl FromStr for CaHash {
    type Err = InvalidCaHash;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut hash = [0; 32];
        s.strip_prefix(HASH_PREFIX)
            .and_then(|digits| hex::decode_to_slice(digits, &mut hash).ok())
            .map(|()| Self(hash))
            .ok_or_else(|| InvalidCaHash { value: s.into() })
    }
}

impl fmt::Display for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HASH_PREFIX}{}", hex::encode(self.0))
    }
}

impl fmt::Debug for CaHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Authority, *};

    #[test]
    fn a_hash_is_read_as_it_is_written_and_nothing_else_is() {
        let authority = Authority::new();
        let hash = CaHash::of(&authority.der());
        assert_eq!(hash.to_string().parse::<CaHash>().unwrap(), hash);
        assert_eq!(hash.to_string().len(), 7 + 64);
        let digits = "ab".repeat(32);
        for wrong in [
            "",
            "sha256:",
            &digits,
            "sha256:abcd",
            &format!("sha1:{digits}"),
            &format!("sha256:{digits}0"),
        ] {
            assert!(wrong.parse::<CaHash>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn pem_holds_what_was_put_in() {
        let authorities = [Authority::new().der(), Authority::new().der()];
        assert_eq!(
            from_pem("x", to_pem(&authorities).as_bytes()).unwrap(),
            authorities
        );
        assert!(from_pem("x", b"nothing").is_err());
    }

    #[test]
    fn a_certificate_names_its_node() {
        let authority = Authority::new();
        let facts = Facts::of(&authority.der()).unwrap();
        assert!(facts.is_authority && facts.node_id().is_err());
        let node = "0123456789abcdef0123456789abcdef";
        let facts = Facts::of(&authority.node(node, &rcgen::KeyPair::generate().unwrap())).unwrap();
        assert!(!facts.is_authority);
        assert_eq!(
            (
                facts.node_id().unwrap().to_string().as_str(),
                facts.organization.as_str()
            ),
            (node, "default")
        );
        assert!(Facts::of(b"no certificate").is_err());
    }
}
