//! Drives the node's core through random completions, failures, time-outs, crashes and restarts against a small model
//! of the host, and asserts what must always hold.
//!
//! `SIM_SEEDS` is how many seeds are tried (default 150), `SIM_SEED` replays one and prints its event log.

#![allow(clippy::unwrap_used)]

mod control_plane;
mod host;
mod journal;
mod random;
mod specs;
mod world;

use world::World;

const STEPS: usize = 1_500;
const SEEDS_DEFAULT: u64 = 150;

fn converges(seed: u64, trace: bool) -> Vec<String> {
    let mut world = World::new(seed, trace);
    world.run_steps(STEPS);
    world.heal();
    world.run_until_quiet();
    world.assert_converged();
    world.history()
}

#[test]
fn every_seed_converges_and_keeps_the_invariants() {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        converges(seed.parse().expect("SIM_SEED is a number"), true);
        return;
    }
    let seeds = std::env::var("SIM_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(SEEDS_DEFAULT);
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(|| converges(seed, false));
        assert!(
            outcome.is_ok(),
            "seed {seed} failed: replay it with SIM_SEED={seed}"
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 0..5 {
        assert_eq!(converges(seed, false), converges(seed, false), "seed {seed}");
    }
}
