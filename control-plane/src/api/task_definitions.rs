//! Owns the operations on task definitions. Never judges a definition: `definition` in the core does.

use std::collections::BTreeMap;

use berth_control_plane_core::{
    arn::{TaskDefinitionRef, is_name},
    definition,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    context::{Api, Caller, now_ms, seconds},
    error::ApiError,
    fields::Fields,
    paging::Paging,
    records::{self, Attempts},
    tags,
};
use crate::{
    model::{Family, TaskDefinition, keys},
    store::{
        Compare,
        typed::{self, Versioned},
    },
};

pub(super) async fn register(api: &Api, caller: &Caller, input: Fields) -> Result<Value, ApiError> {
    let registered = definition::register_where(&input.rest(), api.unsupported_log_driver)
        .map_err(|problems| ApiError::Client(problems.to_string()))?;
    let key = keys::family(&registered.family);
    let mut record = TaskDefinition {
        family: registered.family,
        revision: 0,
        status: "ACTIVE".to_owned(),
        definition: registered.definition,
        tags: registered.tags,
        registered_at: now_ms(),
        deregistered_at: None,
        registered_by: caller.arn.clone(),
    };
    let mut attempts = Attempts::default();
    loop {
        let family = records::get::<Family>(api, &key).await?;
        // Revisions only rise, also when all of a family are deregistered.
        record.revision = family
            .as_ref()
            .map_or(1, |family| family.value.latest_revision + 1);
        let compare = family.map_or_else(|| Compare::Missing(key.clone()), |family| family.unchanged());
        let operations = vec![
            typed::put_json(
                key.as_str(),
                &Family {
                    latest_revision: record.revision,
                },
            )?,
            typed::put_json(keys::task_definition(&record.family, record.revision), &record)?,
        ];
        if records::commit(api, vec![compare], operations).await? {
            return Ok(json!({"taskDefinition": respond(api, &record), "tags": tags::respond(&record.tags)}));
        }
        attempts.again().await?;
    }
}

/// Every 400 of this operation means "it does not exist" to Terraform: nothing passing may be one.
pub(super) async fn describe(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let reference = input.required("taskDefinition")?;
    let include = input.choices("include", &["TAGS"])?;
    input.finish()?;
    let found = find(api, &reference).await?;
    let record = found
        .ok_or_else(|| ApiError::Client("Unable to describe task definition.".to_owned()))?
        .value;
    let mut body = json!({"taskDefinition": respond(api, &record)});
    if !include.is_empty() {
        body["tags"] = tags::respond(&record.tags);
    }
    Ok(body)
}

pub(super) async fn deregister(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let reference = input.required("taskDefinition")?;
    input.finish()?;
    let TaskDefinitionRef::Revision(family, revision) = api.realm.task_definition_ref(&reference)? else {
        let problem = format!("'{reference}' names a family: say which revision, as FAMILY:REVISION");
        return Err(ApiError::field("taskDefinition", problem));
    };
    let changed = records::change(
        api,
        &keys::task_definition(&family, revision),
        |record: &mut TaskDefinition| {
            if record.status == "ACTIVE" {
                record.status = "INACTIVE".to_owned();
                record.deregistered_at = Some(now_ms());
            }
            Ok(())
        },
    )
    .await?;
    let record = changed.ok_or_else(|| {
        ApiError::Client(format!(
            "The specified task definition does not exist: {family}:{revision}"
        ))
    })?;
    Ok(json!({"taskDefinition": respond(api, &record.value)}))
}

/// What listings need of a revision.
#[derive(Debug, Deserialize)]
struct Listed {
    family: String,
    revision: u32,
    status: String,
}

/// In order of family, then revision. Oldest first unless asked otherwise.
pub(super) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let family = input.string("familyPrefix")?.filter(|family| !family.is_empty());
    let status = input
        .choice("status", &["ACTIVE", "INACTIVE", "DELETE_IN_PROGRESS"])?
        .unwrap_or("ACTIVE");
    let descending = input.choice("sort", &["ASC", "DESC"])? == Some("DESC");
    let paging = Paging::take(&mut input, "ListTaskDefinitions")?;
    input.finish()?;
    // In spite of its name this is a whole family name here.
    let prefix = match &family {
        Some(family) if !is_name(family) => return Ok(json!({"taskDefinitionArns": []})),
        Some(family) => keys::revisions(family),
        None => keys::TASK_DEFINITIONS.to_owned(),
    };
    let arn = |listed: &Listed| api.realm.task_definition(&listed.family, listed.revision);
    if !descending {
        let keep = |listed: Listed| Ok((listed.status == status).then(|| arn(&listed)));
        return Ok(paging
            .walk(api, &prefix, keep)
            .await?
            .respond("taskDefinitionArns"));
    }
    let mut all = records::all::<Listed>(api, &prefix).await?;
    all.retain(|listed| listed.value.status == status);
    let newest_first = all
        .into_iter()
        .rev()
        .map(|listed| (listed.key.clone(), arn(&listed.value)));
    Ok(paging.cut(newest_first, true).respond("taskDefinitionArns"))
}

/// A family is ACTIVE while one of its revisions is.
pub(super) async fn list_families(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let prefix = input.string("familyPrefix")?.unwrap_or_default();
    let status = input
        .choice("status", &["ACTIVE", "INACTIVE", "ALL"])?
        .unwrap_or("ALL");
    let paging = Paging::take(&mut input, "ListTaskDefinitionFamilies")?;
    input.finish()?;
    let mut families: BTreeMap<String, bool> = BTreeMap::new();
    for listed in records::all::<Listed>(api, &format!("{}{prefix}", keys::TASK_DEFINITIONS)).await? {
        *families.entry(listed.value.family).or_default() |= listed.value.status == "ACTIVE";
    }
    let wanted = |active: bool| status == "ALL" || active == (status == "ACTIVE");
    let names = families
        .into_iter()
        .filter(|(_, active)| wanted(*active))
        .map(|(name, _)| (name.clone(), name));
    Ok(paging.cut(names, false).respond("families"))
}

/// The definition a request names. A family alone means its latest ACTIVE revision.
pub(super) async fn find(api: &Api, reference: &str) -> Result<Option<Versioned<TaskDefinition>>, ApiError> {
    let family = match api.realm.task_definition_ref(reference)? {
        TaskDefinitionRef::Revision(family, revision) => {
            return records::get(api, &keys::task_definition(&family, revision)).await;
        }
        TaskDefinitionRef::Family(family) => family,
    };
    let Some(newest) = records::get::<Family>(api, &keys::family(&family)).await? else {
        return Ok(None);
    };
    let key = keys::task_definition(&family, newest.value.latest_revision);
    if let Some(found) = records::get::<TaskDefinition>(api, &key).await?
        && found.value.status == "ACTIVE"
    {
        return Ok(Some(found));
    }
    let all = records::all::<TaskDefinition>(api, &keys::revisions(&family)).await?;
    Ok(all.into_iter().rev().find(|found| found.value.status == "ACTIVE"))
}

fn respond(api: &Api, record: &TaskDefinition) -> Value {
    let mut body = record.definition.clone();
    body["taskDefinitionArn"] = api.realm.task_definition(&record.family, record.revision).into();
    body["family"] = record.family.clone().into();
    body["revision"] = record.revision.into();
    body["status"] = record.status.clone().into();
    body["registeredAt"] = seconds(record.registered_at);
    body["registeredBy"] = record.registered_by.clone().into();
    if let Some(at) = record.deregistered_at {
        body["deregisteredAt"] = seconds(at);
    }
    body
}
