//! Owns GetTaskProtection and UpdateTaskProtection. Protection keeps a task from being stopped when its service has fewer, and
//! there are no services yet: every task is standalone, of which ECS says TASK_NOT_VALID. Changes nothing.

use serde_json::{Value, json};

use crate::{
    api::{context::Api, error::ApiError, fields::Fields, records},
    model::{Task, keys},
};

const GET_MAX: usize = 100;
const UPDATE_MAX: usize = 10;
const EXPIRES_MINUTES_MAX: i64 = 2_880;

pub(in crate::api) async fn get(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.required("cluster")?;
    let named = input.strings("tasks")?.unwrap_or_default();
    input.finish()?;
    if named.len() > GET_MAX {
        return Err(ApiError::field("tasks", "can have at most 100 items"));
    }
    answer(api, &cluster, &named).await
}

pub(in crate::api) async fn update(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.required("cluster")?;
    let named = input.required_strings("tasks", UPDATE_MAX)?;
    if input.rest().get("protectionEnabled").is_none_or(Value::is_null) {
        return Err(ApiError::field("protectionEnabled", "is required"));
    }
    input.boolean("protectionEnabled")?;
    input.integer("expiresInMinutes", 1, EXPIRES_MINUTES_MAX)?;
    input.finish()?;
    answer(api, &cluster, &named).await
}

async fn answer(api: &Api, cluster: &str, named: &[String]) -> Result<Value, ApiError> {
    let cluster = records::active_cluster(api, Some(cluster)).await?;
    let ids = named.iter().map(|named| api.realm.task_id(&cluster, named));
    let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
    let mut failures = Vec::new();
    for id in ids {
        let arn = api.realm.task(&cluster, &id);
        failures.push(
            match records::get::<Task>(api, &keys::task(&cluster, &id)).await? {
                None => json!({"arn": arn, "reason": "MISSING"}),
                Some(_) => json!({
                    "arn": arn,
                    "reason": "TASK_NOT_VALID",
                    "detail": "The task does not belong to a service: nothing stops it but who asks for that",
                }),
            },
        );
    }
    Ok(json!({"protectedTasks": [], "failures": failures}))
}
