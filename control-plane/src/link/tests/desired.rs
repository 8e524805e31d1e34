//! What a node is told to run.

use berth_proto::node::v1::{MESSAGE_BYTES_MAX, SNAPSHOT_PARTS, Snapshot};

use super::*;

#[tokio::test]
async fn a_node_is_registered_and_told_everything_then_every_change() {
    let plane = Plane::start().await;
    let node = id('a');
    let before = plane
        .put(vec![desired(&node, &id('1'), DesiredStatus::Running)])
        .await;
    plane
        .put(vec![desired(&id('b'), &id('9'), DesiredStatus::Running)])
        .await;
    let mut link = Link::open(plane.client(&node).await).await;
    link.hello(&node, 0).await;
    let (welcome, snapshot) = link.expect_start().await;
    assert_eq!(
        (
            welcome.version,
            welcome.applied_sequence,
            welcome.cluster.as_str()
        ),
        (1, 0, CLUSTER)
    );
    assert_eq!(welcome.heartbeat_interval_ms, 5_000);
    let start = snapshot.position.unwrap();
    assert_eq!((start.store_id.len(), start.epoch), (32, 1));
    assert!(start.revision > before);
    let tasks: Vec<_> = snapshot.tasks.iter().map(|t| t.task_id.clone()).collect();
    assert_eq!(tasks, [id('1')], "its own only");

    let record = plane.node(&node).await;
    assert!(record.agent_connected && record.status == "ACTIVE" && record.cpu_units == 2_048);
    assert_eq!(
        (record.reserved_tcp_ports, record.hostname.as_str()),
        (vec![22], "host-1")
    );
    assert_eq!(record.node_attributes["ecs.os-type"].as_deref(), Some("linux"));
    assert_eq!(record.node_attributes["gpu"], None);
    let cluster: crate::model::Cluster = typed::get_json(&*plane.store, "/clusters/default")
        .await
        .unwrap()
        .unwrap()
        .value;
    assert_eq!(cluster.status, "ACTIVE");
    let place = typed::get_json::<String>(&*plane.store, &format!("/node-clusters/{node}"))
        .await
        .unwrap();
    assert_eq!(place.unwrap().value, CLUSTER);

    plane
        .put(vec![desired(&id('b'), &id('8'), DesiredStatus::Running)])
        .await;
    let both = vec![
        desired(&node, &id('1'), DesiredStatus::Stopped),
        desired(&node, &id('2'), DesiredStatus::Running),
    ];
    let revision = plane.put(both).await;
    let ToNode::Delta(delta) = link.next().await else {
        panic!()
    };
    assert_eq!(delta.position.as_ref().unwrap().revision, revision);
    assert_eq!(delta.position.unwrap().store_id, start.store_id);
    let changed: Vec<_> = delta
        .changed
        .iter()
        .map(|t| (t.task_id.clone(), t.desired_status()))
        .collect();
    assert_eq!(
        changed,
        [
            (id('1'), DesiredStatus::Stopped),
            (id('2'), DesiredStatus::Running)
        ]
    );
    plane
        .put(vec![Operation::Delete {
            key: format!("/desired/{node}/{}", id('1')),
        }])
        .await;
    let ToNode::Delta(delta) = link.next().await else {
        panic!()
    };
    assert_eq!((delta.removed_task_ids, delta.changed.len()), (vec![id('1')], 0));
    link.quiet().await;
}

#[tokio::test]
async fn what_the_operator_and_placement_wrote_survives_a_new_hello() {
    let plane = Plane::start().await;
    let node = id('a');
    drop(plane.connect(&node).await);
    plane.until_connected(&node, false).await;
    plane.place(&node, &id('1')).await;
    let mut record = plane.node(&node).await;
    record.status = "DRAINING".into();
    record.tags.insert("rack".into(), "7".into());
    record.attributes.insert("zone".into(), Some("a".into()));
    record.node_attributes.insert("stale".into(), None);
    let registered_at = record.registered_at;
    plane
        .put(vec![
            typed::put_json(format!("/nodes/{CLUSTER}/{node}"), &record).unwrap(),
        ])
        .await;
    let _link = plane.connect(&node).await;
    let record = plane.node(&node).await;
    assert_eq!(
        (record.status.as_str(), record.tags["rack"].as_str()),
        ("DRAINING", "7")
    );
    assert_eq!(record.attributes["zone"].as_deref(), Some("a"));
    assert!(record.allocations.contains_key(&id('1')) && !record.node_attributes.contains_key("stale"));
    assert!(record.agent_connected && record.registered_at == registered_at);
}

