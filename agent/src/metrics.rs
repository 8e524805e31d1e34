//! Owns the figures that nobody else keeps: how long things took, how many bytes came, what was lost. Counted where it
//! happens, rendered by [`introspection`](crate::introspection) when somebody asks; nothing here grows with tasks.
//!
//! They are the process's, like its memory and descriptors, so there is one set of them: [`METRICS`].

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use berth_agent_core::{
    effect::Effect,
    ids::TaskId,
    ledger::HostObject,
    report::{Report, Status},
};

/// This process's figures.
pub static METRICS: Metrics = Metrics::new();

/// Upper bounds of a histogram's buckets, seconds: a cached start is some 50 ms, a pull may take minutes.
pub const BUCKETS_S: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
];

/// Durations in buckets. Adding to it is two atomic additions.
#[derive(Debug)]
pub struct Histogram {
    /// Not cumulative; the last one is above every bound.
    buckets: [AtomicU64; BUCKETS_S.len() + 1],
    sum_usec: AtomicU64,
}

impl Histogram {
    const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS_S.len() + 1],
            sum_usec: AtomicU64::new(0),
        }
    }

    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS_S.iter().position(|bound| seconds <= *bound);
        self.buckets[bucket.unwrap_or(BUCKETS_S.len())].fetch_add(1, Relaxed);
        let usec = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_usec.fetch_add(usec, Relaxed);
    }

    /// Counts up to and including each bucket, the last one all of them; and the sum, seconds.
    pub fn cumulative(&self) -> ([u64; BUCKETS_S.len() + 1], f64) {
        let mut total = 0;
        let counts = std::array::from_fn(|i| {
            total += self.buckets[i].load(Relaxed);
            total
        });
        (
            counts,
            Duration::from_micros(self.sum_usec.load(Relaxed)).as_secs_f64(),
        )
    }
}

/// Kinds of objects that the audit may find without an owner.
pub const LEAK_KINDS: [&str; 6] = [
    "container",
    "snapshot",
    "network",
    "cgroup",
    "run_directory",
    "logs",
];

/// Questions of tasks for names, by what became of them.
#[derive(Debug)]
pub struct Questions {
    /// From what is known of tasks.
    pub answered: AtomicU64,
    pub cached: AtomicU64,
    /// By other servers.
    pub forwarded: AtomicU64,
    /// No other server answered.
    pub failed: AtomicU64,
    /// Not allowed, or of nobody known.
    pub refused: AtomicU64,
    /// More than a task may ask.
    pub dropped: AtomicU64,
    pub malformed: AtomicU64,
}

impl Questions {
    const fn new() -> Self {
        Self {
            answered: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
        }
    }

    /// Each with its name.
    pub fn all(&self) -> [(&'static str, &AtomicU64); 7] {
        [
            ("answered", &self.answered),
            ("cached", &self.cached),
            ("forwarded", &self.forwarded),
            ("failed", &self.failed),
            ("refused", &self.refused),
            ("dropped", &self.dropped),
            ("malformed", &self.malformed),
        ]
    }
}
/// What others changed of the tasks' network, and was repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkRepair {
    /// The nftables table.
    Table,
    /// A task's link was gone.
    Link,
    /// A task's link was down, at one of its ends.
    Down,
    /// The host's route to a task.
    Route,
    /// That of the tasks' endpoints, on a task's link.
    Address,
}

/// Network namespaces of tasks, and of containers in bridge mode.
#[derive(Debug)]
pub struct Namespaces {
    /// Kept ready now.
    pub ready: AtomicU64,
    /// Given to a task out of those.
    pub taken: AtomicU64,
    /// Made for a task because none was ready.
    pub made: AtomicU64,
}

impl Namespaces {
    const fn new() -> Self {
        Self {
            ready: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            made: AtomicU64::new(0),
        }
    }
}

/// As labels, in the order of [`NetworkRepair`].
pub const NETWORK_REPAIRS: [&str; 5] = ["table", "link", "down", "route", "address"];

/// See [`METRICS`].
#[derive(Debug)]
pub struct Metrics {
    /// Cgroups, directories and network of a task.
    pub start_prepare: Histogram,
    /// One image, cached or not.
    pub start_pull: Histogram,
    /// One container, from its snapshot to its process.
    pub start_container: Histogram,
    /// From the assignment's arrival to RUNNING.
    pub start_total: Histogram,
    pub store_commit: Histogram,
    /// From the agent's start until what runs is taken up.
    pub reconcile_start: Histogram,
    /// One comparison of the host with the ledger.
    pub reconcile_audit: Histogram,
    /// Bytes that registries sent.
    pub pulled_bytes: AtomicU64,
    /// Reports of loggers of this agent about lines that a full disk cost.
    pub log_lines_dropped: AtomicU64,
    pub loggers_replaced: AtomicU64,
    pub store_failures: AtomicU64,
    pub dns: Questions,
    pub namespaces: Namespaces,
    /// By [`NETWORK_REPAIRS`].
    pub network_repairs: [AtomicU64; NETWORK_REPAIRS.len()],
    /// Of the latest audit, by [`LEAK_KINDS`].
    pub leaked: [AtomicU64; LEAK_KINDS.len()],
}

