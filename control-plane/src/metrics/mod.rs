//! Owns what the control plane counts of its own work. Never acts on a number.
//!
//! The counters belong to the process, as Prometheus sees it: whoever does something counts it here, without a handle
//! being passed to every corner. `docs/monitoring.md` names each.

mod api;
mod census;
mod link;
mod store;

use std::{sync::LazyLock, time::Instant};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

pub use self::{api::measured, census::Census, store::MeasuredStore};

/// The process's counters.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    operation: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Message {
    direction: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Issue {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<Request, Counter>,
    request_seconds: Family<Operation, Histogram>,
    messages: Family<Message, Counter>,
    issues: Family<Issue, Counter>,
    transactions: Family<Outcome, Counter>,
    store_seconds: Family<Operation, Histogram>,
}

impl Metrics {
    fn new() -> Self {
        Self {
            requests: Family::default(),
            // 1 ms to 16 s: a call is given up after 30 s.
            request_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 15))
            }),
            messages: Family::default(),
            issues: Family::default(),
            transactions: Family::default(),
            // 50 µs to 0.8 s, and more.
            store_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_05, 2.0, 15))
            }),
        }
    }

    /// Makes them part of what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        let requests = self.requests.clone();
        registry.register(
            "berth_api_requests",
            "API requests answered, by operation and outcome",
            requests,
        );
        registry.register(
            "berth_api_request_duration_seconds",
            "From a request's head to its answer's",
            self.request_seconds.clone(),
        );
        let messages = self.messages.clone();
        registry.register(
            "berth_link_messages",
            "Messages of node links, by direction and kind",
            messages,
        );
        registry.register(
            "berth_node_certificates",
            "Nodes that asked to join or to renew, by outcome",
            self.issues.clone(),
        );
        let transactions = self.transactions.clone();
        registry.register(
            "berth_store_transactions",
            "Transactions of the store, by outcome",
            transactions,
        );
        registry.register(
            "berth_store_duration_seconds",
            "How long the store takes to read and to commit, waiting included",
            self.store_seconds.clone(),
        );
    }

    fn observe(family: &Family<Operation, Histogram>, operation: &str, begun: Instant) {
        let operation = operation.to_owned();
        family
            .get_or_create(&Operation { operation })
            .observe(begun.elapsed().as_secs_f64());
    }
}
