//! Owns health checks and health at the border: their bounds, and how a report says them.

use berth_agent_core::{
    desired::{Condition, ContainerSpec, HealthCheck},
    health::{HealthState, HealthStatus, Outcome},
};
use berth_proto::node::v1 as wire;

use super::{ENTRIES_MAX, Refusal, refuse};

/// A health check's numbers, with their least and most.
const INTERVAL_MS: (u32, u32) = (5_000, 300_000);
const TIMEOUT_MS: (u32, u32) = (2_000, 60_000);
const RETRIES: (u32, u32) = (1, 10);
const START_PERIOD_MS: (u32, u32) = (0, 300_000);

pub(super) fn check(wire: wire::HealthCheck) -> Result<HealthCheck, Refusal> {
    for (field, value, (least, most)) in [
        ("interval_ms", wire.interval_ms, INTERVAL_MS),
        ("timeout_ms", wire.timeout_ms, TIMEOUT_MS),
        ("retries", wire.retries, RETRIES),
        ("start_period_ms", wire.start_period_ms, START_PERIOD_MS),
    ] {
        if !(least..=most).contains(&value) {
            return refuse(
                format!("health_check.{field}"),
                format!("{value} is not {least} to {most}"),
            );
        }
    }
    let unusable = |argument: &String| argument.contains('\0');
    if wire.command.first().is_none_or(String::is_empty) || wire.command.iter().any(unusable) {
        return refuse("health_check.command", "has no program, or a NUL");
    }
    if wire.command.len() > ENTRIES_MAX {
        let problem = format!("{} entries are more than {ENTRIES_MAX}", wire.command.len());
        return refuse("health_check.command", problem);
    }
    Ok(HealthCheck {
        command: wire.command,
        interval_ms: wire.interval_ms,
        timeout_ms: wire.timeout_ms,
        retries: wire.retries,
        start_period_ms: wire.start_period_ms,
    })
}

/// Who waits for a container to be healthy waits for one that can be.
pub(super) fn dependencies(containers: &[ContainerSpec]) -> Result<(), Refusal> {
    let mut dependencies = containers.iter().flat_map(|c| &c.depends_on);
    let never = dependencies.find(|dependency| {
        let checked = |c: &ContainerSpec| c.name == dependency.container && c.health_check.is_some();
        dependency.condition == Condition::Healthy && !containers.iter().any(checked)
    });
    match never {
        Some(never) => refuse(
            "depends_on",
            format!("{:?} has no health check and never is HEALTHY", never.container),
        ),
        None => Ok(()),
    }
}

pub(super) fn status(health: Option<&HealthState>) -> wire::HealthStatus {
    match health.map(|health| health.status) {
        None => wire::HealthStatus::Unspecified,
        Some(HealthStatus::Unknown) => wire::HealthStatus::Unknown,
        Some(HealthStatus::Healthy) => wire::HealthStatus::Healthy,
        Some(HealthStatus::Unhealthy) => wire::HealthStatus::Unhealthy,
    }
}

pub(super) fn probe(outcome: &Outcome) -> wire::HealthProbe {
    wire::HealthProbe {
        exit_code: outcome.exit_code,
        output: outcome.output.clone(),
    }
}
