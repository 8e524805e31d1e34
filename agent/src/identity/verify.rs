//! Owns how the control plane proves itself: by an authority of the bundle that this node stores, or, for a host that
//! is only joining, by the one whose hash the operator gave. All else is ordinary verification by webpki.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use time::{OffsetDateTime, macros::format_description};

use super::{
    IdentityError,
    certificate::{CaHash, Facts},
};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn verifier_for(authority: &CertificateDer<'static>) -> Result<Arc<WebPkiServerVerifier>, IdentityError> {
    let malformed = |problem: String| IdentityError::Malformed {
        what: "the authority's certificate",
        problem,
    };
    let mut roots = RootCertStore::empty();
    roots
        .add(authority.clone())
        .map_err(|e| malformed(e.to_string()))?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| malformed(e.to_string()))
}

/// The parts of a verifier that do not depend on whom it believes.
macro_rules! ordinary_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls12_signature(message, certificate, signed, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signed, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

/// Believes the authorities of a bundle, and remembers by which one the server proved itself.
#[derive(Debug)]
pub struct BundleVerifier {
    authorities: Vec<(CertificateDer<'static>, Arc<WebPkiServerVerifier>)>,
    provider: Arc<CryptoProvider>,
    proved_by: OnceLock<CertificateDer<'static>>,
}

impl BundleVerifier {
    pub fn new(bundle: &[CertificateDer<'static>]) -> Result<Self, IdentityError> {
        let pair = |authority: &CertificateDer<'static>| Ok((authority.clone(), verifier_for(authority)?));
        Ok(Self {
            authorities: bundle.iter().map(pair).collect::<Result<_, IdentityError>>()?,
            provider: provider(),
            proved_by: OnceLock::new(),
        })
    }

    /// The authority of the first connection, once there was one.
    pub fn proved_by(&self) -> Option<CertificateDer<'static>> {
        self.proved_by.get().cloned()
    }
}

impl ServerCertVerifier for BundleVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut refused = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        for (authority, verifier) in &self.authorities {
            match verifier.verify_server_cert(leaf, others, name, ocsp, now) {
                Ok(verified) => {
                    self.proved_by.get_or_init(|| authority.clone());
                    return Ok(verified);
                }
                // What is wrong with a certificate of ours says more than that it is not another's. Authorities may
                // share a name, so one that did not sign it may show as a wrong signature.
                Err(Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature,
                )) => {}
                Err(other) => refused = other,
            }
        }
        Err(refused)
    }

    ordinary_signatures!();
}

/// Why a control plane is not the one whose hash the operator gave.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "the control plane's authority is not the one of {expected}: it sent {}. Somebody may be in between, or the hash \
         is of another control plane: compare with what `berth token create` printed",
        if offered.is_empty() { "no authority at all".into() } else { offered.join(", ") }
    )]
    Hash { expected: CaHash, offered: Vec<String> },
    #[error(
        "the certificate of hash {hash} is not an authority's: use the hash that `berth token create` printed"
    )]
    NotAnAuthority { hash: CaHash },
    #[error(
        "the control plane sent the authority of {hash}, but its own certificate does not come from it ({problem}). \
         Somebody may be in between"
    )]
    Foreign { hash: CaHash, problem: String },
    #[error(
        "this host's clock says {now}, but the control plane's certificate is valid from {from} only: set the clock \
         (`timedatectl set-ntp true`) and try again"
    )]
    NotYet { now: String, from: String },
    #[error(
        "the control plane's certificate was valid until {to}, and this host's clock says {now}: if the clock is right, \
         restart the control plane (it makes a new certificate); if not, set it (`timedatectl set-ntp true`)"
    )]
    Expired { now: String, to: String },
    #[error(
        "the control plane's certificate is not for this name ({problem}): use a name it has, or add this one to \
         `node_names` in the control plane's configuration"
    )]
    Name { problem: String },
    #[error("the control plane's certificate cannot be used: {problem}")]
    Malformed { problem: String },
}

