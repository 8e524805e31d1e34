//! Limits, as the kernel enforces them.

use std::time::Duration;

use berth_tests::cluster::{Cluster, container};
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
async fn limits_are_in_the_kernel_and_usage_is_reported() {
    let cluster = Cluster::start().await;
    let task = cluster
        .running("sleep 3600", |d| {
            d["containerDefinitions"][0]["memory"] = json!(64);
        })
        .await;
    let read = |controller: &str, file: &str| {
        let path = cluster.cgroup(controller, &task).join("c").join(file);
        std::fs::read_to_string(&path)
            .ok()
            .map(|text| text.trim().to_owned())
    };
    let memory = read("memory", "memory.limit_in_bytes").or_else(|| read("memory", "memory.max"));
    assert_eq!(memory.as_deref(), Some("134217728"), "the task's 128 MiB");
    let cpu = read("cpu", "cpu.cfs_quota_us").or_else(|| read("cpu", "cpu.max"));
    assert!(
        cpu.is_some_and(|cpu| cpu.starts_with("25000")),
        "a quarter of 100 ms"
    );
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
}
