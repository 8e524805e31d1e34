//! Owns the form of task protection, as a task asks for it of itself: that of the ECS agent's `task-protection/v1/state`.
//!
//! Protection keeps a task from being stopped when its service has fewer. There are no services yet, so it is known here that
//! no task has any: ECS's answer is then TASK_NOT_VALID, too.

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

/// Of a request.
pub(super) const BYTES_MAX: usize = 4 << 10;
const INVALID: &str = "InvalidParameterException";

/// What a task asks for. The names are ECS's, and any other is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Request {
    protection_enabled: Option<bool>,
    #[serde(rename = "ExpiresInMinutes")]
    _expires_in_minutes: Option<i64>,
}

/// Of the task with this ARN.
pub(super) fn get(arn: &str) -> (StatusCode, Value) {
    let failure = json!({
        "Arn": arn,
        "Reason": "TASK_NOT_VALID",
        "Detail": "The task does not belong to a service: nothing stops it but who asks for that",
    });
    (StatusCode::OK, json!({"failure": failure}))
}

pub(super) fn update(arn: &str, body: &[u8]) -> (StatusCode, Value) {
    let refuse = |message: &str| {
        let error = json!({"Arn": arn, "Code": INVALID, "Message": message});
        (StatusCode::BAD_REQUEST, json!({"error": error}))
    };
    match serde_json::from_slice::<Request>(body) {
        Err(_) => refuse("UpdateTaskProtection: failed to decode request"),
        Ok(Request {
            protection_enabled: None,
            ..
        }) => refuse("Invalid request: does not contain 'ProtectionEnabled' field"),
        Ok(_) => get(arn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_refused_by_what_is_wrong_with_it() {
        for (body, expected) in [
            (r#"{"ProtectionEnabled": true}"#, None),
            (r#"{"ProtectionEnabled": false, "ExpiresInMinutes": 60}"#, None),
            (r#"{"ExpiresInMinutes": 60}"#, Some("ProtectionEnabled")),
            (r#"{"ProtectionEnabled": 1}"#, Some("decode")),
            (r#"{"ProtectionEnabled": true, "Other": 1}"#, Some("decode")),
            ("", Some("decode")),
        ] {
            let (code, answer) = update("arn", body.as_bytes());
            let Some(expected) = expected else {
                assert_eq!(
                    (code, &answer["failure"]["Reason"]),
                    (StatusCode::OK, &json!("TASK_NOT_VALID"))
                );
                continue;
            };
            assert_eq!(
                (code, &answer["error"]["Code"]),
                (StatusCode::BAD_REQUEST, &json!(INVALID))
            );
            let message = answer["error"]["Message"].as_str().unwrap();
            assert!(message.contains(expected), "{body}: {message}");
        }
    }
}
