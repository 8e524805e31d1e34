//! Owns who calls: what the certificate says that TLS verified, and whether that still counts. A connection outlives
//! what was true when it was made, so this is asked at every call.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use time::OffsetDateTime;
use tonic::{
    Extensions, Status,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use super::{Shared, chain, now};
use crate::{
    model::{Identity, Millis, Revocation, keys},
    pki::{Authority, Peer, good_until},
    store::typed,
};

/// A node, by its certificate.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) peer: Peer,
    pub(super) address: SocketAddr,
    /// Fingerprint of the authority that signed for it, as far as the connection says.
    pub(super) authority: Option<String>,
    /// When the certificate of the connection ends.
    pub(super) not_after: Option<Millis>,
}

/// What a revoked node is told.
pub(super) fn revoked(revocation: &Revocation) -> Status {
    Status::permission_denied(revoked_text(revocation))
}

pub(super) fn revoked_text(revocation: &Revocation) -> String {
    format!("node {} is revoked: {}", revocation.node, revocation.reason)
}

/// The caller, if it is a node whose identity is good.
pub(super) async fn authenticate(shared: &Shared, connection: &Extensions) -> Result<Caller, Status> {
    let connection = connection.get::<TlsConnectInfo<TcpConnectInfo>>();
    let certificates = connection.and_then(TlsConnectInfo::peer_certs);
    let Some(leaf) = certificates.as_ref().and_then(|chain| chain.first()) else {
        return Err(Status::unauthenticated("a client certificate is required"));
    };
    let peer = Peer::from_der(leaf)
        .map_err(|error| Status::permission_denied(format!("client certificate: {error}")))?;
    let unavailable = |error: typed::RecordError| Status::unavailable(chain(&error));
    let key = keys::revocation(&peer.node_id);
    let revocation = typed::get_json::<Revocation>(&*shared.store, &key).await;
    if let Some(revocation) = revocation.map_err(unavailable)? {
        return Err(revoked(&revocation.value));
    }
    let trusted = shared.authorities.trusted();
    let issuer = trusted.issuer_of(leaf).map(Authority::fingerprint);
    let end = good_until(leaf);
    let expired = end.is_none_or(|end| end <= OffsetDateTime::now_utc());
    if issuer.is_none() || expired {
        // It was good in the handshake. If it was renewed since, the connection may stay.
        let until = renewed_until(shared, &peer.node_id).await.map_err(unavailable)?;
        let renewed = until.is_some_and(|until| until > now());
        if !renewed {
            let what = if expired {
                "has expired"
            } else {
                "comes from an authority that is not believed any more"
            };
            let text = format!(
                "the certificate of node {} {what}: register the host again",
                peer.node_id
            );
            return Err(Status::unauthenticated(text));
        }
    }
    Ok(Caller {
        address: connection
            .and_then(|connection| connection.get_ref().remote_addr())
            .unwrap_or_else(|| (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).into()),
        peer,
        authority: issuer,
        not_after: end.map(|end| end.unix_timestamp() * 1_000),
    })
}

/// Until when the latest certificate is good that the node was given by an authority that is believed.
pub(super) async fn renewed_until(shared: &Shared, node: &str) -> Result<Option<Millis>, typed::RecordError> {
    let known = typed::get_json::<Identity>(&*shared.store, &keys::identity(node)).await?;
    let Some(known) = known.map(|known| known.value) else {
        return Ok(None);
    };
    let trusted = shared.authorities.trusted();
    let pending = known
        .pending
        .map(|pending| (pending.authority, Some(pending.not_after)));
    let good = [Some((known.authority, known.not_after)), pending]
        .into_iter()
        .flatten()
        .filter(|(authority, _)| trusted.all().any(|one| one.fingerprint() == *authority));
    Ok(good.filter_map(|(_, not_after)| not_after).max())
}
