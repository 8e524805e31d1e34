//! Exits reach the agent, whatever happens to containerd meanwhile.

use std::{sync::Arc, time::Duration};

use berth_agent::{
    effects::runtime::RuntimeConfig,
    observe::{Observer, OomCounter},
};
use berth_agent_core::{
    effect::{SignalKind, StartContainer},
    event::Exit,
    ids::{ContainerId, TaskId},
};
use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    cgroups,
    host::{Host, eventually},
};

const SOON: Duration = Duration::from_secs(20);

/// Counts for one container.
struct Counter(ContainerId);

impl OomCounter for Counter {
    fn oom_kills(&self, _: &TaskId, container: &ContainerId) -> u64 {
        u64::from(*container == self.0)
    }
}

struct Watching {
    exits: mpsc::Receiver<Exit>,
    cancel: CancellationToken,
    running: JoinHandle<()>,
}

impl Watching {
    fn start(host: &Host, victim: &StartContainer) -> Self {
        let (sender, exits) = mpsc::channel(16);
        let cancel = CancellationToken::new();
        let observer = Observer::new(
            host.runtime.clone(),
            Arc::new(Counter(victim.spec.id.clone())),
            sender,
        );
        let running = tokio::spawn(observer.run(cancel.clone()));
        Self {
            exits,
            cancel,
            running,
        }
    }

    async fn next(&mut self) -> Exit {
        timeout(SOON, self.exits.recv())
            .await
            .expect("an exit in time")
            .expect("a live observer")
    }

    async fn nothing_more(mut self) {
        assert!(
            timeout(Duration::from_millis(1500), self.exits.recv())
                .await
                .is_err(),
            "an exit was told twice"
        );
        self.cancel.cancel();
        timeout(SOON, self.running)
            .await
            .expect("the observer ends")
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_is_told_once_with_its_task_and_its_cause() {
    let host = Host::start().await;
    let (first, second) = (host.request("sleep 0.3; exit 3"), host.request("sleep 1000"));
    let mut watching = Watching::start(&host, &second);
    host.started(&first).await;
    host.started(&second).await;
    let exit = watching.next().await;
    assert_eq!(
        (&exit.task, &exit.container, exit.attempt),
        (&first.task, &first.spec.id, first.attempt)
    );
    assert_eq!((exit.code, exit.oom_killed), (3, false));
    assert!(exit.at.0 > 1_600_000_000_000);

    host.signal(&second, SignalKind::Kill).await;
    let exit = watching.next().await;
    assert_eq!(
        (&exit.container, exit.code, exit.oom_killed),
        (&second.spec.id, 137, true)
    );
    watching.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_from_before_the_watching_are_told_too() {
    let host = Host::start().await;
    let request = host.request("exit 5");
    host.started(&request).await;
    host.exit_code(&request).await;
    let mut watching = Watching::start(&host, &host.request(""));
    assert_eq!(watching.next().await.code, 5);
    watching.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_instances_containers_are_its_own() {
    let host = Host::start().await;
    let watching = Watching::start(&host, &host.request(""));
    let other = host
        .runtime_with(RuntimeConfig {
            instance: "other".into(),
            ..host.config.clone()
        })
        .await;
    let request = host.request("exit 1");
    other
        .start(&request, None, CancellationToken::new())
        .await
        .unwrap();
    eventually("the other sees its exit", async || {
        let state = format!("{:?}", other.list().await.unwrap().pop()?.state);
        state.starts_with("Exited").then_some(())
    })
    .await;
    assert!(host.runtime.list().await.unwrap().is_empty());
    watching.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_are_told_across_a_restart_of_containerd() {
    let mut host = Host::start().await;
    let (while_down, after) = (host.request("sleep 1; exit 6"), host.request("sleep 1000"));
    let mut watching = Watching::start(&host, &while_down);
    host.started(&while_down).await;
    let running = host.started(&after).await;
    host.kill_containerd();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    host.restart_containerd();
    let exit = watching.next().await;
    assert_eq!((&exit.container, exit.code), (&while_down.spec.id, 6));

    assert_eq!(host.started(&after).await.pid, running.pid);
    host.signal(&after, SignalKind::Kill).await;
    let exit = watching.next().await;
    assert_eq!((&exit.container, exit.code), (&after.spec.id, 137));
    watching.nothing_more().await;
    host.remove(&while_down).await;
    host.remove(&after).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_dies_is_the_end_of_its_containers() {
    let mut host = Host::start().await;
    let (first, second) = (host.request("sleep 1000"), host.request("sleep 1000"));
    let mut watching = Watching::start(&host, &host.request(""));
    host.started(&first).await;
    host.started(&second).await;
    let kill_shim = |host: &Host, request: &StartContainer| {
        for pid in cgroups::processes(&format!("{}/rt", host.task_cgroup(&request.task))) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.starts_with("containerd-shim") {
                nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            }
        }
    };
    kill_shim(&host, &first);
    let exit = watching.next().await;
    assert_eq!((&exit.container, exit.code), (&first.spec.id, 137));

    // While nobody can tell.
    host.kill_containerd();
    kill_shim(&host, &second);
    host.restart_containerd();
    let exit = watching.next().await;
    assert_eq!((&exit.container, exit.code), (&second.spec.id, 137));
    watching.nothing_more().await;
    for request in [&first, &second] {
        host.remove(request).await;
        assert_eq!(host.leftovers(request), Vec::<String>::new());
    }
}
