//! The published numbers, and what makes them: `make bench`.
//!
//! Everything is measured against a peer on the same machine in the same run, interleaved, because absolute times of
//! a shared machine mean little. `target/bench/report.json` is a list of rows
//! `{name, unit, berth, peer, peer_name, ratio, runs}`; `target/bench/raw.json` has every single run.

mod health;
mod host;
mod measure;
mod network;
mod node;
mod report;
mod specs;

use std::path::PathBuf;

use clap::Parser;

use crate::{host::Host, measure::Plan, node::Node, report::Report};

/// Some of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Single starts.
    Starts,
    /// Bursts.
    Bursts,
    /// From a health check's success to the dependent's start.
    Health,
    /// What a task's network costs its packets. Needs iperf3.
    Network,
}

/// Measures berth-agent against `ctr run -d` on the same containerd, image, runtime, snapshotter and limits.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where berth-agent and berth-logger were built.
    #[arg(long, default_value = "target/release")]
    bin_dir: PathBuf,
    /// Where the report goes.
    #[arg(long, default_value = "target/bench")]
    out_dir: PathBuf,
    /// Single starts of each kind.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Bursts of each kind.
    #[arg(long, default_value_t = 3)]
    bursts: usize,
    /// Tasks of a burst.
    #[arg(long, default_value_t = 50)]
    burst_size: usize,
    /// Health checks that a dependent waits for.
    #[arg(long, default_value_t = 200)]
    health_runs: usize,
    /// Measurements of each kind of traffic.
    #[arg(long, default_value_t = 5)]
    network_rounds: usize,
    /// Measure only these.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Seconds to wait before memory is read.
    #[arg(long, default_value_t = 60)]
    settle_s: u64,
    /// Lines added to the agent's configuration, to compare settings.
    #[arg(long, default_value = "")]
    agent_config: String,
    /// Give the peer a seccomp filter too (`ctr run --seccomp`), which berth's tasks always have.
    #[arg(long)]
    peer_seccomp: bool,
    /// Only the single starts, with a trace of the agent's effects on standard error.
    #[arg(long)]
    trace: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the bench starts containers: run it as root"
    );
    let host = Host::start(arguments.peer_seccomp).await?;
    let plan = Plan {
        rounds: arguments.rounds,
        bursts: arguments.bursts,
        burst_size: arguments.burst_size,
        health_runs: arguments.health_runs,
        network_rounds: arguments.network_rounds,
        only: arguments.only,
        settle: std::time::Duration::from_secs(arguments.settle_s),
    };
    let mut node = Node::start(
        &host,
        &arguments.bin_dir,
        &arguments.agent_config,
        arguments.trace,
    )
    .await?;
    let mut report = Report::default();
    let outcome = measure::all(&plan, &host, &mut node, &mut report, arguments.trace).await;
    node.stop().await?;
    host.stop().await?;
    outcome?;
    report.write(&arguments.out_dir)?;
    println!("{report}");
    Ok(())
}
