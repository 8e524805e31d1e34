//! Owns the measuring of API requests. Never reads a body.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use axum::{
    Router,
    extract::Request as HttpRequest,
    middleware::{self, Next},
    response::Response,
};

use super::{Metrics, Request, metrics};

/// Names that get a label of their own; anybody can send any name.
const OPERATIONS_MAX: usize = 256;
/// Of a name.
const NAME_BYTES_MAX: usize = 64;
const OTHER: &str = "other";

/// Counts and times what the router answers.
pub fn measured(router: Router) -> Router {
    router.layer(middleware::from_fn(measure))
}

async fn measure(request: HttpRequest, next: Next) -> Response {
    let begun = Instant::now();
    let name = asked(&request);
    let response = next.run(request).await;
    let status = response.status();
    let outcome = match status.as_u16() {
        ..400 => "ok",
        400..500 => "refused",
        _ => "failed",
    };
    let operation = label(name.as_deref(), status.is_success());
    Metrics::observe(&metrics().request_seconds, &operation, begun);
    metrics()
        .requests
        .get_or_create(&Request { operation, outcome })
        .inc();
    response
}

/// The operation that the request names; STS has one.
fn asked(request: &HttpRequest) -> Option<String> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if header("content-type").is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded")) {
        return Some("GetCallerIdentity".into());
    }
    let (_, name) = header("x-amz-target")?.split_once('.')?;
    let plain = name.len() <= NAME_BYTES_MAX && name.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then(|| name.to_owned())
}

/// A name is known when it was answered once: what is only ever refused is `other`, so that strangers cannot make
/// labels.
fn label(name: Option<&str>, answered: bool) -> String {
    static KNOWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let Some(name) = name else {
        return OTHER.into();
    };
    // Nothing panics while it holds the lock.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if answered && known.len() < OPERATIONS_MAX {
        known.insert(name.to_owned());
    }
    if known.contains(name) {
        name.into()
    } else {
        OTHER.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_answered_gets_a_label() {
        assert_eq!(label(Some("NoSuchThing"), false), OTHER);
        assert_eq!(label(Some("ListTheseTasks"), true), "ListTheseTasks");
        assert_eq!(label(Some("ListTheseTasks"), false), "ListTheseTasks");
        assert_eq!(label(None, false), OTHER);
    }
}
