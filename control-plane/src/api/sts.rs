//! Owns the one STS operation clients need to find out who they are: GetCallerIdentity, in STS's own protocol (form
//! in, XML out). Never issues credentials.

use http::StatusCode;

use super::{
    context::{Api, Caller},
    error::ApiError,
};

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// Answers a form-encoded call.
pub(super) fn call(api: &Api, caller: &Caller, body: &[u8], request_id: &str) -> Result<String, ApiError> {
    let form = String::from_utf8_lossy(body);
    let action = form
        .split('&')
        .find_map(|pair| pair.strip_prefix("Action="))
        .unwrap_or_default();
    if action != "GetCallerIdentity" {
        let problem =
            format!("'{action}' is not supported by this endpoint: of STS it has GetCallerIdentity");
        return Err(ApiError::UnknownOperation(problem));
    }
    let (arn, user, account) = (
        escape(&caller.arn),
        escape(&caller.access_key_id),
        escape(&api.realm.account),
    );
    Ok(format!(
        "<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\"><GetCallerIdentityResult><Arn>{arn}</Arn>\
         <UserId>{user}</UserId><Account>{account}</Account></GetCallerIdentityResult><ResponseMetadata>\
         <RequestId>{request_id}</RequestId></ResponseMetadata></GetCallerIdentityResponse>"
    ))
}

/// An error as the query protocol has it.
pub(super) fn error(error: &ApiError, message: &str, request_id: &str) -> (StatusCode, String) {
    let (status, code) = match error {
        ApiError::Auth(auth) => (StatusCode::FORBIDDEN, auth.query_code()),
        ApiError::UnknownOperation(_) => (StatusCode::BAD_REQUEST, "InvalidAction"),
        other => (other.status(), other.code()),
    };
    let side = if status.is_server_error() {
        "Receiver"
    } else {
        "Sender"
    };
    let message = escape(message);
    let text = format!(
        "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>{side}</Type><Code>{code}</Code>\
         <Message>{message}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
    );
    (status, text)
}

fn escape(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, c| {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                '\'' => out.push_str("&apos;"),
                c if c.is_control() => out.push(' '),
                c => out.push(c),
            }
            out
        })
}
