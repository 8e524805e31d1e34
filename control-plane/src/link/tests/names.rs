//! Where a node is told that the tasks of its cluster are reached.

use berth_proto::node::v1::{TaskName, TaskNames, TaskState};

use super::{
    reports::{running, stopped},
    *,
};
use crate::model::keys;

fn named(task: char, address: &str) -> TaskName {
    TaskName {
        task_id: id(task),
        ipv4_address: address.into(),
        ..Default::default()
    }
}

fn changes(changed: Vec<TaskName>, removed: &[char]) -> TaskNames {
    TaskNames {
        cluster: CLUSTER.into(),
        whole: false,
        changed,
        removed_task_ids: removed.iter().map(|task| id(*task)).collect(),
    }
}

#[tokio::test]
async fn every_node_of_a_cluster_is_told_of_a_task_when_it_has_an_address_and_when_it_is_gone() {
    let plane = Plane::start().await;
    let mut own = plane.connect(&id('a')).await;
    let mut other = plane.connect(&id('b')).await;
    for link in [&mut own, &mut other] {
        assert_eq!(link.told_names().await.changed, []);
    }
    plane.place(&id('a'), &id('1')).await;
    own.report(1, running(&id('1'))).await;
    own.acknowledged(1).await;
    assert_eq!(
        other.told_names().await,
        changes(
            vec![TaskName {
                ipv6_address: "fd00::a00:7".into(),
                ..named('1', "10.0.0.7")
            }],
            &[]
        )
    );
    // What is no news of the name is not told.
    let mut again = running(&id('1'));
    again.pull_started_at_ms = 7;
    own.report(2, again).await;
    own.acknowledged(2).await;
    own.report(3, stopped(&id('1'))).await;
    own.acknowledged(3).await;
    assert_eq!(other.told_names().await, changes(vec![], &['1']));
    assert!(
        plane
            .store
            .get(&keys::name(CLUSTER, &id('1')))
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn what_is_there_is_told_first_and_another_clusters_never() {
    let plane = Plane::start().await;
    let record = |address: &str| crate::model::TaskName {
        ipv4_address: Some(address.into()),
        ipv6_address: None,
        of_node: false,
    };
    let put = |cluster: &str, task: char, address: &str| {
        typed::put_json(keys::name(cluster, &id(task)), &record(address)).unwrap()
    };
    plane
        .put(vec![
            put(CLUSTER, '1', "10.0.0.1"),
            put("default2", '2', "10.0.0.2"),
            put("other", '3', "10.0.0.3"),
        ])
        .await;
    let mut link = plane.connect(&id('a')).await;
    assert_eq!(link.told_names().await.changed, [named('1', "10.0.0.1")]);
    plane.put(vec![put("other", '4', "10.0.0.4")]).await;
    plane.put(vec![put(CLUSTER, '5', "10.0.0.5")]).await;
    assert_eq!(
        link.told_names().await,
        changes(vec![named('5', "10.0.0.5")], &[])
    );
}

#[tokio::test]
async fn more_than_a_node_keeps_are_not_told() {
    let plane = Plane::start().await;
    let record = crate::model::TaskName {
        ipv4_address: Some("10.0.0.1".into()),
        ipv6_address: None,
        of_node: false,
    };
    let count = berth_proto::node::v1::NAMES_MAX + 500;
    for chunk in (0..count).collect::<Vec<_>>().chunks(120) {
        let put = |n: &usize| typed::put_json(keys::name(CLUSTER, &format!("{n:032x}")), &record).unwrap();
        plane.put(chunk.iter().map(put).collect()).await;
    }
    let mut link = plane.connect(&id('a')).await;
    assert_eq!(
        link.told_names().await.changed.len(),
        berth_proto::node::v1::NAMES_MAX
    );
}

#[tokio::test]
async fn a_store_of_a_version_without_names_gets_them_and_loses_what_is_wrong() {
    let plane = Plane::start().await;
    let task = |digit: char, address: Option<&str>, status: &str| {
        let mut task = task_record(&id('a'), &id(digit));
        task.ipv4_address = address.map(str::to_owned);
        task.last_status = status.into();
        typed::put_json(keys::task(CLUSTER, &id(digit)), &task).unwrap()
    };
    let wrong = crate::model::TaskName {
        ipv4_address: Some("10.0.0.9".into()),
        ipv6_address: None,
        of_node: false,
    };
    plane
        .put(vec![
            task('1', Some("10.0.0.1"), "RUNNING"),
            task('2', Some("10.0.0.2"), "STOPPED"),
            task('3', None, "PENDING"),
            typed::put_json(keys::name(CLUSTER, &id('2')), &wrong).unwrap(),
            typed::put_json(keys::name(CLUSTER, &id('8')), &wrong).unwrap(),
        ])
        .await;
    super::super::names::make_good(&*plane.store).await.unwrap();
    let mut link = plane.connect(&id('a')).await;
    assert_eq!(link.told_names().await.changed, [named('1', "10.0.0.1")]);
}

fn of_node(task: char, address: &str) -> TaskName {
    TaskName {
        of_node: true,
        ..named(task, address)
    }
}

/// One that is at its node, and runs.
fn running_there(task: char) -> TaskState {
    TaskState {
        ipv4_address: String::new(),
        ipv6_address: String::new(),
        ..running(&id(task))
    }
}

#[tokio::test]
async fn a_task_without_an_address_of_its_own_is_where_its_node_is_also_when_that_moves() {
    let plane = Plane::start().await;
    let mut other = plane.connect(&id('b')).await;
    assert_eq!(other.told_names().await.changed, []);
    let at = |address: &str, last_sequence| Hello {
        host_address: address.into(),
        ..hello(&id('a'), last_sequence)
    };
    let mut own = plane.connect_as(at("192.0.2.7", 0)).await;
    for (task, mode) in [('1', "bridge"), ('2', "host"), ('3', "none"), ('4', "awsvpc")] {
        plane.place(&id('a'), &id(task)).await;
        let key = keys::task(CLUSTER, &id(task));
        let mut record = typed::get_json::<Task>(&*plane.store, &key)
            .await
            .unwrap()
            .unwrap()
            .value;
        record.network_mode = mode.into();
        plane.put(vec![typed::put_json(key, &record).unwrap()]).await;
    }
    for (sequence, task) in [(1, '1'), (2, '2'), (3, '3'), (4, '4')] {
        own.report(sequence, running_there(task)).await;
        own.acknowledged(sequence).await;
    }
    let mut told = other.told_names().await.changed;
    while told.len() < 2 {
        told.extend(other.told_names().await.changed);
    }
    assert_eq!(told, [of_node('1', "192.0.2.7"), of_node('2', "192.0.2.7")]);
    // The node is elsewhere when it links again; what stopped stays gone.
    own.report(5, stopped(&id('2'))).await;
    own.acknowledged(5).await;
    assert_eq!(other.told_names().await, changes(vec![], &['2']));
    drop(own);
    let _own = plane.connect_as(at("192.0.2.8", 5)).await;
    assert_eq!(
        other.told_names().await,
        changes(vec![of_node('1', "192.0.2.8")], &[])
    );
    super::super::names::make_good(&*plane.store).await.unwrap();
    let mut late = plane.connect(&id('c')).await;
    assert_eq!(late.told_names().await.changed, [of_node('1', "192.0.2.8")]);
}
