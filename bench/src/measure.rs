//! Owns the method: what is measured, in which order, how often.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use berth_proto::node::v1::NetworkMode;

use crate::{Part, health, host::Host, network, node::Node, report::Report, specs};

#[derive(Debug)]
pub struct Plan {
    pub rounds: usize,
    pub bursts: usize,
    pub burst_size: usize,
    pub health_runs: usize,
    pub network_rounds: usize,
    /// All, where it is not said.
    pub only: Option<Part>,
    pub settle: Duration,
}

pub async fn all(
    plan: &Plan,
    host: &Host,
    node: &mut Node,
    report: &mut Report,
    trace: bool,
) -> anyhow::Result<()> {
    match plan.only {
        None => {}
        Some(Part::Starts) => return singles(plan, host, node, report).await,
        Some(Part::Bursts) => return bursts(plan, host, node, report).await,
        Some(Part::Network) => return on_a_thread(plan, report),
        Some(Part::Health) => return health::measure(plan.health_runs, host, node, report).await,
    }
    let pid = node.pid().context("the agent has ended")?;
    if !trace {
        tokio::time::sleep(plan.settle).await;
        report.add("agent_rss_idle", "MiB", vec![rss_mib(pid)?], Vec::new(), "");
    }
    singles(plan, host, node, report).await?;
    if trace {
        return Ok(());
    }
    bursts(plan, host, node, report).await?;
    let tasks: Vec<_> = (0..plan.burst_size)
        .map(|_| specs::task(NetworkMode::Awsvpc))
        .collect();
    node.run(&tasks).await?;
    let cpu = cpu_seconds(pid)?;
    let begun = Instant::now();
    tokio::time::sleep(plan.settle).await;
    let percent = (cpu_seconds(pid)? - cpu) / begun.elapsed().as_secs_f64() * 100.0;
    report.add("agent_rss_50", "MiB", vec![rss_mib(pid)?], Vec::new(), "");
    report.add("agent_cpu_50_idle", "% of a core", vec![percent], Vec::new(), "");
    let took = node.remove(&tasks).await?;
    report.add("stop50_awsvpc", "ms", vec![ms(took)], Vec::new(), "");
    health::measure(plan.health_runs, host, node, report).await?;
    on_a_thread(plan, report)
}

/// It blocks, and has runtimes of its own.
fn on_a_thread(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| network::measure(plan.network_rounds, report))
}

/// One start at a time; the order turns with every round.
async fn singles(plan: &Plan, host: &Host, node: &mut Node, report: &mut Report) -> anyhow::Result<()> {
    let (mut awsvpc, mut on_host, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    // The first of each kind pays for cold caches on both sides.
    for round in 0..=plan.rounds {
        for turn in 0..3 {
            let (kind, took) = match (round + turn) % 3 {
                0 => (&mut awsvpc, berth_once(node, NetworkMode::Awsvpc).await?),
                1 => (&mut on_host, berth_once(node, NetworkMode::Host).await?),
                _ => (&mut peer, peer_once(host, round).await?),
            };
            if round > 0 {
                kind.push(ms(took));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    report.add(
        "start_awsvpc_vs_ctr_run",
        "ms",
        awsvpc.clone(),
        peer.clone(),
        &host.peer_name(),
    );
    let own = "the same in host mode";
    report.add("start_awsvpc_vs_host", "ms", awsvpc, on_host.clone(), own);
    report.add("start_host_vs_ctr_run", "ms", on_host, peer, &host.peer_name());
    Ok(())
}

async fn berth_once(node: &mut Node, network: NetworkMode) -> anyhow::Result<Duration> {
    let task = [specs::task(network)];
    let took = node.run(&task).await?;
    node.remove(&task).await?;
    took.first().copied().context("no time was taken")
}

async fn peer_once(host: &Host, round: usize) -> anyhow::Result<Duration> {
    let id = format!("single-{round}");
    let took = host.peer_start(&id).await?;
    host.peer_remove(&id).await?;
    Ok(took)
}

/// All at once: until the last runs.
async fn bursts(plan: &Plan, host: &Host, node: &mut Node, report: &mut Report) -> anyhow::Result<()> {
    let (mut berth, mut peer) = (Vec::new(), Vec::new());
    for round in 0..plan.bursts {
        let tasks: Vec<_> = (0..plan.burst_size)
            .map(|_| specs::task(NetworkMode::Awsvpc))
            .collect();
        let times = node.run(&tasks).await?;
        berth.push(ms(times.into_iter().max().context("an empty burst")?));
        node.remove(&tasks).await?;

        let ids: Vec<_> = (0..plan.burst_size)
            .map(|i| format!("burst-{round}-{i}"))
            .collect();
        let begun = Instant::now();
        let mut starts = Vec::new();
        for id in &ids {
            starts.push(host.peer_start(id));
        }
        futures(starts).await?;
        peer.push(ms(begun.elapsed()));
        for id in &ids {
            host.peer_remove(id).await?;
        }
    }
    report.add("burst50_awsvpc_vs_ctr_run", "ms", berth, peer, &host.peer_name());
    Ok(())
}

/// Polls all of them at once: the processes run side by side.
async fn futures<F: Future<Output = anyhow::Result<Duration>>>(all: Vec<F>) -> anyhow::Result<()> {
    let mut all: Vec<_> = all.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        let mut failed = None;
        all.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(Ok(_)) => false,
            std::task::Poll::Ready(Err(error)) => {
                failed = Some(error);
                false
            }
        });
        match failed {
            Some(error) => std::task::Poll::Ready(Err(error)),
            None if all.is_empty() => std::task::Poll::Ready(Ok(())),
            None => std::task::Poll::Pending,
        }
    })
    .await
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Resident memory as the kernel counts it (proc(5), VmRSS).
fn rss_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// CPU time of the process, user and system (proc(5), fields 14 and 15 of stat; 100 ticks a second on Linux).
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("malformed stat")?;
    let tick = |n: usize| {
        fields
            .split_whitespace()
            .nth(n)
            .and_then(|t| t.parse::<f64>().ok())
            .context("no times")
    };
    Ok((tick(11)? + tick(12)?) / 100.0)
}
