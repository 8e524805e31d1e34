//! What a start costs beside containerd's own tool on the same containerd.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use berth_agent::effects::runtime::Timings;
use berth_agent_core::desired::NetworkMode;
use tokio_util::sync::CancellationToken;

use crate::host::Host;

const ROUNDS: usize = 15;

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}

/// Interleaved, so that a busy machine is busy for both. The start has a logger, limits and a seccomp filter, which
/// `ctr run -d` has not.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_costs_no_more_than_ctr_run() {
    let host = Host::start().await;
    let runtime = host.with_real_logger().await;
    let socket = host.directory.path().join("containerd.sock");
    let (mut ours, mut theirs, mut steps) = (Vec::new(), Vec::new(), Vec::<Timings>::new());
    for round in 0..=ROUNDS {
        let mut request = host.request("sleep 1000");
        request.network = NetworkMode::Host;
        let began = Instant::now();
        let started = runtime
            .start(&request, None, CancellationToken::new())
            .await
            .unwrap();
        let own = began.elapsed();

        let id = format!("ctr-{round}");
        let began = Instant::now();
        let ran = Command::new("ctr")
            .arg("-a")
            .arg(&socket)
            .args([
                "-n",
                &host.config.namespace,
                "run",
                "-d",
                "--net-host",
                "--cgroup",
            ])
            .arg(format!("{}/c/{id}", host.task_cgroup(&request.task)))
            .args([crate::image::REFERENCE, &id, "/bin/sleep", "1000"])
            .stdout(Stdio::null())
            .status();
        let other = began.elapsed();
        assert!(ran.unwrap().success());
        host.ctr(&["tasks", "rm", "--force", &id]);
        host.ctr(&["containers", "rm", &id]);
        host.remove(&request).await;
        // The first finds nothing warm.
        if round > 0 {
            ours.push(own);
            theirs.push(other);
            steps.push(started.timings);
        }
    }
    let step = |of: fn(&Timings) -> Duration| median(steps.iter().map(of).collect());
    let (own, other) = (median(ours), median(theirs));
    println!(
        "start p50 {own:.1?} (prepare {:.1?}, create {:.1?}, start {:.1?}); ctr run -d p50 {other:.1?}; ratio {:.2}",
        step(|t| t.prepare),
        step(|t| t.create),
        step(|t| t.start),
        own.as_secs_f64() / other.as_secs_f64(),
    );
    // The bench tells by how much it is faster; here a neighbour's noise must not fail it.
    assert!(own < other.mul_f64(1.2), "{own:?} against {other:?}");
}
