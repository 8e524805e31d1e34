//! Devices and swap of a container: as it finds them, and as the kernel has them.

use berth_tests::{cluster::Cluster, kernel::is_v2};
use serde_json::json;

use crate::fields::look;

/// Misc devices that every kernel here has: their names, and what /proc/misc calls them.
const LOOP_CONTROL: &str = "/dev/loop-control";

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_there_and_open_as_far_as_they_are_allowed() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let cluster = Cluster::start().await;
    let rdev = std::fs::metadata(LOOP_CONTROL).unwrap().rdev();
    // Of a 64-bit dev_t, makedev(3).
    let (major, minor) = ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xfff0_0000));
    let script = "stat -c '%n %t %T %a %u' /dev/mine /dev/half /dev/all; for d in mine half all; do \
                  (exec 3</dev/$d) && echo reads-$d; (exec 3>/dev/$d) && echo writes-$d; done; \
                  head -c 4 /host/zero | wc -c; ls /host; mknod /tmp/lc c $(echo $((0xA)) $MINOR) && echo made";
    let device = |host: &str, place: &str, may: &[&str]| json!({"hostPath": host, "containerPath": place, "permissions": may});
    let (task, seen) = look(
        &cluster,
        |d| d["networkMode"] = json!("none"),
        &[
            (
                "with",
                script,
                json!({
                    "environment": [{"name": "MINOR", "value": minor.to_string()}],
                    "linuxParameters": {"devices": [
                        device("/dev/zero", "/dev/mine", &[]),
                        device("/dev/fuse", "/dev/half", &["read"]),
                        device(LOOP_CONTROL, "/dev/all", &["read", "write", "mknod"]),
                        device("/dev", "/host", &["read"]),
                    ]},
                }),
            ),
            (
                "without",
                "mknod /tmp/lc c 10 237; (exec 3</tmp/lc) || echo closed; ls /dev",
                json!({}),
            ),
        ],
    )
    .await;
    let with = &seen["with"];
    let said = |what: &str| with.lines.iter().any(|line| line == what);
    for what in [
        "/dev/mine 1 5 666 0",
        "reads-mine",
        "writes-mine",
        "reads-half",
        "reads-all",
        "writes-all",
        "4",
        "zero",
    ] {
        assert!(said(what), "{what}: {:?}", with.lines);
    }
    let mode = std::fs::metadata(LOOP_CONTROL).unwrap().permissions().mode() & 0o777;
    let all = format!("/dev/all {major:x} {minor:x} {mode:o} 0");
    assert!(said(&all), "{all}: {:?}", with.lines);
    assert!(!said("writes-half"), "{:?}", with.lines);
    let without = &seen["without"].lines;
    assert!(
        without.iter().any(|line| line == "closed") && !without.iter().any(|line| line == "half"),
        "{without:?}"
    );
    if !is_v2() {
        let list = |name: &str| {
            let procs = std::fs::read_to_string(format!("/proc/{}/cgroup", seen[name].pid)).unwrap();
            let path = procs
                .lines()
                .find_map(|line| line.split_once(":devices:"))
                .unwrap()
                .1;
            std::fs::read_to_string(format!("/sys/fs/cgroup/devices{path}/devices.list")).unwrap()
        };
        let rule = format!("c {major}:{minor} rwm");
        assert!(list("with").lines().any(|line| line == rule), "{}", list("with"));
        assert!(
            list("with").lines().any(|line| line.starts_with("c 10:229 r")),
            "{}",
            list("with")
        );
        assert!(
            !list("without").contains(&format!("c {major}:{minor} ")),
            "{}",
            list("without")
        );
    }
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_not_there_fails_the_start_by_name() {
    let cluster = Cluster::start().await;
    let definition = cluster
        .register("sleep 3600", |d| {
            d["containerDefinitions"][0]["linuxParameters"] =
                json!({"devices": [{"hostPath": "/dev/no-such-device"}]});
        })
        .await;
    let task = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&task, "STOPPED").await;
    let reason = stopped["containers"][0]["reason"].as_str().unwrap_or_default();
    assert!(
        reason.starts_with("CannotStartContainerError: device /dev/no-such-device of ")
            && reason.contains("No such file"),
        "{stopped}"
    );
}

/// The kernel here counts swap, or this test says what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn swap_extends_memory_as_far_as_it_is_allowed() {
    const MIB: u64 = 1 << 20;
    let cluster = Cluster::start().await;
    let v2 = is_v2();
    let mut own = json!({"memory": 64, "linuxParameters": {"maxSwap": 32}});
    if !v2 {
        own["linuxParameters"]["swappiness"] = json!(37);
    }
    let (task, seen) = look(
        &cluster,
        |d| {
            d["memory"] = json!("256");
            // One without a ceiling of its own must not have the other's swap.
            d["containerDefinitions"][1]
                .as_object_mut()
                .unwrap()
                .remove("memory");
        },
        &[
            ("swaps", "true", own),
            ("free", "true", json!({})),
            (
                "none",
                "true",
                json!({"memory": 32, "linuxParameters": {"maxSwap": 0}}),
            ),
            ("silent", "true", json!({"memory": 32})),
        ],
    )
    .await;
    let read = |cgroup: &str, file: &str| {
        let path = cluster.cgroup("memory", &task).join("c").join(cgroup).join(file);
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().to_owned()
    };
    let cgroup = |name: &str| {
        let table = std::fs::read_to_string(format!("/proc/{}/cgroup", seen[name].pid)).unwrap();
        let line = table
            .lines()
            .find(|line| line.contains(if v2 { "0::" } else { ":memory:" }))
            .unwrap();
        line.rsplit('/').next().unwrap().to_owned()
    };
    if v2 {
        for (name, swap) in [("swaps", 32), ("free", 0), ("none", 0), ("silent", 0)] {
            assert_eq!(
                read(&cgroup(name), "memory.swap.max"),
                (swap * MIB).to_string(),
                "{name}"
            );
        }
        assert_eq!(read("", "memory.swap.max"), (32 * MIB).to_string());
    } else {
        for (name, sum) in [("swaps", 96), ("none", 32), ("silent", 32)] {
            assert_eq!(
                read(&cgroup(name), "memory.memsw.limit_in_bytes"),
                (sum * MIB).to_string(),
                "{name}"
            );
        }
        assert_eq!(read("", "memory.memsw.limit_in_bytes"), (288 * MIB).to_string());
        assert_eq!(read("", "memory.limit_in_bytes"), (256 * MIB).to_string());
        assert_eq!(read(&cgroup("swaps"), "memory.swappiness"), "37");
        assert_eq!(read(&cgroup("free"), "memory.swappiness"), "0");
    }
    cluster.stop(&task).await;
}
