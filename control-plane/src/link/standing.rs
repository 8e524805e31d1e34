//! Owns how a node's certificate stands while its link lives: whether it has expired, whether it has to be renewed, and
//! whom the node has to believe. Never issues one, and never ends a link.

use std::time::Duration;

use berth_proto::node::v1::{Trust, control_message::Message as ToNode};

use super::{Shared, caller, end::End, now};
use crate::{
    model::{Identity, Millis, keys},
    pki::{Peer, Trusted},
    store::typed,
};

/// The clock may be set: whether a certificate has expired is looked at so often at least.
const EXPIRY_LOOK: Duration = Duration::from_secs(3_600);

/// How long until then, or until it is time to look again.
pub(super) fn until(at: Millis) -> Duration {
    let left = u64::try_from(at - now()).unwrap_or_default();
    Duration::from_millis(left).min(EXPIRY_LOOK)
}

/// Until when the node's certificate is good: the link's own, or one by which it renewed that.
pub(super) async fn still_good(shared: &Shared, peer: &Peer, good_until: Millis) -> Result<Millis, End> {
    if good_until > now() {
        return Ok(good_until);
    }
    let renewed = caller::renewed_until(shared, &peer.node_id).await?;
    renewed.filter(|until| *until > now()).ok_or(End::Expired)
}

/// Whom the node has to believe, and whether it has to renew for it. A node that did not renew before its authority was
/// forgotten is told to go.
pub(super) async fn trust(shared: &Shared, node: &str, trusted: &Trusted) -> Result<ToNode, End> {
    let known = typed::get_json::<Identity>(&*shared.store, &keys::identity(node)).await?;
    let authority = known.map(|known| known.value.authority).unwrap_or_default();
    if !trusted.all().any(|one| one.fingerprint() == authority) {
        return Err(End::Retired);
    }
    Ok(ToNode::Trust(Trust {
        authority_der: trusted.certificates_der(),
        renew: authority != trusted.active().fingerprint(),
    }))
}
