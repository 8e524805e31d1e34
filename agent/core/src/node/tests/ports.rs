//! Addresses of containers, and ports of the host, in bridge mode and where they are published.

use super::*;
use crate::ports::PORT_REST_MS;

fn mapping(container_port: u16, host_port: u16) -> PortMapping {
    PortMapping {
        container_port,
        host_port,
        protocol: Protocol::Tcp,
        last_container_port: None,
    }
}

fn bridge(n: u64, ports: Vec<PortMapping>) -> TaskSpec {
    let mut main = container(n * 10, "main");
    main.ports = ports;
    let mut alone = container(n * 10 + 2, "alone");
    alone.networking.disabled = true;
    let mut spec = task(n, 64, vec![main, container(n * 10 + 1, "side"), alone]);
    spec.network = NetworkMode::Bridge;
    spec
}

fn node_of(range: std::ops::RangeInclusive<u16>) -> Node {
    let mut node = node();
    node.config.dynamic_ports.range = range;
    node
}

fn prepared(change: &Change) -> crate::effect::PrepareHost {
    let mut all = change.effects.iter().filter_map(|effect| match effect {
        Effect::PrepareHost(prepare) => Some(prepare.clone()),
        _ => None,
    });
    all.next_back().expect("no preparation of the host")
}

fn taken(spec: &TaskSpec, ports: &[u16]) -> Event {
    let ports = ports.iter().map(|port| (Protocol::Tcp, *port)).collect();
    done(Lane::Host(spec.id.clone()), Completion::PortsTaken { ports })
}

fn host_ports(node: &Node, spec: &TaskSpec) -> Vec<u16> {
    let bindings = &node.task(&spec.id).unwrap().bindings;
    bindings.iter().map(|binding| binding.host_port).collect()
}

#[test]
fn each_container_of_a_bridge_task_has_an_address_and_its_ports_lead_there() {
    let mut node = node_of(100..=200);
    let spec = bridge(1, vec![mapping(80, 0), mapping(81, 8081)]);
    let change = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let prepare = prepared(&change);
    let [main, side] = [0, 1].map(|at| prepare.addresses[&spec.containers[at].id]);
    assert_ne!(main, side);
    assert_eq!((prepare.addresses.len(), prepare.address), (2, None));
    let published: Vec<_> = prepare
        .published
        .iter()
        .map(|port| (port.host_port, port.address, port.port))
        .collect();
    assert_eq!(published, [(100, main, 80), (8081, main, 81)]);

    let reports = settle(&mut node, Millis(0), change);
    let facts = &reports.last().unwrap().task.facts;
    assert_eq!((facts.status, facts.address), (Status::Running, None));
    let bound: Vec<_> = facts.containers[0].bindings.iter().map(|b| b.host_port).collect();
    assert_eq!(bound, [100, 8081]);
    assert!(facts.containers[1].bindings.is_empty());
}

#[test]
fn ports_are_never_two_tasks_and_rest_after_use() {
    let mut node = node_of(100..=101);
    let [one, two, three] = [1, 2, 3].map(|n| bridge(n, vec![mapping(80, if n == 1 { 101 } else { 0 })]));
    let all = vec![one.clone(), two.clone(), three.clone()];
    let change = node.apply(Millis(0), snapshot(1, all));
    settle(&mut node, Millis(0), change);
    assert_eq!(host_ports(&node, &two), [100]);
    let waits = node.task(&three.id).unwrap();
    let Phase::Waiting { reason, .. } = &waits.phase else {
        panic!("{:?}", waits.phase)
    };
    assert_eq!(reason, "RESOURCE:PORTS: not enough ports of 100-101 are free");
    assert!(
        waits.container_addresses.is_empty(),
        "what it waits for is not kept from others"
    );

    let change = node.apply(Millis(0), stop(2, two.clone()));
    settle(&mut node, Millis(0), change);
    for container in &two.containers {
        let exit = Exit {
            task: two.id.clone(),
            container: container.id.clone(),
            attempt: Attempt(1),
            pid: 7,
            code: 0,
            at: Millis(1),
            oom_killed: false,
            holder_ended: false,
        };
        let change = node.apply(Millis(1), Event::Exited(exit));
        settle(&mut node, Millis(1), change);
    }
    assert_eq!(node.task(&two.id).unwrap().phase, Phase::Stopped);
    assert!(matches!(
        node.task(&three.id).unwrap().phase,
        Phase::Waiting { .. }
    ));
    let later = Millis(1 + PORT_REST_MS);
    let change = node.apply(later, Event::Timer(TimerKey::Quarantine));
    settle(&mut node, later, change);
    assert_eq!(host_ports(&node, &three), [100]);
}

