//! Owns which metrics there are and what they are called: cAdvisor's names for containers, so that existing dashboards
//! work, and `berth_` for our own. All of them are read when somebody asks; nothing is kept between two scrapes but the
//! numbers of tasks.
//!
//! A container's series have `family`, `container` and `slot` ([`slots`](super::slots)): as many as run at one time.
//! A task id is never a label.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{
    Inner, Introspection, Sources,
    exposition::{
        Exposition,
        Kind::{self, Counter, Gauge, Histogram},
    },
    view::{NodeView, TaskView},
};
use crate::{
    effects::cgroups::Cgroups,
    metrics::{LEAK_KINDS, METRICS, NETWORK_REPAIRS, Namespaces},
    telemetry::{
        NetworkUsage, NodeUsage, Sampler, TaskUsage, Usage,
        pressure::{Periods, periods},
    },
};

/// The database has so long to count its outbox; without an answer the figure is left out.
const STORE_PATIENCE: Duration = Duration::from_secs(1);
/// Statuses that a task can have on its node.
const STATUSES: [&str; 5] = ["PENDING", "RUNNING", "STOPPING", "DEPROVISIONING", "STOPPED"];

/// One container's figures and labels.
struct Row<'a> {
    family: &'a str,
    container: &'a str,
    slot: String,
    usage: Usage,
    periods: Option<Periods>,
    started_ms: Option<i64>,
}

/// What one sweep over the host found.
struct Swept {
    node: NodeUsage,
    tasks: Vec<TaskUsage>,
}

impl Introspection {
    /// The text of `/metrics`, after `begun`. What does not answer in time is left out, and says so by its absence.
    pub async fn metrics(&self, begun: &str) -> String {
        let mut text = Exposition::default();
        let Ok(Inner { sources, .. }) = self.inner() else {
            return text.into_text(begun);
        };
        let view = self.view().await.ok();
        let outbox = tokio::time::timeout(STORE_PATIENCE, sources.store.outbox_length()).await;
        own(&mut text, sources, outbox.ok().and_then(Result::ok));
        if let Some(view) = &view {
            tasks(&mut text, view);
        }
        // The kernel may let a reader wait, and this thread answers for more than metrics.
        let sampler = Arc::clone(&sources.sampler);
        let swept = tokio::task::spawn_blocking(move || sweep(&sampler)).await;
        if let Ok(swept) = swept {
            node(&mut text, &swept);
            if let Some(view) = &view {
                of_tasks(&mut text, &sources.cgroups, view, &swept.tasks);
            }
        }
        text.into_text(begun)
    }
}

fn sweep(sampler: &Mutex<Sampler>) -> Swept {
    let (node, tasks) = sampler.lock().unwrap_or_else(PoisonError::into_inner).sample();
    Swept { node, tasks }
}

