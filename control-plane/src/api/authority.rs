//! Owns the operations on the authority of nodes: what there is, and the steps by which another one replaces it. Never
//! touches a file: that is `pki`'s.

use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    context::{Api, now_ms, seconds},
    error::ApiError,
    fields::Fields,
    records,
};
use crate::{
    model::{Identity, Node, keys},
    pki::{Authority, Phase, PkiError, Trusted},
};

/// Most nodes that an answer names.
const NAMED_MAX: usize = 100;

pub(super) async fn describe(api: &Api, input: Fields) -> Result<Value, ApiError> {
    input.finish()?;
    let trusted = api.nodes.authorities().trusted();
    respond(api, &trusted).await
}

/// BEGIN, ACTIVATE, FINISH: see `pki`. FINISH is refused while nodes hold certificates of the old one, unless forced.
pub(super) async fn rotate(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let step = input.choice("step", &["BEGIN", "ACTIVATE", "FINISH"])?;
    let step = step.ok_or_else(|| ApiError::field("step", "is required"))?;
    let force = input.boolean("force")?;
    input.finish()?;
    let authorities = api.nodes.authorities();
    if step == "FINISH" && !force && authorities.trusted().phase() == Phase::Activated {
        let behind = behind(api, &authorities.trusted()).await?;
        if let Some(first) = behind.first() {
            return Err(ApiError::Client(format!(
                "{} nodes have not shown certificates of the new authority yet, node {first} among them, and could be \
                 locked out: wait until they have renewed, revoke them, or set force",
                behind.len()
            )));
        }
    }
    let stepping = Arc::clone(&authorities);
    let taken = tokio::task::spawn_blocking(move || match step {
        "BEGIN" => stepping.begin(),
        "ACTIVATE" => stepping.activate(),
        _ => stepping.finish(),
    })
    .await
    .map_err(|error| ApiError::Server(format!("the step broke off: {error}")))?;
    match taken {
        Ok(()) => {}
        Err(PkiError::Step(problem)) => return Err(ApiError::Client(problem.to_owned())),
        Err(error) => {
            tracing::error!(
                step,
                error = &error as &dyn std::error::Error,
                "the authority is not replaced"
            );
            return Err(ApiError::Server(format!("{error}")));
        }
    }
    let trusted = authorities.trusted();
    tracing::info!(
        step,
        active = trusted.active().fingerprint(),
        "the authority for nodes is being replaced"
    );
    respond(api, &trusted).await
}

/// Registered nodes whose certificate is of another authority than the one that issues, as far as they have shown: one
/// that was sent its new certificate may not have it.
async fn behind(api: &Api, trusted: &Trusted) -> Result<Vec<String>, ApiError> {
    let active = trusted.active().fingerprint();
    let mut behind = Vec::new();
    for identity in records::all::<Identity>(api, keys::IDENTITIES).await? {
        let identity = identity.value;
        let over = identity.not_after.is_some_and(|end| end <= now_ms());
        if identity.authority == active || over {
            continue;
        }
        let node = records::get::<Node>(api, &keys::node(&identity.cluster, &identity.node)).await?;
        if node.is_some_and(|node| node.value.status != "INACTIVE") {
            behind.push(identity.node);
        }
    }
    Ok(behind)
}

async fn respond(api: &Api, trusted: &Trusted) -> Result<Value, ApiError> {
    let mut behind = behind(api, trusted).await?;
    let count = behind.len();
    behind.truncate(NAMED_MAX);
    let at = |phase: Phase| trusted.other().filter(|_| trusted.phase() == phase).map(one);
    Ok(json!({
        "phase": trusted.phase().name(),
        "active": one(trusted.active()),
        "next": at(Phase::Begun),
        "previous": at(Phase::Activated),
        "nodesWithOldCertificates": behind,
        "nodesWithOldCertificatesCount": count,
    }))
}

fn one(authority: &Authority) -> Value {
    let at = |time: OffsetDateTime| seconds(time.unix_timestamp() * 1_000);
    json!({
        "caHash": format!("sha256:{}", authority.fingerprint()),
        "notBefore": at(authority.not_before()),
        "notAfter": at(authority.not_after()),
    })
}
