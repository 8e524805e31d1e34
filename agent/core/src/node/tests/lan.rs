//! Tasks that are hosts of a network outside: what it says of their addresses, and how long it is waited for.

use super::*;
use crate::{network::AppliedNetwork, task::NETWORK_DEADLINE_MS};

fn one() -> TaskSpec {
    task(1, 1, vec![container(1, "main")])
}

fn failure(message: &str) -> Failure {
    Failure {
        kind: "ResourceInitializationError".into(),
        message: message.into(),
        retryable: true,
    }
}

fn taken(spec: &TaskSpec) -> Event {
    let failure = failure("a host of the network has it");
    done(Lane::Host(spec.id.clone()), Completion::AddressTaken(failure))
}

fn failed(spec: &TaskSpec) -> Event {
    let failed = Completion::Failed(failure("the kernel is busy"));
    done(Lane::Host(spec.id.clone()), failed)
}

fn awaited(spec: &TaskSpec, what: &str) -> Event {
    let completion = Completion::NetworkAwaited(failure(what));
    done(Lane::Host(spec.id.clone()), completion)
}

fn ready(spec: &TaskSpec) -> Event {
    let completion = Completion::HostReady {
        mac_address: "02:00:00:00:00:01".into(),
        warnings: vec![],
    };
    done(Lane::Host(spec.id.clone()), completion)
}

fn retry(spec: &TaskSpec) -> Event {
    Event::Timer(TimerKey::Retry(Lane::Host(spec.id.clone())))
}

/// With which address the host is to be prepared.
fn prepared(change: &Change) -> Option<Ipv4Addr> {
    change.effects.iter().find_map(|effect| match effect {
        Effect::PrepareHost(prepare) => Some(prepare.address.unwrap().ipv4),
        _ => None,
    })
}

/// When it is tried again.
fn due(change: &Change) -> Millis {
    let is_retry = |key: &TimerKey| matches!(key, TimerKey::Retry(Lane::Host(_)));
    let mut timers = change.timers.iter();
    timers.find(|(key, _)| is_retry(key)).unwrap().1
}

fn stopped_reason(node: &Node, spec: &TaskSpec) -> Option<String> {
    let stop = node.task(&spec.id).unwrap().stop.clone();
    stop.map(|(_, reason)| reason)
}

#[test]
fn who_is_refused_an_address_gets_the_next_and_the_refused_one_rests() {
    let mut node = node();
    let spec = one();
    let first = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let refused = prepared(&first).unwrap();
    let change = node.apply(Millis(1), taken(&spec));
    assert!(change.node, "that it has another is stored");
    assert_eq!(prepared(&change), None);
    let at = due(&change);
    let next = prepared(&node.apply(at, retry(&spec))).unwrap();
    assert_eq!(next, Ipv4Addr::from(u32::from(refused) + 1));
    let change = node.apply(at, ready(&spec));
    let facts = change.reports.last().map(|report| report.task.facts.address);
    let address = node.task(&spec.id).unwrap().address;
    assert_eq!(address, Some(next.into()));
    assert!(facts.is_none_or(|said| said == address));
    assert_eq!(
        node.record().addresses.counts("10.0.0.0/24".parse().unwrap()),
        (1, 1)
    );
}

#[test]
fn addresses_are_not_tried_for_ever() {
    let mut node = node();
    let spec = one();
    let mut change = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let mut tried = Vec::new();
    let mut now = Millis(0);
    while let Some(address) = prepared(&change) {
        tried.push(address);
        change = node.apply(now, taken(&spec));
        if stopped_reason(&node, &spec).is_none() {
            now = due(&change);
            change = node.apply(now, retry(&spec));
        }
    }
    tried.dedup();
    assert_eq!(tried.len(), 3);
    let reason = stopped_reason(&node, &spec).unwrap();
    assert_eq!(
        reason,
        "ResourceInitializationError: a host of the network has it; 3 addresses were tried"
    );

    // Or there is no other, which is as good a reason.
    let mut node = super::node();
    node.record.addresses = Addresses::new("10.0.0.0/30".parse::<crate::addresses::Range>().unwrap());
    let other = task(2, 1, vec![container(2, "main")]);
    node.apply(Millis(0), snapshot(1, vec![spec.clone(), other]));
    node.apply(Millis(1), taken(&spec));
    let reason = stopped_reason(&node, &spec).unwrap();
    assert!(reason.ends_with("; no other address is free"), "{reason}");
}