fn own(text: &mut Exposition, sources: &Sources, outbox: Option<u64>) {
    let up = u8::from(sources.link.borrow().is_up());
    text.single(
        "berth_controlplane_connected",
        Gauge,
        "Whether the link to the control plane is up.",
        up,
    );
    let ready = u8::from(sources.health.readiness.report().ready());
    text.single(
        "berth_ready",
        Gauge,
        "Whether every condition of readiness holds.",
        ready,
    );
    let expiry = sources.identity.borrow().not_after.unix_timestamp();
    let help = "When the node's certificate ends, since the Unix epoch.";
    text.single("berth_certificate_expiry_timestamp_seconds", Gauge, help, expiry);
    let name = "berth_task_start_duration_seconds";
    let help = "Time of a task's start: cgroups and network (prepare), each image (pull), each container (start), \
                and from the assignment's arrival to RUNNING (total).";
    text.family(name, Histogram, help);
    for (phase, histogram) in [
        ("prepare", &METRICS.start_prepare),
        ("pull", &METRICS.start_pull),
        ("start", &METRICS.start_container),
        ("total", &METRICS.start_total),
    ] {
        text.histogram(name, Some(("phase", phase)), histogram);
    }
    let name = "berth_reconcile_duration_seconds";
    let help = "Taking up what runs at the agent's start, and each comparison of the host with the ledger.";
    text.family(name, Histogram, help);
    text.histogram(name, Some(("kind", "start")), &METRICS.reconcile_start);
    text.histogram(name, Some(("kind", "audit")), &METRICS.reconcile_audit);
    let name = "berth_store_commit_seconds";
    text.family(name, Histogram, "Time of a transaction of the agent's database.");
    text.histogram(name, None, &METRICS.store_commit);
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
    let help = "Transactions that the agent's database could not store; they are tried again.";
    text.single(
        "berth_store_failures_total",
        Counter,
        help,
        count(&METRICS.store_failures),
    );
    text.single(
        "berth_image_pull_bytes_total",
        Counter,
        "Bytes of image layers that registries sent.",
        count(&METRICS.pulled_bytes),
    );
    let pulling = sources.pulls.borrow().images.len();
    text.single("berth_image_pulls", Gauge, "Images being downloaded.", pulling);
    let help = "Lines of container output that were dropped because they could not be written.";
    text.single(
        "berth_log_lines_dropped_total",
        Counter,
        help,
        count(&METRICS.log_lines_dropped),
    );
    let help = "Loggers that died and were replaced.";
    text.single(
        "berth_loggers_replaced_total",
        Counter,
        help,
        count(&METRICS.loggers_replaced),
    );
    text.single(
        "berth_loggers",
        Gauge,
        "Containers with a logger.",
        sources.loggers.len(),
    );
    let help =
        "Objects on the host that nobody answered for, in the latest audit; it removed them. Must be 0.";
    text.family("berth_leaked_objects", Gauge, help);
    for (kind, found) in LEAK_KINDS.iter().zip(&METRICS.leaked) {
        text.sample("berth_leaked_objects", &[("kind", *kind)], count(found));
    }
    let help = "Questions of tasks for names, by what became of them.";
    text.family("berth_dns_questions_total", Counter, help);
    for (became, questions) in METRICS.dns.all() {
        text.sample(
            "berth_dns_questions_total",
            &[("became", became)],
            count(questions),
        );
    }
    let help = "Tasks of the cluster whose names are known.";
    text.single("berth_dns_names", Gauge, help, sources.names.len());
    let help = "Limits of tasks that somebody changed, and that were set again.";
    let repairs = sources.cgroups.repairs();
    text.single("berth_limits_repaired_total", Counter, help, repairs);
    let name = "berth_network_repairs_total";
    let help = "What somebody changed of the nftables table or of a task's network, and that was made again.";
    text.family(name, Counter, help);
    for (what, repaired) in NETWORK_REPAIRS.iter().zip(&METRICS.network_repairs) {
        text.sample(name, &[("what", *what)], count(repaired));
    }
    let help = "Network namespaces that are kept ready for tasks.";
    let ready = count(&METRICS.namespaces.ready);
    text.single("berth_network_namespaces_ready", Gauge, help, ready);
    let name = "berth_network_namespaces_total";
    let help = "Network namespaces that tasks got, by where they came from.";
    text.family(name, Counter, help);
    let Namespaces { taken, made, .. } = &METRICS.namespaces;
    for (from, got) in [("pool", taken), ("made", made)] {
        text.sample(name, &[("from", from)], count(got));
    }
    if let Some(outbox) = outbox {
        let help = "State changes that the control plane has not acknowledged.";
        text.single("berth_reports_queued", Gauge, help, outbox);
    }
}

