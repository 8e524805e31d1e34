//! Who counts as connected.

use berth_proto::node::v1::Heartbeat;
use tonic::Code;

use super::*;

fn beat(load: u64) -> FromNode {
    let usage = berth_proto::node::v1::NodeUsage {
        load1_milli: load,
        ..Default::default()
    };
    FromNode::Heartbeat(Heartbeat {
        node: Some(usage),
        ..Default::default()
    })
}

#[tokio::test]
async fn a_silent_node_is_disconnected_and_a_speaking_one_is_not() {
    let silence = Duration::from_millis(600);
    let plane = Plane::start_with(silence, Limits::default()).await;
    let (quiet, busy) = (id('a'), id('b'));
    let mut quiet_link = plane.connect(&quiet).await;
    let busy_link = plane.connect(&busy).await;
    let nodes = plane.server.nodes();
    let started = Instant::now();
    while started.elapsed() < silence * 3 {
        busy_link.send(beat(1)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let status = quiet_link.end().await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().contains("said nothing for 600 ms"), "{status:?}");
    plane.until_connected(&quiet, false).await;
    assert!(plane.node(&busy).await.agent_connected);
    assert!(nodes.latest_heartbeat(&quiet).is_none() && nodes.latest_heartbeat(&busy).is_some());
}

#[tokio::test]
async fn the_latest_heartbeat_wins_and_none_is_stored() {
    let plane = Plane::start().await;
    let node = id('a');
    let link = plane.connect(&node).await;
    let before = plane.store.range("", None, 1).await.unwrap().revision;
    for load in 1..=20 {
        link.send(beat(load)).await;
    }
    let nodes = plane.server.nodes();
    let deadline = Instant::now() + SOON;
    while nodes
        .latest_heartbeat(&node)
        .and_then(|h| h.node)
        .map(|n| n.load1_milli)
        != Some(20)
    {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(plane.store.range("", None, 1).await.unwrap().revision, before);
}

#[tokio::test]
async fn a_second_link_ends_the_first_and_the_node_stays_connected() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut first = plane.connect(&node).await;
    let mut second = plane.connect(&node).await;
    assert_eq!(first.end().await.code(), Code::Aborted);
    let since = plane.node(&node).await;
    assert!(since.agent_connected);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        plane.node(&node).await.agent_connected,
        "the end of the first is not the node's"
    );
    plane
        .put(vec![desired(&node, &id('1'), DesiredStatus::Running)])
        .await;
    assert!(matches!(second.next().await, ToNode::Delta(_)));
    drop(second);
    plane.until_connected(&node, false).await;
}

#[tokio::test]
async fn a_storm_of_links_leaves_the_last() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut links = Vec::new();
    for _ in 0..10 {
        let link = Link::open(plane.client(&node).await).await;
        link.hello(&node, 0).await;
        links.push(link);
    }
    let mut last = links.pop().unwrap();
    last.expect_start().await;
    for mut link in links {
        link.end().await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(plane.node(&node).await.agent_connected);
    last.quiet().await;
}

#[tokio::test]
async fn a_stop_ends_links_and_writes_it_down_and_a_start_disconnects_what_was_left() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = plane.connect(&node).await;
    let Plane {
        authority,
        store,
        server,
        directory,
    } = plane;
    let shared: SharedStore = store.clone();
    server.stop(Instant::now() + SOON).await;
    assert_eq!(link.end().await.code(), Code::Unavailable);
    let key = format!("/nodes/{CLUSTER}/{node}");
    let read = || async {
        typed::get_json::<Node>(&*store, &key)
            .await
            .unwrap()
            .unwrap()
            .value
    };
    let mut record = read().await;
    assert!(!record.agent_connected);

    // As a control plane leaves it that was killed.
    record.agent_connected = true;
    let operations = vec![typed::put_json(key.clone(), &record).unwrap()];
    store
        .commit(Transaction {
            compare: vec![],
            operations,
        })
        .await
        .unwrap();
    let server = serve(&authority, shared, SOON).await;
    assert!(!read().await.agent_connected);
    server.stop(Instant::now() + SOON).await;
    drop(directory);
}
