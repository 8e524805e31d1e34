//! Subnets: what they may be, who gets which part, and how tasks are placed in them.

use berth_control_plane::{
    model::keys,
    store::{Store as _, Transaction, typed},
};
use serde_json::{Value, json};

use crate::world::{World, id_of};

async fn new_world() -> World {
    let world = World::new().await;
    world.ok("CreateCluster", json!({})).await;
    world
}

async fn create(world: &World, name: &str, range: &str) -> String {
    let answer = world
        .berth("CreateSubnet", json!({"name": name, "cidrBlock": range}))
        .await
        .ok();
    answer["subnet"]["subnetId"].as_str().unwrap().to_owned()
}

async fn listed(world: &World) -> Vec<Value> {
    let answer = world.berth("ListSubnets", json!({})).await.ok();
    answer["subnets"].as_array().unwrap().clone()
}

/// Ranges of the nodes' parts, with the node's id.
fn parts(subnet: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let part = |node: &Value| (text(&node["node"]), text(&node["cidrBlock"]));
    subnet["nodes"].as_array().unwrap().iter().map(part).collect()
}

async fn run_in(world: &World, definition: &str, subnets: &[&str]) -> Value {
    let network = json!({"awsvpcConfiguration": {"subnets": subnets}});
    world
        .ok(
            "RunTask",
            json!({"taskDefinition": definition, "networkConfiguration": network}),
        )
        .await
}

