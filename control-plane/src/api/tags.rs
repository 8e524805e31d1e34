//! Owns the tags of resources: the operations that put them on any resource. Never interprets a tag; what a tag may
//! be is the core's.

use berth_control_plane_core::{
    arn::Resource,
    tags::{self as rules, DECIDED_AT_START, TAGS_MAX},
};
use serde_json::{Value, json};

use super::{context::Api, error::ApiError, fields::Fields, records};
use crate::model::{self, Tags, keys};

/// Takes `tags` out of a request.
pub(super) fn take(fields: &mut Fields) -> Result<Tags, ApiError> {
    let value = fields.raw("tags");
    rules::parse("tags", value.as_ref()).map_err(|problems| ApiError::InvalidParameter(problems.to_string()))
}

/// As responses list them.
pub(super) fn respond(tags: &Tags) -> Value {
    tags.iter()
        .map(|(key, value)| json!({"key": key, "value": value}))
        .collect()
}

pub(super) async fn tag(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let arn = input.required("resourceArn")?;
    let tags = take(&mut input)?;
    input.finish()?;
    edit(api, &arn, |held| {
        let mut all = held.clone();
        all.extend(tags.clone());
        if all.len() > TAGS_MAX {
            return Err(ApiError::LimitExceeded(format!(
                "{arn}: a resource can have at most {TAGS_MAX} tags"
            )));
        }
        *held = all;
        Ok(())
    })
    .await?;
    Ok(json!({}))
}

pub(super) async fn untag(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let arn = input.required("resourceArn")?;
    let names = input
        .strings("tagKeys")?
        .ok_or_else(|| ApiError::field("tagKeys", "is required"))?;
    input.finish()?;
    edit(api, &arn, |held| {
        held.retain(|key, _| !names.contains(key));
        Ok(())
    })
    .await?;
    Ok(json!({}))
}

pub(super) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let arn = input.required("resourceArn")?;
    input.finish()?;
    let target = Target::of(api, &arn)?;
    let found = match &target {
        Target::Cluster(key) => records::get::<model::Cluster>(api, key)
            .await?
            .map(|found| found.value.tags),
        Target::Task(key) => records::get::<model::Task>(api, key)
            .await?
            .map(|found| found.value.tags),
        Target::Node(key) => records::get::<model::Node>(api, key)
            .await?
            .map(|found| found.value.tags),
        Target::Definition(key) => records::get::<model::TaskDefinition>(api, key)
            .await?
            .map(|found| found.value.tags),
        Target::Subnet(key) => records::get::<model::Subnet>(api, key)
            .await?
            .map(|found| found.value.tags),
    };
    let tags = found.ok_or_else(|| target.missing(&arn))?;
    Ok(json!({"tags": respond(&tags)}))
}

/// The record that carries a resource's tags.
#[derive(Debug)]
enum Target {
    Cluster(String),
    Task(String),
    Node(String),
    Definition(String),
    Subnet(String),
}

impl Target {
    fn of(api: &Api, arn: &str) -> Result<Self, ApiError> {
        match api.realm.own(arn)? {
            Resource::Cluster { name } => Ok(Self::Cluster(keys::cluster(&name))),
            Resource::Task {
                cluster: Some(cluster),
                id,
            } => Ok(Self::Task(keys::task(&cluster, &id))),
            Resource::ContainerInstance {
                cluster: Some(cluster),
                id,
            } => Ok(Self::Node(keys::node(&cluster, &id))),
            Resource::TaskDefinition { family, revision } => {
                Ok(Self::Definition(keys::task_definition(&family, revision)))
            }
            Resource::Subnet { cluster, id } => Ok(Self::Subnet(keys::subnet(&cluster, &id))),
            _ => Err(ApiError::field(
                "resourceArn",
                "must be the long ARN of a cluster, task, container instance, task definition or subnet",
            )),
        }
    }

    fn missing(&self, arn: &str) -> ApiError {
        match self {
            Self::Cluster(_) => ApiError::ClusterNotFound(arn.to_owned()),
            _ => ApiError::InvalidParameter(format!("The specified resource was not found: {arn}")),
        }
    }
}

async fn edit(
    api: &Api,
    arn: &str,
    mut edit: impl FnMut(&mut Tags) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let target = Target::of(api, arn)?;
    let found = match &target {
        Target::Cluster(key) => records::change(api, key, |found: &mut model::Cluster| edit(&mut found.tags))
            .await?
            .is_some(),
        Target::Task(key) => records::change(api, key, |found: &mut model::Task| {
            let before = found.tags.clone();
            edit(&mut found.tags)?;
            // Its node was told when the task began: a tag that says something else would be wrong.
            let changed = |key: &&str| found.tags.get(*key) != before.get(*key);
            if let Some(key) = DECIDED_AT_START.into_iter().find(changed) {
                return Err(ApiError::InvalidParameter(format!(
                    "{key} is decided when a task is started and cannot be changed afterwards"
                )));
            }
            Ok(())
        })
        .await?
        .is_some(),
        Target::Node(key) => records::change(api, key, |found: &mut model::Node| edit(&mut found.tags))
            .await?
            .is_some(),
        Target::Definition(key) => records::change(api, key, |found: &mut model::TaskDefinition| {
            edit(&mut found.tags)
        })
        .await?
        .is_some(),
        Target::Subnet(key) => records::change(api, key, |found: &mut model::Subnet| edit(&mut found.tags))
            .await?
            .is_some(),
    };
    if found { Ok(()) } else { Err(target.missing(arn)) }
}