/// Figures of containers and tasks, under the labels of those that are alive.
fn of_tasks(text: &mut Exposition, cgroups: &Cgroups, view: &NodeView, usages: &[TaskUsage]) {
    let mut rows = Vec::new();
    let mut links = Vec::new();
    for usage in usages {
        let of_usage = |task: &&TaskView| task.id == usage.task.as_str();
        let Some((task, slot)) = view
            .tasks
            .iter()
            .find(of_usage)
            .and_then(|t| Some((t, t.metrics_slot?)))
        else {
            continue;
        };
        for container in &usage.containers {
            let path = cgroups.container_path(&usage.task, &container.container);
            let cpu = cgroups.directory("cpu", &path);
            let seen = task.containers.iter().find(|seen| seen.name == container.name);
            rows.push(Row {
                family: &task.family,
                container: &container.name,
                slot: slot.to_string(),
                usage: container.usage,
                periods: cpu.as_deref().and_then(periods),
                started_ms: seen.and_then(|seen| seen.started_at),
            });
        }
        if let Some(network) = usage.network {
            links.push((task.family.as_str(), slot.to_string(), network));
        }
    }
    containers(text, &rows);
    type Of = fn(&NetworkUsage) -> u64;
    let families: [(&str, &str, Of); 6] = [
        (
            "container_network_receive_bytes_total",
            "Bytes a task received.",
            |n| n.rx_bytes,
        ),
        (
            "container_network_receive_packets_total",
            "Packets a task received.",
            |n| n.rx_packets,
        ),
        (
            "container_network_receive_packets_dropped_total",
            "Packets to a task that were dropped.",
            |n| n.rx_dropped,
        ),
        (
            "container_network_transmit_bytes_total",
            "Bytes a task sent.",
            |n| n.tx_bytes,
        ),
        (
            "container_network_transmit_packets_total",
            "Packets a task sent.",
            |n| n.tx_packets,
        ),
        (
            "container_network_transmit_packets_dropped_total",
            "Packets from a task that were dropped.",
            |n| n.tx_dropped,
        ),
    ];
    for (name, help, value) in families {
        text.family(name, Counter, help);
        for (family, slot, network) in &links {
            let labels = [("family", *family), ("slot", slot), ("interface", "eth0")];
            text.sample(name, &labels, value(network));
        }
    }
    let name = "berth_task_overhead_memory_bytes";
    text.family(
        name,
        Gauge,
        "Memory of a task's shim and loggers, outside its limits.",
    );
    for usage in usages {
        let task = view.tasks.iter().find(|task| task.id == usage.task.as_str());
        if let Some((task, slot)) = task.and_then(|task| Some((task, task.metrics_slot?))) {
            let labels = [("family", task.family.as_str()), ("slot", &slot.to_string())];
            text.sample(name, &labels, usage.overhead.memory_used_bytes);
        }
    }
}

