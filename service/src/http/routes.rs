//! Owns what `/livez`, `/readyz` and `/metrics` answer. Never waits for anything without a deadline.

use axum::{
    Router,
    extract::RawQuery,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{StatusCode, header};

use super::{SCRAPE_LIMIT, Served};
use crate::metrics::CONTENT_TYPE;

/// The routes that both listeners have.
pub(super) fn common(served: &Served) -> Router {
    let (live, ready, metrics) = (served.clone(), served.clone(), served.clone());
    Router::new()
        .route("/livez", get(move || async move { livez(&live) }))
        .route(
            "/readyz",
            get(move |RawQuery(query): RawQuery| async move { readyz(&ready, query.as_deref()) }),
        )
        .route("/metrics", get(move || scrape(metrics)))
}

fn livez(served: &Served) -> Response {
    match served.pulse.lost() {
        None => (StatusCode::OK, "ok\n").into_response(),
        Some(silent) => {
            let text = format!("the daemon has not moved for {} s\n", silent.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// `?verbose`: every condition; `?format=json`: the same for programs. A failure says its reasons in any case.
fn readyz(served: &Served, query: Option<&str>) -> Response {
    let report = served.readiness.report();
    let status = if report.ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let asked = |what: &str| {
        let mut parts = query.unwrap_or_default().split('&');
        parts.any(|part| part == what || part.strip_suffix('=').is_some_and(|part| part == what))
    };
    if asked("format=json") {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        return (status, kind, format!("{}\n", report.json())).into_response();
    }
    let short = report.ready() && !asked("verbose") && !asked("verbose=true") && !asked("verbose=1");
    let text = if short { "ok\n".into() } else { report.text() };
    (status, text).into_response()
}

async fn scrape(served: Served) -> Response {
    match tokio::time::timeout(SCRAPE_LIMIT, (served.metrics)()).await {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => {
            let text = format!(
                "metrics could not be collected within {} s\n",
                SCRAPE_LIMIT.as_secs()
            );
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}
