//! What becomes of tasks when their host boots again.

use super::*;
use crate::event::{Observed, ObservedState};

/// Init, then the container that is to stay; both run to where they belong.
fn restarting(n: u64) -> TaskSpec {
    let mut spec = task(
        n,
        256,
        vec![container(n * 16, "init"), container(n * 16 + 1, "main")],
    );
    spec.restart_after_reboot = true;
    spec.containers[0].essential = false;
    spec.containers[1].depends_on.push(Dependency {
        container: "init".into(),
        condition: Condition::Success,
    });
    spec
}

fn left(spec: &TaskSpec, container: usize, attempt: u32) -> Observed {
    Observed {
        task: spec.id.clone(),
        container: spec.containers[container].id.clone(),
        attempt: Attempt(attempt),
        state: ObservedState::Created,
    }
}

fn boot(containers: Vec<Observed>) -> Event {
    Event::Restarted(Restarted {
        host_rebooted: true,
        containers,
        ..Restarted::default()
    })
}

/// Runs both containers; the first has ended well and is removed.
fn up(node: &mut Node, spec: &TaskSpec) {
    run(node, Millis(0), snapshot(1, vec![spec.clone()]));
    let ended = exit(&spec.id, &spec.containers[0].id, Attempt(1), 0);
    run(node, Millis(1), Event::Exited(ended));
    assert_eq!(node.task(&spec.id).unwrap().status(), Status::Running);
}

#[test]
fn a_tagged_task_starts_again_from_its_beginning_as_new_attempts() {
    let mut node = node();
    let spec = restarting(1);
    up(&mut node, &spec);
    let address = node.task(&spec.id).unwrap().address;

    let change = node.apply(Millis(10), boot(vec![left(&spec, 1, 1)]));
    assert_eq!(statuses(&change.reports), [Status::Pending]);
    let main = &spec.containers[1].id;
    let removes: Vec<_> = change
        .effects
        .iter()
        .filter_map(|e| match e {
            Effect::Remove {
                container, attempt, ..
            } => Some((container, *attempt)),
            _ => None,
        })
        .collect();
    assert_eq!(removes, [(main, Attempt(1))], "what the runtime kept goes first");
    let anew = |e: &Effect| matches!(e, Effect::PrepareHost(p) if p.address == address);
    assert!(
        change.effects.iter().any(anew),
        "network and cgroups are made anew"
    );
    assert!(
        !change
            .effects
            .iter()
            .any(|e| matches!(e, Effect::PullImage { .. })),
        "what was resolved starts again"
    );

    let reports = settle(&mut node, Millis(10), change);
    let now = node.task(&spec.id).unwrap();
    let init = now.container(&spec.containers[0].id);
    assert_eq!(
        (init.attempt, init.life),
        (Attempt(2), Life::Running),
        "first things first"
    );
    assert_eq!(
        (now.container(main).attempt, now.container(main).life),
        (Attempt(2), Life::Waiting)
    );
    assert!(reports.iter().all(|r| r.task.facts.stop.is_none()));
    let ended = exit(&spec.id, &spec.containers[0].id, Attempt(2), 0);
    run(&mut node, Millis(20), Event::Exited(ended));
    let now = node.task(&spec.id).unwrap();
    assert_eq!(now.status(), Status::Running);
    assert_eq!(now.times.started, Some(Millis(20)));
    let mut owned: Vec<_> = node.ledger().entries().collect();
    owned.retain(|owned| matches!(owned, Owned::Attempt(..)));
    let second = Owned::Attempt(spec.id.clone(), main.clone(), Attempt(2));
    assert_eq!(owned, [&second], "nothing of the first attempt is in the ledger");

    run(&mut node, Millis(30), stop(2, spec.clone()));
    assert_eq!(node.task(&spec.id).unwrap().phase, Phase::Stopped);
}

