//! Owns the exchange of a join token for a node's identity. Never makes a key: the node's stays on the node. A token's
//! use, the node and what is known of its certificate are one transaction.

use std::net::IpAddr;

use berth_proto::node::v1::{NodeDescription, RegisterRequest, RegisterResponse};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tonic::Status;

use super::{
    Shared,
    admission::source,
    certificates, chain, now,
    records::{ATTEMPTS_MAX, back_off},
};
use crate::{
    audit::{Event, Outcome},
    join_token::Token,
    model::{Attributes, Cluster, Identity, JoinToken, Millis, Node, Revocation, attribute, keys},
    pki::{Issued, NodeRequest, Peer, PkiError},
    store::{
        Committed, Compare, Transaction,
        typed::{self, RecordError, Versioned},
    },
};

/// Longest text a host may say of itself, characters.
pub(super) const TEXT_CHARS_MAX: usize = 256;

/// Why a host does not join.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    #[error(
        "no such join token: it was copied wrongly, deleted, or made by another control plane; make one with `berth token create`"
    )]
    NoToken,
    #[error("join token {id} expired at {at}: make another with `berth token create`")]
    Expired { id: String, at: String },
    #[error(
        "join token {id} is used up: it was good for {uses} hosts; make another with `berth token create`"
    )]
    UsedUp { id: String, uses: u32 },
    #[error("{0}")]
    Request(String),
    #[error(
        "cluster {0} of this join token was deleted: create it again, or make a token for another cluster"
    )]
    NoCluster(String),
    #[error("node {node}, which this key belongs to, is revoked ({reason}): register with a new key")]
    Revoked { node: String, reason: String },
    #[error("node {node}, which this key belongs to, registers too often: try again in {seconds} s")]
    TooOften { node: String, seconds: u64 },
    #[error("the records of join token {0} change too often: try again")]
    Contended(String),
    #[error("issue the certificate")]
    Issue {
        #[from]
        source: PkiError,
    },
    #[error("read or write the records")]
    Record {
        #[from]
        source: RecordError,
    },
}

impl From<crate::store::StoreError> for JoinError {
    fn from(source: crate::store::StoreError) -> Self {
        Self::Record {
            source: source.into(),
        }
    }
}

impl JoinError {
    fn status(&self) -> Status {
        let text = chain(self);
        match self {
            Self::NoToken | Self::Expired { .. } | Self::UsedUp { .. } => Status::unauthenticated(text),
            Self::Request(_) => Status::invalid_argument(text),
            Self::TooOften { .. } => Status::resource_exhausted(text),
            Self::NoCluster(_) => Status::failed_precondition(text),
            Self::Revoked { .. } => Status::permission_denied(text),
            Self::Contended(_) | Self::Issue { .. } | Self::Record { .. } => Status::unavailable(text),
        }
    }

    /// Whether it may have been somebody who tries tokens.
    fn counts(&self) -> bool {
        matches!(
            self,
            Self::NoToken | Self::Expired { .. } | Self::UsedUp { .. } | Self::Request(_)
        )
    }
}

/// Answers Register.
pub(super) async fn register(
    shared: &Shared,
    from: IpAddr,
    request: RegisterRequest,
) -> Result<RegisterResponse, Status> {
    if let Some(wait) = shared.failures.wait(&source(from)) {
        let seconds = wait.as_secs() + 1;
        let text = format!("too many failed attempts to join from {from}: try again in {seconds} s");
        return Err(Status::resource_exhausted(text));
    }
    let hostname = clipped(request.description.as_ref().map_or("", |d| &d.hostname));
    match join(shared, request).await {
        Ok((peer, issued, token)) => {
            let event = Event::new(format!("join-token/{token}"), "Register")
                .from(Some(from))
                .target("cluster", peer.cluster.as_str())
                .target("node", peer.node_id.as_str());
            // Without this no certificate is handed over; the same key gets the same node when it asks again.
            shared.record(event, Outcome::Done).await?;
            tracing::info!(node = %peer.node_id, cluster = %peer.cluster, %from, hostname, token, "a host joined");
            Ok(RegisterResponse {
                node_id: peer.node_id,
                cluster: peer.cluster,
                certificate_der: issued.certificate_der,
                authority_der: shared.authorities.trusted().certificates_der(),
            })
        }
        Err(error) => {
            if error.counts() {
                shared.failures.count(&source(from));
                if let Some(audit) = &shared.config.audit {
                    audit.refused(Some(from), "JoinRefused", None);
                }
            }
            if shared.log_limit.allows(&format!("join {}", source(from))) {
                tracing::warn!(%from, hostname, reason = chain(&error), "a host did not join");
            }
            Err(error.status())
        }
    }
}

