//! Volumes of every kind, as processes in their containers see them and as the kernel has them; and that nothing of a task's is
//! left after it.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use berth_tests::{
    cluster::{Cluster, Options, container},
    image,
};
use serde_json::{Value, json};

/// What is printed last, so that all before it was seen.
const END: &str = "the-end";

/// A container that runs a script, prints [`END`] and stays.
fn one(name: &str, script: &str, fields: Value) -> Value {
    let mut one = container(name, &format!("({script}) 2>&1; echo {END}; sleep 3600"));
    let fields = fields.as_object().unwrap().clone();
    one.as_object_mut().unwrap().extend(fields);
    one
}

fn at(volume: &str, path: &str) -> Value {
    json!({"sourceVolume": volume, "containerPath": path})
}

fn read_only(volume: &str, path: &str) -> Value {
    json!({"sourceVolume": volume, "containerPath": path, "readOnly": true})
}

fn local(name: &str, configuration: Value) -> Value {
    json!({"name": name, "dockerVolumeConfiguration": configuration})
}

/// Runs a task without a network of these volumes and containers until each has said all; its ARN.
async fn run(cluster: &Cluster, volumes: Value, containers: Vec<Value>) -> String {
    let count = containers.len();
    let task = cluster
        .running("", |d| {
            d["networkMode"] = json!("none");
            d["cpu"] = json!("128");
            d["volumes"] = volumes;
            d["containerDefinitions"] = json!(containers);
        })
        .await;
    cluster
        .until("all to be said", Duration::from_secs(20), async || {
            let logs = cluster.client.logs(&task).await;
            let ended = logs
                .iter()
                .filter(|l| l["line"].as_str().unwrap().trim() == END)
                .count();
            (ended == count).then_some(())
        })
        .await;
    task
}

/// What a container of the task printed, but for the end.
async fn said(cluster: &Cluster, task: &str, container: &str) -> Vec<String> {
    let logs = cluster.client.logs(task).await;
    let own = logs.iter().filter(|line| line["container"] == container);
    let lines = own.map(|line| line["line"].as_str().unwrap().trim().to_owned());
    lines.filter(|line| line != END).collect()
}

fn id(task: &str) -> &str {
    task.rsplit('/').next().unwrap()
}

/// The first process of a container, on the host.
async fn pid(cluster: &Cluster, task: &str, container: &str) -> i32 {
    let described = cluster.describe(task).await;
    let mut all = described["containers"].as_array().unwrap().iter();
    let found = all.find(|c| c["name"] == container).unwrap();
    let id = found["runtimeId"].as_str().unwrap().split('-').next().unwrap();
    let procs = cluster
        .cgroup("memory", task)
        .join("c")
        .join(id)
        .join("cgroup.procs");
    fs::read_to_string(procs)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// The last mount at that place in a process's namespace: options of the mount and its propagation, and kind of file system.
fn mounted(pid: i32, place: &str) -> (String, String) {
    let all = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let line = all
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(4) == Some(place));
    let line = line.unwrap_or_else(|| panic!("nothing at {place}: {all}"));
    let (own, rest) = line.split_once(" - ").unwrap();
    let own: Vec<&str> = own.split(' ').skip(5).collect();
    (own.join(" "), rest.split(' ').next().unwrap().to_owned())
}

fn of_task(cluster: &Cluster, task: &str) -> PathBuf {
    cluster.agent_state_dir().join("volumes/tasks").join(id(task))
}

