use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::task::{Architecture, MIB, Protocol};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};
use proptest::strategy::Strategy as Generator;

fn node(id: &str) -> NodeView {
    NodeView {
        id: id.into(),
        status: NodeStatus::Active,
        connected: true,
        architecture: "amd64".into(),
        agent_version: "0.1.0".into(),
        registered_at_ms: 0,
        cpu_units: 2048,
        memory_bytes: 4096 * MIB,
        task_addresses: 2,
        pools: vec![],
        reserved_tcp_ports: vec![22],
        reserved_udp_ports: vec![],
        gpus: vec![],
        allocations: vec![],
        attributes: BTreeMap::from([("rack".to_string(), Some("7".to_string()))]),
        features: vec!["net.awsvpc".into(), "net.host".into(), "log.json-file".into()],
    }
}

fn small() -> Requirements {
    Requirements {
        cpu_units: 256,
        memory_bytes: 512 * MIB,
        addresses: 1,
        ..Requirements::default()
    }
}

fn held(group: &str, cpu_units: u32, memory_mib: u64) -> Allocation {
    Allocation {
        cpu_units,
        memory_bytes: memory_mib * MIB,
        group: group.into(),
        ..Allocation::default()
    }
}

fn request<'a>(requirements: &'a Requirements, strategy: &'a [Strategy]) -> PlacementRequest<'a> {
    PlacementRequest {
        requirements,
        constraints: &[],
        strategy,
        group: "family:web",
        seed: 0,
    }
}

/// Places `n` tasks one after the other and says on which nodes.
fn place_many(nodes: &mut [NodeView], needs: &Requirements, strategy: &[Strategy], n: usize) -> Vec<String> {
    let mut chosen = Vec::new();
    for seed in 0..n as u64 {
        let request = PlacementRequest {
            seed,
            ..request(needs, strategy)
        };
        let Some(id) = place(nodes, &request).chosen else {
            break;
        };
        let node = nodes.iter_mut().find(|node| node.id == id).unwrap();
        let held = node.allocate(needs, request.group);
        node.allocations.push(held);
        chosen.push(id);
    }
    chosen
}

#[test]
fn a_runtime_that_no_node_offers_is_named_with_those_it_offers() {
    let runsc = small().on_runtime(Some("runsc".into()));
    let mut one = node("a");
    let why = |node: &NodeView| {
        let placed = place(std::slice::from_ref(node), &request(&runsc, &[]));
        (
            placed.chosen.is_some(),
            placed
                .rejections
                .iter()
                .map(ToString::to_string)
                .collect::<String>(),
        )
    };
    assert_eq!(
        why(&one),
        (
            false,
            "does not offer the runtime runsc, but only its own default".into()
        )
    );
    one.features
        .extend(["runtime.runc".into(), "runtime.crun".into(), "runsc".into()]);
    assert_eq!(
        why(&one),
        (false, "does not offer the runtime runsc, but runc, crun".into())
    );
    one.features.push("runtime.runsc".into());
    assert!(why(&one).0);
    // The node's own choice needs none to be offered.
    one.features.retain(|feature| !feature.starts_with("runtime."));
    assert!(place(&[one], &request(&small(), &[])).chosen.is_some());
}

