//! What a node reports: applied in order, once, with all that follows.

use berth_proto::node::v1::{
    ContainerState, HealthProbe, HealthStatus, StateAck, StateChange, StopCode, TaskState, TaskStatus,
};

use super::*;

fn state(task: &str, status: TaskStatus) -> TaskState {
    let container = ContainerState {
        container_id: id('c'),
        name: "web".into(),
        status: status.into(),
        ..Default::default()
    };
    TaskState {
        task_id: task.into(),
        status: status.into(),
        containers: vec![container],
        ..Default::default()
    }
}

pub(super) fn running(task: &str) -> TaskState {
    TaskState {
        ipv4_address: "10.0.0.7".into(),
        ipv6_address: "fd00::a00:7".into(),
        started_at_ms: 5_000,
        ..state(task, TaskStatus::Running)
    }
}

pub(super) fn stopped(task: &str) -> TaskState {
    let mut state = state(task, TaskStatus::Stopped);
    state.set_stop_code(StopCode::EssentialContainerExited);
    state.stopped_reason = "Essential container in task exited".into();
    state.stopped_at_ms = 9_000;
    state.containers[0].exit_code = Some(137);
    state.containers[0].reason = "OutOfMemoryError: container was killed".into();
    state
}

impl Link {
    pub(super) async fn report(&self, sequence: u64, task: TaskState) {
        self.send(FromNode::StateChange(StateChange {
            sequence,
            task: Some(task),
        }))
        .await;
    }