#[test]
fn a_changed_range_is_moved_into_at_the_boot_and_not_before() {
    let mut node = node();
    let spec = restarting(1);
    up(&mut node, &spec);
    let old = node.task(&spec.id).unwrap().address.unwrap();
    let config = NodeConfig {
        task_range: "10.9.0.0/29".parse().unwrap(),
        boot_id: "boot".into(),
        ..node.config.clone()
    };
    let tasks: Vec<_> = node.tasks().cloned().collect();
    let mut node = Node::load(config, node.record().clone(), tasks, node.ledger().clone());
    assert_eq!(node.task(&spec.id).unwrap().address, Some(old));
    run(&mut node, Millis(10), boot(vec![left(&spec, 1, 1)]));
    let new = node.task(&spec.id).unwrap().address.unwrap();
    assert_eq!(new, Ipv4Addr::new(10, 9, 0, 1).into());
}

#[test]
fn both_kinds_side_by_side() {
    let mut node = node();
    let (again, ends) = (restarting(1), task(2, 128, vec![container(99, "a")]));
    run(
        &mut node,
        Millis(0),
        snapshot(1, vec![again.clone(), ends.clone()]),
    );
    let reports = run(&mut node, Millis(9), boot(vec![left(&ends, 0, 1)]));
    let last = |id: &TaskId| {
        let of_task = reports.iter().rfind(|r| r.task.id == *id);
        of_task.unwrap().task.facts.clone()
    };
    let ended = last(&ends.id);
    assert_eq!(ended.status, Status::Stopped);
    assert_eq!(
        ended.stop,
        Some((StopCode::HostRestarted, "host restarted".into()))
    );
    assert_eq!(last(&again.id).stop, None);
    assert_eq!(node.resources().used().cpu_units, 256);
}

#[test]
fn a_second_boot_or_crash_before_the_next_attempt_changes_nothing() {
    let mut node = node();
    let spec = restarting(1);
    up(&mut node, &spec);
    let events = [
        boot(vec![left(&spec, 1, 1)]),
        boot(vec![left(&spec, 1, 1)]),
        Event::Restarted(Restarted {
            host_rebooted: false,
            containers: vec![left(&spec, 1, 1)],
            ..Restarted::default()
        }),
    ];
    let mut last = Change::default();
    for (at, event) in (10..).zip(events) {
        last = node.apply(Millis(at), event);
        assert!(
            !last.effects.iter().any(|e| matches!(e, Effect::Start(_))),
            "{:?}",
            last.effects
        );
    }
    settle(&mut node, Millis(20), last);
    let main = &spec.containers[1].id;
    assert_eq!(node.task(&spec.id).unwrap().container(main).attempt, Attempt(2));
}

#[test]
fn a_stop_wins_over_the_next_attempt() {
    let mut node = node();
    let spec = restarting(1);
    up(&mut node, &spec);
    let restart = node.apply(Millis(10), boot(vec![left(&spec, 1, 1)]));
    let stopped = node.apply(Millis(11), stop(2, spec.clone()));
    settle(&mut node, Millis(12), restart);
    let reports = settle(&mut node, Millis(13), stopped);
    assert!(reports.iter().all(|r| r.task.facts.status != Status::Running));
    let task = node.task(&spec.id).unwrap();
    assert_eq!(task.phase, Phase::Stopped);
    assert_eq!(task.stop.as_ref().unwrap().0, StopCode::UserInitiated);
    assert!(matches!(
        node.ledger().entries().collect::<Vec<_>>().as_slice(),
        [Owned::Logs(_)]
    ));
}

#[test]
fn a_task_that_was_stopping_or_had_not_begun_is_as_it_was() {
    let mut node = node();
    let spec = restarting(1);
    let mut waiting = restarting(2);
    waiting.charge.cpu_units = 1024;
    up(&mut node, &spec);
    let both = snapshot(2, vec![spec.clone(), waiting.clone()]);
    node.apply(Millis(2), both);
    node.apply(Millis(3), stop(3, spec.clone()));
    run(&mut node, Millis(10), boot(vec![left(&spec, 1, 1)]));
    let stopped = node.task(&spec.id).unwrap();
    assert_eq!(stopped.phase, Phase::Stopped);
    assert_eq!(stopped.stop.as_ref().unwrap().0, StopCode::UserInitiated);
    let begun = node.task(&waiting.id).unwrap();
    assert_eq!(
        begun.container(&waiting.containers[0].id).attempt,
        Attempt(1),
        "it never started before"
    );
}