#[test]
fn an_address_comes_from_the_first_subnet_that_has_one_on_the_node() {
    let pool = |subnet: &str, addresses| AddressPool {
        subnet: subnet.into(),
        addresses,
        problem: None,
    };
    let needs = small().in_subnets(vec!["subnet-a".into(), "subnet-b".into(), "subnet-c".into()]);
    let mut one = node("a");
    one.features.push("net.subnets".into());
    let why = |node: &NodeView| {
        check(node, &request(&needs, &[]))
            .iter()
            .map(|reason| format!("{}: {reason}", reason.ecs()))
            .collect::<Vec<_>>()
    };
    // Those of its own range do not count.
    one.pools = vec![pool("subnet-b", 1), pool("subnet-c", 1), pool("subnet-x", 9)];
    for subnet in ["subnet-b", "subnet-c"] {
        assert_eq!(why(&one), [""; 0]);
        let held = one.allocate(&needs, "family:web");
        assert_eq!(held.subnet.as_deref(), Some(subnet));
        one.allocations.push(held);
    }
    one.pools[1].problem = Some("10.0.0.0/24 is routed elsewhere".into());
    assert_eq!(
        why(&one),
        [
            "RESOURCE:ENI: has no free address: subnet-a: the node has no part of it: other nodes have all of it, \
          subnet-b: all 1 addresses of the node's part are in use, \
          subnet-c: the node cannot use its part: 10.0.0.0/24 is routed elsewhere"
        ]
    );
    assert_eq!(one.free_addresses(), 2, "its own range is untouched");
    let old = node("b");
    assert!(
        why(&old)[0].starts_with("ATTRIBUTE: needs the feature net.subnets"),
        "{:?}",
        why(&old)
    );
}

#[test]
fn gpus_are_given_to_one_task_at_a_time_until_nothing_of_it_is_left() {
    // On the host's network, so that addresses are not what is short.
    let plain = Requirements {
        addresses: 0,
        ..small()
    };
    let two = Requirements {
        gpus: 2,
        ..plain.clone()
    };
    let one = Requirements {
        gpus: 1,
        ..plain.clone()
    };
    let mut host = node("a");
    let why = |node: &NodeView, needs: &Requirements| {
        let placed = place(std::slice::from_ref(node), &request(needs, &[]));
        placed
            .rejections
            .first()
            .map(|r| format!("{}: {r}", r.ecs()))
            .unwrap_or_default()
    };
    assert_eq!(
        why(&host, &one),
        "RESOURCE:GPU: needs 1 of its GPUs, 0 of 0 are free"
    );
    host.gpus = ["g0", "g1", "g2"].map(String::from).into();
    let first = host.allocate(&two, "family:web");
    assert_eq!(first.gpus, ["g0", "g1"]);
    host.allocations.push(first);
    assert_eq!(
        why(&host, &two),
        "RESOURCE:GPU: needs 2 of its GPUs, 1 of 3 are free"
    );
    let second = host.allocate(&one, "family:web");
    assert_eq!(second.gpus, ["g2"]);
    host.allocations.push(second);
    // Unlike CPU and memory: a process may be using one to its end.
    host.allocations[0].stopping = true;
    assert_eq!(
        why(&host, &one),
        "RESOURCE:GPU: needs 1 of its GPUs, 0 of 3 are free"
    );
    assert_eq!(why(&host, &plain), "");
    host.allocations.remove(0);
    // One that is held and not there any more is nobody's.
    host.gpus = ["g0", "g3"].map(String::from).into();
    assert_eq!(host.allocate(&two, "family:web").gpus, ["g0", "g3"]);
    assert_eq!(host.free_gpus().count(), 2);
}