    /// Waits until all up to `sequence` is acknowledged.
    pub(super) async fn acknowledged(&mut self, sequence: u64) {
        loop {
            match self.next().await {
                ToNode::StateAck(StateAck {
                    sequence: acknowledged,
                }) if acknowledged >= sequence => {
                    assert_eq!(acknowledged, sequence);
                    return;
                }
                ToNode::StateAck(_) | ToNode::Delta(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_task_runs_and_stops_and_gives_back_what_it_held() {
    let plane = Plane::start().await;
    let (node, task) = (id('a'), id('1'));
    let mut link = plane.connect(&node).await;
    plane.place(&node, &task).await;
    link.report(1, state(&task, TaskStatus::Pending)).await;
    link.acknowledged(1).await;
    let record = plane.task(&task).await.unwrap();
    assert_eq!((record.last_status.as_str(), record.version), ("PENDING", 2));

    link.report(2, running(&task)).await;
    link.acknowledged(2).await;
    let record = plane.task(&task).await.unwrap();
    assert_eq!(
        (record.last_status.as_str(), record.version, record.started_at),
        ("RUNNING", 3, Some(5_000))
    );
    assert_eq!(record.ipv4_address.as_deref(), Some("10.0.0.7"));
    assert_eq!(record.ipv6_address.as_deref(), Some("fd00::a00:7"));
    assert_eq!(record.containers[0].last_status, "RUNNING");

    // It ends by itself: what is wanted follows, and its CPU and memory are free before it is cleaned up.
    let mut stopping = stopped(&task);
    stopping.set_status(TaskStatus::Stopping);
    link.report(3, stopping).await;
    link.acknowledged(3).await;
    let record = plane.task(&task).await.unwrap();
    assert_eq!(
        (record.last_status.as_str(), record.desired_status.as_str()),
        ("STOPPING", "STOPPED")
    );
    assert_eq!(
        plane.spec(&node, &task).await.unwrap().desired_status(),
        DesiredStatus::Stopped
    );
    assert!(plane.node(&node).await.allocations[&task].stopping);

    link.report(4, stopped(&task)).await;
    link.acknowledged(4).await;
    let record = plane.task(&task).await.unwrap();
    assert_eq!(
        (record.last_status.as_str(), record.stopped_at),
        ("STOPPED", Some(9_000))
    );
    assert_eq!(record.stop_code.as_deref(), Some("EssentialContainerExited"));
    assert_eq!(record.containers[0].exit_code, Some(137));
    assert_eq!(
        record.ipv4_address.as_deref(),
        Some("10.0.0.7"),
        "what it had stays known"
    );
    assert!(plane.spec(&node, &task).await.is_none());
    assert!(plane.node(&node).await.allocations.is_empty());
}

#[tokio::test]
async fn an_ipv6_address_that_a_task_has_no_more_is_forgotten() {
    let plane = Plane::start().await;
    let (node, task) = (id('a'), id('1'));
    let mut link = plane.connect(&node).await;
    plane.place(&node, &task).await;
    link.report(1, running(&task)).await;
    link.acknowledged(1).await;
    let after_a_boot = TaskState {
        ipv6_address: String::new(),
        ..running(&task)
    };
    link.report(2, after_a_boot).await;
    link.acknowledged(2).await;
    let record = plane.task(&task).await.unwrap();
    assert_eq!(
        (record.ipv4_address.as_deref(), record.ipv6_address),
        (Some("10.0.0.7"), None)
    );
}

#[tokio::test]
async fn a_report_is_applied_once_however_often_it_comes() {
    let plane = Plane::start().await;
    let (node, task) = (id('a'), id('1'));
    let mut link = plane.connect(&node).await;
    plane.place(&node, &task).await;
    link.report(5, running(&task)).await;
    link.acknowledged(5).await;
    let record = plane.task(&task).await.unwrap();
    // The same again, an older one, and the same over a new link.
    link.report(5, stopped(&task)).await;
    link.acknowledged(5).await;
    link.report(4, stopped(&task)).await;
    link.acknowledged(5).await;
    let mut link = Link::open(plane.client(&node).await).await;
    link.hello(&node, 5).await;
    assert_eq!(link.expect_start().await.0.applied_sequence, 5);
    link.report(5, stopped(&task)).await;
    link.acknowledged(5).await;
    let now = plane.task(&task).await.unwrap();
    assert_eq!(
        (now.last_status.as_str(), now.version),
        ("RUNNING", record.version)
    );
    // A new sequence number with nothing new in it changes no version.
    link.report(6, running(&task)).await;
    link.acknowledged(6).await;
    assert_eq!(plane.task(&task).await.unwrap().version, record.version);
}

#[tokio::test]
async fn many_reports_share_transactions_and_keep_their_order() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = plane.connect(&node).await;
    let tasks: Vec<String> = (0..150).map(|i| format!("{i:032x}")).collect();
    for task in &tasks {
        plane.place(&node, task).await;
    }
    let before = plane.store.range("", None, 1).await.unwrap().revision;
    let mut sequence = 0;
    for task in &tasks {
        for state in [state(task, TaskStatus::Pending), running(task), stopped(task)] {
            sequence += 1;
            link.report(sequence, state).await;
        }
    }
    link.acknowledged(sequence).await;
    for task in &tasks {
        let record = plane.task(task).await.unwrap();
        assert_eq!((record.last_status.as_str(), record.version), ("STOPPED", 4));
    }
    assert!(plane.node(&node).await.allocations.is_empty());
    let revisions = plane.store.range("", None, 1).await.unwrap().revision - before;
    assert!(revisions < 450, "{revisions} transactions for 450 reports");
}

#[tokio::test]
async fn reports_of_strange_tasks_are_acknowledged_and_change_nothing() {
    let plane = Plane::start().await;
    let (node, other) = (id('a'), id('b'));
    let _other = plane.connect(&other).await;
    let mut link = plane.connect(&node).await;
    plane.place(&other, &id('1')).await;
    let mut unknown_status = running(&id('1'));
    unknown_status.status = 99;
    for (sequence, task) in [
        running(&id('1')),
        running(&id('2')),
        running("../../x"),
        unknown_status,
    ]
    .into_iter()
    .enumerate()
    {
        link.report(sequence as u64 + 1, task).await;
    }
    link.send(FromNode::StateChange(StateChange {
        sequence: 5,
        task: None,
    }))
    .await;
    link.acknowledged(5).await;
    assert_eq!(plane.task(&id('1')).await.unwrap().last_status, "PROVISIONING");
    assert!(plane.task(&id('2')).await.is_none());
    assert!(plane.node(&other).await.allocations.contains_key(&id('1')));
}

#[tokio::test]
async fn what_a_user_asked_for_stays_the_reason_and_stopped_is_final() {
    let plane = Plane::start().await;
    let (node, task) = (id('a'), id('1'));
    let mut link = plane.connect(&node).await;
    plane.place(&node, &task).await;
    let mut record = plane.task(&task).await.unwrap();
    record.desired_status = "STOPPED".into();
    record.stop_code = Some("UserInitiated".into());
    record.stopped_reason = Some("maintenance".into());
    plane
        .put(vec![
            typed::put_json(format!("/tasks/{CLUSTER}/{task}"), &record).unwrap(),
        ])
        .await;
    link.report(1, stopped(&task)).await;
    link.report(2, running(&task)).await;
    link.acknowledged(2).await;
    let record = plane.task(&task).await.unwrap();
    assert_eq!(record.last_status, "STOPPED");
    assert_eq!(
        (record.stop_code.as_deref(), record.stopped_reason.as_deref()),
        (Some("UserInitiated"), Some("maintenance"))
    );
}

#[tokio::test]
async fn a_report_and_a_placement_at_the_same_time_both_count() {
    let plane = Arc::new(Plane::start().await);
    let node = id('a');
    let mut link = plane.connect(&node).await;
    let tasks: Vec<String> = (0..30).map(|i| format!("{i:032x}")).collect();
    for task in &tasks {
        plane.place(&node, task).await;
    }
    // Placement by compare on the node's record, as the API does it, against the stops.
    let placing = {
        let (plane, node) = (plane.clone(), node.clone());
        tokio::spawn(async move {
            for i in 0..30 {
                loop {
                    let key = format!("/nodes/{CLUSTER}/{node}");
                    let mut record = typed::get_json::<Node>(&*plane.store, &key)
                        .await
                        .unwrap()
                        .unwrap();
                    record
                        .value
                        .allocations
                        .insert(format!("{:032x}", 100 + i), allocation());
                    let operations = vec![typed::put_json(key, &record.value).unwrap()];
                    let transaction = Transaction {
                        compare: vec![record.unchanged()],
                        operations,
                    };
                    if plane.store.commit(transaction).await.unwrap() != Committed::Conflict {
                        break;
                    }
                }
            }
        })
    };
    for (i, task) in tasks.iter().enumerate() {
        link.report(i as u64 + 1, stopped(task)).await;
    }
    link.acknowledged(30).await;
    placing.await.unwrap();
    let record = plane.node(&node).await;
    assert_eq!(record.allocations.len(), 30);
    assert!(tasks.iter().all(|task| !record.allocations.contains_key(task)));
}

#[tokio::test]
async fn warnings_of_a_node_are_kept_in_bounds_and_go_when_it_no_longer_has_them() {
    let plane = Plane::start().await;
    let (node, task) = (id('a'), id('1'));
    let mut link = plane.connect(&node).await;
    plane.place(&node, &task).await;
    let mut report = running(&task);
    report.warnings = vec![String::new(), "x".repeat(2_000)];
    report.warnings.extend((0..40).map(|n| format!("warning {n}")));
    link.report(1, report).await;
    link.acknowledged(1).await;
    let record = plane.task(&task).await.unwrap();
    assert_eq!(record.node_warnings.len(), 32);
    assert_eq!(
        record.node_warnings[..2],
        ["x".repeat(1_024), "warning 0".to_owned()]
    );
    let shown: Vec<_> = record.all_warnings().collect();
    assert_eq!(shown.len(), 32);

    link.report(2, running(&task)).await;
    link.acknowledged(2).await;
    let after = plane.task(&task).await.unwrap();
    assert!(after.node_warnings.is_empty() && after.version > record.version);
}

#[tokio::test]
async fn health_is_kept_bounded_and_makes_that_of_the_task() {
    let plane = Plane::start().await;
    let (node, task) = (id('a'), id('1'));
    let mut link = plane.connect(&node).await;
    plane.place(&node, &task).await;
    link.report(1, running(&task)).await;
    link.acknowledged(1).await;
    let record = plane.task(&task).await.unwrap();
    assert_eq!(
        (record.containers[0].health.clone(), record.health()),
        (None, "UNKNOWN")
    );
    for (at, told, kept) in [
        (2, HealthStatus::Unknown, "UNKNOWN"),
        (3, HealthStatus::Healthy, "HEALTHY"),
        (4, HealthStatus::Unhealthy, "UNHEALTHY"),
    ] {
        let mut state = running(&task);
        state.containers[0].set_health(told);
        state.containers[0].health_since_ms = 7;
        state.containers[0].health_probe = Some(HealthProbe {
            exit_code: Some(3),
            output: "x".repeat(5_000),
        });
        link.report(at, state).await;
        link.acknowledged(at).await;
        let record = plane.task(&task).await.unwrap();
        let health = record.containers[0].health.clone().unwrap();
        assert_eq!((health.status.as_str(), record.health()), (kept, kept));
        assert_eq!((health.since, health.exit_code), (Some(7), Some(3)));
        assert_eq!(health.output.unwrap().len(), 1_024);
    }
    // An agent of an earlier version says nothing of it.
    link.report(5, running(&task)).await;
    link.acknowledged(5).await;
    assert_eq!(plane.task(&task).await.unwrap().health(), "UNHEALTHY");
}

#[tokio::test]
async fn the_first_task_of_a_revision_decides_what_all_run() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = plane.connect(&node).await;
    let digest = |digit: char| format!("sha256:{}", digit.to_string().repeat(64));
    let resolved = |task: &str, digest: &str| {
        let mut state = state(task, TaskStatus::Pending);
        state.containers[0].resolved_digest = digest.into();
        state
    };
    let key = crate::model::keys::image_pins("web", 1);
    let pinned = async || {
        typed::get_json::<crate::model::ImagePins>(&*plane.store, &key)
            .await
            .unwrap()
    };
    for (sequence, task, reported) in [
        // What is no digest decides nothing.
        (1, '1', "sha256:../x".to_owned()),
        (2, '1', digest('1')),
        (3, '2', digest('2')),
        (4, '1', digest('3')),
    ] {
        let task = id(task);
        if plane.task(&task).await.is_none() {
            plane.place(&node, &task).await;
        }
        link.report(sequence, resolved(&task, &reported)).await;
        link.acknowledged(sequence).await;
        let decided = pinned().await.map(|found| found.value.digests);
        let first =
            (sequence > 1).then(|| std::collections::BTreeMap::from([("web".to_owned(), digest('1'))]));
        assert_eq!(decided, first, "{sequence}");
    }
    // The other goes on with what it has.
    let other = plane.task(&id('2')).await.unwrap();
    assert_eq!(other.containers[0].resolved_digest, Some(digest('2')));
    // A task that runs pinned images, or is not to be pinned, decides nothing.
    let mut record = task_record(&node, &id('3'));
    (record.revision, record.containers[0].pins) = (2, false);
    let key = crate::model::keys::task("default", &record.id);
    plane.put(vec![typed::put_json(key, &record).unwrap()]).await;
    link.report(5, resolved(&id('3'), &digest('4'))).await;
    link.acknowledged(5).await;
    let key = crate::model::keys::image_pins("web", 2);
    let other = typed::get_json::<crate::model::ImagePins>(&*plane.store, &key)
        .await
        .unwrap();
    assert!(other.is_none());
}