#[test]
fn a_port_that_a_process_of_the_host_has_is_chosen_anew_and_not_for_ever() {
    let mut node = node_of(100..=109);
    let spec = bridge(1, vec![mapping(80, 0)]);
    let mut change = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let mut now = Millis(0);
    let mut chosen = Vec::new();
    for _ in 1..crate::task::START_TRIES_MAX {
        let port = prepared(&change).published[0].host_port;
        assert!(!chosen.contains(&port), "{port} was taken before");
        chosen.push(port);
        let told = node.apply(now, taken(&spec, &[port]));
        let (key, at) = told
            .timers
            .iter()
            .find(|(key, _)| matches!(key, TimerKey::Retry(_)))
            .unwrap();
        now = *at;
        change = node.apply(now, Event::Timer(key.clone()));
    }
    let last = prepared(&change).published[0].host_port;
    let change = node.apply(now, taken(&spec, &[last]));
    let (code, reason) = change.reports.last().unwrap().task.facts.stop.clone().unwrap();
    assert_eq!(code, StopCode::TaskFailedToStart);
    assert!(
        reason.contains("processes of the host have all ports"),
        "{reason}"
    );
}

#[test]
fn a_named_port_that_a_process_of_the_host_has_fails_the_task() {
    let mut node = node_of(100..=109);
    let spec = bridge(1, vec![mapping(80, 8080), mapping(81, 0)]);
    node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let change = node.apply(Millis(0), taken(&spec, &[8080, 100]));
    let (_, reason) = change.reports.last().unwrap().task.facts.stop.clone().unwrap();
    assert_eq!(
        reason,
        "ResourceInitializationError: a process of the host has host port 8080/tcp"
    );
}

#[test]
fn an_awsvpc_task_that_publishes_holds_its_ports_of_the_host() {
    let mut node = node();
    let spec = |n: u64| {
        let mut spec = task(n, 64, vec![container(n * 10, "main")]);
        spec.containers[0].ports.push(mapping(80, 80));
        spec.publish_ports = true;
        spec
    };
    let change = node.apply(Millis(0), snapshot(1, vec![spec(1), spec(2)]));
    let prepare = prepared(&change);
    assert_eq!(prepare.published[0].address, prepare.address.unwrap());
    let waiting = node.task(&spec(2).id).unwrap().waiting().unwrap();
    assert!(
        waiting.starts_with("RESOURCE:PORTS: host port 80/tcp is held by"),
        "{waiting}"
    );
}

/// What a task had before the agent died it has after it, and nobody else is given it.
#[test]
fn bindings_outlive_the_agent() {
    let mut node = node_of(100..=200);
    let spec = bridge(1, vec![mapping(80, 0)]);
    let change = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    settle(&mut node, Millis(0), change);
    let record = serde_json::to_string(node.record()).unwrap();
    let tasks: Vec<Task> = node
        .tasks()
        .map(|task| serde_json::from_str(&serde_json::to_string(task).unwrap()).unwrap())
        .collect();
    let record = serde_json::from_str(&record).unwrap();
    let mut again = Node::load(node.config.clone(), record, tasks, node.ledger().clone());
    assert!(again.task(&spec.id).unwrap().is_published());
    assert_eq!(host_ports(&again, &spec), [100]);
    let other = bridge(2, vec![mapping(80, 100)]);
    again.apply(Millis(0), Event::Restarted(Restarted::default()));
    again.apply(Millis(0), snapshot(2, vec![spec, other.clone()]));
    let waiting = again.task(&other.id).unwrap().waiting().unwrap();
    assert!(waiting.contains("host port 100/tcp is held by"), "{waiting}");
}
