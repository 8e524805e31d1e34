//! Bad input and bad luck: an error that says what, and nothing left half made.

use std::{sync::Arc, time::Duration};

use berth_agent::effects::runtime::{LoggerRegistry, RuntimeConfig, RuntimeError};
use berth_agent_core::effect::StartContainer;
use tokio_util::sync::CancellationToken;

use crate::{cgroups, host::Host};

async fn fails(host: &Host, request: &StartContainer, kind: &str, message: &str, retryable: bool) {
    let failure = host.try_start(request).await.unwrap_err().failure();
    assert_eq!(failure.kind, kind, "{failure:?}");
    assert!(failure.message.contains(message), "{failure:?}");
    assert_eq!(failure.retryable, retryable, "{failure:?}");
    assert_eq!(host.leftovers(request), Vec::<String>::new());
    assert_eq!(
        cgroups::processes(&format!("{}/c", host.task_cgroup(&request.task))),
        Vec::<i32>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_is_said_in_the_runtimes_words() {
    let host = Host::start().await;
    let mut request = host.request("");
    request.spec.command = vec!["nope".into()];
    fails(
        &host,
        &request,
        "CannotStartContainerError",
        "exec: \"nope\": executable file not found in $PATH",
        false,
    )
    .await;
    // The user is known by now: snapshot and record are made at once.
    fails(
        &host,
        &request,
        "CannotStartContainerError",
        "exec: \"nope\": executable file not found in $PATH",
        false,
    )
    .await;

    request.spec.command = vec!["/etc/passwd".into()];
    fails(
        &host,
        &request,
        "CannotStartContainerError",
        "permission denied",
        false,
    )
    .await;

    request.spec.command = vec![];
    request.image.config.cmd = vec![];
    fails(
        &host,
        &request,
        "CannotCreateContainerError",
        "says what to run",
        false,
    )
    .await;

    let mut request = host.request("true");
    request.network = berth_agent_core::desired::NetworkMode::Awsvpc;
    fails(
        &host,
        &request,
        "CannotCreateContainerError",
        "network namespace was not given",
        false,
    )
    .await;

    let mut request = host.request("true");
    request.spec.working_directory = "/etc/passwd/x".into();
    fails(
        &host,
        &request,
        "CannotStartContainerError",
        "not a directory",
        false,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_or_cgroup_is_said() {
    let host = Host::start().await;
    let mut request = host.request("true");
    request.image.chain_id = "sha256:0000".into();
    fails(
        &host,
        &request,
        "CannotCreateContainerError",
        "parent snapshot sha256:0000 does not exist",
        false,
    )
    .await;

    let request = host.request("true");
    cgroups::clear(&host.task_cgroup(&request.task));
    fails(&host, &request, "CannotStartContainerError", "cgroup", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_container_of_the_task_outlives_a_failed_one() {
    let host = Host::start().await;
    let first = host.request("sleep 1000");
    let started = host.started(&first).await;
    let mut second = first.clone();
    second.spec.id = crate::host::unique_id().parse().unwrap();
    second.spec.command = vec!["nope".into()];
    assert!(host.try_start(&second).await.is_err());
    let state = berth_agent_core::event::ObservedState::Running { pid: started.pid };
    assert_eq!(host.state(&first).await, Some(state));
    assert_eq!(host.state(&second).await, None);
}

struct Nobody;

impl LoggerRegistry for Nobody {
    fn registered(&self, _: &str) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_a_logger_is_not_started() {
    let host = Host::start().await;
    let request = host.request("echo ran");
    let runtime = host.runtime.clone().with_registry(Arc::new(Nobody));
    let error = runtime
        .start(&request, None, CancellationToken::new())
        .await
        .unwrap_err();
    assert!(matches!(error, RuntimeError::NoLogger { .. }), "{error}");
    assert_eq!(host.leftovers(&request), Vec::<String>::new());
    assert_eq!(host.log(&request), "");

    let config = RuntimeConfig {
        logger: "/nonexistent/logger".into(),
        ..host.config.clone()
    };
    let without = host.runtime_with(config).await;
    let failure = without
        .start(&request, None, CancellationToken::new())
        .await
        .unwrap_err()
        .failure();
    assert!(failure.message.contains("/nonexistent/logger"), "{failure:?}");
    assert_eq!(host.leftovers(&request), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_start_leaves_nothing() {
    let host = Host::start().await;
    let request = host.request("sleep 1000");
    let cancel = CancellationToken::new();
    cancel.cancel();
    let error = host.runtime.start(&request, None, cancel).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Cancelled { .. }), "{error}");
    assert_eq!(host.leftovers(&request), Vec::<String>::new());

    // At any moment of it: either it started, and is listed, or nothing of it is left.
    for after_ms in [0, 1, 2, 4, 8, 12, 16, 24, 32, 48] {
        let request = host.request("sleep 1000");
        let cancel = CancellationToken::new();
        let later = async {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            cancel.cancel();
        };
        let (started, ()) = tokio::join!(host.runtime.start(&request, None, cancel.clone()), later);
        match started {
            Ok(_) => {
                assert!(host.state(&request).await.is_some());
                host.remove(&request).await;
            }
            Err(error) => assert!(matches!(error, RuntimeError::Cancelled { .. }), "{error}"),
        }
        assert_eq!(
            host.leftovers(&request),
            Vec::<String>::new(),
            "cancelled after {after_ms} ms"
        );
    }
}
