//! Owns the operations on access keys. Never shows a secret but in the answer that made it.

use rand::{TryRngCore, rngs::OsRng};
use serde_json::{Value, json};

use super::{
    ApiKey,
    context::{Api, Caller, now_ms, seconds},
    error::ApiError,
    fields::Fields,
    paging::Paging,
    records::{self, Attempts},
};
use crate::{
    model::{ApiKeyRecord, Millis, Role, keys},
    store::{Compare, Operation, typed},
};

/// Most keys in the store.
const KEYS_MAX: usize = 1_000;
/// Longest name, as IAM has it for users.
const NAME_CHARS_MAX: usize = 64;
const ROLES: [&str; 2] = ["admin", "read-only"];
/// AWS's access key ids have 20 characters, secrets 40.
const ID_DIGITS: usize = 15;
const SECRET_DIGITS: usize = 40;
/// Five bits each: no shell treats one of them specially.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// A key nobody has.
///
/// # Errors
/// The kernel gives no random bytes.
pub fn new_key() -> Result<ApiKey, rand::rand_core::OsError> {
    Ok(ApiKey {
        access_key_id: format!("BERTH{}", random(ID_DIGITS)?),
        secret: random(SECRET_DIGITS)?,
    })
}

fn random(digits: usize) -> Result<String, rand::rand_core::OsError> {
    let mut bytes = vec![0; digits];
    OsRng.try_fill_bytes(&mut bytes)?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect())
}

pub(super) async fn create(api: &Api, caller: &Caller, mut input: Fields) -> Result<Value, ApiError> {
    let name = input.required("name")?;
    let role = input.choice("role", &ROLES)?;
    input.finish()?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
    if name.chars().count() > NAME_CHARS_MAX || !name.chars().all(allowed) {
        let problem = format!("must be 1 to {NAME_CHARS_MAX} letters, digits and +=,.@_-");
        return Err(ApiError::field("name", problem));
    }
    let role = match role {
        Some("admin") => Role::Admin,
        Some(_) => Role::ReadOnly,
        None => return Err(ApiError::field("role", "is required: admin or read-only")),
    };
    if records::all::<ApiKeyRecord>(api, keys::API_KEYS).await?.len() >= KEYS_MAX {
        let problem = format!("there are {KEYS_MAX} access keys: delete those that nobody uses");
        return Err(ApiError::LimitExceeded(problem));
    }
    let key = new_key().map_err(|error| ApiError::Server(format!("no random bytes: {error}")))?;
    let record = ApiKeyRecord {
        access_key_id: key.access_key_id,
        secret: key.secret,
        name,
        role,
        created_at: now_ms(),
        created_by: Some(caller.access_key_id.clone()),
    };
    let at = keys::api_key(&record.access_key_id);
    let put = typed::put_json(at.as_str(), &record)?;
    if !records::commit(api, vec![Compare::Missing(at)], vec![put]).await? {
        return Err(ApiError::Server(
            "a random id was there already: try again".into(),
        ));
    }
    let mut answer = json!({"apiKey": describe(&record, None)});
    answer["secretAccessKey"] = record.secret.into();
    Ok(answer)
}

pub(super) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let paging = Paging::take(&mut input, "ListApiKeys")?;
    input.finish()?;
    let mut all: Vec<(String, Value)> = api
        .access
        .configured()
        .map(|id| {
            let key = json!({
                "accessKeyId": id, "role": Role::Admin.name(), "source": "configuration",
            });
            (id.to_owned(), key)
        })
        .collect();
    for record in records::all::<ApiKeyRecord>(api, keys::API_KEYS).await? {
        let record = record.value;
        let used = records::get::<Millis>(api, &keys::api_key_use(&record.access_key_id)).await?;
        let key = describe(&record, used.map(|used| used.value));
        all.push((record.access_key_id, key));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(paging.cut(all, false).respond("apiKeys"))
}

fn describe(record: &ApiKeyRecord, last_used: Option<Millis>) -> Value {
    let mut key = json!({
        "accessKeyId": record.access_key_id,
        "name": record.name,
        "role": record.role.name(),
        "source": "store",
        "createdAt": seconds(record.created_at),
    });
    if let Some(by) = &record.created_by {
        key["createdBy"] = by.as_str().into();
    }
    if let Some(at) = last_used {
        key["lastUsedAt"] = seconds(at);
    }
    key
}

pub(super) async fn delete(api: &Api, caller: &Caller, mut input: Fields) -> Result<Value, ApiError> {
    let id = input.required("accessKeyId")?;
    let force = input.boolean("force")?;
    input.finish()?;
    if api.access.is_configured(&id) {
        return Err(ApiError::Client(format!(
            "{id} is in the control plane's configuration: remove it there, and restart the control plane"
        )));
    }
    if id == caller.access_key_id && !force {
        return Err(ApiError::Client(format!(
            "{id} signs this very call: use another key, or force it"
        )));
    }
    let mut attempts = Attempts::default();
    loop {
        let all = records::all::<ApiKeyRecord>(api, keys::API_KEYS).await?;
        let Some(record) = all.iter().find(|record| record.value.access_key_id == id) else {
            return Err(ApiError::ResourceNotFound(format!(
                "there is no access key {id}: it may be deleted already"
            )));
        };
        let mut compare = vec![record.unchanged()];
        let other = all
            .iter()
            .find(|one| one.value.role == Role::Admin && one.value.access_key_id != id);
        match other {
            // It must still be there: two admins must not delete each other at once.
            Some(other) if record.value.role == Role::Admin => {
                compare.push(Compare::Exists(other.key.clone()));
            }
            None if record.value.role == Role::Admin
                && !force
                && api.access.configured().next().is_none() =>
            {
                return Err(ApiError::Client(format!(
                    "{id} is the last admin key: create another one first, or force it (the control plane makes a \
                     new first key when it starts without one)"
                )));
            }
            _ => {}
        }
        let operations = vec![
            Operation::Delete {
                key: record.key.clone(),
            },
            Operation::Delete {
                key: keys::api_key_use(&id),
            },
        ];
        if records::commit(api, compare, operations).await? {
            api.access.forget(&id);
            return Ok(json!({"apiKey": describe(&record.value, None)}));
        }
        attempts.again().await?;
    }
}