#[tokio::test]
async fn a_compacted_history_is_made_up_for_by_a_snapshot() {
    let plane = Plane::start().await;
    let node = id('a');
    let store: SharedStore = plane.store.clone();
    let identity = typed::identity(&*store).await.unwrap();
    let (_, _, mut dispatch) = super::super::dispatch::Dispatch::begin(store.clone(), identity, &node, false)
        .await
        .unwrap();
    plane
        .put(vec![desired(&node, &id('1'), DesiredStatus::Running)])
        .await;
    let revision = plane
        .put(vec![desired(&node, &id('2'), DesiredStatus::Running)])
        .await;
    store.compact(revision).await.unwrap();
    let ToNode::Snapshot(snapshot) = timeout(SOON, dispatch.next()).await.unwrap().unwrap() else {
        panic!()
    };
    assert_eq!(
        (snapshot.tasks.len(), snapshot.position.unwrap().revision),
        (2, revision)
    );
    let revision = plane
        .put(vec![desired(&node, &id('3'), DesiredStatus::Running)])
        .await;
    let ToNode::Delta(delta) = timeout(SOON, dispatch.next()).await.unwrap().unwrap() else {
        panic!()
    };
    assert_eq!(delta.position.unwrap().revision, revision);
}

#[tokio::test]
async fn a_change_too_large_for_a_message_comes_as_a_snapshot_or_ends_the_link_with_the_reason() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = plane.connect(&node).await;
    let large = |task| large(&node, task);
    plane.put("1234".chars().map(large).collect()).await;
    let ToNode::Delta(delta) = link.next().await else {
        panic!()
    };
    assert_eq!(delta.changed.len(), 4);
    // The same and one more, then all but one gone: what was too much as a change fits as a state.
    plane.put(vec![large('5')]).await;
    assert!(matches!(link.next().await, ToNode::Delta(_)));
    plane.put("12345".chars().map(large).collect()).await;
    let status = link.end().await;
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert!(status.message().contains("takes no more than"), "{status:?}");
}

/// A task of which a message holds four.
fn large(node: &str, task: char) -> Operation {
    let spec = TaskSpec {
        task_id: id(task),
        stop_reason: "x".repeat(1_000_000),
        ..Default::default()
    };
    Operation::Put {
        key: format!("/desired/{node}/{}", id(task)),
        value: spec.encode_to_vec().into(),
        lease: None,
    }
}

#[tokio::test]
async fn what_one_message_does_not_hold_comes_in_parts_to_a_node_that_takes_them() {
    let plane = Plane::start().await;
    let node = id('a');
    plane
        .put("123456789".chars().map(|task| large(&node, task)).collect())
        .await;
    let mut link = Link::open(plane.client(&node).await).await;
    let mut hello = hello(&node, 0);
    hello.features.push(SNAPSHOT_PARTS.into());
    link.send(FromNode::Hello(hello)).await;
    let (_, first) = link.expect_start().await;
    let mut known = whole(&mut link, first).await;
    assert_eq!(known, "123456789".chars().map(id).collect::<Vec<_>>());
    // What one delta does not hold comes in parts too, and the deltas after it.
    plane
        .put("12345b".chars().map(|task| large(&node, task)).collect())
        .await;
    let ToNode::Snapshot(first) = link.next().await else {
        panic!()
    };
    known.push(id('b'));
    assert_eq!(whole(&mut link, first).await, known);
    plane
        .put(vec![desired(&node, &id('c'), DesiredStatus::Running)])
        .await;
    assert!(matches!(link.next().await, ToNode::Delta(_)));
}

/// The tasks of a snapshot that has several parts.
async fn whole(link: &mut Link, first: Snapshot) -> Vec<String> {
    let (mut tasks, mut part) = (Vec::new(), first);
    assert!(part.more);
    loop {
        assert!(part.encoded_len() < MESSAGE_BYTES_MAX && !part.tasks.is_empty());
        tasks.extend(part.tasks.iter().map(|task| task.task_id.clone()));
        if !part.more {
            return tasks;
        }
        let ToNode::Snapshot(next) = link.next().await else {
            panic!()
        };
        assert_eq!(next.position, part.position);
        part = next;
    }
}

#[tokio::test]
async fn a_node_says_which_gpus_it_has_and_what_became_of_them() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = Link::open(plane.client(&node).await).await;
    let mut hello = hello(&node, 0);
    let capacity = hello.capacity.clone().unwrap();
    let gpus = |ids: &[&str]| Capacity {
        gpu_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..capacity.clone()
    };
    hello.capacity = Some(gpus(&["x/gpu=0", "x/gpu=1", "x/gpu=0"]));
    link.send(FromNode::Hello(hello)).await;
    link.expect_start().await;
    assert_eq!(plane.node(&node).await.gpus, ["x/gpu=0", "x/gpu=1"]);
    plane.place(&node, &id('1')).await;
    link.send(FromNode::Capacity(gpus(&["x/gpu=1", "x/gpu=2"]))).await;
    let deadline = Instant::now() + SOON;
    while plane.node(&node).await.gpus != ["x/gpu=1", "x/gpu=2"] {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What is the placement's stays.
    assert!(plane.node(&node).await.allocations.contains_key(&id('1')));
    // More than a host can have ends the link, and changes nothing.
    let many: Vec<String> = (0..300).map(|n| format!("x/gpu={n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    link.send(FromNode::Capacity(gpus(&many))).await;
    assert!(link.end().await.message().contains("too much GPUs"));
    assert_eq!(plane.node(&node).await.gpus.len(), 2);
}
