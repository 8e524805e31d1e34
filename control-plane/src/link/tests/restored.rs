//! Nodes of a control plane that lost data: what they hold back, what an operator confirms, what is over.

use berth_control_plane_core::subnets::{AsOf, Blocks, Candidate};
use berth_proto::node::v1::{DesiredAck, HeldRange, KnownTask, NodeNetwork, Position, TaskStatus};

use super::*;
use crate::{
    model::{Confirmation, StoreIdentity, Subnet, SubnetKind, keys},
    nodes::{Held, Nodes},
    store::typed::IDENTITY_KEY,
};

#[tokio::test]
async fn what_a_node_holds_back_is_shown_and_goes_on_once_it_is_confirmed() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = Link::open(plane.client(&node).await).await;
    link.hello(&node, 0).await;
    let (_, snapshot) = link.expect_start().await;
    assert!(!snapshot.removals_confirmed);
    let nodes: Arc<dyn Nodes> = plane.server.nodes();
    assert_eq!(nodes.held(&node), None);
    link.send(FromNode::DesiredAck(DesiredAck {
        position: snapshot.position.clone(),
        refused_reason: "would stop 2 of 2".into(),
        confirmable: true,
    }))
    .await;
    let begun = Instant::now();
    while nodes.held(&node).is_none() {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let held = Held {
        reason: "would stop 2 of 2".into(),
        confirmable: true,
    };
    assert_eq!(nodes.held(&node), Some(held));
    let impairments = nodes.latest_heartbeat(&node).unwrap().impairments;
    assert_eq!(impairments, ["desired state: would stop 2 of 2"]);

    let confirmation = Confirmation {
        node: node.clone(),
        confirmed_by: "AKID".into(),
        confirmed_at: 0,
    };
    let put = typed::put_json(keys::confirmation(&node), &confirmation).unwrap();
    plane.put(vec![put]).await;
    let ToNode::Snapshot(again) = link.next().await else {
        panic!("everything is told again")
    };
    assert!(again.removals_confirmed);
    link.send(FromNode::DesiredAck(DesiredAck {
        position: again.position,
        ..Default::default()
    }))
    .await;
    let begun = Instant::now();
    while nodes.held(&node).is_some() {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // That it runs out is no news.
    let key = keys::confirmation(&node);
    plane.put(vec![Operation::Delete { key }]).await;
    link.quiet().await;
    let other = Link::open(plane.client(&id('b')).await).await;
    other.hello(&id('b'), 0).await;
}

#[tokio::test]
async fn what_a_node_had_and_has_no_more_is_over_after_a_restore() {
    let plane = Plane::start().await;
    let node = id('a');
    drop(plane.connect(&node).await);
    for task in ['1', '2', '3'] {
        plane.place(&node, &id(task)).await;
    }
    for (task, status) in [('1', "RUNNING"), ('2', "RUNNING"), ('3', "PROVISIONING")] {
        let mut record = plane.task(&id(task)).await.unwrap();
        record.last_status = status.into();
        let put = typed::put_json(keys::task(CLUSTER, &id(task)), &record).unwrap();
        plane.put(vec![put]).await;
    }
    let identity = typed::get_json::<StoreIdentity>(&*plane.store, IDENTITY_KEY).await;
    let identity = identity.unwrap().unwrap().value;
    let mut link = Link::open(plane.client(&node).await).await;
    let known = KnownTask {
        task_id: id('1'),
        status: TaskStatus::Running.into(),
    };
    let hello = Hello {
        position: Some(Position {
            store_id: identity.store_id,
            epoch: identity.epoch - 1,
            revision: 1_000,
        }),
        known_tasks: vec![known],
        ..hello(&node, 0)
    };
    link.send(FromNode::Hello(hello)).await;
    let (_, snapshot) = link.expect_start().await;
    let wanted: Vec<_> = snapshot.tasks.iter().map(|task| task.task_id.clone()).collect();
    assert_eq!(
        wanted,
        [id('1'), id('3')],
        "what it never reported may not have reached it"
    );
    let over = plane.task(&id('2')).await.unwrap();
    assert_eq!(
        (over.last_status.as_str(), over.desired_status.as_str()),
        ("STOPPED", "STOPPED")
    );
    assert!(over.stopped_reason.unwrap().contains("restored from"));
    assert!(!plane.node(&node).await.allocations.contains_key(&id('2')));
    assert!(plane.node(&node).await.allocations.contains_key(&id('1')));
}

const SUBNET: &str = "subnet-0000000000000000a";

/// What a node that has these ranges is told of its network, once it has linked.
async fn told(plane: &Plane, node: &str, has: &[&str]) -> NodeNetwork {
    let held = has.iter().map(|range| HeldRange {
        subnet_id: SUBNET.into(),
        ipv4_range: (*range).into(),
    });
    let hello = Hello {
        features: vec!["net.subnets".into()],
        held_ranges: held.collect(),
        ..hello(node, 0)
    };
    let mut link = Link::open(plane.client(node).await).await;
    link.send(FromNode::Hello(hello)).await;
    loop {
        if let ToNode::Network(network) = link.next().await {
            return network;
        }
    }
}

fn ranges(network: &NodeNetwork) -> Vec<&str> {
    let ranges = network.ranges.iter();
    ranges.map(|range| range.ipv4_range.as_str()).collect()
}

/// Of a node that joined after the backup was made, and of one that joins after it was restored.
#[tokio::test]
async fn a_part_that_the_backup_does_not_know_of_stays_with_the_node_that_has_it() {
    let plane = Plane::start().await;
    let known = id('a');
    drop(plane.connect(&known).await);
    let mut subnet = Subnet {
        id: SUBNET.into(),
        cluster: CLUSTER.into(),
        name: "front".into(),
        kind: SubnetKind::Routed,
        range: "10.64.0.0/24".parse().unwrap(),
        node_prefix_len: 26,
        ipv6_prefix: None,
        deleting: false,
        tags: Default::default(),
        created_at: 0,
        blocks: Blocks::default(),
    };
    let first = Candidate {
        node: known.clone(),
        ..Candidate::default()
    };
    let shape = subnet.shape();
    subnet.blocks.settle(
        shape,
        &[first],
        AsOf {
            ms: 0,
            epoch: 1,
            epoch_since_ms: 0,
        },
    );
    let identity = typed::get_json::<StoreIdentity>(&*plane.store, IDENTITY_KEY).await;
    let raised = StoreIdentity {
        epoch: 1_000,
        ..identity.unwrap().unwrap().value
    };
    plane
        .put(vec![
            typed::put_json(keys::subnet(CLUSTER, SUBNET), &subnet).unwrap(),
            typed::put_json(IDENTITY_KEY, &raised).unwrap(),
        ])
        .await;
    let server = serve(&plane.authority, plane.store.clone(), Duration::from_secs(15)).await;
    let plane = Plane { server, ..plane };

    let anew = told(&plane, &id('c'), &[]).await;
    assert!(
        ranges(&anew).is_empty(),
        "the next part may be somebody's: {anew:?}"
    );
    let joined_since = told(&plane, &id('b'), &["10.64.0.64/26", "no range"]).await;
    assert_eq!(ranges(&joined_since), ["10.64.0.64/26"]);
    let known = told(&plane, &known, &["10.64.0.0/26"]).await;
    assert_eq!(ranges(&known), ["10.64.0.0/26"]);
    let anew = told(&plane, &id('c'), &[]).await;
    assert!(ranges(&anew).is_empty(), "others may speak yet: {anew:?}");
}