#[test]
fn why_a_node_is_not_chosen() {
    let plain = small();
    let arm = Requirements {
        architecture: Some(Architecture::Arm64),
        ..small()
    };
    let feature = Requirements {
        features: vec!["depends.success"],
        ..small()
    };
    let picky = Requirements {
        constraints: vec![Expression::parse("attribute:rack == 8").unwrap()],
        ..small()
    };
    let large = Requirements {
        cpu_units: 2049,
        ..small()
    };
    let huge = Requirements {
        memory_bytes: 4097 * MIB,
        ..small()
    };
    let ssh = Requirements {
        tcp_ports: vec![22, 80],
        ..small()
    };
    let dns = Requirements {
        udp_ports: vec![53],
        ..small()
    };
    let edit = |change: fn(&mut NodeView)| {
        let mut node = node("a");
        change(&mut node);
        node
    };
    let full = |n: &mut NodeView| n.allocations = vec![held("g", 1900, 3900)];
    let addressless = |n: &mut NodeView| {
        n.allocations = vec![
            Allocation {
                addresses: 1,
                ..held("g", 0, 0)
            };
            2
        ];
    };
    let dns_taken = |n: &mut NodeView| {
        n.allocations = vec![Allocation {
            udp_ports: vec![53],
            ..held("g", 0, 0)
        }]
    };
    for (node, needs, ecs, words) in [
        (
            edit(|n| n.status = NodeStatus::Inactive),
            &plain,
            "INACTIVE",
            "the node is deregistered",
        ),
        (
            edit(|n| n.status = NodeStatus::Draining),
            &plain,
            "DRAINING",
            "the node is draining",
        ),
        (
            edit(|n| n.connected = false),
            &plain,
            "AGENT",
            "the node's agent is not connected",
        ),
        (
            edit(|_| ()),
            &arm,
            "ATTRIBUTE",
            "needs architecture arm64, the node is amd64",
        ),
        (
            edit(|_| ()),
            &feature,
            "ATTRIBUTE",
            "needs the feature depends.success, which the node's agent lacks",
        ),
        (
            edit(|_| ()),
            &picky,
            "MemberOf placement constraint unsatisfied.",
            "does not satisfy attribute:rack == 8",
        ),
        (
            edit(|_| ()),
            &large,
            "RESOURCE:CPU",
            "needs 2049 CPU units, 2048 of 2048 are free",
        ),
        (
            edit(full),
            &plain,
            "RESOURCE:CPU",
            "needs 256 CPU units, 148 of 2048 are free; needs 512 MiB of memory, 196 of 4096 are free",
        ),
        (
            edit(|_| ()),
            &huge,
            "RESOURCE:MEMORY",
            "needs 4097 MiB of memory, 4096 of 4096 are free",
        ),
        (
            edit(|_| ()),
            &ssh,
            "RESOURCE:PORTS",
            "tcp port 22 is reserved or in use",
        ),
        (
            edit(dns_taken),
            &dns,
            "RESOURCE:PORTS",
            "udp port 53 is reserved or in use",
        ),
        (
            edit(addressless),
            &plain,
            "RESOURCE:ENI",
            "all of its 2 task addresses are in use",
        ),
    ] {
        let placement = place(std::slice::from_ref(&node), &request(needs, &[]));
        assert_eq!(placement.chosen, None, "{words}");
        assert_eq!(placement.rejections.len(), 1, "{words}");
        let rejection = &placement.rejections[0];
        assert_eq!((rejection.ecs(), rejection.to_string().as_str()), (ecs, words));
        assert_eq!(check(&node, &request(needs, &[])), rejection.reasons);
        let overall = placement.overall();
        assert_eq!(
            (overall.reason, overall.detail),
            (ecs, format!("node a: {words}"))
        );
    }
}

#[test]
fn a_task_fits_to_the_last_unit() {
    let exact = Requirements {
        cpu_units: 2048,
        memory_bytes: 4096 * MIB,
        ..Requirements::default()
    };
    assert_eq!(
        place(&[node("a")], &request(&exact, &[])).chosen.as_deref(),
        Some("a")
    );
}

#[test]
fn a_stopping_task_frees_cpu_and_memory_but_not_ports_and_address() {
    let web = Requirements {
        cpu_units: 2048,
        memory_bytes: 4096 * MIB,
        ..Requirements::default()
    };
    let with_port = Requirements {
        tcp_ports: vec![80],
        ..web.clone()
    };
    let with_address = Requirements {
        addresses: 1,
        ..web.clone()
    };
    let mut a = NodeView {
        task_addresses: 1,
        ..node("a")
    };
    a.allocations = vec![Allocation {
        tcp_ports: vec![80],
        addresses: 1,
        ..web.allocation("family:web")
    }];
    assert_eq!(check(&a, &request(&web, &[])).len(), 2);
    a.allocations[0].stopping = true;
    assert_eq!(check(&a, &request(&web, &[])), []);
    assert_eq!(
        check(&a, &request(&with_port, &[])),
        [Reason::Ports {
            protocol: Protocol::Tcp,
            taken: vec![80]
        }]
    );
    assert_eq!(
        check(&a, &request(&with_address, &[])),
        [Reason::Address { total: 1 }]
    );
    a.allocations.clear();
    assert_eq!(check(&a, &request(&with_address, &[])), []);
}

