//! Owns how a connection to the control plane is made: address, identity, whom to believe. Never speaks on it.

use std::{sync::Arc, time::Duration};

use berth_agent_core::ids::NodeId;
use rustls::{client::danger::ServerCertVerifier, pki_types::CertificateDer};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::LinkError;
use crate::{
    dial::{Dialer, FirstHop},
    identity::{Identity, IdentityError, Source, verify::BundleVerifier},
};

/// For all of it: name, TCP, proxy, TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the control plane is, and who this node is.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: String,
    pub node: NodeId,
    pub source: Source,
    pub dialer: Dialer,
}

/// A connection, and the authority by which the control plane proved itself.
#[derive(Debug)]
pub(crate) struct Connection {
    pub channel: Channel,
    pub proved_by: CertificateDer<'static>,
}

impl Target {
    /// Whom this host talks to in order to get there.
    pub fn way(&self) -> FirstHop {
        let address = self.address.parse();
        address.map_or_else(|_| FirstHop::default(), |address| self.dialer.way_to(&address))
    }

    /// Connects with the identity read anew: it changes while the agent runs.
    pub(crate) async fn connect(&self) -> Result<Connection, LinkError> {
        let identity = self.source.load_of(&self.node)?;
        self.connect_as(&identity, &identity.authorities).await
    }

    /// Connects believing others than those that are stored.
    pub(crate) async fn connect_as(
        &self,
        identity: &Identity,
        believed: &[CertificateDer<'static>],
    ) -> Result<Connection, LinkError> {
        let verifier = Arc::new(BundleVerifier::new(believed)?);
        let of_node = tonic::transport::Identity::from_pem(&identity.certificate_pem, &identity.key_pem);
        let tls = ClientTlsConfig::new().identity(of_node);
        let endpoint = endpoint(
            &self.address,
            tls,
            Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>,
        )?;
        let channel = connect(&endpoint, &self.address, &self.dialer).await?;
        let proved_by = verifier.proved_by().ok_or_else(|| LinkError::Protocol {
            what: "no certificate".into(),
        })?;
        Ok(Connection { channel, proved_by })
    }
}

/// An endpoint that believes `verifier`.
pub(crate) fn endpoint(
    address: &str,
    tls: ClientTlsConfig,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<Endpoint, LinkError> {
    let refused = |source| LinkError::Address {
        address: address.to_owned(),
        source,
    };
    Ok(Endpoint::from_shared(address.to_owned())
        .map_err(refused)?
        .tls_config_with_verifier(tls, verifier)
        .map_err(refused)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

pub(crate) async fn connect(
    endpoint: &Endpoint,
    address: &str,
    dialer: &Dialer,
) -> Result<Channel, LinkError> {
    endpoint
        .connect_with_connector(dialer.connector())
        .await
        .map_err(|source| LinkError::Connect {
            address: address.to_owned(),
            source,
        })
}

impl From<IdentityError> for LinkError {
    fn from(source: IdentityError) -> Self {
        Self::Identity { source }
    }
}
