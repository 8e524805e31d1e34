//! Owns what is written of a node's certificates: which it was given, which it has shown. An answer can be lost on its
//! way, so what was issued counts as the node's only once the node has shown it. Never issues one.

use tonic::Status;

use super::{
    Shared,
    caller::Caller,
    chain, now,
    records::{ATTEMPTS_MAX, back_off},
};
use crate::{
    model::{Identity, Millis, PendingCertificate, keys},
    pki::{Issued, Peer},
    store::{
        Committed, Transaction,
        typed::{self, RecordError},
    },
};

/// What is to be written when a certificate of this authority is issued. What the node shows until then is kept: when
/// the answer does not arrive, that is all it has.
pub(super) fn issued(known: Option<Identity>, peer: &Peer, authority: String, issued: &Issued) -> Identity {
    let not_after = issued.not_after.unix_timestamp() * 1_000;
    match known {
        Some(known) if known.authority != authority => Identity {
            pending: Some(PendingCertificate { authority, not_after }),
            changed_at: now(),
            ..known
        },
        known => Identity {
            node: peer.node_id.clone(),
            cluster: peer.cluster.clone(),
            authority,
            not_after: Some(not_after),
            pending: None,
            joined_with: known.and_then(|known| known.joined_with),
            changed_at: now(),
        },
    }
}

/// What is known of the node's certificate, if that has to be written: it shows one of another authority than was
/// thought. Who shows none that is believed has renewed on this connection.
pub(super) fn shown(known: Option<Identity>, caller: &Caller, now: Millis) -> Option<Identity> {
    let authority = caller.authority.clone()?;
    if known.as_ref().is_some_and(|known| known.authority == authority) {
        return None;
    }
    // What was issued and not shown stays so, unless it is this.
    let pending = known.as_ref().and_then(|known| known.pending.clone());
    Some(Identity {
        node: caller.peer.node_id.clone(),
        cluster: caller.peer.cluster.clone(),
        pending: pending.filter(|pending| pending.authority != authority),
        authority,
        not_after: caller.not_after,
        joined_with: known.and_then(|known| known.joined_with),
        changed_at: now,
    })
}

/// As [`shown`], for calls that come and go: only the certificate that was last issued takes the place of another.
pub(super) fn arrived(known: Option<Identity>, caller: &Caller, now: Millis) -> Option<Identity> {
    let pending = known.as_ref()?.pending.as_ref()?;
    (caller.authority.as_ref() == Some(&pending.authority))
        .then(|| shown(known, caller, now))
        .flatten()
}

/// Takes note of the certificate that a node shows.
pub(super) async fn confirm(shared: &Shared, caller: &Caller) -> Result<(), Status> {
    let unavailable = |error: RecordError| Status::unavailable(chain(&error));
    for attempt in 1..=ATTEMPTS_MAX {
        if attempt_confirmation(shared, caller).await.map_err(unavailable)? {
            return Ok(());
        }
        back_off(attempt).await;
    }
    Err(Status::unavailable(
        "the records of the node change too often: try again",
    ))
}

/// False: somebody else changed the record meanwhile.
async fn attempt_confirmation(shared: &Shared, caller: &Caller) -> Result<bool, RecordError> {
    let key = keys::identity(&caller.peer.node_id);
    let Some(known) = typed::get_json::<Identity>(&*shared.store, &key).await? else {
        return Ok(true);
    };
    let unchanged = known.unchanged();
    let Some(identity) = arrived(Some(known.value), caller, now()) else {
        return Ok(true);
    };
    let transaction = Transaction {
        compare: vec![unchanged],
        operations: vec![typed::put_json(key, &identity)?],
    };
    let done = shared.store.commit(transaction).await?;
    Ok(matches!(done, Committed::Done(_)))
}