#[test]
fn tasks_are_spread_over_nodes_unless_told_otherwise() {
    for strategy in [vec![], vec![Strategy::Spread(SpreadBy::Node)]] {
        let mut nodes = [node("c"), node("a"), node("b")];
        assert_eq!(
            place_many(&mut nodes, &small(), &strategy, 9),
            ["a", "b", "c", "a", "b", "c"],
            "2 addresses each"
        );
    }
    // Another group's tasks do not count as this one's, but decide among equals.
    let mut nodes = [node("a"), node("b")];
    nodes[0].allocations.push(held("family:db", 128, 128));
    assert_eq!(place_many(&mut nodes, &small(), &[], 3), ["b", "a", "b"]);
}

#[test]
fn tasks_are_spread_over_the_values_of_an_attribute() {
    let rack = |id: &str, rack: &str| {
        let mut node = node(id);
        node.attributes.insert("rack".into(), Some(rack.into()));
        node
    };
    let mut nodes = [rack("a", "1"), rack("b", "1"), rack("c", "2")];
    let strategy = [
        Strategy::Spread(SpreadBy::Attribute("rack".into())),
        Strategy::Spread(SpreadBy::Node),
    ];
    assert_eq!(
        place_many(&mut nodes, &small(), &strategy, 6),
        ["a", "c", "b", "c", "a", "b"]
    );
    // A draining node's tasks still count for its rack.
    let mut nodes = [rack("a", "1"), rack("b", "1"), rack("c", "2")];
    nodes[0].status = NodeStatus::Draining;
    nodes[0].allocations.push(held("family:web", 1, 1));
    assert_eq!(place_many(&mut nodes, &small(), &strategy, 1), ["c"]);
}

#[test]
fn tasks_are_packed_where_the_least_is_left() {
    let needs = Requirements {
        addresses: 0,
        ..small()
    };
    for (strategy, held) in [
        (Strategy::BinpackCpu, held("g", 1024, 0)),
        (Strategy::BinpackMemory, held("g", 0, 2048)),
    ] {
        let mut nodes = [node("a"), node("b")];
        nodes[1].allocations.push(held);
        assert_eq!(
            place_many(&mut nodes, &needs, &[strategy], 5),
            ["b", "b", "b", "b", "a"]
        );
    }
}

#[test]
fn random_depends_on_the_seed_alone() {
    let nodes: Vec<NodeView> = ["a", "b", "c", "d"].map(node).to_vec();
    let needs = small();
    let at = |seed| {
        place(
            &nodes,
            &PlacementRequest {
                seed,
                ..request(&needs, &[Strategy::Random])
            },
        )
        .chosen
    };
    assert_eq!(at(7), at(7));
    let seen: BTreeSet<_> = (0..64).map(at).collect();
    assert_eq!(seen.len(), 4, "every node is chosen sometimes");
}

#[test]
fn distinct_instance_counts_the_group() {
    let needs = small();
    let mut a = node("a");
    a.allocations.push(held("family:db", 1, 1));
    let distinct = PlacementRequest {
        constraints: &[Constraint::DistinctInstance],
        ..request(&needs, &[])
    };
    assert_eq!(check(&a, &distinct), []);
    a.allocations.push(held("family:web", 1, 1));
    let reasons = check(&a, &distinct);
    assert_eq!(
        reasons[0].ecs(),
        "DistinctInstance placement constraint unsatisfied."
    );
    assert_eq!(reasons[0].to_string(), "already runs a task of group family:web");
    a.allocations[1].stopping = true;
    assert_eq!(check(&a, &distinct), []);
}