impl PinError {
    /// Whether the control plane did not prove that it is the one meant, as against a clock or a name that is wrong.
    pub fn is_untrusted(&self) -> bool {
        matches!(
            self,
            Self::Hash { .. } | Self::NotAnAuthority { .. } | Self::Foreign { .. }
        )
    }
}

/// What a joining host has learnt of the control plane.
#[derive(Clone, Debug)]
pub struct Proof {
    pub authority: CertificateDer<'static>,
    pub server: Facts,
}

/// Believes one authority, known by its hash alone: the server has to send it.
#[derive(Debug)]
pub struct PinnedVerifier {
    hash: CaHash,
    provider: Arc<CryptoProvider>,
    outcome: Mutex<Option<Result<Proof, PinError>>>,
}

impl PinnedVerifier {
    pub fn new(hash: CaHash) -> Self {
        Self {
            hash,
            provider: provider(),
            outcome: Mutex::new(None),
        }
    }

    /// Of the last handshake, if it came to certificates.
    pub fn outcome(&self) -> Option<Result<Proof, PinError>> {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<Proof, PinError> {
        let chain = || std::iter::once(leaf).chain(others);
        let pinned = chain().find(|certificate| CaHash::of(certificate) == self.hash);
        let Some(authority) = pinned else {
            return Err(PinError::Hash {
                expected: self.hash,
                offered: others.iter().map(|c| CaHash::of(c).to_string()).collect(),
            });
        };
        let read = |der: &CertificateDer<'_>| {
            Facts::of(der).map_err(|error| PinError::Malformed {
                problem: error.to_string(),
            })
        };
        let (of_authority, server) = (read(authority)?, read(leaf)?);
        if !of_authority.is_authority {
            return Err(PinError::NotAnAuthority { hash: self.hash });
        }
        let authority = authority.clone().into_owned();
        let verifier = verifier_for(&authority).map_err(|error| PinError::Malformed {
            problem: error.to_string(),
        })?;
        // A trust anchor's own dates are not webpki's business, but a joining host should not begin with a dead one.
        within(&of_authority, now)?;
        match verifier.verify_server_cert(leaf, others, name, &[], now) {
            Ok(_) => Ok(Proof { authority, server }),
            Err(error) => Err(self.explain(&error, &server, now)),
        }
    }

    fn explain(&self, error: &Error, server: &Facts, now: UnixTime) -> PinError {
        use CertificateError as C;
        let Error::InvalidCertificate(problem) = error else {
            return PinError::Malformed {
                problem: error.to_string(),
            };
        };
        match problem {
            C::NotValidYet | C::NotValidYetContext { .. } | C::Expired | C::ExpiredContext { .. } => {
                within(server, now).err().unwrap_or(PinError::Malformed {
                    problem: problem.to_string(),
                })
            }
            C::NotValidForName | C::NotValidForNameContext { .. } => PinError::Name {
                problem: problem.to_string(),
            },
            C::UnknownIssuer | C::BadSignature => PinError::Foreign {
                hash: self.hash,
                problem: problem.to_string(),
            },
            other => PinError::Malformed {
                problem: other.to_string(),
            },
        }
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let outcome = self.check(leaf, others, name, now);
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome.clone());
        match outcome {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(why) => Err(Error::InvalidCertificate(CertificateError::Other(OtherError(
                Arc::new(why),
            )))),
        }
    }

    ordinary_signatures!();
}

fn within(facts: &Facts, now: UnixTime) -> Result<(), PinError> {
    let now = i64::try_from(now.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    if now < facts.not_before {
        return Err(PinError::NotYet {
            now: moment(now),
            from: moment(facts.not_before),
        });
    }
    if now > facts.not_after {
        return Err(PinError::Expired {
            now: moment(now),
            to: moment(facts.not_after),
        });
    }
    Ok(())
}

/// A point in time for people.
pub fn moment(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    time.to_offset(time::UtcOffset::UTC)
        .format(format)
        .unwrap_or_else(|_| time.to_string())
}