async fn join(shared: &Shared, request: RegisterRequest) -> Result<(Peer, Issued, String), JoinError> {
    let token = Token::parse(&request.token).ok_or(JoinError::NoToken)?;
    // The token comes first: strangers are told nothing about what they send.
    let mut known = find(shared, &token).await?;
    let key = NodeRequest::from_der(&request.certificate_request_der)
        .map_err(|error| JoinError::Request(error.to_string()))?;
    let attributes = host_attributes(&request)?;
    if let Some(node) = known.value.joined.get(key.key_sha256()) {
        // It is a renewal by other means: each is a certificate, and a line in the audit log.
        if let Some(wait) = shared.renewals.wait(node) {
            let (node, seconds) = (node.clone(), wait.as_secs() + 1);
            return Err(JoinError::TooOften { node, seconds });
        }
        shared.renewals.count(node);
    }
    let description = request.description.unwrap_or_default();
    for attempt in 1..=ATTEMPTS_MAX {
        let candidate = Candidate {
            key: &key,
            description: &description,
            attributes: &attributes,
        };
        if let Some((peer, issued)) = use_token(shared, known, candidate).await? {
            return Ok((peer, issued, token.id));
        }
        back_off(attempt).await;
        known = find(shared, &token).await?;
    }
    Err(JoinError::Contended(token.id))
}

/// The token's record, if the holder knows its secret.
async fn find(shared: &Shared, token: &Token) -> Result<Versioned<JoinToken>, JoinError> {
    let found = typed::get_json::<JoinToken>(&*shared.store, &keys::join_token(&token.id)).await?;
    let known = found
        .filter(|known| token.matches(&known.value.secret_sha256))
        .ok_or(JoinError::NoToken)?;
    if known.value.expires_at <= now() {
        return Err(JoinError::Expired {
            id: token.id.clone(),
            at: rfc3339(known.value.expires_at),
        });
    }
    Ok(known)
}

/// Who wants to be a node.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    key: &'a NodeRequest,
    description: &'a NodeDescription,
    attributes: &'a Attributes,
}

/// None: somebody else changed the records meanwhile.
async fn use_token(
    shared: &Shared,
    mut token: Versioned<JoinToken>,
    candidate: Candidate<'_>,
) -> Result<Option<(Peer, Issued)>, JoinError> {
    let key = candidate.key.key_sha256();
    let known = token.value.joined.get(key).cloned();
    let node = known
        .clone()
        .unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
    let peer = Peer::new(&node, &token.value.cluster)?;
    let mut transaction = Transaction {
        compare: vec![token.unchanged()],
        operations: vec![],
    };
    if known.is_some() {
        if let Some(revoked) = typed::get_json::<Revocation>(&*shared.store, &keys::revocation(&node)).await?
        {
            let reason = revoked.value.reason;
            return Err(JoinError::Revoked { node, reason });
        }
        transaction
            .compare
            .push(Compare::Missing(keys::revocation(&node)));
    } else {
        if token.value.uses_left == 0 {
            return Err(JoinError::UsedUp {
                id: token.value.id,
                uses: token.value.uses,
            });
        }
        token.value.uses_left -= 1;
        token.value.joined.insert(key.to_owned(), node.clone());
        add_node(shared, &mut transaction, &peer, &token.value, candidate).await?;
        transaction
            .operations
            .push(typed::put_json(token.key.clone(), &token.value)?);
    }
    let trusted = shared.authorities.trusted();
    let lifetime = shared.certificate_lifetime();
    let issued = trusted.active().sign_node(candidate.key, &peer, lifetime)?;
    let identity_key = keys::identity(&peer.node_id);
    let held = typed::get_json::<Identity>(&*shared.store, &identity_key).await?;
    transaction.compare.push(
        held.as_ref()
            .map_or_else(|| Compare::Missing(identity_key.clone()), |held| held.unchanged()),
    );
    let held = held.map(|held| held.value);
    let identity = Identity {
        joined_with: Some(token.value.id),
        ..certificates::issued(held, &peer, trusted.active().fingerprint(), &issued)
    };
    transaction
        .operations
        .push(typed::put_json(identity_key, &identity)?);
    let done = shared.store.commit(transaction).await?;
    Ok(matches!(done, Committed::Done(_)).then_some((peer, issued)))
}

