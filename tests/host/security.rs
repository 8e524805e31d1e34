//! Security options of a container, as the kernel has them and as a program meets them.

use std::time::Duration;

use berth_tests::cluster::{Cluster, Options};
use serde_json::{Value, json};

const SCRIPT: &str =
    "mkdir /made-here && echo made || echo denied; grep -E '^Seccomp:' /proc/self/status; sleep 3600";
/// Docker's format: everything but one call.
const NO_MKDIR: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]
}"#;

async fn cluster(directory: &std::path::Path) -> Cluster {
    std::fs::write(directory.join("no-mkdir.json"), NO_MKDIR).unwrap();
    std::fs::write(directory.join("broken.json"), "{}").unwrap();
    Cluster::with(Options {
        agent_config: format!("seccomp_dir = {directory:?}\n"),
        ..Options::default()
    })
    .await
}

fn with(options: &[&str], privileged: bool) -> impl FnOnce(&mut Value) {
    let fields = (json!(options), json!(privileged));
    move |definition| {
        let container = &mut definition["containerDefinitions"][0];
        (container["dockerSecurityOptions"], container["privileged"]) = fields;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seccomp_profile_is_dockers_none_or_the_named_one() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path()).await;
    for (options, privileged, made, mode) in [
        (&[][..], false, true, "2"),
        (&["seccomp:builtin"], false, true, "2"),
        (&["seccomp=unconfined"], false, true, "0"),
        (&["seccomp:unconfined", "seccomp:no-mkdir"], false, false, "2"),
        (&[], true, true, "0"),
        (&["seccomp:no-mkdir"], true, false, "2"),
    ] {
        let task = cluster.running(SCRIPT, with(options, privileged)).await;
        let said = async || {
            let lines = cluster.client.try_logs(&task).await.ok()?;
            let lines: Vec<String> = lines
                .iter()
                .map(|l| l["line"].as_str().unwrap().trim().to_owned())
                .collect();
            lines.iter().any(|l| l.starts_with("Seccomp:")).then_some(lines)
        };
        let said = cluster.until("its word", Duration::from_secs(20), said).await;
        assert_eq!(said.contains(&"made".to_owned()), made, "{options:?}: {said:?}");
        let inside = said.iter().find_map(|l| l.strip_prefix("Seccomp:")).unwrap();
        assert_eq!(inside.trim(), mode, "{options:?}");
        let pid = cluster.pids(&task)[0];
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let seen = status.lines().find_map(|l| l.strip_prefix("Seccomp:")).unwrap();
        assert_eq!(seen.trim(), mode, "{options:?}");
        cluster.stop(&task).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_cannot_be_used_is_the_reason_why_a_task_did_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster(dir.path()).await;
    for (name, says) in [("nobody", "No such file"), ("broken", "defaultAction")] {
        let definition = cluster
            .register(SCRIPT, with(&[&format!("seccomp:{name}")], false))
            .await;
        let task = cluster.run(&definition).await;
        let stopped = cluster.wait_status(&task, "STOPPED").await;
        assert_eq!(stopped["stopCode"], "TaskFailedToStart", "{stopped:#}");
        let told = stopped.to_string();
        let file = format!("{name}.json");
        assert!(told.contains(&file) && told.contains(says), "{told}");
    }
}