/// Every family of one figure per container. None: there is no such figure here.
fn containers(text: &mut Exposition, rows: &[Row<'_>]) {
    type Of = fn(&Row<'_>) -> Option<f64>;
    let families: [(&str, Kind, &str, Of); 18] = [
        ("container_cpu_usage_seconds_total", Counter, "CPU time.", |r| {
            Some(usec(r.usage.cpu_used_usec))
        }),
        (
            "container_cpu_cfs_throttled_seconds_total",
            Counter,
            "CPU time withheld because of a limit.",
            |r| Some(usec(r.usage.cpu_throttled_usec)),
        ),
        (
            "container_cpu_cfs_periods_total",
            Counter,
            "Periods of the CPU limit.",
            |r| Some(r.periods?.all as f64),
        ),
        (
            "container_cpu_cfs_throttled_periods_total",
            Counter,
            "Periods of the CPU limit in which it was reached.",
            |r| Some(r.periods?.throttled as f64),
        ),
        (
            "container_memory_working_set_bytes",
            Gauge,
            "Memory in use, without page cache that can be dropped at once.",
            |r| Some(r.usage.memory_used_bytes as f64),
        ),
        (
            "container_spec_memory_limit_bytes",
            Gauge,
            "The container's own memory limit; 0: none.",
            |r| Some(r.usage.memory_limit_bytes as f64),
        ),
        (
            "container_oom_events_total",
            Counter,
            "Processes killed for want of memory.",
            |r| Some(r.usage.oom_kills as f64),
        ),
        ("container_processes", Gauge, "Processes and threads.", |r| {
            Some(r.usage.pids as f64)
        }),
        (
            "container_fs_reads_bytes_total",
            Counter,
            "Bytes read from block devices.",
            |r| Some(r.usage.io_read_bytes as f64),
        ),
        (
            "container_fs_writes_bytes_total",
            Counter,
            "Bytes written to block devices.",
            |r| Some(r.usage.io_write_bytes as f64),
        ),
        (
            "container_start_time_seconds",
            Gauge,
            "When the container started, since the Unix epoch.",
            |r| Some(r.started_ms? as f64 / 1000.0),
        ),
        (
            "container_last_seen",
            Gauge,
            "When this was read, since the Unix epoch.",
            |_| Some(crate::driver::now().0 as f64 / 1000.0),
        ),
        (
            "container_pressure_cpu_waiting_seconds_total",
            Counter,
            "Time in which some process waited for a CPU (cgroup v2).",
            |r| Some(usec(r.usage.pressure?.cpu.some_usec)),
        ),
        (
            "container_pressure_cpu_stalled_seconds_total",
            Counter,
            "Time in which every process waited for a CPU (cgroup v2).",
            |r| Some(usec(r.usage.pressure?.cpu.full_usec)),
        ),
        (
            "container_pressure_memory_waiting_seconds_total",
            Counter,
            "Time in which some process waited for memory (cgroup v2).",
            |r| Some(usec(r.usage.pressure?.memory.some_usec)),
        ),
        (
            "container_pressure_memory_stalled_seconds_total",
            Counter,
            "Time in which every process waited for memory (cgroup v2).",
            |r| Some(usec(r.usage.pressure?.memory.full_usec)),
        ),
        (
            "container_pressure_io_waiting_seconds_total",
            Counter,
            "Time in which some process waited for I/O (cgroup v2).",
            |r| Some(usec(r.usage.pressure?.io.some_usec)),
        ),
        (
            "container_pressure_io_stalled_seconds_total",
            Counter,
            "Time in which every process waited for I/O (cgroup v2).",
            |r| Some(usec(r.usage.pressure?.io.full_usec)),
        ),
    ];
    for (name, kind, help, value) in families {
        text.family(name, kind, help);
        for row in rows {
            if let Some(value) = value(row) {
                let labels = [
                    ("family", row.family),
                    ("container", row.container),
                    ("slot", &row.slot),
                ];
                text.sample(name, &labels, value);
            }
        }
    }
}

fn tasks(text: &mut Exposition, view: &NodeView) {
    text.family("berth_tasks", Gauge, "Tasks on this node, by how far they are.");
    for status in STATUSES {
        let count = view
            .tasks
            .iter()
            .filter(|task| task.known_status == status)
            .count();
        text.sample("berth_tasks", &[("status", status)], count);
    }
    let waiting = view.tasks.iter().filter(|task| task.waiting.is_some()).count();
    text.single(
        "berth_tasks_waiting",
        Gauge,
        "Tasks that wait for something they say.",
        waiting,
    );
    let help = "Conditions of this node that somebody should look at.";
    text.single("berth_impairments", Gauge, help, view.impairments.len());
    text.family(
        "berth_task_info",
        Gauge,
        "The revision that runs in a slot; always 1.",
    );
    for task in &view.tasks {
        if let Some(slot) = task.metrics_slot {
            let slot = slot.to_string();
            let labels = [
                ("family", task.family.as_str()),
                ("slot", &slot),
                ("revision", &task.version),
            ];
            text.sample("berth_task_info", &labels, 1);
        }
    }
}

fn node(text: &mut Exposition, swept: &Swept) {
    let node = &swept.node;
    text.single(
        "berth_node_cpu_usage_seconds_total",
        Counter,
        "CPU time of all cores since boot.",
        usec(node.cpu_used_usec),
    );
    let load = node.load1_milli as f64 / 1000.0;
    text.single("berth_node_load1", Gauge, "Load average of one minute.", load);
    for (name, help, value) in [
        (
            "berth_node_memory_used_bytes",
            "Memory that is not available.",
            node.memory_used_bytes,
        ),
        (
            "berth_node_memory_total_bytes",
            "Memory of the host.",
            node.memory_total_bytes,
        ),
        (
            "berth_node_disk_used_bytes",
            "In use on the file system of the state directory.",
            node.disk_used_bytes,
        ),
        (
            "berth_node_disk_total_bytes",
            "Size of the file system of the state directory.",
            node.disk_total_bytes,
        ),
    ] {
        text.single(name, Gauge, help, value);
    }
    let Some(pressure) = swept.node.pressure else {
        return;
    };
    let of = [
        ("cpu", pressure.cpu),
        ("memory", pressure.memory),
        ("io", pressure.io),
    ];
    let name = "berth_node_pressure_waiting_seconds_total";
    text.family(
        name,
        Counter,
        "Time in which some process of the host waited for a resource.",
    );
    for (resource, stall) in of {
        text.sample(name, &[("resource", resource)], usec(stall.some_usec));
    }
    let name = "berth_node_pressure_stalled_seconds_total";
    text.family(
        name,
        Counter,
        "Time in which every process of the host waited for a resource.",
    );
    for (resource, stall) in of {
        text.sample(name, &[("resource", resource)], usec(stall.full_usec));
    }
}

fn usec(usec: u64) -> f64 {
    Duration::from_micros(usec).as_secs_f64()
}