/// The node's record, which says that it has not linked yet, and where to find it.
async fn add_node(
    shared: &Shared,
    transaction: &mut Transaction,
    peer: &Peer,
    token: &JoinToken,
    candidate: Candidate<'_>,
) -> Result<(), JoinError> {
    let cluster = typed::get_json::<Cluster>(&*shared.store, &keys::cluster(&peer.cluster)).await?;
    let cluster = cluster
        .filter(|cluster| cluster.value.status == "ACTIVE")
        .ok_or_else(|| JoinError::NoCluster(peer.cluster.clone()))?;
    transaction.compare.push(cluster.unchanged());
    let (node_key, place_key) = (
        keys::node(&peer.cluster, &peer.node_id),
        keys::node_cluster(&peer.node_id),
    );
    let node = node_record(peer, token, candidate, now());
    transaction
        .operations
        .push(typed::put_json(node_key.clone(), &node)?);
    transaction
        .operations
        .push(typed::put_json(place_key.clone(), &peer.cluster)?);
    transaction.compare.push(Compare::Missing(node_key));
    transaction.compare.push(Compare::Missing(place_key));
    Ok(())
}

/// Capacity comes with the first link; until then nothing fits.
fn node_record(peer: &Peer, token: &JoinToken, candidate: Candidate<'_>, now: Millis) -> Node {
    let said = candidate.description;
    Node {
        id: peer.node_id.clone(),
        cluster: peer.cluster.clone(),
        status: "ACTIVE".into(),
        agent_connected: false,
        hostname: clipped(&said.hostname),
        boot_id: clipped(&said.boot_id),
        agent_version: clipped(&said.agent_version),
        runtime_version: clipped(&said.runtime_version),
        kernel_version: clipped(&said.kernel_version),
        architecture: clipped(&said.architecture),
        cpu_units: 0,
        memory_bytes: 0,
        task_addresses: 0,
        node_address: None,
        node_ipv6_address: None,
        uses: vec![],
        linked_epoch: 0,
        gpus: vec![],
        reserved_tcp_ports: vec![],
        reserved_udp_ports: vec![],
        features: vec![],
        node_attributes: candidate.attributes.clone(),
        attributes: token.attributes.clone(),
        tags: Default::default(),
        allocations: Default::default(),
        registered_at: now,
        connectivity_at: now,
    }
}

/// What the host calls itself, checked as PutAttributes checks; the token's attributes win over these wherever they
/// are read.
fn host_attributes(request: &RegisterRequest) -> Result<Attributes, JoinError> {
    let attributes = &request.attributes;
    if attributes.len() > attribute::OWN_MAX {
        let text = format!(
            "{} attributes are more than {}",
            attributes.len(),
            attribute::OWN_MAX
        );
        return Err(JoinError::Request(text));
    }
    let problem = |(name, value): (&String, &String)| {
        let trusted = name
            .starts_with(attribute::TRUSTED)
            .then_some("only PutAttributes and join tokens give attributes with the prefix trusted.");
        let value = Some(value).filter(|value| !value.is_empty());
        attribute::given_name_problem(name)
            .or(trusted)
            .or_else(|| value.and_then(|value| attribute::value_problem(value)))
            .map(|problem| format!("attribute {:?}: {problem}", clipped(name)))
    };
    if let Some(problem) = attributes.iter().find_map(problem) {
        return Err(JoinError::Request(problem));
    }
    let value = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    Ok(attributes
        .iter()
        .map(|(name, text)| (name.clone(), value(text)))
        .collect())
}

/// As much of a text as is kept.
pub(super) fn clipped(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

fn rfc3339(at: Millis) -> String {
    OffsetDateTime::from_unix_timestamp(at / 1_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| at.to_string())
}