#[test]
fn constraints_of_the_request_hold_besides_those_of_the_definition() {
    let needs = Requirements {
        constraints: vec![Expression::parse("attribute:rack == 7").unwrap()],
        ..small()
    };
    let group = Constraint::parse("memberOf", Some("task:group == family:db")).unwrap();
    let constraints = [group];
    let request = PlacementRequest {
        constraints: &constraints,
        ..request(&needs, &[])
    };
    let mut nodes = [node("a"), node("b")];
    nodes[1].allocations.push(held("family:db", 1, 1));
    let placement = place(&nodes, &request);
    assert_eq!(placement.chosen.as_deref(), Some("b"));
    assert_eq!(
        placement.rejections[0].to_string(),
        "does not satisfy task:group == family:db"
    );
}

#[test]
fn the_reason_for_the_cluster_is_that_of_the_nearest_node() {
    let needs = Requirements {
        cpu_units: 4096,
        ..small()
    };
    let mut nodes = vec![node("a"), node("b"), node("c")];
    nodes[0].status = NodeStatus::Draining;
    nodes[2].connected = false;
    let overall = place(&nodes, &request(&needs, &[])).overall();
    assert_eq!(overall.reason, "RESOURCE:CPU");
    assert_eq!(
        overall.detail,
        "node a: the node is draining. node b: needs 4096 CPU units, 2048 of 2048 are free. \
         node c: the node's agent is not connected"
    );
    nodes.push(node("d"));
    let overall = place(&nodes, &request(&needs, &[])).overall();
    assert_eq!(overall.detail, "of 4 nodes: 1 AGENT, 1 DRAINING, 2 RESOURCE:CPU");
    let empty = place(&[], &request(&needs, &[])).overall();
    assert_eq!(
        (empty.reason, empty.detail.as_str()),
        ("AGENT", "the cluster has no nodes")
    );
}

#[test]
fn strategies_and_constraints_are_parsed() {
    for (kind, field, expected) in [
        ("random", None, Ok(Strategy::Random)),
        ("spread", None, Ok(Strategy::Spread(SpreadBy::Node))),
        ("spread", Some("instanceId"), Ok(Strategy::Spread(SpreadBy::Node))),
        ("spread", Some("host"), Ok(Strategy::Spread(SpreadBy::Node))),
        (
            "spread",
            Some("attribute:rack"),
            Ok(Strategy::Spread(SpreadBy::Attribute("rack".into()))),
        ),
        ("binpack", Some("cpu"), Ok(Strategy::BinpackCpu)),
        ("binpack", Some("MEMORY"), Ok(Strategy::BinpackMemory)),
        ("random", Some("cpu"), Err("random takes no field, got \"cpu\"")),
        (
            "spread",
            Some("rack"),
            Err("spread is over instanceId, host or attribute:NAME; got \"rack\""),
        ),
        (
            "spread",
            Some("attribute:"),
            Err("spread is over instanceId, host or attribute:NAME; got \"attribute:\""),
        ),
        ("binpack", None, Err("binpack is by cpu or memory; got \"\"")),
        (
            "pack",
            None,
            Err("expected one of random, spread, binpack; got \"pack\""),
        ),
    ] {
        assert_eq!(
            Strategy::parse(kind, field).map_err(|e| e.to_string()),
            expected.map_err(str::to_string)
        );
    }
    for (kind, expression, expected) in [
        ("memberOf", Some("attribute:a exists"), ""),
        ("distinctInstance", None, ""),
        ("distinctInstance", Some(""), ""),
        ("memberOf", None, "memberOf needs an expression"),
        ("memberOf", Some("a"), "the expression \"a\" cannot be parsed"),
        (
            "distinctInstance",
            Some("x"),
            "distinctInstance takes no expression",
        ),
        (
            "near",
            None,
            "expected one of memberOf, distinctInstance; got \"near\"",
        ),
    ] {
        let found = Constraint::parse(kind, expression).map_or_else(|e| e.to_string(), |_| String::new());
        assert_eq!(found, expected, "{kind} {expression:?}");
    }
}

