//! Start, exit, signal, remove.

use std::{fs, time::Duration};

use berth_agent_core::{
    effect::{SignalKind, StartContainer},
    event::ObservedState,
    ids::{Attempt, runtime_id},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cgroups,
    host::{Host, eventually, unique_id},
};

const FOREVER: &str = "while :; do sleep 0.1; done";

async fn ready(host: &Host, request: &StartContainer) {
    eventually("the container says that it is ready", async || {
        host.log(request).contains("ready").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_to_its_end_and_is_removed_without_trace() {
    let host = Host::start().await;
    assert!(
        host.runtime
            .version()
            .await
            .unwrap()
            .starts_with(|c: char| c.is_ascii_digit())
    );
    let request = host.request("echo out; echo err >&2; exit 7");
    let started = host.started(&request).await;
    assert!(started.pid > 1);
    assert_eq!(host.exit_code(&request).await, 7);

    let listed = host.runtime.list().await.unwrap();
    assert_eq!((listed.len(), &listed[0].task), (1, &request.task));
    let snapshots = host.runtime.snapshots().await.unwrap();
    assert_eq!(
        snapshots.iter().map(|s| &s.key).collect::<Vec<_>>(),
        [&runtime_id(&request.spec.id, Attempt(1))]
    );

    host.remove(&request).await;
    assert_eq!(host.leftovers(&request), Vec::<String>::new());
    assert!(host.log(&request).contains("out\n") && host.log(&request).contains("err\n"));
    host.remove(&request).await;
    assert!(
        host.runtime.list().await.unwrap().is_empty() && host.runtime.snapshots().await.unwrap().is_empty()
    );
    let shim = format!("{}/rt", host.task_cgroup(&request.task));
    eventually("the shim and the logger leave", async || {
        cgroups::processes(&shim).is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_is_started_once_however_often_it_is_asked_for() {
    let host = Host::start().await;
    let request = host.request(FOREVER);
    let first = host.started(&request).await;
    assert_eq!(host.started(&request).await.pid, first.pid);
    let restarted = host.forgetful().await;
    let again = restarted
        .start(&request, None, CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(again.pid, first.pid);
    assert_eq!(
        host.state(&request).await,
        Some(ObservedState::Running { pid: first.pid })
    );

    host.signal(&request, SignalKind::Kill).await;
    assert_eq!(host.exit_code(&request).await, 137);
    assert_eq!(
        host.started(&request).await.pid,
        first.pid,
        "an attempt that ended is not started again"
    );
    assert_eq!(host.exit_code(&request).await, 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_try_left_is_finished() {
    let host = Host::start().await;
    let request = host.request("true");
    let id = runtime_id(&request.spec.id, request.attempt);

    // Only the snapshot was made.
    host.ctr(&["snapshots", "prepare", &id, &request.image.chain_id]);
    assert_eq!(host.output(&request).await, "");

    // Snapshot and record were made.
    let next = StartContainer {
        attempt: Attempt(2),
        ..request
    };
    let id = runtime_id(&next.spec.id, next.attempt);
    host.ctr(&[
        "containers",
        "create",
        "--snapshotter",
        "overlayfs",
        crate::image::REFERENCE,
        &id,
    ]);
    assert_eq!(host.output(&next).await, "");
    assert_eq!(host.leftovers(&next), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stop_signal_is_the_images_and_may_be_handled() {
    let host = Host::start().await;
    let quits = format!("trap 'exit 3' QUIT; trap 'exit 4' TERM; echo ready; {FOREVER}");
    let mut request = host.request(&quits);
    request.image.config.stop_signal = "SIGQUIT".into();
    host.started(&request).await;
    ready(&host, &request).await;
    // Told by the label, not from memory.
    let restarted = host.forgetful().await;
    restarted
        .signal(&request.spec.id, request.attempt, SignalKind::Stop)
        .await
        .unwrap();
    assert_eq!(host.exit_code(&request).await, 3);
    host.signal(&request, SignalKind::Stop).await;
    host.signal(&request, SignalKind::Kill).await;

    let request = host.request(&quits);
    host.started(&request).await;
    ready(&host, &request).await;
    host.signal(&request, SignalKind::Stop).await;
    assert_eq!(host.exit_code(&request).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ignores_the_stop_signal_is_killed_whole() {
    let host = Host::start().await;
    let request = host.request(&format!("trap '' TERM; sleep 1000 & echo ready; {FOREVER}"));
    host.started(&request).await;
    ready(&host, &request).await;
    host.signal(&request, SignalKind::Stop).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(matches!(
        host.state(&request).await,
        Some(ObservedState::Running { .. })
    ));
    host.signal(&request, SignalKind::Kill).await;
    assert_eq!(host.exit_code(&request).await, 137);
    let cgroup = host.container_cgroup(&request);
    eventually("every process ends", async || {
        cgroups::processes(&cgroup).is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_running_container_kills_it_first() {
    let host = Host::start().await;
    let request = host.request(FOREVER);
    let started = host.started(&request).await;
    host.remove(&request).await;
    assert!(!fs::exists(format!("/proc/{}", started.pid)).unwrap());
    assert_eq!(host.leftovers(&request), Vec::<String>::new());
    // Gone is a success.
    host.signal(&request, SignalKind::Stop).await;
    host.signal(&request, SignalKind::Kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_task_share_one_shim_and_go_one_by_one() {
    let host = Host::start().await;
    let first = host.request(FOREVER);
    let mut second = first.clone();
    second.spec.id = unique_id().parse().unwrap();
    second.spec.name = "side".into();
    let (_, other) = tokio::join!(host.started(&first), host.started(&second));

    let shims = || {
        let rt = cgroups::processes(&format!("{}/rt", host.task_cgroup(&first.task)));
        let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        rt.iter()
            .filter(|pid| name(pid).starts_with("containerd-shim"))
            .count()
    };
    assert_eq!(shims(), 1);
    host.remove(&first).await;
    assert_eq!(
        host.state(&second).await,
        Some(ObservedState::Running { pid: other.pid })
    );
    assert_eq!(shims(), 1);
    let files = host.config.run_dir.join("tasks").join(second.task.as_str());
    assert_eq!(fs::read_dir(&files).unwrap().count(), 1);
    host.remove(&second).await;
    assert!(!files.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_waits_for_its_turn_and_all_of_it_starts() {
    const BURST: usize = 24;
    let host = Host::start().await;
    let requests: Vec<_> = (0..BURST).map(|_| host.request("sleep 1000")).collect();
    let started = futures_util::future::join_all(requests.iter().map(|request| host.started(request))).await;
    assert!(
        started.iter().any(|one| one.timings.queued > one.timings.prepare),
        "four at a time"
    );
    assert_eq!(host.runtime.list().await.unwrap().len(), BURST);
    futures_util::future::join_all(requests.iter().map(|request| host.remove(request))).await;
    assert!(
        host.runtime.list().await.unwrap().is_empty() && host.runtime.snapshots().await.unwrap().is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_follow_each_other_without_a_pause() {
    let host = Host::start().await;
    let mut request = host.request("true");
    for attempt in 1..=15 {
        request.attempt = Attempt(attempt);
        host.started(&request).await;
        host.remove(&request).await;
    }
    assert!(host.runtime.list().await.unwrap().is_empty());
}
