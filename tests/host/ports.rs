//! Ports of the host that tasks cannot have, and networks of containers in bridge mode that end and start again. Who is reached
//! from where is in `reach`.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use berth_tests::cluster::{Cluster, container};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_a_process_of_the_host_has_fails_the_task_and_says_so() {
    let cluster = Cluster::start().await;
    let theirs = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = theirs.local_addr().unwrap().port();
    let definition = cluster
        .register("sleep 3600", |d| {
            d["networkMode"] = json!("bridge");
            d["containerDefinitions"][0]["portMappings"] = json!([{"containerPort": 80, "hostPort": port}]);
        })
        .await;
    let task = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    assert_eq!(stopped["stopCode"], "TaskFailedToStart");
    let reason = stopped["stoppedReason"].as_str().unwrap();
    let expected = format!("a process of the host has host port {port}/tcp");
    assert!(reason.contains(&expected), "{reason}");
}

/// A container that its policy starts again has the network that it had; one without a network has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_bridge_mode_keeps_its_address_over_restarts() {
    let cluster = Cluster::start().await;
    let script = "ip -4 -o addr show eth0 | awk '{print \"address\", $4}'; hostname | sed 's/^/name /'; [ -e /tmp/x ] || sleep 1";
    let task = cluster
        .running("true", |d| {
            let mut main = container("main", script);
            main["restartPolicy"] = json!({"enabled": true, "restartAttemptPeriod": 60});
            let mut alone = container("alone", "ls /sys/class/net | sed 's/^/link /'; sleep 3600");
            alone["disableNetworking"] = json!(true);
            d["containerDefinitions"] = json!([main, alone]);
            d.as_object_mut().unwrap().remove("networkMode");
        })
        .await;
    let lines = cluster
        .until("a second start", Duration::from_secs(30), async || {
            let logs = cluster.client.logs(&task).await;
            let lines: Vec<String> = logs
                .iter()
                .map(|l| l["line"].as_str().unwrap().trim().to_owned())
                .collect();
            (lines.iter().filter(|line| line.starts_with("name ")).count() >= 2).then_some(lines)
        })
        .await;
    let addresses: Vec<_> = lines.iter().filter(|line| line.starts_with("address ")).collect();
    assert!(
        addresses.len() >= 2 && addresses.iter().all(|a| *a == addresses[0]),
        "{lines:?}"
    );
    let links: Vec<_> = lines.iter().filter(|line| line.starts_with("link ")).collect();
    assert_eq!(links, ["link lo"]);
    let id = cluster.describe(&task).await["containers"][0]["containerArn"]
        .as_str()
        .unwrap()
        .rsplit('/')
        .next()
        .unwrap()[..12]
        .to_owned();
    assert!(lines.contains(&format!("name {id}")), "{lines:?}");
    cluster.stop(&task).await;
}