impl Metrics {
    const fn new() -> Self {
        Self {
            start_prepare: Histogram::new(),
            start_pull: Histogram::new(),
            start_container: Histogram::new(),
            start_total: Histogram::new(),
            store_commit: Histogram::new(),
            reconcile_start: Histogram::new(),
            reconcile_audit: Histogram::new(),
            pulled_bytes: AtomicU64::new(0),
            log_lines_dropped: AtomicU64::new(0),
            loggers_replaced: AtomicU64::new(0),
            store_failures: AtomicU64::new(0),
            dns: Questions::new(),
            namespaces: Namespaces::new(),
            network_repairs: [const { AtomicU64::new(0) }; NETWORK_REPAIRS.len()],
            leaked: [const { AtomicU64::new(0) }; LEAK_KINDS.len()],
        }
    }

    /// Where the time of an effect is counted. None: it is no part of a start.
    pub fn phase(&self, effect: &Effect) -> Option<&Histogram> {
        match effect {
            Effect::PrepareHost(_) => Some(&self.start_prepare),
            Effect::PullImage { .. } => Some(&self.start_pull),
            Effect::Start(_) => Some(&self.start_container),
            Effect::FetchEnvironment(_)
            | Effect::Signal { .. }
            | Effect::Remove { .. }
            | Effect::Probe(_)
            | Effect::ReleaseHost { .. }
            | Effect::RemoveLogs { .. }
            | Effect::Cancel(_) => None,
        }
    }

    /// Counts one.
    pub fn network_repaired(&self, what: NetworkRepair) {
        self.network_repairs[what as usize].fetch_add(1, Relaxed);
    }

    /// Replaces what the audit before found.
    pub fn set_leaked(&self, leaks: &[HostObject]) {
        for (kind, count) in LEAK_KINDS.iter().zip(&self.leaked) {
            let found = leaks.iter().filter(|leak| leak_kind(leak) == *kind).count();
            count.store(found as u64, Relaxed);
        }
    }
}

fn leak_kind(object: &HostObject) -> &'static str {
    match object {
        HostObject::Container(_) | HostObject::Shim(_) => "container",
        HostObject::Snapshot(_) => "snapshot",
        HostObject::Logs(_) => "logs",
        HostObject::Route(_) | HostObject::Vlan(_) => "network",
        HostObject::OfTask { kind, .. } | HostObject::Unnamed { kind, .. } => match kind.as_str() {
            "cgroup" => "cgroup",
            "run directory" => "run_directory",
            _ => "network",
        },
    }
}

/// Tasks on their way to RUNNING, and since when. Each leaves when it got there or stopped trying.
#[derive(Debug, Default)]
pub struct Starts(BTreeMap<TaskId, Instant>);

impl Starts {
    /// Looks at a report on its way into the outbox.
    pub fn see(&mut self, report: &Report) {
        match report.task.facts.status {
            Status::Pending if report.task.times.started.is_none() => {
                self.0.entry(report.task.id.clone()).or_insert_with(Instant::now);
            }
            Status::Running => {
                if let Some(since) = self.0.remove(&report.task.id) {
                    METRICS.start_total.observe(since.elapsed());
                }
            }
            _ => drop(self.0.remove(&report.task.id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_its_bucket_and_all_above() {
        let histogram = Histogram::new();
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_millis(30));
        histogram.observe(Duration::from_secs(4000));
        let (counts, sum) = histogram.cumulative();
        assert_eq!(counts, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3]);
        assert!((sum - 4000.031).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn an_audit_replaces_the_count_of_the_one_before() {
        let metrics = Metrics::new();
        let task: TaskId = format!("{:032x}", 1).parse().unwrap();
        let kind = "run directory".into();
        metrics.set_leaked(&[
            HostObject::OfTask { kind, task },
            HostObject::Snapshot("x".into()),
        ]);
        let counts = || metrics.leaked.each_ref().map(|count| count.load(Relaxed));
        assert_eq!(counts(), [0, 1, 0, 0, 1, 0]);
        metrics.set_leaked(&[]);
        assert_eq!(counts(), [0; 6]);
    }
}
