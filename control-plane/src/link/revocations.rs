//! Owns that a revocation ends the live link of its node, whoever wrote it into the store. Refusing later calls is
//! `caller`'s.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Shared, caller::revoked_text, chain, registry::Dismissal};
use crate::{
    model::{Revocation, keys},
    store::typed::{self, RecordError},
};

/// After the store failed.
const RETRY: Duration = Duration::from_secs(1);

/// Until told to stop.
pub(super) async fn enforce(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let failed = tokio::select! {
            () = stop.cancelled() => return,
            Err(error) = follow(&shared) => error,
        };
        // A compacted history is read again; the rest may pass.
        tracing::warn!(error = chain(&failed), "revocations are read again");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn follow(shared: &Shared) -> Result<std::convert::Infallible, RecordError> {
    let from = shared.store.range(keys::REVOCATIONS, None, 1).await?.revision + 1;
    let mut watch = shared.store.watch(keys::REVOCATIONS, from).await?;
    for revocation in typed::all_json::<Revocation>(&*shared.store, keys::REVOCATIONS).await? {
        dismiss(shared, &revocation.value);
    }
    loop {
        for change in watch.next().await? {
            let Some(value) = change.value else { continue };
            match serde_json::from_slice::<Revocation>(&value) {
                Ok(revocation) => dismiss(shared, &revocation),
                Err(error) => tracing::error!(key = change.key, %error, "a revocation cannot be read"),
            }
        }
    }
}

fn dismiss(shared: &Shared, revocation: &Revocation) {
    let dismissal = Dismissal::Revoked(revoked_text(revocation));
    if shared.registry.dismiss(&revocation.node, dismissal) {
        tracing::info!(
            node = revocation.node,
            reason = revocation.reason,
            "the link of a revoked node ends"
        );
    }
}
