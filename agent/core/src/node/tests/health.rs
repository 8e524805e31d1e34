//! Health checks: what follows from them, and what does not.

use super::*;
use crate::{
    desired::HealthCheck,
    health::{HealthStatus, Outcome},
};

const BEGIN: Millis = Millis(10_000_000);

fn checked(n: u64, name: &str, retries: u32) -> ContainerSpec {
    ContainerSpec {
        health_check: Some(HealthCheck {
            command: vec!["look".into()],
            interval_ms: 10_000,
            timeout_ms: 2_000,
            retries,
            start_period_ms: 0,
        }),
        ..container(n, name)
    }
}

fn after(mut spec: ContainerSpec, name: &str) -> ContainerSpec {
    spec.depends_on.push(Dependency {
        container: name.into(),
        condition: Condition::Healthy,
    });
    spec
}

/// A task of `main` (10, checked) and `side` (11), which waits for it.
fn pair() -> TaskSpec {
    task(
        1,
        0,
        vec![after(container(11, "side"), "main"), checked(10, "main", 1)],
    )
}

fn id(spec: &TaskSpec, name: &str) -> ContainerId {
    spec.container_named(name).unwrap().id.clone()
}

fn lane(spec: &TaskSpec, name: &str) -> Lane {
    Lane::Probe(spec.id.clone(), id(spec, name))
}

fn timer(spec: &TaskSpec, name: &str) -> TimerKey {
    TimerKey::Probe(spec.id.clone(), id(spec, name))
}

fn probed(spec: &TaskSpec, name: &str, code: i32) -> Event {
    let outcome = Outcome {
        exit_code: Some(code),
        output: format!("said {code}"),
    };
    let attempt = Attempt::FIRST;
    done(lane(spec, name), Completion::Probed { attempt, outcome })
}

/// The next probe begins, at the time its timer was set for.
fn begin_probe(node: &mut Node, spec: &TaskSpec, name: &str, at: Millis) {
    let change = node.apply(at, Event::Timer(timer(spec, name)));
    assert!(
        matches!(change.effects.as_slice(), [Effect::Probe(p)] if p.container == id(spec, name) && p.command == ["look"] && p.timeout_ms == 2_000),
        "{change:?}"
    );
    is_not_stored(&change);
}

#[track_caller]
fn is_not_stored(change: &Change) {
    let stored = !change.tasks.is_empty() || change.node || !change.ledger.is_empty();
    assert!(!stored && change.reports.is_empty(), "{change:?}");
}

fn life(node: &Node, spec: &TaskSpec, name: &str) -> Life {
    node.task(&spec.id).unwrap().container(&id(spec, name)).life
}

fn health(report: &Report, name: &str) -> Option<HealthStatus> {
    let containers = &report.task.facts.containers;
    let container = containers.iter().find(|c| c.name == name).unwrap();
    container.health.as_ref().map(|health| health.status)
}

#[test]
fn a_dependent_starts_in_the_event_that_says_healthy() {
    let (mut node, spec) = (node(), pair());
    let change = node.apply(BEGIN, snapshot(1, vec![spec.clone()]));
    let reports = settle(&mut node, BEGIN, change);
    assert_eq!(
        health(reports.last().unwrap(), "main"),
        Some(HealthStatus::Unknown)
    );
    assert_eq!(health(reports.last().unwrap(), "side"), None);
    assert_eq!(life(&node, &spec, "side"), Life::Waiting);
    assert_eq!(
        node.task(&spec.id).unwrap().waiting().unwrap(),
        "container side waits for container main to be HEALTHY, until 60 s after its start"
    );
    let deadline = node.deadline(&spec.id).unwrap();
    assert_eq!(deadline.at, BEGIN.plus(60_000));
    // Before its time a timer does nothing but wait again.
    let change = node.apply(BEGIN.plus(999), Event::Timer(timer(&spec, "main")));
    assert_eq!(change.timers, [(timer(&spec, "main"), BEGIN.plus(1_000))]);
    assert!(change.effects.is_empty());
    begin_probe(&mut node, &spec, "main", BEGIN.plus(1_000));
    let change = node.apply(BEGIN.plus(1_020), probed(&spec, "main", 0));
    assert!(
        matches!(change.effects.as_slice(), [Effect::Start(start)] if start.spec.name == "side"),
        "{:?}",
        change.effects
    );
    assert_eq!(change.timers, [(timer(&spec, "main"), BEGIN.plus(11_020))]);
    let report = change.reports.last().unwrap();
    assert_eq!(health(report, "main"), Some(HealthStatus::Healthy));
    assert_eq!(report.task.facts.waiting, None);
}

