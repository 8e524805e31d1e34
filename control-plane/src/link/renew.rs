//! Owns the exchange of a good certificate for a fresh one, and that the node says it has it. The link of the node is not
//! touched.

use berth_proto::node::v1::{RenewRequest, RenewResponse};
use tonic::Status;

use super::{
    Shared,
    caller::{Caller, revoked},
    certificates, chain, now,
    records::{ATTEMPTS_MAX, back_off},
};
use crate::{
    model::{Identity, Revocation, keys},
    pki::{Issued, NodeRequest, PkiError},
    store::{
        Committed, Compare, StoreError, Transaction,
        typed::{self, RecordError},
    },
};

#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("node {node} is registered in cluster {registered}; its certificate is for {certified}")]
    OtherCluster {
        node: String,
        registered: String,
        certified: String,
    },
    #[error("node {} is revoked", .0.node)]
    Revoked(Revocation),
    #[error("the records of the node change too often: try again")]
    Contended,
    #[error("issue the certificate")]
    Issue(#[from] PkiError),
    #[error("read or write the node's identity")]
    Record(#[from] RecordError),
    #[error("read or write the node's identity")]
    Store(#[from] StoreError),
}

impl RenewError {
    fn status(&self) -> Status {
        match self {
            Self::OtherCluster { .. } => Status::permission_denied(self.to_string()),
            Self::Revoked(revocation) => revoked(revocation),
            _ => Status::unavailable(chain(self)),
        }
    }
}

/// Answers Renew.
pub(super) async fn renew(
    shared: &Shared,
    caller: &Caller,
    request: RenewRequest,
) -> Result<RenewResponse, Status> {
    let node = &caller.peer.node_id;
    let authority_der = || shared.authorities.trusted().certificates_der();
    if request.certificate_request_der.is_empty() {
        // It comes with each renewal and costs less: it takes nothing of what renewals may.
        if shared.paces.wait(node).is_some() {
            let text = format!("node {node} asks too often: try again in a second");
            return Err(Status::resource_exhausted(text));
        }
        shared.paces.spend(node, 1);
        certificates::confirm(shared, caller).await?;
        return Ok(RenewResponse {
            certificate_der: vec![],
            authority_der: authority_der(),
        });
    }
    if let Some(wait) = shared.renewals.wait(node) {
        let seconds = wait.as_secs() + 1;
        let text = format!("node {node} renews too often: try again in {seconds} s");
        return Err(Status::resource_exhausted(text));
    }
    shared.renewals.count(node);
    let key = NodeRequest::from_der(&request.certificate_request_der)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    for attempt in 1..=ATTEMPTS_MAX {
        match attempt_renewal(shared, caller, &key).await {
            Ok(Some(issued)) => {
                tracing::info!(%node, until = %issued.not_after, "a node renewed its certificate");
                return Ok(RenewResponse {
                    certificate_der: issued.certificate_der,
                    authority_der: authority_der(),
                });
            }
            Ok(None) => back_off(attempt).await,
            Err(error) => return Err(error.status()),
        }
    }
    Err(RenewError::Contended.status())
}

/// None: somebody else changed the records meanwhile.
async fn attempt_renewal(
    shared: &Shared,
    caller: &Caller,
    key: &NodeRequest,
) -> Result<Option<Issued>, RenewError> {
    let (node, cluster) = (&caller.peer.node_id, &caller.peer.cluster);
    let revocation_key = keys::revocation(node);
    if let Some(found) = typed::get_json::<Revocation>(&*shared.store, &revocation_key).await? {
        return Err(RenewError::Revoked(found.value));
    }
    let place = typed::get_json::<String>(&*shared.store, &keys::node_cluster(node)).await?;
    if let Some(place) = place.filter(|place| place.value != *cluster) {
        return Err(RenewError::OtherCluster {
            node: node.clone(),
            registered: place.value,
            certified: cluster.clone(),
        });
    }
    let identity_key = keys::identity(node);
    let known = typed::get_json::<Identity>(&*shared.store, &identity_key).await?;
    let trusted = shared.authorities.trusted();
    let issued = trusted
        .active()
        .sign_node(key, &caller.peer, shared.certificate_lifetime())?;
    let unchanged = known.as_ref().map_or_else(
        || Compare::Missing(identity_key.clone()),
        |known| known.unchanged(),
    );
    let known = known.map(|known| known.value);
    // It came with what it was given before: that has arrived.
    let known = certificates::arrived(known.clone(), caller, now()).or(known);
    let identity = certificates::issued(known, &caller.peer, trusted.active().fingerprint(), &issued);
    let transaction = Transaction {
        compare: vec![Compare::Missing(revocation_key), unchanged],
        operations: vec![typed::put_json(identity_key, &identity)?],
    };
    let done = shared.store.commit(transaction).await?;
    Ok(matches!(done, Committed::Done(_)).then_some(issued))
}
