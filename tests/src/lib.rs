//! Shared harness of the tests: a private containerd, a real control plane, a real agent process, a signed client, and
//! a listing of the host that asks nobody but the host.

#![allow(clippy::unwrap_used)]

pub mod cluster;
pub mod containerd;
pub mod ecs;
pub mod fleet;
pub mod image;
pub mod kernel;
pub mod listing;
/// Shared with the agent's own tests, which cannot depend on this crate.
#[path = "../../agent/tests/logs_support/manager.rs"]
#[allow(missing_debug_implementations)]
pub mod manager;
mod reboot;

/// How long something may take here: ten times as long as on hardware if BERTH_TESTS_EMULATED is set, as in the virtual
/// machines of tests/vm.
pub fn emulated(limit: std::time::Duration) -> std::time::Duration {
    let factor = if std::env::var_os("BERTH_TESTS_EMULATED").is_some() {
        10
    } else {
        1
    };
    limit * factor
}

#[cfg(test)]
mod tests {
    /// A feature that the control plane names and no agent knows makes every task that needs it unplaceable.
    #[test]
    fn control_plane_and_agent_name_the_same_features() {
        // What a node says of the link itself no task needs.
        let of_tasks = |name: &&'static str| !name.starts_with("link.");
        let sorted = |names: &[&'static str]| {
            std::collections::BTreeSet::from_iter(names.iter().copied().filter(of_tasks))
        };
        assert_eq!(
            sorted(berth_control_plane_core::task::FEATURES),
            sorted(berth_agent::convert::FEATURES)
        );
    }
}
