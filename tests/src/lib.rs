//! Shared harness of the tests: a private containerd, a real control plane, a real agent process, a signed client, and
//! a listing of the host that asks nobody but the host.

#![allow(clippy::unwrap_used)]

pub mod cluster;
pub mod containerd;
pub mod ecs;
pub mod image;
pub mod listing;
mod reboot;

#[cfg(test)]
mod tests {
    /// A feature that the control plane names and no agent knows makes every task that needs it unplaceable.
    #[test]
    fn control_plane_and_agent_name_the_same_features() {
        let sorted = |names: &[&'static str]| std::collections::BTreeSet::from_iter(names.iter().copied());
        assert_eq!(
            sorted(berth_control_plane_core::task::FEATURES),
            sorted(berth_agent::convert::FEATURES)
        );
    }
}
