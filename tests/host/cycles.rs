//! Tasks come and go by the hundred, and agents die in between: nothing is left, no address among it.

use std::time::{Duration, Instant};

use berth_agent::store::Store;
use berth_agent_core::ledger::Owned;
use berth_tests::{
    cluster::{Cluster, Options},
    listing,
};
use serde_json::json;

/// More than a few take minutes; `BERTH_CYCLES` says how many tasks there are in all.
const CYCLES: usize = 24;
const AT_A_TIME: usize = 8;
/// For all of a round to run, and for all of it to be gone.
const LIMIT: Duration = Duration::from_secs(60);
/// The kernel removes them in its own time.
const NONE_READY_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_came_and_went_leave_no_object_and_no_address() {
    let cycles = std::env::var("BERTH_CYCLES").map_or(CYCLES, |number| number.parse().unwrap());
    let mut cluster = Cluster::alone_with(Options {
        // The quarantine keeps 30 s of them.
        task_cidr: "10.96.0.0/20".into(),
        ..Options::default()
    })
    .await;
    let before = cluster.listing();
    let definition = cluster
        .register("trap 'exit 0' TERM; sleep 3600 & wait", |d| {
            d["cpu"] = json!("128");
            d["memory"] = json!("64");
        })
        .await;
    let began = Instant::now();
    let mut kills = 0;
    for round in 0..cycles.div_ceil(AT_A_TIME) {
        let mut tasks = Vec::new();
        for _ in 0..AT_A_TIME.min(cycles - round * AT_A_TIME) {
            tasks.push(cluster.run(&definition).await);
        }
        // Killed on the way up, on the way down, or not at all; each time a little later.
        let moment = Duration::from_millis(u64::try_from(round).unwrap() * 37 % 400);
        if round % 3 == 0 {
            kill_and_start(&mut cluster, moment).await;
            kills += 1;
        }
        all_are(&cluster, &tasks, "RUNNING").await;
        for task in &tasks {
            cluster.client.ok("StopTask", json!({ "task": task })).await;
        }
        if round % 3 == 1 {
            kill_and_start(&mut cluster, moment).await;
            kills += 1;
        }
        all_are(&cluster, &tasks, "STOPPED").await;
    }
    println!(
        "{cycles} tasks, {kills} kills of the agent, {:?}",
        began.elapsed()
    );
    cluster.assert_nothing_left(&before).await;
    cluster.stop_agent();
    let ended = Instant::now();
    while !listing::ready().is_empty() {
        let waited = ended.elapsed();
        assert!(
            waited < NONE_READY_WITHIN,
            "{:?} after {waited:?}",
            listing::ready()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_store, loaded) = Store::open(&cluster.agent_state_dir().join("agent.db")).unwrap();
    let owned: Vec<_> = loaded
        .ledger
        .entries()
        .filter(|owned| !matches!(owned, Owned::Logs(_)))
        .collect();
    assert!(owned.is_empty(), "{owned:?}");
    let addresses = loaded.node.unwrap().addresses;
    assert_eq!(addresses.holders().count(), 0, "{addresses:?}");
}

async fn kill_and_start(cluster: &mut Cluster, after: Duration) {
    tokio::time::sleep(after).await;
    cluster.kill_agent();
    // Else what comes next may be told that the node is there, and find that it is not.
    cluster.wait_connected(false).await;
    cluster.start_agent();
    cluster.wait_connected(true).await;
}

async fn all_are(cluster: &Cluster, tasks: &[String], status: &str) {
    let began = Instant::now();
    loop {
        let body = json!({ "tasks": tasks });
        let described = cluster.client.ok("DescribeTasks", body).await;
        let all = described["tasks"].as_array().unwrap();
        let others: Vec<_> = all.iter().filter(|task| task["lastStatus"] != status).collect();
        if all.len() == tasks.len() && others.is_empty() {
            return;
        }
        assert!(
            began.elapsed() < berth_tests::emulated(LIMIT),
            "waited {LIMIT:?} for {} tasks to be {status}; not so: {others:#?}; the agent said:\n{}",
            tasks.len(),
            cluster.agent_says()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
