//! Owns the TLS settings of the node listener: which certificate it shows and whose it accepts, remade when the
//! authorities change and before the certificate runs out. Connections under way keep what they began with.

use std::{sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::chain;
use crate::pki::{Authorities, PkiError, SERVER_LIFETIME, Trusted};

/// As HTTP/2 is named in the handshake (RFC 9113, 3.1).
const ALPN_HTTP2: &[u8] = b"h2";
/// After a certificate could not be made.
const RETRY: Duration = Duration::from_secs(60);
/// Longest sleep: a clock that is set forward is noticed.
const LOOK: Duration = Duration::from_secs(3_600);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("make the listener's certificate")]
    Certificate {
        #[from]
        source: PkiError,
    },
    #[error("use the authorities to verify nodes")]
    Verifier {
        #[from]
        source: rustls::server::VerifierBuilderError,
    },
    #[error("use the listener's certificate")]
    Config {
        #[from]
        source: rustls::Error,
    },
}

/// The settings of new connections, and when they are to be remade.
#[derive(Debug)]
pub(super) struct Tls {
    authorities: Arc<Authorities>,
    names: Vec<String>,
    lifetime: time::Duration,
    current: watch::Sender<Arc<ServerConfig>>,
    renew_at: OffsetDateTime,
}

impl Tls {
    pub(super) fn new(
        authorities: Arc<Authorities>,
        names: Vec<String>,
        lifetime: Option<time::Duration>,
    ) -> Result<Self, TlsError> {
        let lifetime = lifetime.unwrap_or(SERVER_LIFETIME);
        let (config, renew_at) = settings(&authorities.trusted(), &names, lifetime)?;
        Ok(Self {
            authorities,
            names,
            lifetime,
            current: watch::Sender::new(config),
            renew_at,
        })
    }

    /// What new connections begin with.
    pub(super) fn current(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.current.subscribe()
    }

    /// Keeps the settings true until told to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.authorities.watch();
        let mut retry = None;
        loop {
            let left = (self.renew_at - OffsetDateTime::now_utc()).max(time::Duration::ZERO);
            let left = Duration::try_from(left).unwrap_or(LOOK).min(LOOK);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(retry.unwrap_or(left)) => {
                    if retry.is_none() && OffsetDateTime::now_utc() < self.renew_at { continue }
                }
            }
            let trusted = changes.borrow_and_update().clone();
            retry = match settings(&trusted, &self.names, self.lifetime) {
                Ok((config, renew_at)) => {
                    self.renew_at = renew_at;
                    self.current.send_replace(config);
                    tracing::info!(next_at = %renew_at, "the listener for nodes has a new certificate");
                    None
                }
                Err(error) => {
                    tracing::error!(
                        error = chain(&error),
                        "the listener for nodes keeps its old certificate"
                    );
                    Some(RETRY)
                }
            };
        }
    }
}

/// Client certificates are optional in the handshake, as a host that joins has none; one that is shown must be good.
fn settings(
    trusted: &Trusted,
    names: &[String],
    lifetime: time::Duration,
) -> Result<(Arc<ServerConfig>, OffsetDateTime), TlsError> {
    let provider: Arc<CryptoProvider> = ring::default_provider().into();
    let mut roots = RootCertStore::empty();
    for der in trusted.certificates_der() {
        roots.add(CertificateDer::from(der))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let server = trusted.server_chain(names, lifetime)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(server.key.serialize_der()));
    let certificates = server.chain.into_iter().map(CertificateDer::from).collect();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)?;
    config.alpn_protocols.push(ALPN_HTTP2.into());
    Ok((Arc::new(config), server.renew_at))
}