#[tokio::test]
async fn every_node_gets_a_part_and_gives_it_back_when_it_is_deregistered() {
    let world = new_world().await;
    let before: Vec<String> = vec![
        world.add_node("default", |_| {}).await,
        world
            .add_node("default", |node| {
                node.node_address = Some("192.0.2.7".parse().unwrap())
            })
            .await,
    ];
    let old = world.add_node("default", |node| node.features.clear()).await;
    let elsewhere = world.add_node("other", |_| {}).await;
    create(&world, "front", "10.64.0.0/16").await;
    let subnet = listed(&world).await.remove(0);
    assert_eq!(subnet["nodePrefixLength"], 24);
    assert_eq!(subnet["kind"], "routed");
    let parts = parts(&subnet);
    assert_eq!(parts.len(), before.len(), "{parts:?} {old} {elsewhere}");
    assert!(before.iter().all(|id| parts.iter().any(|(node, _)| node == id)));
    assert_ne!(parts[0].1, parts[1].1);
    let addresses: Vec<&Value> = subnet["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["nodeAddress"])
        .collect();
    assert!(addresses.contains(&&json!("192.0.2.7")) && addresses.contains(&&Value::Null));

    world
        .ok(
            "DeregisterContainerInstance",
            json!({"containerInstance": before[0]}),
        )
        .await;
    let subnet = listed(&world).await.remove(0);
    assert_eq!(self::parts(&subnet).len(), 1, "{subnet}");
}

#[tokio::test]
async fn a_range_that_cannot_be_a_subnet_or_overlaps_another_is_refused() {
    let world = new_world().await;
    world.add_node("other", |_| {}).await;
    world.ok("CreateCluster", json!({"clusterName": "other"})).await;
    create(&world, "front", "10.64.0.0/16").await;
    for (body, wrong) in [
        (
            json!({"name": "a", "cidrBlock": "10.64.7.0/24", "cluster": "other"}),
            "overlaps 10.64.0.0/16",
        ),
        (
            json!({"name": "a", "cidrBlock": "10.0.0.0/8"}),
            "overlaps 10.64.0.0/16",
        ),
        (
            json!({"name": "a", "cidrBlock": "169.254.170.0/24"}),
            "cidrBlock: 169.254.170.0/24 overlaps 169.254.0.0/16",
        ),
        (
            json!({"name": "a", "cidrBlock": "10.1.2.3/16"}),
            "the range is 10.1.0.0/16",
        ),
        (
            json!({"name": "a", "cidrBlock": "10.1.0.0/16", "nodePrefixLength": 31}),
            "nodePrefixLength: /31",
        ),
        (
            json!({"name": "a", "cidrBlock": "10.1.0.0/16", "ipv6CidrBlock": "fe80::/64"}),
            "ipv6CidrBlock: fe80::/64 overlaps fe80::/10, which is link-local",
        ),
        (
            json!({"name": "a", "cidrBlock": "192.168.1.0/24", "ipv6CidrBlock": "fd00::/64", "kind": "macvlan",
                "uplink": "eth1", "range": "192.168.1.128/26"}),
            "ipv6CidrBlock: is for the kind routed",
        ),
        (
            json!({"name": "a", "cidrBlock": "10.1.0.0/16", "kind": "ipvlan"}),
            "kind: 'ipvlan' is not a valid value: use routed, macvlan, vlan, interface",
        ),
        (
            json!({"name": "a", "cidrBlock": "10.1.0.0/16", "gateway": "10.1.0.1", "vlanId": 7}),
            "vlanId: is for the kinds macvlan, vlan and interface; gateway: is for",
        ),
        (
            json!({"name": "a", "cidrBlock": "10.1.0.0/16", "kind": "macvlan", "gateway": "10.2.0.1"}),
            "uplink: is required: the name of the link that nodes have to the network; range: is required",
        ),
        (
            json!({"name": "a b", "cidrBlock": "10.1.0.0/16"}),
            "name: must be",
        ),
        (json!({"cidrBlock": "10.1.0.0/16"}), "name: is required"),
    ] {
        let refused = world.berth("CreateSubnet", body.clone()).await;
        let message = refused.refused("InvalidParameterException");
        assert!(message.contains(wrong), "{body}: {message}");
    }
    assert_eq!(listed(&world).await.len(), 1);
}

#[tokio::test]
async fn the_same_subnet_twice_is_one_and_another_of_its_name_a_conflict() {
    let world = new_world().await;
    let body = json!({"name": "front", "cidrBlock": "10.64.0.0/16", "tags": [{"key": "k", "value": "v"}],
                      "clientToken": "t1"});
    let first = world.berth("CreateSubnet", body.clone()).await.ok();
    let arn = first["subnet"]["subnetArn"].as_str().unwrap().to_owned();
    for again in [body, json!({"name": "front", "cidrBlock": "10.64.0.0/16"})] {
        let answer = world.berth("CreateSubnet", again).await.ok();
        assert_eq!(answer["subnet"]["subnetArn"], arn.as_str());
    }
    let other = json!({"name": "front", "cidrBlock": "10.65.0.0/16"});
    let message = world
        .berth("CreateSubnet", other)
        .await
        .refused("ConflictException");
    assert!(message.contains("10.64.0.0/16"), "{message}");
    world
        .ok(
            "TagResource",
            json!({"resourceArn": arn, "tags": [{"key": "l", "value": "w"}]}),
        )
        .await;
    let tags = json!([{"key": "k", "value": "v"}, {"key": "l", "value": "w"}]);
    assert_eq!(listed(&world).await[0]["tags"], tags);
    let shown = world.ok("ListTagsForResource", json!({"resourceArn": arn})).await;
    assert_eq!(shown["tags"], tags);
}

#[tokio::test]
async fn tasks_are_placed_where_their_subnets_have_addresses() {
    let world = new_world().await;
    let node = world.add_node("default", |_| {}).await;
    let definition = world.register("web").await;
    let (small, large) = (
        create(&world, "small", "10.64.0.0/29").await,
        create(&world, "large", "10.65.0.0/16").await,
    );
    // Two addresses, and then those of the next one.
    let mut tasks = Vec::new();
    for subnet in [&small, &small, &large] {
        let answer = run_in(&world, &definition, &[&small, &large]).await;
        let task = &answer["tasks"][0];
        let id = id_of(task["taskArn"].as_str().unwrap_or_else(|| panic!("{answer}")));
        let details = task["attachments"][0]["details"].as_array().unwrap();
        assert!(
            details.contains(&json!({"name": "subnetId", "value": subnet})),
            "{task}"
        );
        let spec = world.desired(&node, &id).await.unwrap();
        assert_eq!(spec.subnet_id, *subnet);
        assert!(spec.required_features.contains(&"net.subnets".to_owned()));
        tasks.push(id);
    }
    let answer = run_in(&world, &definition, &[&small]).await;
    assert_eq!(answer["failures"][0]["reason"], "RESOURCE:ENI", "{answer}");
    let detail = answer["failures"][0]["detail"].as_str().unwrap();
    assert!(
        detail.contains("all 2 addresses of the node's part are in use"),
        "{detail}"
    );

    let delete = || world.berth("DeleteSubnet", json!({"subnet": small}));
    let message = delete().await.refused("ConflictException");
    assert!(message.contains(&tasks[0]), "{message}");
    assert_eq!(
        listed(&world)
            .await
            .iter()
            .filter(|s| s["status"] == "ACTIVE")
            .count(),
        2
    );
    for task in &tasks {
        world.report_stopped(task).await;
    }
    delete().await.ok();
    let message = delete().await.refused("ResourceNotFoundException");
    assert!(message.contains(&small), "{message}");
    // What was taken is free again.
    create(&world, "new", "10.64.0.0/24").await;
}

#[tokio::test]
async fn a_cluster_with_subnets_knows_no_others() {
    let world = new_world().await;
    world.add_node("default", |_| {}).await;
    let definition = world.register("web").await;
    let run = |subnet: String| {
        let network = json!({"awsvpcConfiguration": {"subnets": [subnet]}});
        world.call(
            "RunTask",
            json!({"taskDefinition": definition, "networkConfiguration": network}),
        )
    };
    run("subnet-default".into()).await.ok();
    let id = create(&world, "front", "10.64.0.0/16").await;
    let refused = run("subnet-default".into()).await;
    let text = format!("The subnet ID 'subnet-default' does not exist: this cluster has {id}");
    let message = refused.refused("InvalidParameterException");
    assert!(message.contains(&text), "{message}");
    run(id).await.ok();
}

fn lan(name: &str, range: &str) -> Value {
    json!({"name": name, "cidrBlock": "192.168.1.0/24", "kind": "macvlan", "uplink": "eth1", "gateway": "192.168.1.1",
           "range": range})
}

#[tokio::test]
async fn a_lan_is_given_to_nodes_that_know_of_lans_and_tasks_are_its_hosts() {
    let world = new_world().await;
    let able = world
        .add_node("default", |node| node.features.push("net.lan".into()))
        .await;
    world
        .add_node("default", |node| node.features.retain(|f| f != "net.lan"))
        .await;
    let made = world.berth("CreateSubnet", lan("lan", "192.168.1.128/25")).await;
    let made = made.ok()["subnet"].take();
    for (field, value) in [
        ("kind", json!("macvlan")),
        ("cidrBlock", json!("192.168.1.0/24")),
        ("range", json!("192.168.1.128/25")),
        ("uplink", json!("eth1")),
        ("gateway", json!("192.168.1.1")),
        ("vlanId", Value::Null),
    ] {
        assert_eq!(made[field], value, "{made}");
    }
    let id = made["subnetId"].as_str().unwrap();
    assert_eq!(
        parts(&listed(&world).await.remove(0)),
        [(able.clone(), "192.168.1.128/29".to_owned())]
    );
    let definition = world.register("web").await;
    let answer = run_in(&world, &definition, &[id]).await;
    let task = &answer["tasks"][0];
    let text = |name: &str| id_of(task[name].as_str().unwrap());
    assert_eq!(text("containerInstanceArn"), able, "{answer}");
    let spec = world.desired(&able, &text("taskArn")).await.unwrap();
    assert!(spec.required_features.contains(&"net.lan".to_owned()));
    let told = spec.lan.unwrap();
    assert_eq!(
        (told.uplink, told.ipv4_cidr, told.ipv4_gateway),
        ("eth1".into(), "192.168.1.0/24".into(), "192.168.1.1".into())
    );
    let network = json!({"awsvpcConfiguration": {"subnets": [id], "assignPublicIp": "ENABLED"}});
    let refused = world
        .call(
            "RunTask",
            json!({"taskDefinition": definition, "networkConfiguration": network}),
        )
        .await;
    let message = refused.refused("InvalidParameterException");
    assert!(
        message.contains("is itself a host of 192.168.1.0/24"),
        "{message}"
    );
}

#[tokio::test]
async fn a_node_whose_agent_was_replaced_by_one_without_lans_gets_no_more_tasks_there() {
    let world = new_world().await;
    let node = world
        .add_node("default", |node| node.features.push("net.lan".into()))
        .await;
    let made = world.berth("CreateSubnet", lan("lan", "192.168.1.128/25")).await;
    let lan = made.ok()["subnet"]["subnetId"].as_str().unwrap().to_owned();
    let routed = create(&world, "routed", "10.64.0.0/16").await;
    let definition = world.register("web").await;
    let both = [lan.as_str(), routed.as_str()];
    let answer = run_in(&world, &definition, &both).await;
    assert_eq!(answer["failures"], json!([]), "{answer}");
    let task = id_of(answer["tasks"][0]["taskArn"].as_str().unwrap());
    let spec = world.desired(&node, &task).await.unwrap();
    assert!(spec.lan.is_some() && spec.required_features.contains(&"net.lan".to_owned()));

    world
        .edit_node(&node, |node| node.features.retain(|feature| feature != "net.lan"))
        .await;
    let answer = run_in(&world, &definition, &both).await;
    assert_eq!(answer["failures"], json!([]), "{answer}");
    let task = id_of(answer["tasks"][0]["taskArn"].as_str().unwrap());
    let spec = world.desired(&node, &task).await.unwrap();
    assert_eq!((spec.subnet_id, spec.lan), (routed, None));
}

#[tokio::test]
async fn the_gateway_of_one_subnet_is_no_tasks_of_another() {
    let world = new_world().await;
    let id = |answer: crate::client::Answer| answer.ok()["subnet"]["subnetId"].as_str().unwrap().to_owned();
    let first = id(world.berth("CreateSubnet", lan("one", "192.168.1.128/26")).await);
    let mut other = lan("two", "192.168.1.0/26");
    other["gateway"] = json!("192.168.1.254");
    let refused = world.berth("CreateSubnet", other.clone()).await;
    let text = format!(
        "range: 192.168.1.0/26 has 192.168.1.1 in it, which is the gateway of {first} of cluster default"
    );
    let message = refused.refused("InvalidParameterException");
    assert!(message.contains(&text), "{message}");
    (other["range"], other["gateway"]) = (json!("192.168.1.64/26"), json!("192.168.1.130"));
    let refused = world.berth("CreateSubnet", other.clone()).await;
    let text = format!(
        "gateway: 192.168.1.130 is inside of 192.168.1.128/26, of which tasks of {first} of cluster default get"
    );
    let message = refused.refused("InvalidParameterException");
    assert!(message.contains(&text), "{message}");
    other["gateway"] = json!("192.168.1.254");
    world.berth("CreateSubnet", other).await.ok();
}

#[tokio::test]
async fn ranges_of_one_lan_are_several_subnets_and_no_routed_one_overlaps_it() {
    let world = new_world().await;
    world
        .berth("CreateSubnet", lan("one", "192.168.1.128/26"))
        .await
        .ok();
    world
        .berth("CreateSubnet", lan("two", "192.168.1.192/26"))
        .await
        .ok();
    let routed = json!({"name": "r", "cidrBlock": "192.168.1.0/26"});
    for (body, field) in [
        (
            lan("three", "192.168.1.160/27"),
            "range: 192.168.1.160/27 overlaps",
        ),
        (routed, "cidrBlock: 192.168.1.0/26 overlaps 192.168.1.0/24"),
    ] {
        let refused = world.berth("CreateSubnet", body).await;
        let message = refused.refused("InvalidParameterException");
        assert!(message.contains(field), "{message}");
    }
}

#[tokio::test]
async fn a_subnet_with_ipv6_is_of_nodes_that_know_it_and_its_prefix_is_nobody_elses() {
    let world = new_world().await;
    let node = world
        .add_node("default", |node| {
            node.node_ipv6_address = "fd00:99::7".parse().ok();
        })
        .await;
    let old =
        |node: &mut berth_control_plane::model::Node| node.features.retain(|feature| feature != "net.ipv6");
    world.add_node("default", old).await;
    let body = json!({"name": "front", "cidrBlock": "10.64.0.0/16", "ipv6CidrBlock": "fd00:64::/64"});
    let made = world.berth("CreateSubnet", body.clone()).await.ok();
    assert_eq!(made["subnet"]["ipv6CidrBlock"], "fd00:64::/64");
    let subnet = listed(&world).await.remove(0);
    let nodes = subnet["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 1, "{subnet}");
    assert_eq!(
        (
            &nodes[0]["node"],
            &nodes[0]["ipv6CidrBlock"],
            &nodes[0]["nodeIpv6Address"]
        ),
        (&json!(node), &json!("fd00:64::a40:0/120"), &json!("fd00:99::7"))
    );
    // The same again is the same, and one without IPv6 another.
    let again = world.berth("CreateSubnet", body).await.ok();
    assert_eq!(again["subnet"]["subnetId"], made["subnet"]["subnetId"]);
    for (body, code, problem) in [
        (
            json!({"name": "front", "cidrBlock": "10.64.0.0/16"}),
            "ConflictException",
            "10.64.0.0/16 and fd00:64::/64",
        ),
        (
            json!({"name": "back", "cidrBlock": "10.65.0.0/16", "ipv6CidrBlock": "fd00:64::/48"}),
            "InvalidParameterException",
            "ipv6CidrBlock: fd00:64::/48 overlaps fd00:64::/64",
        ),
    ] {
        let refused = world.berth("CreateSubnet", body).await;
        let message = refused.refused(code);
        assert!(message.contains(problem), "{message}");
    }
}

#[tokio::test]
async fn a_gateway_is_no_tasks_also_where_an_earlier_version_did_not_claim_it() {
    let world = new_world().await;
    world
        .berth("CreateSubnet", lan("lan", "192.168.1.128/25"))
        .await
        .ok();
    let claims = world.store.get(keys::SUBNET_RANGES).await.unwrap().unwrap();
    let mut earlier: Value = serde_json::from_slice(&claims.value).unwrap();
    for claim in earlier.as_object_mut().unwrap().values_mut() {
        assert_eq!(
            claim.as_object_mut().unwrap().remove("gateway"),
            Some(json!("192.168.1.1"))
        );
    }
    let operations = vec![typed::put_json(keys::SUBNET_RANGES, &earlier).unwrap()];
    let transaction = Transaction {
        operations,
        ..Transaction::default()
    };
    world.store.commit(transaction).await.unwrap();
    let mut beside = lan("beside", "192.168.1.0/26");
    beside["gateway"] = json!("192.168.1.254");
    let refused = world.berth("CreateSubnet", beside).await;
    let message = refused.refused("InvalidParameterException");
    assert!(message.contains("192.168.1.1"), "{message}");
}
