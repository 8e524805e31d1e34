//! Owns how a node loses its identity: revoked at once, or deregistered. Never talks to one: its link sees the record.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    context::{Api, Caller, now_ms, seconds},
    error::ApiError,
    fields::Fields,
    records::{self, Attempts},
    tasks::stop,
};
use crate::{
    model::{Confirmation, DEREGISTERED, Node, Revocation, keys},
    store::{
        Compare, Operation,
        typed::{self, Versioned},
    },
};

const REASON_CHARS_MAX: usize = 256;
/// How long a confirmation counts: for the snapshot that follows it, not for mistakes to come.
const CONFIRMED: Duration = Duration::from_secs(60);

/// The node's certificates are worth nothing from here on, and its link ends. What it runs cannot be stopped any more,
/// nor known: its tasks keep their last known state, are wanted STOPPED with the reason, and count as nobody's.
pub(super) async fn revoke(api: &Api, caller: &Caller, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let reference = input.required("containerInstance")?;
    let reason = input.string("reason")?.filter(|reason| !reason.is_empty());
    input.finish()?;
    let too_long =
        |reason: &String| reason.chars().count() > REASON_CHARS_MAX || reason.chars().any(char::is_control);
    if reason.as_ref().is_some_and(too_long) {
        let problem = format!("must be at most {REASON_CHARS_MAX} printable characters");
        return Err(ApiError::field("reason", problem));
    }
    let cluster = api.realm.cluster_name(cluster.as_deref())?;
    let id = api.realm.container_instance_id(&cluster, &reference)?;
    let reason = reason.unwrap_or_else(|| format!("by {}", caller.access_key_id));
    let retired = retire(api, caller, (&cluster, &id), |_| Ok(Some(reason.clone()))).await?;
    let text = format!("node {id} was revoked ({reason}): what it still runs is not known");
    for task in retired.held() {
        stop::request(api, &cluster, &task, &text, "UserInitiated").await?;
    }
    let revocation = retired
        .revocation
        .unwrap_or_else(|| new_revocation(caller, &cluster, &id, reason));
    Ok(json!({
        "containerInstanceArn": api.realm.container_instance(&cluster, &id),
        "node": id,
        "reason": revocation.reason,
        "revokedBy": revocation.revoked_by,
        "revokedAt": seconds(revocation.revoked_at),
        "tasks": retired.node.value.allocations.keys().map(|task| api.realm.task(&cluster, task)).collect::<Vec<_>>(),
    }))
}

/// A node holds back what would stop tasks without a word of why, as a control plane that lost data would have it. This is
/// the word: for [`CONFIRMED`] its desired state counts as meant.
pub(super) async fn confirm(api: &Api, caller: &Caller, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let reference = input.required("containerInstance")?;
    let dry_run = input.boolean("dryRun")?;
    input.finish()?;
    let cluster = api.realm.cluster_name(cluster.as_deref())?;
    let id = api.realm.container_instance_id(&cluster, &reference)?;
    if records::get::<Node>(api, &keys::node(&cluster, &id))
        .await?
        .is_none()
    {
        let problem = format!("Container instance not found: {id} in cluster {cluster}");
        return Err(ApiError::InvalidParameter(problem));
    }
    let held = api.nodes.held(&id).ok_or_else(|| {
        ApiError::Client(format!(
            "node {id} holds nothing back, as far as is known: it follows its desired state, or is not connected"
        ))
    })?;
    if !held.confirmable {
        let reason = held.reason;
        return Err(ApiError::Client(format!("this cannot be confirmed: {reason}")));
    }
    if !dry_run {
        let lease = api.store.grant(CONFIRMED).await?;
        let confirmation = Confirmation {
            node: id.clone(),
            confirmed_by: caller.access_key_id.clone(),
            confirmed_at: now_ms(),
        };
        let key = keys::confirmation(&id);
        let mut put = typed::put_json(key, &confirmation)?;
        if let Operation::Put { lease: of, .. } = &mut put {
            *of = Some(lease);
        }
        records::commit(api, vec![], vec![put]).await?;
    }
    Ok(json!({
        "containerInstanceArn": api.realm.container_instance(&cluster, &id),
        "node": id,
        "reason": held.reason,
        "confirmed": !dry_run,
    }))
}

/// A node that takes no more tasks.
#[derive(Debug)]
pub(super) struct Retired {
    pub node: Versioned<Node>,
    pub revocation: Option<Revocation>,
}

impl Retired {
    /// Tasks on it that nobody has asked to stop.
    pub fn held(&self) -> Vec<String> {
        let held = self.node.value.allocations.iter();
        held.filter(|(_, held)| !held.stopping)
            .map(|(task, _)| task.clone())
            .collect()
    }
}

/// Makes a node INACTIVE and, when `revoke` gives a reason, revokes it in the same transaction. Placement sees INACTIVE
/// from here on, so no task can be added behind our back.
pub(super) async fn retire(
    api: &Api,
    caller: &Caller,
    (cluster, id): (&str, &str),
    revoke: impl Fn(&Node) -> Result<Option<String>, ApiError>,
) -> Result<Retired, ApiError> {
    let mut attempts = Attempts::default();
    loop {
        let found = records::get::<Node>(api, &keys::node(cluster, id)).await?;
        let mut node = found.ok_or_else(|| {
            ApiError::InvalidParameter(format!("Container instance not found: {id} in cluster {cluster}"))
        })?;
        let reason = revoke(&node.value)?;
        node.value.status = "INACTIVE".to_owned();
        let mut compare = vec![node.unchanged()];
        let mut operations = vec![typed::put_json(node.key.as_str(), &node.value)?];
        let key = keys::revocation(id);
        let known = records::get::<Revocation>(api, &key).await?;
        // The first reason is the reason.
        let revocation = match (known, reason) {
            (Some(known), _) => Some(known.value),
            (None, None) => None,
            (None, Some(reason)) => {
                let fresh = new_revocation(caller, cluster, id, reason);
                operations.push(typed::put_json(key.as_str(), &fresh)?);
                compare.push(Compare::Missing(key));
                Some(fresh)
            }
        };
        if records::commit(api, compare, operations).await? {
            return Ok(Retired { node, revocation });
        }
        attempts.again().await?;
    }
}

/// Deregistering revokes at once where nothing has to be stopped; else the link does, once it is.
pub(super) fn on_deregister(node: &Node) -> Option<String> {
    node.allocations.is_empty().then(|| DEREGISTERED.to_owned())
}

fn new_revocation(caller: &Caller, cluster: &str, id: &str, reason: String) -> Revocation {
    Revocation {
        node: id.to_owned(),
        cluster: cluster.to_owned(),
        reason,
        revoked_by: caller.access_key_id.clone(),
        revoked_at: now_ms(),
    }
}
