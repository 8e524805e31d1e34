//! Owns ListAuditEvents: pages of the audit log, newest first. Never writes to it.

use serde_json::{Value, json};

use super::{context::Api, error::ApiError, fields::Fields, paging::PAGE_ITEMS_MAX};
use crate::audit::Listing;

pub(super) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let since_ms = input.integer("sinceMs", 0, i64::MAX)?.unwrap_or(0);
    let max = input.integer("maxResults", 1, PAGE_ITEMS_MAX as i64)?;
    let token = input.string("nextToken")?.filter(|token| !token.is_empty());
    input.finish()?;
    let before = token
        .map(|token| {
            token
                .parse::<u64>()
                .map_err(|_| ApiError::field("nextToken", "is not a token that ListAuditEvents gave out"))
        })
        .transpose()?;
    let listing = Listing {
        before,
        since_ms,
        max: max
            .and_then(|max| usize::try_from(max).ok())
            .unwrap_or(PAGE_ITEMS_MAX),
    };
    let page = api.audit.list(listing).await.map_err(|error| {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "the audit log cannot be read"
        );
        ApiError::Server("the audit log cannot be read".into())
    })?;
    let mut answer = json!({"auditEvents": page.events});
    if let Some(next) = page.next {
        answer["nextToken"] = next.to_string().into();
    }
    Ok(answer)
}