fn is_mounted(below: &Path) -> bool {
    let below = below.display().to_string();
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .contains(&below)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_of_the_host_is_seen_as_it_is_and_made_where_it_is_missing() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let host = cluster.directory().join("host");
    fs::create_dir_all(host.join("have")).unwrap();
    fs::write(host.join("have/file"), "of the host").unwrap();
    let path = |name: &str| host.join(name).display().to_string();
    let volumes = json!([
        {"name": "have", "host": {"sourcePath": path("have")}},
        {"name": "file", "host": {"sourcePath": path("have/file")}},
        {"name": "made", "host": {"sourcePath": path("made/deep")}},
        {"name": "unused", "host": {"sourcePath": path("unused")}},
    ]);
    let script = "cat /have/file /file; echo; echo new > /have/new; echo no > /ro/no; ls /made; ls /srv/html | wc -l; \
                  touch /made/own; stat -c '%u %a' /made";
    let points = json!([
        at("have", "/have"),
        read_only("have", "/ro"),
        at("file", "/file"),
        at("made", "/made"),
        at("made", "/srv/html"),
    ]);
    let task = run(
        &cluster,
        volumes,
        vec![one("main", script, json!({"mountPoints": points}))],
    )
    .await;
    let lines = said(&cluster, &task, "main").await;
    assert_eq!(lines[0], "of the hostof the host");
    assert!(lines[1].contains("Read-only file system"), "{lines:?}");
    // Never the image's content.
    assert_eq!(lines[2..], ["0", "0 755"]);
    assert_eq!(fs::read_to_string(host.join("have/new")).unwrap(), "new\n");
    assert!(host.join("made/deep/own").exists() && host.join("unused").is_dir());
    let pid = pid(&cluster, &task, "main").await;
    let (options, _) = mounted(pid, "/ro");
    assert!(options.starts_with("ro,"), "{options}");
    let (options, _) = mounted(pid, "/have");
    assert!(
        options.starts_with("rw,") && !options.contains("shared:"),
        "{options}"
    );
    cluster.stop(&task).await;
    assert!(host.join("have/file").exists() && host.join("made/deep/own").exists());
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_volumes_begin_with_the_image_are_shared_and_end_with_the_task() {
    let cluster = Cluster::alone().await;
    let before = cluster.listing();
    let volumes = json!([
        {"name": "html"}, {"name": "fresh", "host": {}}, local("labelled", json!({"scope": "task", "labels": {"a": "b"}})),
        local("memory", json!({"driverOpts": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=1777,noexec"}})),
    ]);
    let first = "stat -c '%u %g %a' /srv/html /srv/html/index; cat /srv/html/index; echo more > /srv/html/more; \
                 ls /fresh | wc -l; stat -c '%u %a' /fresh; touch /labelled/x && echo labelled; \
                 stat -c '%a' /memory; head -c 2000000 /dev/zero > /memory/big 2>/dev/null; wc -c < /memory/big";
    let second = "cat /www/index /www/more; echo x > /www/index; ls /memory";
    let containers = vec![
        one(
            "first",
            first,
            json!({"mountPoints": [
                at("html", "/srv/html"), at("fresh", "/fresh"), at("labelled", "/labelled"), at("memory", "/memory"),
            ]}),
        ),
        one(
            "second",
            second,
            json!({
                "mountPoints": [read_only("html", "/www"), at("memory", "/memory")],
                "dependsOn": [{"containerName": "before", "condition": "SUCCESS"}],
            }),
        ),
        // Until the first has written: it is seen by a third one.
        one(
            "before",
            "until [ -e /w/more ] && [ -s /m/big ]; do sleep 0.1; done; exit",
            json!({
                "essential": false, "mountPoints": [at("html", "/w"), at("memory", "/m")],
                "command": ["sh", "-c", format!("until [ -e /w/more ] && [ -s /m/big ]; do sleep 0.1; done; echo {END}")],
            }),
        ),
    ];
    let task = run(&cluster, volumes, containers).await;
    let lines = said(&cluster, &task, "first").await;
    assert_eq!(
        lines[..6],
        [
            "1000 1000 750",
            "1000 1000 640",
            "of the image",
            "0",
            "0 755",
            "labelled"
        ]
    );
    assert_eq!(lines[6], "1777");
    assert_eq!(lines[7], "1048576");
    let lines = said(&cluster, &task, "second").await;
    assert_eq!(lines[..2], ["of the image", "more"]);
    assert!(lines[2].contains("Read-only file system"), "{lines:?}");
    assert_eq!(lines[3], "big");
    let pid = pid(&cluster, &task, "first").await;
    let (options, kind) = mounted(pid, "/memory");
    assert!(kind == "tmpfs" && options.contains("noexec"), "{kind} {options}");
    let directory = of_task(&cluster, &task);
    let record = fs::read_to_string(directory.join("named/labelled/volume.json")).unwrap();
    assert!(record.contains("\"a\": \"b\""), "{record}");
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
    assert!(is_mounted(&directory));
    cluster.stop(&task).await;
    assert!(!directory.exists() && !is_mounted(&directory));
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_another_container_are_taken_with_what_its_image_declares() {
    let mut cluster = Cluster::start().await;
    let reference = "127.0.0.1:1/declares:latest";
    let archive = cluster.directory().join("images/declares.tar");
    image::archive(&archive, reference, &["/srv/html", "/declared"]);
    cluster.kill_agent();
    cluster.wait_connected(false).await;
    cluster.start_agent();
    cluster.wait_connected(true).await;
    let source = one(
        "source",
        "echo app > /srv/html/app && echo written; touch /declared/x && echo declared; touch /x",
        json!({
            "image": reference, "readonlyRootFilesystem": true,
            "mountPoints": [at("data", "/data"), read_only("data", "/ro")],
        }),
    );
    let taker = one(
        "taker",
        "until [ -e /srv/html/app ] && [ -e /declared/x ]; do sleep 0.1; done; cat /srv/html/index /srv/html/app; \
         touch /data/a && echo data; touch /ro/b",
        json!({"volumesFrom": [{"sourceContainer": "source"}], "mountPoints": []}),
    );
    let chained = one(
        "chained",
        "cat /srv/html/index; touch /srv/html/no; touch /data/no; touch /own/yes && echo own",
        json!({
            "volumesFrom": [{"sourceContainer": "taker", "readOnly": true}],
            "mountPoints": [at("data", "/own")],
        }),
    );
    // In the other order: each waits for the start of whose volumes it takes.
    let task = run(&cluster, json!([{"name": "data"}]), vec![chained, taker, source]).await;
    let lines = said(&cluster, &task, "source").await;
    assert_eq!(lines[..2], ["written", "declared"]);
    assert!(lines[2].contains("Read-only file system"), "{lines:?}");
    let lines = said(&cluster, &task, "taker").await;
    assert_eq!(lines[..3], ["of the image", "app", "data"]);
    assert!(lines[3].contains("Read-only file system"), "{lines:?}");
    let lines = said(&cluster, &task, "chained").await;
    assert_eq!(lines[0], "of the image");
    assert!(
        lines[1..3]
            .iter()
            .all(|line| line.contains("Read-only file system")),
        "{lines:?}"
    );
    assert_eq!(lines[3], "own");
    let directory = of_task(&cluster, &task);
    assert_eq!(fs::read_dir(directory.join("image")).unwrap().count(), 2);
    cluster.stop(&task).await;
    assert!(!directory.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_volume_outlives_its_task_and_the_next_one_finds_it() {
    let mut cluster = Cluster::start().await;
    let shared = |autoprovision: bool| {
        json!([local(
            "cache",
            json!({"scope": "shared", "autoprovision": autoprovision, "labels": {"who": "me"}})
        )])
    };
    let mounts = json!({"mountPoints": [at("cache", "/srv/html")]});
    let none = cluster
        .register("true", |d| {
            d["volumes"] = shared(false);
            d["containerDefinitions"] = json!([one("main", "true", mounts.clone())]);
        })
        .await;
    let refused = cluster.run(&none).await;
    let stopped = cluster.wait_status(&refused, "STOPPED").await;
    let reason = stopped["stoppedReason"].as_str().unwrap();
    let expected = "ResourceInitializationError: volume cache: this node has no shared volume of that name";
    assert!(reason.starts_with(expected), "{reason}");

    let script = "cat /srv/html/*; echo kept >> /srv/html/kept";
    let task = run(&cluster, shared(true), vec![one("main", script, mounts.clone())]).await;
    assert_eq!(said(&cluster, &task, "main").await, ["of the image"]);
    cluster.stop(&task).await;
    let task = run(&cluster, shared(false), vec![one("main", script, mounts.clone())]).await;
    assert_eq!(said(&cluster, &task, "main").await, ["of the image", "kept"]);
    cluster.stop(&task).await;
    let home = cluster.agent_state_dir().join("volumes/shared/cache");
    assert_eq!(
        fs::read_to_string(home.join("data/kept")).unwrap(),
        "kept\nkept\n"
    );
    assert!(
        fs::read_to_string(home.join("volume.json"))
            .unwrap()
            .contains("who")
    );

    cluster.kill_agent();
    let purge = |arguments: &[&str]| {
        let mut command = std::process::Command::new(berth_tests::cluster::binary("berth-agent"));
        command
            .args(["purge", "--yes", "--config"])
            .arg(cluster.agent_config_file())
            .args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let kept = purge(&[]);
    assert!(kept.contains("kept: shared volumes cache in "), "{kept}");
    assert!(home.join("data/kept").exists());
    let state: Vec<_> = fs::read_dir(cluster.agent_state_dir())
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(state.len(), 1, "{state:?}");
    let gone = purge(&["--volumes"]);
    assert!(gone.contains("nothing is left"), "{gone}");
    assert!(!cluster.agent_state_dir().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_directory_must_be_there_and_is_read_only_if_it_says_so() {
    let cluster = Cluster::start().await;
    let directory = cluster.directory().join("bound");
    let bound = |o: &str| {
        let options = json!({"type": "none", "device": directory.display().to_string(), "o": o});
        json!([local("bound", json!({"driverOpts": options}))])
    };
    let mounts = json!({"mountPoints": [at("bound", "/srv/html")]});
    let definition = cluster
        .register("true", |d| {
            d["volumes"] = bound("bind");
            d["containerDefinitions"] = json!([one("main", "true", mounts.clone())]);
        })
        .await;
    let missing = cluster.run(&definition).await;
    let stopped = cluster.wait_status(&missing, "STOPPED").await;
    let reason = stopped["stoppedReason"].as_str().unwrap();
    assert!(
        reason.contains("No such file or directory") && reason.contains("volume bound"),
        "{reason}"
    );
    fs::create_dir(&directory).unwrap();
    // As a volume of Docker, and not as a path of the host: it begins with the image's content.
    let script = "cat /srv/html/index; touch /srv/html/new";
    let task = run(&cluster, bound("bind"), vec![one("main", script, mounts.clone())]).await;
    assert_eq!(said(&cluster, &task, "main").await, ["of the image"]);
    assert!(directory.join("new").exists());
    cluster.stop(&task).await;
    let task = run(
        &cluster,
        bound("rbind,ro"),
        vec![one("main", script, mounts.clone())],
    )
    .await;
    let lines = said(&cluster, &task, "main").await;
    assert!(lines[1].contains("Read-only file system"), "{lines:?}");
    cluster.stop(&task).await;
    assert!(directory.join("new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_operator_allows_and_no_way_out_of_it() {
    let allowed = tempfile::tempdir().unwrap();
    let path = |name: &str| allowed.path().join(name).display().to_string();
    fs::write(allowed.path().join("file"), "inside").unwrap();
    symlink("/etc", allowed.path().join("out")).unwrap();
    let options = Options {
        agent_config: format!("[volumes]\nhost_paths = [{:?}]\n", allowed.path()),
        ..Options::default()
    };
    let cluster = Cluster::with(options).await;
    let refused = async |source: &str, says: &str| {
        let definition = cluster
            .register("true", |d| {
                d["volumes"] = json!([{"name": "v", "host": {"sourcePath": source}}]);
                d["containerDefinitions"][0]["mountPoints"] = json!([at("v", "/v")]);
            })
            .await;
        let task = cluster.run(&definition).await;
        let stopped = cluster.wait_status(&task, "STOPPED").await;
        let reason = stopped["stoppedReason"].as_str().unwrap();
        assert!(reason.contains(says), "{source}: {reason}");
    };
    refused("/etc", "volumes.host_paths").await;
    refused(&path("out"), "open the path of the host").await;
    let own = cluster.agent_state_dir().display().to_string();
    refused(&own, "is the agent's own").await;
    let volumes = json!([{"name": "v", "host": {"sourcePath": path("")}}]);
    let script = "cat /v/file; echo; cat /v/out/passwd | head -n 1; touch /v/new";
    let task = run(
        &cluster,
        volumes,
        vec![one("main", script, json!({"mountPoints": [at("v", "/v")]}))],
    )
    .await;
    let lines = said(&cluster, &task, "main").await;
    // Of the container's own /etc: a link means what it means there.
    assert_eq!(lines, ["inside", "root:x:0:0::/root:/bin/sh"]);
    cluster.stop(&task).await;
    assert!(allowed.path().join("new").exists() && !is_mounted(&of_task(&cluster, &task)));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_a_workload_plants_lead_the_agent_nowhere() {
    let cluster = Cluster::start().await;
    let outside = cluster.directory().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o777)).unwrap();
    let script = format!(
        "cd /v && ln -s {0} link && mkdir -p a/b && ln -s {0}/precious a/b/file && ln -s / a/root && \
         i=0; while [ $i -lt 300 ]; do mkdir d && cd d; i=$((i+1)); done; touch {1}/planted",
        outside.display(),
        "/v"
    );
    let mounts = json!({"mountPoints": [at("v", "/v")]});
    let task = run(
        &cluster,
        json!([{"name": "v"}]),
        vec![one("main", &script, mounts)],
    )
    .await;
    assert!(of_task(&cluster, &task).join("named/v/data/planted").exists());
    cluster.stop(&task).await;
    assert!(!of_task(&cluster, &task).exists());
    assert!(outside.join("precious").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_sees_the_whole_host_keeps_nothing_of_other_tasks() {
    let cluster = Cluster::start().await;
    let whole = json!([{"name": "root", "host": {"sourcePath": "/"}}]);
    let script = "ls /host/etc | wc -l; touch /host/tmp/no";
    let other = cluster.running("sleep 3600", |d| d["cpu"] = json!("128")).await;
    let task = run(
        &cluster,
        whole,
        vec![one(
            "main",
            script,
            json!({"mountPoints": [read_only("root", "/host")]}),
        )],
    )
    .await;
    let lines = said(&cluster, &task, "main").await;
    assert!(
        lines[0].parse::<u32>().unwrap() > 20 && lines[1].contains("Read-only file system"),
        "{lines:?}"
    );
    let begun = Instant::now();
    cluster.stop(&other).await;
    let took = begun.elapsed();
    assert!(
        took < berth_tests::emulated(Duration::from_secs(8)),
        "took {took:?}"
    );
    cluster.stop(&task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whenever_the_agent_is_killed_nothing_of_a_volume_is_left() {
    let mut cluster = Cluster::alone().await;
    let before = cluster.listing();
    let definition = cluster
        .register("", |d| {
            d["cpu"] = json!("128");
            d["volumes"] = json!([
                {"name": "html"},
                local("memory", json!({"driverOpts": {"type": "tmpfs", "device": "tmpfs"}})),
            ]);
            let script = "cat /srv/html/index; sleep 3600";
            let mounts = json!({"mountPoints": [at("html", "/srv/html"), at("memory", "/memory")]});
            d["containerDefinitions"] = json!([one("main", script, mounts)]);
        })
        .await;
    for round in 0..6u64 {
        let task = cluster.run(&definition).await;
        tokio::time::sleep(Duration::from_millis(12 * round)).await;
        cluster.kill_agent();
        cluster.start_agent();
        cluster.wait_status(&task, "RUNNING").await;
        let content = async || {
            let lines = cluster.client.try_logs(&task).await.ok()?;
            lines
                .iter()
                .any(|l| l["line"].as_str().unwrap().trim() == "of the image")
                .then_some(())
        };
        cluster
            .until("the image's content", Duration::from_secs(10), content)
            .await;
        cluster.client.ok("StopTask", json!({ "task": task })).await;
        tokio::time::sleep(Duration::from_millis(15 * round)).await;
        cluster.kill_agent();
        cluster.start_agent();
        cluster.wait_status(&task, "STOPPED").await;
    }
    cluster.assert_nothing_left(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_a_tagged_task_has_its_volumes_and_memory_is_empty() {
    let mut cluster = Cluster::start().await;
    let definition = cluster
        .register("", |d| {
            d["volumes"] = json!([
                {"name": "data"},
                local("memory", json!({"driverOpts": {"type": "tmpfs", "device": "tmpfs"}})),
            ]);
            let script = "echo had $(cat /srv/html/boots | wc -l) $(ls /memory | wc -l) $(ls /srv/html/index | wc -l); \
                          echo boot >> /srv/html/boots; touch /memory/x; rm -f /srv/html/index";
            let mounts = json!({"mountPoints": [at("data", "/srv/html"), at("memory", "/memory")]});
            d["containerDefinitions"] = json!([one("main", script, mounts)]);
        })
        .await;
    let run = cluster
        .run_tagged(&definition, &[("berth.restart-after-reboot", "true")])
        .await;
    let task = run["tasks"][0]["taskArn"].as_str().unwrap().to_owned();
    cluster.wait_status(&task, "RUNNING").await;
    let lines = async |cluster: &Cluster, wanted: usize| {
        cluster
            .until("its line", Duration::from_secs(30), async || {
                let lines = cluster.client.try_logs(&task).await.ok()?;
                let had = lines
                    .iter()
                    .filter_map(|l| l["line"].as_str().unwrap().trim().strip_prefix("had "));
                let had: Vec<String> = had.map(str::to_owned).collect();
                (had.len() == wanted).then_some(had)
            })
            .await
    };
    assert_eq!(lines(&cluster, 1).await, ["0 0 1"]);
    cluster.power_off_and_boot();
    cluster.start_agent();
    assert_eq!(lines(&cluster, 2).await, ["0 0 1", "1 0 0"]);
    cluster.stop(&task).await;
    assert!(!of_task(&cluster, &task).exists());
}
