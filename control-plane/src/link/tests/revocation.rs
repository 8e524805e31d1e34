//! Revoked identities.

use berth_proto::node::v1::{BulkFromNode, BulkStart, RenewRequest, StateChange, TaskState, TaskStatus};
use tonic::Code;

use super::{joining::Host, *};
use crate::model::{Revocation, keys};

pub(super) fn revocation(node: &str) -> Operation {
    let record = Revocation {
        node: node.into(),
        cluster: CLUSTER.into(),
        reason: "stolen from the rack".into(),
        revoked_by: "AKIDEXAMPLE00001".into(),
        revoked_at: 1,
    };
    typed::put_json(keys::revocation(node), &record).unwrap()
}

fn assert_revoked(status: &Status) {
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("stolen from the rack"), "{status:?}");
}

async fn refused_everywhere(plane: &Plane, node: &str) {
    let mut client = plane.client(node).await;
    let (_sender, messages) = mpsc::channel::<NodeMessage>(1);
    assert_revoked(&client.link(ReceiverStream::new(messages)).await.unwrap_err());
    let (sender, messages) = mpsc::channel(1);
    let start = berth_proto::node::v1::bulk_from_node::Message::Start(BulkStart::default());
    sender.send(BulkFromNode { message: Some(start) }).await.unwrap();
    assert_revoked(&client.bulk(ReceiverStream::new(messages)).await.unwrap_err());
    let request = RenewRequest {
        certificate_request_der: Host::new().request(),
    };
    assert_revoked(&client.renew(request).await.unwrap_err());
}

#[tokio::test]
async fn the_live_link_ends_and_every_later_call_is_refused_also_after_a_restart() {
    let plane = Plane::start().await;
    let (bad, good) = (id('a'), id('b'));
    let mut link = plane.connect(&bad).await;
    let mut other = plane.connect(&good).await;
    plane.put(vec![revocation(&bad)]).await;
    assert_revoked(&link.end().await);
    plane.until_connected(&bad, false).await;
    refused_everywhere(&plane, &bad).await;
    other.quiet().await;

    let Plane {
        directory,
        authority,
        store,
        server,
    } = plane;
    server.stop(Instant::now() + SOON).await;
    let server = serve(&authority, store.clone(), SOON).await;
    let plane = Plane {
        directory,
        authority,
        store,
        server,
    };
    refused_everywhere(&plane, &bad).await;
    plane.connect(&good).await;
}

#[tokio::test]
async fn a_link_that_is_about_to_begin_is_refused_as_well() {
    let plane = Plane::start().await;
    let node = id('a');
    let mut link = Link::open(plane.client(&node).await).await;
    plane.put(vec![revocation(&node)]).await;
    link.hello(&node, 0).await;
    assert_revoked(&link.end().await);
    let key = keys::node(CLUSTER, &node);
    assert!(plane.store.get(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn the_key_of_a_revoked_node_does_not_join_again_by_its_token() {
    let plane = Plane::start().await;
    let (host, token) = (Host::new(), plane.token(|_| {}).await);
    let joined = plane.join(&host, &token).await.unwrap();
    plane.put(vec![revocation(&joined.node_id)]).await;
    assert_revoked(&plane.join(&host, &token).await.unwrap_err());
    let fresh = plane.token(|_| {}).await;
    let again = plane.join(&host, &fresh).await.unwrap();
    assert_ne!(again.node_id, joined.node_id, "by a new token it is a new node");
}

#[tokio::test]
async fn a_deregistered_node_is_let_in_to_stop_its_tasks_and_revoked_then() {
    let plane = Plane::start().await;
    let (node, task) = (id('a'), id('1'));
    drop(plane.connect(&node).await);
    plane.place(&node, &task).await;
    plane.until_connected(&node, false).await;
    let mut record = plane.node(&node).await;
    record.status = "INACTIVE".into();
    plane
        .put(vec![
            typed::put_json(keys::node(CLUSTER, &node), &record).unwrap(),
        ])
        .await;
    let mut link = plane.connect(&node).await;
    assert_eq!(
        plane.node(&node).await.status,
        "INACTIVE",
        "it takes no new tasks"
    );
    let state = TaskState {
        task_id: task.clone(),
        status: TaskStatus::Stopped.into(),
        ..Default::default()
    };
    link.send(FromNode::StateChange(StateChange {
        sequence: 1,
        task: Some(state),
    }))
    .await;
    let status = link.end().await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("deregistered"), "{status:?}");
    assert_eq!(plane.task(&task).await.unwrap().last_status, "STOPPED");
    let (_sender, messages) = mpsc::channel::<NodeMessage>(1);
    let mut client = plane.client(&node).await;
    let status = client.link(ReceiverStream::new(messages)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_last_report_of_a_node_that_was_revoked_meanwhile_keeps_the_reason() {
    let plane = Plane::start().await;
    let (node, task) = (id('a'), id('1'));
    drop(plane.connect(&node).await);
    plane.place(&node, &task).await;
    let mut record = plane.node(&node).await;
    record.status = "INACTIVE".into();
    let inactive = typed::put_json(keys::node(CLUSTER, &node), &record).unwrap();
    plane.put(vec![inactive, revocation(&node)]).await;
    // As its link does with what it read before it heard of its end.
    let peer = crate::pki::Peer {
        node_id: node.clone(),
        cluster: CLUSTER.into(),
    };
    let mut applier = crate::link::apply::Applier::load(plane.store.clone(), peer, Default::default())
        .await
        .unwrap();
    let state = TaskState {
        task_id: task.clone(),
        status: TaskStatus::Stopped.into(),
        ..Default::default()
    };
    let change = StateChange {
        sequence: 1,
        task: Some(state),
    };
    applier.apply(&[change]).await.unwrap();
    assert_eq!(plane.task(&task).await.unwrap().last_status, "STOPPED");
    let kept = typed::get_json::<Revocation>(&*plane.store, &keys::revocation(&node)).await;
    assert_eq!(kept.unwrap().unwrap().value.reason, "stolen from the rack");
}