#[test]
fn a_probe_that_finds_nothing_new_is_neither_stored_nor_reported() {
    let (mut node, spec) = (node(), task(1, 0, vec![checked(10, "main", 2)]));
    run(&mut node, BEGIN, snapshot(1, vec![spec.clone()]));
    let mut now = BEGIN.plus(1_000);
    for (code, news) in [
        (0, true),
        (0, false),
        (1, false),
        (0, false),
        (1, false),
        (1, true),
        (1, false),
    ] {
        begin_probe(&mut node, &spec, "main", now);
        let change = node.apply(now, probed(&spec, "main", code));
        assert_eq!(change.timers, [(timer(&spec, "main"), now.plus(10_000))]);
        if news {
            assert_eq!((change.reports.len(), change.tasks.len()), (1, 1));
        } else {
            is_not_stored(&change);
        }
        now = now.plus(10_000);
    }
    let task = node.task(&spec.id).unwrap();
    let state = &task.state().facts.containers[0];
    assert_eq!(state.health.as_ref().unwrap().status, HealthStatus::Unhealthy);
    // Nobody stops an unhealthy task but who wanted it.
    assert_eq!(
        (task.phase.clone(), task.status()),
        (Phase::Active, Status::Running)
    );
    let failure = Failure {
        kind: "x".into(),
        message: "containerd is away".into(),
        retryable: true,
    };
    begin_probe(&mut node, &spec, "main", now);
    let change = node.apply(now, done(lane(&spec, "main"), Completion::Failed(failure)));
    is_not_stored(&change);
    assert_eq!(change.timers.len(), 1);
    let latest = node
        .task(&spec.id)
        .unwrap()
        .container(&id(&spec, "main"))
        .health
        .latest()
        .unwrap()
        .clone();
    assert_eq!(latest.output, "containerd is away");
}

#[test]
fn a_stop_waits_for_no_probe_and_a_removal_does() {
    let (mut node, spec) = (node(), task(1, 0, vec![checked(10, "main", 1)]));
    run(&mut node, BEGIN, snapshot(1, vec![spec.clone()]));
    begin_probe(&mut node, &spec, "main", BEGIN.plus(1_000));
    let change = node.apply(BEGIN.plus(1_500), stop(2, spec.clone()));
    let lanes: Vec<_> = change.effects.iter().map(Effect::lane).collect();
    let lifecycle = Lane::Lifecycle(spec.id.clone(), id(&spec, "main"));
    assert_eq!(lanes, [lane(&spec, "main"), lifecycle.clone()]);
    assert!(matches!(
        change.effects.as_slice(),
        [
            Effect::Cancel(_),
            Effect::Signal {
                kind: SignalKind::Stop,
                ..
            }
        ]
    ));
    let change = node.apply(BEGIN.plus(1_600), done(lifecycle, Completion::Signalled));
    assert!(change.effects.is_empty(), "told once: {:?}", change.effects);
    let ended = exit(&spec.id, &id(&spec, "main"), Attempt::FIRST, 143);
    let change = node.apply(BEGIN.plus(1_700), Event::Exited(ended));
    assert!(change.effects.is_empty(), "{:?}", change.effects);
    // What it found of a container that ends is nothing to tell.
    let change = node.apply(BEGIN.plus(1_800), probed(&spec, "main", 1));
    assert!(
        matches!(change.effects.as_slice(), [Effect::Remove { .. }]),
        "{change:?}"
    );
    assert!(
        change
            .reports
            .iter()
            .all(|r| health(r, "main") == Some(HealthStatus::Unknown))
    );
    let reports = settle(&mut node, BEGIN.plus(1_900), change);
    assert_eq!(reports.last().unwrap().task.facts.status, Status::Stopped);
    // A timer that comes late finds nothing to do.
    let change = node.apply(BEGIN.plus(11_000), Event::Timer(timer(&spec, "main")));
    assert!(change.is_empty(), "{change:?}");
}

#[test]
fn a_container_that_ended_is_not_looked_at_and_its_probe_is_given_up() {
    let mut main = checked(10, "main", 1);
    main.essential = false;
    let (mut node, spec) = (node(), task(1, 0, vec![main, container(11, "other")]));
    run(&mut node, BEGIN, snapshot(1, vec![spec.clone()]));
    begin_probe(&mut node, &spec, "main", BEGIN.plus(1_000));
    let ended = exit(&spec.id, &id(&spec, "main"), Attempt::FIRST, 0);
    let change = node.apply(BEGIN.plus(1_500), Event::Exited(ended));
    assert_eq!(change.effects, [Effect::Cancel(lane(&spec, "main"))]);
    let change = node.apply(
        BEGIN.plus(1_600),
        done(lane(&spec, "main"), Completion::Cancelled),
    );
    assert!(
        matches!(change.effects.as_slice(), [Effect::Remove { .. }]),
        "{change:?}"
    );
    settle(&mut node, BEGIN.plus(1_700), change);
    assert_eq!(life(&node, &spec, "main"), Life::Gone);
    let change = node.apply(BEGIN.plus(12_000), Event::Timer(timer(&spec, "main")));
    assert!(change.is_empty(), "{change:?}");
}

