//! Owns the operations on join tokens: made, listed, deleted. Never shows a secret but in the answer that made it; what
//! a token lets in is `link`'s.

use serde_json::{Value, json};

use super::{
    context::{Api, Caller, now_ms, seconds},
    error::ApiError,
    fields::Fields,
    paging::Paging,
    records::{self, Attempts},
};
use crate::{
    app::{advertised_host, is_loopback},
    join_token::{self, Token},
    model::{Attributes, Cluster, JoinToken, attribute, keys},
    store::{Compare, Operation, typed},
};

const TTL_SECONDS_MIN: i64 = 10;
const TTL_SECONDS_DEFAULT: i64 = 3_600;
const TTL_SECONDS_MAX: i64 = 90 * 86_400;
/// Each use is remembered in the token's record.
const USES_MAX: i64 = 1_000;
/// Most tokens at a time.
const TOKENS_MAX: usize = 10_000;
const DEFAULT_CLUSTER: &str = "default";

/// Answers with the token, once, and with all that a host needs besides.
pub(super) async fn create(api: &Api, caller: &Caller, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let ttl = input.integer("ttlSeconds", TTL_SECONDS_MIN, TTL_SECONDS_MAX)?;
    let uses = input.integer("uses", 1, USES_MAX)?.unwrap_or(1);
    let attributes = attributes(&mut input)?;
    input.finish()?;
    let cluster = joinable(api, cluster.as_deref()).await?;
    if records::all::<JoinToken>(api, keys::JOIN_TOKENS).await?.len() >= TOKENS_MAX {
        let problem = format!("there are {TOKENS_MAX} join tokens: delete some");
        return Err(ApiError::LimitExceeded(problem));
    }
    let token = Token::generate().ok_or_else(|| ApiError::Server("the system has no randomness".into()))?;
    let now = now_ms();
    let uses = u32::try_from(uses).unwrap_or(1);
    let record = JoinToken {
        id: token.id.clone(),
        secret_sha256: token.secret_sha256(),
        cluster,
        attributes,
        uses,
        uses_left: uses,
        joined: Default::default(),
        created_by: caller.access_key_id.clone(),
        created_at: now,
        expires_at: now + ttl.unwrap_or(TTL_SECONDS_DEFAULT) * 1_000,
    };
    let key = keys::join_token(&token.id);
    let put = typed::put_json(key.as_str(), &record)?;
    if !records::commit(api, vec![Compare::Missing(key)], vec![put]).await? {
        return Err(ApiError::Contended(1));
    }
    let advertised = api.nodes.advertised();
    Ok(json!({
        "token": token.reveal(),
        "joinToken": respond(&record),
        "controlPlane": format!("https://{advertised}"),
        "caHash": format!("sha256:{}", api.nodes.authorities().trusted().active().fingerprint()),
        "warnings": warnings(&advertised),
    }))
}

fn warnings(advertised: &str) -> Vec<String> {
    let loopback = advertised_host(advertised).is_none_or(is_loopback);
    let warning = || {
        format!(
            "{advertised} is this host's loopback: no other host can join there. Set node_advertise in the control \
             plane's configuration to HOST:PORT as other hosts reach it, and node_listen to more than loopback"
        )
    };
    loopback.then(warning).into_iter().collect()
}

pub(super) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let paging = Paging::take(&mut input, "ListJoinTokens")?;
    input.finish()?;
    let page = paging
        .walk(api, keys::JOIN_TOKENS, |token: JoinToken| {
            Ok(Some(respond(&token)))
        })
        .await?;
    Ok(page.respond("joinTokens"))
}

/// Nobody joins with it any more; who did stays.
pub(super) async fn delete(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let id = input.required("tokenId")?;
    input.finish()?;
    if !join_token::is_token_id(&id) {
        return Err(ApiError::field(
            "tokenId",
            "is the id of a token: 16 hexadecimal digits",
        ));
    }
    let mut attempts = Attempts::default();
    loop {
        let found = records::get::<JoinToken>(api, &keys::join_token(&id)).await?;
        let found =
            found.ok_or_else(|| ApiError::TargetNotFound(format!("no join token has the id {id}")))?;
        let delete = Operation::Delete {
            key: found.key.clone(),
        };
        if records::commit(api, vec![found.unchanged()], vec![delete]).await? {
            return Ok(json!({"joinToken": respond(&found.value)}));
        }
        attempts.again().await?;
    }
}

fn attributes(input: &mut Fields) -> Result<Attributes, ApiError> {
    let mut all = Attributes::new();
    for mut one in input.objects("attributes", attribute::PUT_MAX)? {
        let name = one.required("name")?;
        let value = one.string("value")?;
        let (at_name, at_value) = (one.path("name"), one.path("value"));
        one.finish()?;
        if let Some(problem) = attribute::given_name_problem(&name) {
            return Err(ApiError::field(at_name, problem));
        }
        if let Some(problem) = value.as_deref().and_then(attribute::value_problem) {
            return Err(ApiError::field(at_value, problem));
        }
        if all.insert(name, value).is_some() {
            return Err(ApiError::field(at_name, "is there twice"));
        }
    }
    Ok(all)
}

/// The cluster, which must be ACTIVE: a mistyped name must not make one. Only "default" is made, as ECS does when the
/// first instance registers.
async fn joinable(api: &Api, named: Option<&str>) -> Result<String, ApiError> {
    let name = api.realm.cluster_name(named)?;
    let key = keys::cluster(&name);
    if name == DEFAULT_CLUSTER && records::get::<Cluster>(api, &key).await?.is_none() {
        let cluster = Cluster {
            name,
            status: "ACTIVE".to_owned(),
            tags: Default::default(),
            settings: vec![],
            created_at: now_ms(),
        };
        // A conflict means that somebody else made it.
        let put = typed::put_json(key.as_str(), &cluster)?;
        records::commit(api, vec![Compare::Missing(key)], vec![put]).await?;
    }
    records::active_cluster(api, named).await
}

fn respond(token: &JoinToken) -> Value {
    let attributes: Vec<Value> = token
        .attributes
        .iter()
        .map(|(name, value)| match value {
            Some(value) => json!({"name": name, "value": value}),
            None => json!({"name": name}),
        })
        .collect();
    json!({
        "tokenId": token.id,
        "cluster": token.cluster,
        "attributes": attributes,
        "uses": token.uses,
        "usesLeft": token.uses_left,
        "nodes": token.joined.values().collect::<Vec<_>>(),
        "createdBy": token.created_by,
        "createdAt": seconds(token.created_at),
        "expiresAt": seconds(token.expires_at),
    })
}
