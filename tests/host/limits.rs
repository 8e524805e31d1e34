//! Limits, as the kernel enforces them.

use std::time::Duration;

use berth_tests::{
    cluster::{Cluster, Options, container},
    kernel::{Limit, is_v2},
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_hog_is_killed_and_the_reason_is_reported() {
    let cluster = Cluster::start().await;
    let definition = cluster
        .register("echo begin; tail /dev/zero", |d| {
            d["memory"] = json!("256");
            d["containerDefinitions"][0]["memory"] = json!(32);
            d["containerDefinitions"]
                .as_array_mut()
                .unwrap()
                .push(container("bystander", "sleep 3600"));
        })
        .await;
    let task = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    let container = |name: &str| {
        let all = stopped["containers"].as_array().unwrap();
        all.iter().find(|c| c["name"] == name).unwrap().clone()
    };
    let hog = container("main");
    assert_eq!(hog["exitCode"], 137, "{stopped:#}");
    assert!(
        hog["reason"].as_str().unwrap().starts_with("OutOfMemoryError"),
        "{hog}"
    );
    assert!(
        container("bystander").get("reason").is_none_or(|r| r.is_null()),
        "only the victim is blamed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cpu_hog_gets_its_quarter_of_a_core() {
    let cluster = Cluster::alone().await;
    let task = cluster
        .running("while true; do :; done", |d| d["cpu"] = json!("256"))
        .await;
    let used = || {
        let v1 = cluster.cgroup("cpuacct", &task).join("c/cpuacct.usage");
        if let Ok(nanos) = std::fs::read_to_string(&v1) {
            return nanos.trim().parse::<f64>().unwrap() / 1e9;
        }
        let stat = std::fs::read_to_string(cluster.cgroup("cpu", &task).join("c/cpu.stat")).unwrap();
        let usec = stat.lines().find_map(|l| l.strip_prefix("usage_usec ")).unwrap();
        usec.parse::<f64>().unwrap() / 1e6
    };
    let (begun, before) = (std::time::Instant::now(), used());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let share = (used() - before) / begun.elapsed().as_secs_f64();
    assert!((0.225..=0.275).contains(&share), "got {share:.3} of a core");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ceiling_of_its_own_a_hog_dies_at_the_tasks_and_alone_is_blamed() {
    let cluster = Cluster::start().await;
    let definition = cluster
        .register("sleep 1; tail /dev/zero", |d| {
            d["memory"] = json!("64");
            d["containerDefinitions"]
                .as_array_mut()
                .unwrap()
                .push(container("bystander", "sleep 3600"));
        })
        .await;
    let task = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    let container = |name: &str| {
        let all = stopped["containers"].as_array().unwrap();
        all.iter().find(|c| c["name"] == name).unwrap().clone()
    };
    assert_eq!(container("main")["exitCode"], 137, "{stopped:#}");
    let reason = container("main")["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("OutOfMemoryError"), "{reason}");
    assert!(container("bystander").get("reason").is_none_or(|r| r.is_null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_in_the_kernel_and_usage_is_reported() {
    let cluster = Cluster::start().await;
    let task = cluster
        .running("sleep 3600", |d| {
            d["containerDefinitions"][0]["memory"] = json!(64);
            d["containerDefinitions"][0]["cpu"] = json!(128);
        })
        .await;
    let mib = 1024 * 1024;
    // v2's weight is 1 + (shares - 2) * 9999 / 262142; newer runtimes have another formula for the container's.
    let task_weight = if is_v2() { 10 } else { 256 };
    for (below, limit, wanted) in [
        ("c", Limit::Memory, Some(128 * mib)),
        ("c", Limit::Swap, Some(0)),
        ("c", Limit::CpuQuota, Some(25_000)),
        ("c", Limit::Pids, Some(32_768)),
        ("", Limit::CpuWeight, Some(task_weight)),
        ("", Limit::Memory, None),
        ("rt", Limit::Memory, None),
        ("rt", Limit::Pids, None),
    ] {
        assert_eq!(
            cluster.limit(&task, below, limit),
            wanted,
            "{limit:?} of {below:?}"
        );
    }
    let id = cluster.describe(&task).await["containers"][0]["runtimeId"].clone();
    let own = format!("c/{}", id.as_str().unwrap().split('-').next().unwrap());
    assert_eq!(cluster.limit(&task, &own, Limit::Memory), Some(64 * mib));
    assert_eq!(cluster.limit(&task, &own, Limit::Swap), Some(0));
    assert_eq!(cluster.limit(&task, &own, Limit::Pids), Some(32_768));
    assert!(cluster.limit(&task, &own, Limit::CpuWeight).is_some());
    let usage = cluster
        .until("usage", Duration::from_secs(10), async || {
            let answer = cluster
                .client
                .send("BerthV1.GetUsage", json!({ "cluster": "default" }))
                .await;
            let text = answer.text().await.unwrap();
            text.contains(task.rsplit('/').next().unwrap()).then_some(text)
        })
        .await;
    assert!(usage.contains("memory"), "{usage}");
    let usage: serde_json::Value = serde_json::from_str(&usage).unwrap();
    let mut tasks = usage["tasks"].as_array().unwrap().iter();
    let of_task = tasks
        .find(|one| task.ends_with(one["task"].as_str().unwrap()))
        .unwrap();
    // Where the kernel does not measure it there is none, rather than zeros.
    let measured = is_v2() && std::path::Path::new("/proc/pressure/cpu").exists();
    let pressure = &of_task["total"]["pressure"];
    assert_eq!(pressure["cpuWaitingUsec"].is_u64(), measured, "{pressure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_ends_at_its_tasks_bound() {
    let options = Options {
        agent_config: "task_pids_max = 40".into(),
        ..Options::default()
    };
    let cluster = Cluster::with(options).await;
    let bomb =
        "mkfifo /tmp/f; sh -c 'for i in $(seq 200); do sleep 3600 & done'; echo survived; read x <>/tmp/f";
    let task = cluster.running(bomb, |_| {}).await;
    assert_eq!(cluster.limit(&task, "c", Limit::Pids), Some(40));
    let said = cluster
        .until("the bomb to end", Duration::from_secs(20), async || {
            let lines = cluster.client.try_logs(&task).await.ok()?;
            let lines: Vec<String> = lines
                .iter()
                .filter_map(|line| Some(line["line"].as_str()?.trim().to_owned()))
                .collect();
            lines.iter().any(|line| line == "survived").then_some(lines)
        })
        .await;
    assert!(said.iter().any(|line| line.contains("can't fork")), "{said:?}");
    let in_use = cluster.pids_in_use(&task);
    assert!((30..=40).contains(&in_use), "{in_use}");
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_somebody_took_away_is_set_again() {
    let mut cluster = Cluster::start().await;
    let task = cluster.running("sleep 3600", |_| {}).await;
    let limit = cluster.limit(&task, "c", Limit::Memory);
    cluster.take_memory_limit_away(&task);
    assert_eq!(cluster.limit(&task, "c", Limit::Memory), None);
    // The next audit, or the next start of the agent, whichever comes first.
    cluster.kill_agent();
    cluster.start_agent();
    cluster
        .until("the limit to be back", Duration::from_secs(20), async || {
            (cluster.limit(&task, "c", Limit::Memory) == limit).then_some(())
        })
        .await;
    assert_eq!(cluster.limit(&task, "c", Limit::Swap), Some(0));
    assert!(cluster.agent_says().contains("somebody changed a limit"));
    cluster.wait_connected(true).await;
    cluster.stop(&task).await;
}
