//! Owns what a certificate says about its holder. Never checks a signature: TLS did, before anything here runs.

use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate, extensions::ParsedExtension, pem::parse_x509_pem, prelude::FromDer,
    x509::AttributeTypeAndValue,
};

use super::PkiError;

/// Longest name of a cluster, as ECS has it.
const CLUSTER_CHARS_MAX: usize = 255;

/// Who a node is, by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// 32 lower-case hexadecimal digits.
    pub node_id: String,
    /// 1–255 of `[A-Za-z0-9_-]`.
    pub cluster: String,
}

impl Peer {
    /// Checks both names: they become parts of the store's keys.
    pub fn new(node_id: &str, cluster: &str) -> Result<Self, PkiError> {
        if !is_id(node_id) {
            let what = "a node id: those are 32 lower-case hexadecimal digits";
            return Err(PkiError::Name {
                value: node_id.into(),
                what,
            });
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if cluster.is_empty() || cluster.len() > CLUSTER_CHARS_MAX || !cluster.bytes().all(allowed) {
            let what = "a cluster's name: those are 1 to 255 letters, digits, underscores and hyphens";
            return Err(PkiError::Name {
                value: cluster.into(),
                what,
            });
        }
        Ok(Self {
            node_id: node_id.into(),
            cluster: cluster.into(),
        })
    }

    /// Reads the holder out of a node's certificate, DER.
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let unreadable = || PkiError::Name {
            value: hex::encode(&der[..der.len().min(8)]),
            what: "a certificate",
        };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| unreadable())?;
        let subject = certificate.subject();
        let only = |mut values: Box<dyn Iterator<Item = &AttributeTypeAndValue<'_>> + '_>| {
            let value = values
                .next()
                .and_then(|v| v.as_str().ok())
                .unwrap_or_default()
                .to_owned();
            // Two names are no name.
            if values.next().is_some() {
                String::new()
            } else {
                value
            }
        };
        Self::new(
            &only(Box::new(subject.iter_common_name())),
            &only(Box::new(subject.iter_organization())),
        )
    }
}

/// Whether this is an id as tasks, containers and nodes have it.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 32
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What an authority's certificate says of it.
#[derive(Clone, Debug)]
pub(super) struct AuthorityFacts {
    pub(super) der: Vec<u8>,
    pub(super) common_name: String,
    pub(super) key_identifier: Vec<u8>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

impl AuthorityFacts {
    /// Reads a certificate that must be an authority's, and of this key.
    pub(super) fn read(
        pem: &str,
        public_key: &[u8],
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| format!("not PEM: {error}"))?;
        let certificate = pem
            .parse_x509()
            .map_err(|error| format!("not a certificate: {error}"))?;
        if !certificate.is_ca() {
            return Err("it may not sign others".into());
        }
        if certificate.public_key().subject_public_key.data.as_ref() != public_key {
            return Err("it belongs to another key".into());
        }
        let key_identifier = certificate
            .iter_extensions()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
            .ok_or("it has no key identifier")?;
        let validity = certificate.validity();
        let common_name = certificate.subject().iter_common_name().next();
        let common_name = common_name
            .and_then(|name| name.as_str().ok())
            .ok_or("it has no name")?;
        Ok(Self {
            common_name: common_name.to_owned(),
            key_identifier,
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            der: pem.contents.clone(),
        })
    }
}

/// Until when a certificate is good.
pub(crate) fn good_until(der: &[u8]) -> Option<OffsetDateTime> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.validity().not_after.to_datetime())
}

/// Which key signed a certificate, as the certificate says; who asks has it from TLS, which verified that.
pub(super) fn signed_by(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    certificate
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => Some(id.key_identifier.as_ref()?.0.to_vec()),
            _ => None,
        })
}
