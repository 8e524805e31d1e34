//! Owns what is looked at before a host joins: address, name, TCP, TLS, authority, clock. Each failure says what to do.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::Uri;
use rustls::client::danger::ServerCertVerifier;
use tokio::net::TcpStream;
use tonic::transport::{Channel, ClientTlsConfig};

use super::{RegisterError, output::Output};
use crate::{
    dial::Dialer,
    identity::{
        certificate::CaHash,
        verify::{PinnedVerifier, Proof, moment},
    },
    link,
    sys::Chain,
};

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_TIMEOUT: Duration = Duration::from_secs(5);

/// The control plane, proved.
pub(super) struct Reached {
    pub channel: Channel,
    pub proof: Proof,
}

/// An address that can be connected to.
pub(super) fn address(text: &str) -> Result<Uri, RegisterError> {
    let usage = |problem: &str| RegisterError::Usage {
        what: "--control-plane",
        problem: format!("{text:?} {problem}"),
    };
    let uri: Uri = text.parse().map_err(|_| usage("is not a URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err(usage("must begin with https://"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(usage("names no host"));
    }
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err(usage("must not hold a user"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(usage("must be host and port only"));
    }
    Ok(uri)
}

pub(super) async fn reach(
    address: &Uri,
    hash: CaHash,
    dialer: &Dialer,
    output: &mut Output,
) -> Result<Reached, RegisterError> {
    let (host, port) = dialer.first_hop(address)?;
    let route = dialer.route(address)?;
    let addresses = resolve(&host, port).await?;
    let found: Vec<_> = addresses.iter().map(|a| a.ip().to_string()).collect();
    output.check("name", format!("{host} is {}", found.join(", ")));
    let peer = connect(&host, port, &addresses).await?;
    output.check(
        "tcp",
        format!("{peer} answers; the control plane is reached {route}"),
    );
    let reached = prove(address, hash, dialer).await?;
    output.check(
        "authority",
        format!("{hash} signed the control plane's certificate"),
    );
    let server = &reached.proof.server;
    output.check(
        "clock",
        format!(
            "{} is within the control plane's certificate ({} to {})",
            moment(time::OffsetDateTime::now_utc()),
            moment(server.not_before),
            moment(server.not_after)
        ),
    );
    Ok(reached)
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, RegisterError> {
    let failed = |problem: String| RegisterError::Unreachable {
        problem: format!("the name {host:?} cannot be resolved: {problem}"),
        advice: "Check the name, and /etc/resolv.conf of this host; or use an address".into(),
    };
    let looked_up = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port)));
    let addresses: Vec<_> = looked_up
        .await
        .map_err(|_| failed(format!("no answer for {} s", RESOLVE_TIMEOUT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?
        .collect();
    if addresses.is_empty() {
        return Err(failed("it has no address".into()));
    }
    Ok(addresses)
}

async fn connect(host: &str, port: u16, addresses: &[SocketAddr]) -> Result<SocketAddr, RegisterError> {
    let mut problems = Vec::new();
    for address in addresses {
        match tokio::time::timeout(TCP_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Ok(*address),
            Ok(Err(error)) => problems.push(format!("{address}: {error}")),
            Err(_) => problems.push(format!("{address}: no answer for {} s", TCP_TIMEOUT.as_secs())),
        }
    }
    Err(RegisterError::Unreachable {
        problem: format!(
            "nothing at {host} port {port} takes a connection: {}",
            problems.join("; ")
        ),
        advice: format!(
            "Check that the control plane runs, that {port} is its node port (node_listen, 8781 by default), and that \
             no firewall is in between"
        ),
    })
}

async fn prove(address: &Uri, hash: CaHash, dialer: &Dialer) -> Result<Reached, RegisterError> {
    let verifier = Arc::new(PinnedVerifier::new(hash));
    let text = address.to_string();
    let believed = Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>;
    let endpoint = link::endpoint(&text, ClientTlsConfig::new(), believed)?;
    let connected = link::connect(&endpoint, &text, dialer).await;
    match (connected, verifier.outcome()) {
        (Ok(channel), Some(Ok(proof))) => Ok(Reached { channel, proof }),
        (_, Some(Err(source))) => Err(RegisterError::Untrusted { source }),
        (Err(error), _) => Err(RegisterError::Unreachable {
            problem: format!("there is no TLS with {text}: {}", Chain(&error)),
            advice: "Check that this is the control plane's node port, not its API or another service".into(),
        }),
        (Ok(_), None) => Err(RegisterError::Unreachable {
            problem: format!("{text} showed no certificate"),
            advice: "Check that this is the control plane's node port".into(),
        }),
    }
}