#[test]
fn what_failed_before_takes_no_address_from_a_task() {
    let mut node = node();
    let spec = one();
    node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let mut now = Millis(0);
    let mut goes_on = |node: &mut Node, event: Event| {
        let change = node.apply(now, event);
        assert_eq!(stopped_reason(node, &spec), None);
        now = due(&change);
        let prepared = prepared(&node.apply(now, retry(&spec)));
        prepared.unwrap()
    };
    let first = goes_on(&mut node, failed(&spec));
    assert_eq!(goes_on(&mut node, failed(&spec)), first);
    let second = goes_on(&mut node, taken(&spec));
    assert_ne!(second, first);

    // A record of an earlier version knows nothing of it.
    let task = node.task(&spec.id).unwrap();
    let mut stored = serde_json::to_value(task).unwrap();
    let tried = stored.as_object_mut().unwrap().remove("addresses_tried");
    assert_eq!(tried, Some(1.into()));
    let stored: Task = serde_json::from_value(stored).unwrap();
    assert_eq!(stored.addresses_tried, 0);

    // As many as without the failures, and what comes after the last begins anew.
    assert_ne!(goes_on(&mut node, taken(&spec)), second);
    node.apply(now, taken(&spec));
    let reason = stopped_reason(&node, &spec).unwrap();
    assert!(reason.ends_with("3 addresses were tried"), "{reason}");
    assert_eq!(node.task(&spec.id).unwrap().host_retry.failures, 0);
}

#[test]
fn a_network_that_answers_is_not_waited_for_any_more_whatever_it_says() {
    for says in [taken, failed] {
        let mut node = node();
        let spec = one();
        node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
        let change = node.apply(Millis(1), awaited(&spec, "there is no link eth1"));
        let at = due(&change);
        node.apply(at, retry(&spec));
        let change = node.apply(at, says(&spec));
        assert_eq!(node.task(&spec.id).unwrap().awaited, None);
        // It has all its time again.
        let at = due(&change);
        node.apply(at, retry(&spec));
        node.apply(at, awaited(&spec, "there is no link eth1"));
        let deadline = node.deadline(&spec.id).unwrap();
        assert_eq!(deadline.at, at.plus(NETWORK_DEADLINE_MS));
    }
}

#[test]
fn a_network_that_is_late_is_waited_for_until_a_deadline() {
    let mut node = node();
    let spec = one();
    node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let begun = Millis(1_000);
    let mut change = node.apply(begun, awaited(&spec, "there is no link eth1"));
    let waiting = change.reports.last().unwrap().task.facts.waiting.clone();
    assert_eq!(
        waiting.as_deref(),
        Some("waits for its network: there is no link eth1")
    );
    let deadline = node.deadline(&spec.id).unwrap();
    assert_eq!(
        (deadline.at, deadline.then),
        (begun.plus(NETWORK_DEADLINE_MS), "the task fails to start")
    );
    // Much more often than what may be wrong with the task itself, and nothing more is said.
    let mut tries = 0;
    let mut now = due(&change);
    while now.0 < begun.0 + NETWORK_DEADLINE_MS {
        assert!(prepared(&node.apply(now, retry(&spec))).is_some());
        change = node.apply(now, awaited(&spec, "there is no link eth1"));
        assert_eq!(change.reports, []);
        (tries, now) = (tries + 1, due(&change));
    }
    assert!(tries > 10, "{tries}");
    // A clock that is set takes nothing of it away.
    node.apply(now, Event::ClockStepped { by_ms: 60_000 });
    let now = now.plus(60_000);
    assert_eq!(
        node.deadline(&spec.id).unwrap().at,
        begun.plus(NETWORK_DEADLINE_MS + 60_000)
    );
    node.apply(now, retry(&spec));
    node.apply(now, awaited(&spec, "there is no link eth1"));
    assert_eq!(
        stopped_reason(&node, &spec).unwrap(),
        "ResourceInitializationError: there is no link eth1; waited 120 s for it"
    );
}

#[test]
fn a_network_that_came_is_not_waited_for_any_more() {
    let mut node = node();
    let spec = one();
    node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let change = node.apply(Millis(1), awaited(&spec, "link eth1 carries nothing"));
    let at = due(&change);
    node.apply(at, retry(&spec));
    node.apply(at, ready(&spec));
    let task = node.task(&spec.id).unwrap();
    assert_eq!(
        (task.waiting().as_deref(), node.deadline(&spec.id)),
        (Some("pulls busy"), None)
    );

    // A record of an earlier version knows nothing of it.
    let mut stored = serde_json::to_value(task).unwrap();
    stored.as_object_mut().unwrap().remove("awaited").unwrap();
    assert_eq!(serde_json::from_value::<Task>(stored).unwrap(), *task);
}

#[test]
fn a_task_whose_link_is_gone_ends_and_says_so() {
    let mut node = node();
    let spec = one();
    let change = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    settle(&mut node, Millis(0), change);
    let applied = AppliedNetwork {
        lost: [(
            spec.id.clone(),
            "interface eth1, which the task had, is gone".to_owned(),
        )]
        .into(),
        ..AppliedNetwork::default()
    };
    let reports = run(&mut node, Millis(1), Event::NetworkApplied(applied.clone()));
    assert!(statuses(&reports).contains(&Status::Stopping));
    assert_eq!(
        stopped_reason(&node, &spec).unwrap(),
        "interface eth1, which the task had, is gone"
    );
    // Told again of what is ending already.
    assert_eq!(run(&mut node, Millis(2), Event::NetworkApplied(applied)), []);
}