#[test]
fn who_waits_for_healthy_gives_up_at_the_start_timeout_or_when_it_ended() {
    let (mut node, spec) = (node(), pair());
    run(&mut node, BEGIN, snapshot(1, vec![spec.clone()]));
    begin_probe(&mut node, &spec, "main", BEGIN.plus(10_000));
    let change = node.apply(BEGIN.plus(10_000), probed(&spec, "main", 1));
    assert_eq!(
        health(change.reports.last().unwrap(), "main"),
        Some(HealthStatus::Unhealthy)
    );
    // It may become healthy yet.
    assert_eq!(life(&node, &spec, "side"), Life::Waiting);
    let late = TimerKey::StartTimeout(spec.id.clone(), id(&spec, "main"));
    let reports = run(&mut node, BEGIN.plus(60_000), Event::Timer(late.clone()));
    let (code, reason) = reports.last().unwrap().task.facts.stop.clone().unwrap();
    assert_eq!(code, StopCode::TaskFailedToStart);
    assert_eq!(
        reason,
        "dependency main was not HEALTHY within its startTimeout of 60 s"
    );

    let mut main = checked(10, "main", 1);
    main.essential = false;
    let spec = task(1, 0, vec![after(container(11, "side"), "main"), main]);
    let mut node = super::node();
    run(&mut node, BEGIN, snapshot(1, vec![spec.clone()]));
    let ended = exit(&spec.id, &id(&spec, "main"), Attempt::FIRST, 0);
    let reports = run(&mut node, BEGIN.plus(5), Event::Exited(ended));
    let facts = &reports.last().unwrap().task.facts;
    assert_eq!(
        facts.stop.clone().unwrap().1,
        "dependency main exited with 0, HEALTHY was needed"
    );
    assert_eq!(facts.containers[0].exit_code, Some(143));
}

#[test]
fn one_that_is_healthy_in_time_may_take_longer_than_its_start_timeout() {
    let (mut node, spec) = (node(), pair());
    run(&mut node, BEGIN, snapshot(1, vec![spec.clone()]));
    begin_probe(&mut node, &spec, "main", BEGIN.plus(1_000));
    run(&mut node, BEGIN.plus(1_000), probed(&spec, "main", 0));
    let late = TimerKey::StartTimeout(spec.id.clone(), id(&spec, "main"));
    run(&mut node, BEGIN.plus(60_000), Event::Timer(late));
    assert_eq!(life(&node, &spec, "side"), Life::Running);
    assert_eq!(node.task(&spec.id).unwrap().status(), Status::Running);
}

#[test]
fn a_restarted_agent_keeps_the_status_and_looks_again_at_once() {
    let (mut node, spec) = (node(), task(1, 0, vec![checked(10, "main", 1)]));
    run(&mut node, BEGIN, snapshot(1, vec![spec.clone()]));
    begin_probe(&mut node, &spec, "main", BEGIN.plus(1_000));
    node.apply(BEGIN.plus(1_000), probed(&spec, "main", 0));
    let json = serde_json::to_string(node.task(&spec.id).unwrap()).unwrap();
    let stored = serde_json::from_str(&json).unwrap();
    let mut node = Node::load(
        super::node().config,
        node.record().clone(),
        [stored],
        node.ledger().clone(),
    );
    let restarted = Restarted {
        containers: vec![crate::event::Observed {
            task: spec.id.clone(),
            container: id(&spec, "main"),
            attempt: Attempt::FIRST,
            state: crate::event::ObservedState::Running { pid: 7 },
        }],
        ..Restarted::default()
    };
    let now = BEGIN.plus(4_000);
    let change = node.apply(now, Event::Restarted(restarted));
    assert!(change.reports.is_empty(), "{:?}", change.reports);
    let probes = change.effects.iter().filter(|e| matches!(e, Effect::Probe(_)));
    assert_eq!(probes.count(), 1, "{:?}", change.effects);
    let state = node.task(&spec.id).unwrap().state();
    assert_eq!(
        state.facts.containers[0].health.as_ref().unwrap().status,
        HealthStatus::Healthy
    );
}

#[test]
fn a_clock_that_is_set_moves_the_next_probe() {
    let (mut node, spec) = (node(), task(1, 0, vec![checked(10, "main", 1)]));
    run(&mut node, BEGIN, snapshot(1, vec![spec.clone()]));
    let by_ms = -3_600_000;
    let change = node.apply(BEGIN.plus(500 + by_ms), Event::ClockStepped { by_ms });
    let at = BEGIN.plus(1_000 + by_ms);
    assert!(
        change.timers.contains(&(timer(&spec, "main"), at)),
        "{:?}",
        change.timers
    );
    begin_probe(&mut node, &spec, "main", at);
}

#[test]
fn what_nobody_asked_for_is_an_anomaly() {
    let (mut node, spec) = (node(), pair());
    run(&mut node, BEGIN, snapshot(1, vec![spec.clone()]));
    for event in [probed(&spec, "main", 0), probed(&spec, "side", 0)] {
        let change = node.apply(BEGIN, event);
        assert_eq!(change.anomalies.len(), 1);
    }
    begin_probe(&mut node, &spec, "main", BEGIN.plus(1_000));
    let change = node.apply(BEGIN, done(lane(&spec, "main"), Completion::Removed));
    assert_eq!(change.anomalies.len(), 1);
    let other = task(9, 0, vec![checked(90, "main", 1)]);
    assert_eq!(node.apply(BEGIN, probed(&other, "main", 0)).anomalies.len(), 1);
    assert!(node.apply(BEGIN, Event::Timer(timer(&other, "main"))).is_empty());
}
