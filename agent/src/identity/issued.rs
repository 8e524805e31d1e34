//! Owns keys and what is asked of the authority for them: the request, and whether the answer may be used. Never stores
//! anything.

use std::sync::Arc;

use berth_agent_core::ids::NodeId;
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime},
    server::WebPkiClientVerifier,
};

use super::{IdentityError, certificate::Facts};

/// Two while an authority is replaced; more would be a mistake.
const AUTHORITIES_MAX: usize = 16;

/// A new private key, PEM.
pub fn new_key() -> Result<String, IdentityError> {
    let key = KeyPair::generate().map_err(|source| IdentityError::Request { source })?;
    Ok(key.serialize_pem())
}

fn key_pair(pem: &str) -> Result<KeyPair, IdentityError> {
    KeyPair::from_pem(pem).map_err(|source| IdentityError::Request { source })
}

/// A certificate request for the key, PKCS #10, DER. It names nobody: the control plane does.
pub fn request(key_pem: &str) -> Result<Vec<u8>, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params
        .serialize_request(&key_pair(key_pem)?)
        .map_err(|source| IdentityError::Request { source })?;
    Ok(request.der().to_vec())
}

/// The authorities of an answer, if they can be ones.
pub fn authorities(der: Vec<Vec<u8>>) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    if der.is_empty() || der.len() > AUTHORITIES_MAX {
        let problem = format!("it names {} authorities, not 1 to {AUTHORITIES_MAX}", der.len());
        return Err(IdentityError::Answer { problem });
    }
    let mut authorities: Vec<CertificateDer<'static>> = Vec::with_capacity(der.len());
    for der in der {
        if !Facts::of(&der)?.is_authority {
            let problem = "one of the authorities it names is none".into();
            return Err(IdentityError::Answer { problem });
        }
        let der = CertificateDer::from(der);
        if !authorities.contains(&der) {
            authorities.push(der);
        }
    }
    Ok(authorities)
}

/// Checks that a certificate is this key's, names `node`, comes from one of `authorities`, and is good now.
pub fn check(
    certificate: &CertificateDer<'static>,
    key_pem: &str,
    node: &NodeId,
    authorities: &[CertificateDer<'static>],
) -> Result<Facts, IdentityError> {
    let answer = |problem: String| IdentityError::Answer { problem };
    let facts = Facts::of(certificate)?;
    let named = facts.node_id()?;
    if named != *node {
        return Err(answer(format!("its certificate is for node {named}, not {node}")));
    }
    if facts.public_key != key_pair(key_pem)?.subject_public_key_info() {
        return Err(answer("its certificate is for another key".into()));
    }
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority.clone())
            .map_err(|error| answer(format!("an authority it names cannot be used: {error}")))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| answer(error.to_string()))?;
    verifier
        .verify_client_cert(certificate, &[], UnixTime::now())
        .map_err(|error| answer(format!("its certificate does not hold here and now: {error}")))?;
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::{super::testing::Authority, *};

    const NODE: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "ffffffffffffffffffffffffffffffff";

    #[test]
    fn only_a_certificate_for_this_key_and_node_of_these_authorities_is_taken() {
        let (authority, other) = (Authority::new(), Authority::new());
        let (key, other_key) = (new_key().unwrap(), new_key().unwrap());
        let issued = authority.sign(&request(&key).unwrap(), NODE, Duration::minutes(1));
        let try_it = |key: &str, node: &str, authorities: &[CertificateDer<'static>]| {
            check(&issued, key, &node.parse().unwrap(), authorities).map_err(|e| e.to_string())
        };
        let both = [other.der(), authority.der()];
        try_it(&key, NODE, &both).unwrap();
        assert!(
            try_it(&other_key, NODE, &both)
                .unwrap_err()
                .contains("another key")
        );
        assert!(try_it(&key, OTHER, &both).unwrap_err().contains(OTHER));
        assert!(
            try_it(&key, NODE, &both[..1])
                .unwrap_err()
                .contains("does not hold")
        );
        let expired = authority.sign(&request(&key).unwrap(), NODE, -Duration::minutes(1));
        assert!(check(&expired, &key, &NODE.parse().unwrap(), &both).is_err());
    }

    #[test]
    fn authorities_are_some_and_real_ones() {
        let authority = Authority::new();
        let der = || authority.der().to_vec();
        assert_eq!(authorities(vec![der(), der()]).unwrap(), [authority.der()]);
        let leaf = authority.sign(&request(&new_key().unwrap()).unwrap(), NODE, Duration::minutes(1));
        for wrong in [
            vec![],
            vec![leaf.to_vec()],
            vec![b"junk".to_vec()],
            vec![der(); 17],
        ] {
            assert!(authorities(wrong).is_err());
        }
    }
}
