//! Owns what every daemon's metrics begin with: what was built, and the process itself. Never knows a daemon's own.
//!
//! The text is OpenMetrics 1.0, which Prometheus and its relatives read. Names and units follow Prometheus' customs:
//! base units, `_total`, `_seconds`, `_bytes`.

use std::{fs, sync::OnceLock, time::Duration};

use nix::time::{ClockId, clock_gettime};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::Registry,
};

use crate::readiness::Readiness;

/// What the text is (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Buckets for what takes from a millisecond to minutes, seconds.
pub const SECONDS_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0,
];

/// A registry that has `berth_build_info` and `process_*`.
pub fn registry(program: &'static str, version: &'static str) -> Registry {
    let mut registry = Registry::default();
    let build = Info::new([("program", program), ("version", version)]);
    registry.register("berth_build", "Program and version", build);
    registry.register_collector(Box::new(Process));
    registry
}

/// Adds `berth_ready` and `berth_condition`, 1 or 0 as `/readyz` has them.
pub fn register_readiness(registry: &mut Registry, readiness: Readiness) {
    registry.register_collector(Box::new(Conditions(readiness)));
}

/// All of the registry, as text.
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut text, registry) {
        // Writing to a string does not fail; a metric of ours that cannot be written is a defect to be seen.
        tracing::error!(%error, "metrics cannot be written");
    }
    text
}

#[derive(Debug)]
struct Conditions(Readiness);

impl Collector for Conditions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let report = self.0.report();
        let help = "Every condition of readiness holds";
        let ready = ConstGauge::new(i64::from(report.ready()));
        ready.encode(encoder.encode_descriptor("berth_ready", help, None, MetricType::Gauge)?)?;
        let help = "A condition of readiness holds";
        let mut conditions = encoder.encode_descriptor("berth_condition", help, None, MetricType::Gauge)?;
        for state in report.states() {
            let holds = ConstGauge::new(i64::from(state.failure.is_none()));
            holds.encode(conditions.encode_family(&[("condition", state.name)])?)?;
        }
        Ok(())
    }
}

/// `process_*`, as Prometheus' own clients have them.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(seen) = Seen::now() else {
            return Ok(());
        };
        let mut gauge = |name, help, value: f64| {
            let gauge = ConstGauge::new(value);
            let descriptor = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode(descriptor)
        };
        gauge(
            "process_resident_memory_bytes",
            "Resident memory",
            seen.resident_bytes,
        )?;
        gauge("process_open_fds", "Open file descriptors", seen.open_fds)?;
        gauge("process_max_fds", "Limit of open file descriptors", seen.max_fds)?;
        gauge("process_threads", "Threads", seen.threads)?;
        if let Some(started) = seen.started {
            let help = "When the process started, since the Unix epoch";
            gauge("process_start_time_seconds", help, started)?;
        }
        let cpu = ConstCounter::new(seen.cpu.as_secs_f64());
        let help = "User and system CPU time";
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?)
    }
}

#[derive(Debug)]
struct Seen {
    resident_bytes: f64,
    open_fds: f64,
    max_fds: f64,
    threads: f64,
    /// Seconds since the Unix epoch; None: there is no clock for it.
    started: Option<f64>,
    cpu: Duration,
}

impl Seen {
    fn now() -> Option<Self> {
        let number = |name| sysconf(name).filter(|n| *n > 0);
        let ticks = number(nix::unistd::SysconfVar::CLK_TCK)?;
        let page = number(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the command in brackets, and may hold anything.
        let fields: Vec<u64> = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        // proc_pid_stat(5) counts from 1 with pid and command: utime is 14, and here 11.
        let field = |number: usize| fields.get(number - 3).copied();
        let cpu_ticks = field(14)? + field(15)?;
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok()?;
        Some(Self {
            resident_bytes: (field(24)? * page) as f64,
            open_fds: fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64,
            max_fds: limit.0 as f64,
            threads: field(20)? as f64,
            started: booted()
                .zip(field(22))
                .map(|(booted, after)| booted.as_secs_f64() + after as f64 / ticks as f64),
            cpu: Duration::from_secs_f64(cpu_ticks as f64 / ticks as f64),
        })
    }
}

/// When the host was booted, since the Unix epoch, by the clocks: a sandbox may show no more of /proc than processes. Found
/// out once, so that it does not waver with the clock.
fn booted() -> Option<Duration> {
    static BOOTED: OnceLock<Option<Duration>> = OnceLock::new();
    *BOOTED.get_or_init(|| {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME).ok()?);
        let running = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
        now.checked_sub(running)
    })
}

fn sysconf(name: nix::unistd::SysconfVar) -> Option<u64> {
    u64::try_from(nix::unistd::sysconf(name).ok()??).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_begins_with_the_build_and_the_process() {
        let text = encode(&registry("berth-test", "1.2.3"));
        assert!(
            text.contains("berth_build_info{program=\"berth-test\",version=\"1.2.3\"} 1"),
            "{text}"
        );
        for name in [
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_max_fds",
            "process_threads",
            "process_start_time_seconds",
            "process_cpu_seconds_total",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(&format!("{name} "))),
                "{name}: {text}"
            );
        }
        let since_1970 = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let started = Seen::now().unwrap().started.unwrap();
        assert!((since_1970.as_secs_f64() - started).abs() < 3_600.0, "{started}");
        assert!(text.ends_with("# EOF\n"));
    }

    /// As with `ProcSubset=pid`: nothing below /proc but processes.
    #[test]
    fn a_sandboxed_proc_is_enough() {
        let script = "mount -t proc -o subset=pid proc /proc && ! test -e /proc/stat && \
                      exec \"$0\" --exact metrics::tests::a_registry_begins_with_the_build_and_the_process";
        let done = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(std::env::current_exe().unwrap())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(
            done.status.success() && said.contains("1 passed"),
            "this test needs root: {done:?}"
        );
    }

    #[test]
    fn conditions_are_numbers() {
        let readiness = Readiness::new();
        readiness
            .condition("store", crate::readiness::Needed::ToStart, "")
            .ok();
        readiness.condition("link", crate::readiness::Needed::ToServe, "down");
        let mut registry = Registry::default();
        register_readiness(&mut registry, readiness);
        let text = encode(&registry);
        for line in [
            "berth_ready 0",
            "berth_condition{condition=\"store\"} 1",
            "berth_condition{condition=\"link\"} 0",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
