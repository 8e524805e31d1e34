//! Owns what stands before every operation: whether the caller may call it, and that a change is in the audit log
//! before it is made and before it is answered. Never runs an operation that the log does not know of.

use std::sync::Arc;

use serde_json::Value;

use super::{
    context::{Api, Caller},
    error::ApiError,
    fields::Fields,
    operations::{self, Access, Answer, Operation},
};
use crate::{
    audit::{Event, Intent, Outcome},
    model::Role,
};

/// Fields of requests that name what is changed, never its content.
const NAMES: [&str; 18] = [
    "accessKeyId",
    "arn",
    "cluster",
    "clusterName",
    "containerInstance",
    "containerInstances",
    "family",
    "group",
    "id",
    "name",
    "node",
    "resourceArn",
    "role",
    "status",
    "step",
    "task",
    "taskDefinition",
    "tokenId",
];

/// Runs `operation` for a caller who proved who they are. `input` may be what could not be read: that is a refusal like
/// any other.
pub(super) async fn call(
    api: &Arc<Api>,
    caller: &Caller,
    operation: Operation,
    input: Result<Fields, ApiError>,
    request_id: &str,
) -> Result<Answer, ApiError> {
    if operation.access == Access::Read {
        return operations::dispatch(api, caller, operation, input?).await;
    }
    let mut event = Event::new(&caller.access_key_id, operation.name)
        .from(caller.address)
        .role(caller.role.name())
        .request(request_id);
    if let Ok(fields) = &input {
        event = named(event, &fields.rest());
    }
    let refusal = match (caller.role, input) {
        (Role::Admin, Ok(input)) => {
            let mut intent = api.audit.intend(event).await.map_err(ApiError::Audit)?;
            let answer = operations::dispatch(api, caller, operation, input).await;
            if let Ok(Answer::Json(answer)) = &answer {
                add_made(&mut intent, answer);
            }
            intent.conclude(outcome(&answer)).await;
            return answer;
        }
        (Role::Admin, Err(error)) => error,
        (Role::ReadOnly, _) => ApiError::AccessDenied(format!(
            "User: {} is not authorized to perform: {}: the access key is {}, and this changes something",
            caller.arn,
            operation.action(),
            caller.role.name(),
        )),
    };
    api.audit.refused_call(event, refusal.code());
    Err(refusal)
}

fn outcome(answer: &Result<Answer, ApiError>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Done,
        Err(error) if error.status().is_server_error() => Outcome::failed(error.code()),
        Err(error) => Outcome::refused(error.code()),
    }
}

fn named(mut event: Event, request: &Value) -> Event {
    for name in NAMES {
        if let Some(value) = request.get(name) {
            event = event.target(name, value.clone());
        }
    }
    // Attributes name what they are put on, and themselves.
    for (name, of) in [("attributes", "name"), ("targetIds", "targetId")] {
        let list = request.get("attributes").and_then(Value::as_array);
        let mut named: Vec<Value> = list
            .into_iter()
            .flatten()
            .filter_map(|one| one.get(of).cloned())
            .collect();
        named.dedup();
        if !named.is_empty() {
            event = event.target(name, named);
        }
    }
    event
}

/// What only the answer names: the ids of what was made.
fn add_made(intent: &mut Intent, answer: &Value) {
    let text = |path: &str| answer.pointer(path).and_then(Value::as_str).map(str::to_owned);
    for (name, path) in [
        ("accessKeyId", "/apiKey/accessKeyId"),
        ("tokenId", "/joinToken/tokenId"),
        ("taskDefinitionArn", "/taskDefinition/taskDefinitionArn"),
    ] {
        if let Some(found) = text(path) {
            intent.target(name, found);
        }
    }
    let tasks: Vec<Value> = answer
        .get("tasks")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|task| task.get("taskArn").cloned())
        .collect();
    if !tasks.is_empty() {
        intent.target("taskArns", tasks);
    }
}