#[test]
fn a_status_is_spelled_as_in_ecs() {
    for status in [NodeStatus::Active, NodeStatus::Draining, NodeStatus::Inactive] {
        assert_eq!(status.as_str().parse(), Ok(status));
    }
    assert!("active".parse::<NodeStatus>().is_err());
}

fn any_node() -> impl Generator<Value = NodeView> {
    let status = prop::sample::select(vec![
        NodeStatus::Active,
        NodeStatus::Draining,
        NodeStatus::Inactive,
    ]);
    let task = (
        0..900_u32,
        0..900_u64,
        0..3_u32,
        any::<bool>(),
        prop::option::of(80..84_u16),
    );
    let tasks = prop::collection::vec(task, 0..5);
    (0..50_u8, status, any::<bool>(), 0..4_u32, tasks).prop_map(
        |(id, status, connected, task_addresses, tasks)| NodeView {
            status,
            connected,
            task_addresses,
            allocations: tasks
                .into_iter()
                .map(|(cpu, memory, addresses, stopping, port)| Allocation {
                    addresses,
                    stopping,
                    tcp_ports: port.into_iter().collect(),
                    ..held("family:web", cpu, memory)
                })
                .collect(),
            ..node(&format!("n{id}"))
        },
    )
}

proptest! {
    #[test]
    fn the_chosen_node_always_fits_and_every_other_has_a_choice_or_a_reason(
        nodes in prop::collection::vec(any_node(), 0..6),
        cpu_units in 0..2_200_u32,
        mib in 0..4_200_u64,
        port in prop::option::of(80..84_u16),
        addresses in 0..3_u32,
        pick in 0..4_usize,
        seed in any::<u64>(),
    ) {
        let needs = Requirements {
            cpu_units,
            memory_bytes: mib * MIB,
            tcp_ports: port.into_iter().collect(),
            addresses,
            ..Requirements::default()
        };
        let strategies = [Strategy::Random, Strategy::Spread(SpreadBy::Node), Strategy::BinpackCpu, Strategy::BinpackMemory];
        let strategy = &strategies[pick..=pick];
        let placement = place(&nodes, &PlacementRequest { seed, ..request(&needs, strategy) });
        let fits = |n: &NodeView| {
            let staying = || n.allocations.iter().filter(|a| !a.stopping);
            n.status == NodeStatus::Active
                && n.connected
                && staying().map(|a| a.cpu_units).sum::<u32>() + cpu_units <= n.cpu_units
                && staying().map(|a| a.memory_bytes).sum::<u64>() + needs.memory_bytes <= n.memory_bytes
                && port.is_none_or(|p| n.allocations.iter().all(|a| !a.tcp_ports.contains(&p)))
                && (addresses == 0 || n.allocations.iter().map(|a| a.addresses).sum::<u32>() + addresses <= n.task_addresses)
        };
        prop_assert_eq!(placement.chosen.is_some(), nodes.iter().any(fits));
        prop_assert_eq!(placement.rejections.len(), nodes.iter().filter(|n| !fits(n)).count());
        if let Some(id) = placement.chosen {
            prop_assert!(nodes.iter().any(|n| n.id == id && fits(n)));
        }
        let same = place(&nodes, &PlacementRequest { seed, ..request(&needs, strategy) });
        prop_assert_eq!(place(&nodes, &PlacementRequest { seed, ..request(&needs, strategy) }), same);
    }
}
