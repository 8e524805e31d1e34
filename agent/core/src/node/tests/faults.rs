//! What must hold when clocks, records, starts and control planes go wrong.

use super::*;
use crate::ledger::HostObject;

pub(super) fn refused(task: &TaskId, stop: bool) -> crate::event::Refused {
    crate::event::Refused {
        task: task.clone(),
        stop,
        reason: "gpu is not known".into(),
    }
}

#[test]
fn a_running_task_whose_spec_is_not_understood_any_more_goes_on_until_it_is_to_stop() {
    let mut node = node();
    let spec = task(1, 0, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    let wanted = |revision, stop| Event::Snapshot {
        position: position(revision),
        tasks: vec![],
        refused: vec![refused(&spec.id, stop)],
        removals_confirmed: false,
    };
    let reports = run(&mut node, Millis(1), wanted(2, false));
    assert_eq!(reports, []);
    assert_eq!(node.task(&spec.id).unwrap().status(), Status::Running);
    let reports = run(&mut node, Millis(2), wanted(3, true));
    let stop = reports.last().unwrap().task.facts.stop.clone();
    assert_eq!(
        stop,
        Some((StopCode::UserInitiated, "Task stopped by user".into()))
    );
}

#[test]
fn nothing_of_a_refused_snapshot_is_taken_over_nor_of_what_follows_it() {
    let mut node = node();
    let specs: Vec<_> = (1..=4)
        .map(|n| task(n, 0, vec![container(n * 16, "a")]))
        .collect();
    run(&mut node, Millis(0), snapshot(1, specs.clone()));
    let stranger: TaskId = format!("{:032x}", 99).parse().unwrap();
    let held = Event::Snapshot {
        position: position(2),
        tasks: vec![],
        refused: vec![refused(&stranger, false)],
        removals_confirmed: false,
    };
    let change = node.apply(Millis(1), held);
    assert!(change.desired_ack.unwrap().refused.is_some());
    assert_eq!(change.reports, []);
    let change = node.apply(Millis(2), stop(3, specs[0].clone()));
    assert!(change.desired_ack.unwrap().refused.unwrap().contains("snapshot"));
    assert_eq!(node.record().position, Some(position(1)));
    let change = node.apply(Millis(3), snapshot(4, specs));
    assert_eq!(change.desired_ack.unwrap().refused, None);
}

#[test]
fn every_address_that_leaves_its_quarantine_wakes_who_waits() {
    use crate::addresses::QUARANTINE_MS;
    let mut node = node();
    let specs: Vec<_> = (1..=8)
        .map(|n| task(n, 0, vec![container(n * 16, "a")]))
        .collect();
    run(&mut node, Millis(0), snapshot(1, specs.clone()));
    run(&mut node, Millis(10), stop(2, specs[0].clone()));
    run(&mut node, Millis(500), stop(3, specs[1].clone()));
    let first = node.apply(Millis(10 + QUARANTINE_MS), Event::Timer(TimerKey::Quarantine));
    let second = Millis(500 + QUARANTINE_MS);
    assert!(
        first.timers.contains(&(TimerKey::Quarantine, second)),
        "{:?}",
        first.timers
    );
    settle(&mut node, Millis(10 + QUARANTINE_MS), first);
    run(&mut node, second, Event::Timer(TimerKey::Quarantine));
    assert_eq!(node.task(&specs[7].id).unwrap().status(), Status::Running);
}

#[test]
fn a_deadline_is_not_lost_when_the_clock_is_set_back() {
    let mut node = node();
    let first = task(1, 1024, vec![container(10, "a")]);
    let second = task(2, 512, vec![container(20, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![first, second.clone()]));
    let key = TimerKey::Admission(second.id.clone());
    let early = node.apply(Millis(59_999), Event::Timer(key.clone()));
    assert_eq!(early.timers, [(key, Millis(60_000))]);
}

/// Brings a task of one container to the point where its start is under way.
fn starting(node: &mut Node, spec: &TaskSpec) -> Lane {
    let (id, first) = (&spec.id, &spec.containers[0].id);
    node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    node.apply(Millis(0), done(Lane::Pull(id.clone(), first.clone()), image()));
    let ready = Completion::HostReady {
        mac_address: String::new(),
        warnings: vec![],
    };
    node.apply(Millis(0), done(Lane::Host(id.clone()), ready));
    Lane::Lifecycle(id.clone(), first.clone())
}

fn failure(retryable: bool) -> Failure {
    Failure {
        kind: "CannotStartContainerError".into(),
        message: "no answer".into(),
        retryable,
    }
}

#[test]
fn a_start_that_failed_while_stopping_holds_its_cpu_until_it_is_removed() {
    for completion in [Completion::Failed(failure(true)), Completion::Cancelled] {
        let mut node = node();
        let spec = task(1, 512, vec![container(10, "a")]);
        let lane = starting(&mut node, &spec);
        node.apply(Millis(1), stop(2, spec.clone()));
        let change = node.apply(Millis(2), done(lane.clone(), completion));
        assert!(
            matches!(change.effects.as_slice(), [Effect::Remove { .. }]),
            "{:?}",
            change.effects
        );
        assert_eq!(node.resources().used().cpu_units, 512, "it may run all the same");
        assert_eq!(node.task(&spec.id).unwrap().status(), Status::Stopping);
        let removed = node.apply(Millis(3), done(lane, Completion::Removed));
        assert_eq!(node.resources().used().cpu_units, 0);
        settle(&mut node, Millis(4), removed);
        assert_eq!(node.task(&spec.id).unwrap().phase, Phase::Stopped);
    }
}

#[test]
fn an_image_that_is_gone_at_the_start_is_fetched_once_more() {
    let mut node = node();
    let spec = task(1, 512, vec![container(10, "a")]);
    let lane = starting(&mut node, &spec);
    let change = node.apply(
        Millis(1),
        done(lane.clone(), Completion::ImageGone(failure(false))),
    );
    assert!(
        matches!(change.effects.as_slice(), [Effect::PullImage { .. }]),
        "{:?}",
        change.effects
    );
    let pulled = Lane::Pull(spec.id.clone(), spec.containers[0].id.clone());
    let change = node.apply(Millis(2), done(pulled, image()));
    assert!(
        matches!(change.effects.as_slice(), [Effect::Start(_)]),
        "{:?}",
        change.effects
    );
    // Whoever removes it, wins.
    let reports = run(
        &mut node,
        Millis(3),
        done(lane, Completion::ImageGone(failure(false))),
    );
    let stop = reports.last().unwrap().task.facts.stop.clone();
    assert_eq!(stop.unwrap().0, StopCode::TaskFailedToStart);
}

#[test]
fn who_waited_behind_a_task_that_may_not_be_passed_is_admitted_when_it_leaves() {
    let mut node = node();
    let holder = task(1, 512, vec![container(10, "a")]);
    let barrier = task(2, 1024, vec![container(20, "a")]);
    let mut specs = vec![holder, barrier.clone()];
    run(&mut node, Millis(0), snapshot(1, specs.clone()));
    // Each of these passes it, and ends; then nobody may.
    let mut revision = 1;
    for n in 3..=3 + u64::from(OVERTAKEN_MAX) {
        let mut small = task(n, 128, vec![container(n * 16, "a")]);
        small.network = NetworkMode::None;
        specs.push(small.clone());
        run(&mut node, Millis(0), snapshot(revision + 1, specs.clone()));
        revision += 2;
        if n < 3 + u64::from(OVERTAKEN_MAX) {
            run(&mut node, Millis(0), stop(revision, small));
        }
    }
    let last = specs.last().unwrap().id.clone();
    assert!(matches!(node.task(&last).unwrap().phase, Phase::Waiting { .. }));
    run(&mut node, Millis(1), stop(revision + 1, barrier));
    assert_eq!(node.task(&last).unwrap().status(), Status::Running);
}

#[test]
fn a_container_that_ended_with_its_host_says_so() {
    let mut node = node();
    let spec = task(1, 256, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    let before = node.record().last_sequence;
    // containerd keeps the record of a container whose process went with the boot before.
    let observed = crate::event::Observed {
        task: spec.id.clone(),
        container: spec.containers[0].id.clone(),
        attempt: Attempt(1),
        state: crate::event::ObservedState::Created,
    };
    let restarted = Restarted {
        host_rebooted: true,
        containers: vec![observed],
        ..Restarted::default()
    };
    let reports = run(&mut node, Millis(9), Event::Restarted(restarted));
    let container = &reports.last().unwrap().task.facts.containers[0];
    assert_eq!(
        (container.reason.as_deref(), container.exit_code),
        (Some("host restarted"), None)
    );
    assert!(
        reports[0].sequence > before + 1_000,
        "numbers that a power loss may have taken back are not used again"
    );
}

#[test]
fn the_end_of_a_start_that_was_undone_is_not_the_end_of_the_next_try() {
    let mut node = node();
    let spec = task(1, 0, vec![container(10, "a")]);
    let (id, first) = (&spec.id, &spec.containers[0].id);
    let lane = Lane::Lifecycle(id.clone(), first.clone());
    node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    node.apply(Millis(0), done(Lane::Pull(id.clone(), first.clone()), image()));
    let ready = Completion::HostReady {
        mac_address: String::new(),
        warnings: vec![],
    };
    node.apply(Millis(0), done(Lane::Host(id.clone()), ready));
    // The runtime took the process of the failed start away, and tells its end.
    let failed = Completion::Failed(Failure {
        kind: "CannotStartContainerError".into(),
        message: "the logger did not register".into(),
        retryable: true,
    });
    node.apply(Millis(1), Event::Exited(exit(id, first, Attempt(1), 137)));
    node.apply(Millis(2), done(lane.clone(), failed));
    node.apply(Millis(600), Event::Timer(TimerKey::Retry(lane.clone())));
    let started = Completion::Started {
        attempt: Attempt(1),
        pid: 8,
        warnings: vec![],
    };
    node.apply(Millis(601), done(lane, started));
    assert_eq!(node.task(id).unwrap().status(), Status::Running);
    node.apply(Millis(602), Event::Exited(exit(id, first, Attempt(1), 137)));
    assert_eq!(node.task(id).unwrap().status(), Status::Running, "told late");

    let mut its_own = exit(id, first, Attempt(1), 3);
    its_own.pid = 8;
    node.apply(Millis(603), Event::Exited(its_own));
    assert_eq!(node.task(id).unwrap().container(first).exit, Some(3));
}

fn seen(spec: &TaskSpec) -> Event {
    let observed = crate::event::Observed {
        task: spec.id.clone(),
        container: spec.containers[0].id.clone(),
        attempt: Attempt(1),
        state: crate::event::ObservedState::Running { pid: 7 },
    };
    Event::Restarted(Restarted {
        host_rebooted: false,
        containers: vec![observed],
        ..Restarted::default()
    })
}

#[test]
fn what_runs_without_a_record_is_ended_before_its_task_is_said_to_be_stopped() {
    for desired in [DesiredStatus::Running, DesiredStatus::Stopped] {
        let mut node = node();
        let mut spec = task(1, 0, vec![container(10, "a")]);
        run(&mut node, Millis(0), seen(&spec));
        let record = HostObject::Container(crate::ids::runtime_id(&spec.containers[0].id, Attempt(1)));
        assert!(node.ledger().owns(&record), "no leak before a snapshot said so");

        spec.desired = desired;
        let change = node.apply(Millis(1), snapshot(1, vec![spec.clone()]));
        let stopped = |r: &Report| r.task.facts.status == Status::Stopped;
        assert!(!change.reports.iter().any(stopped), "{desired:?}");
        let [Effect::Remove { attempt, .. }] = change.effects.as_slice() else {
            panic!("{:?}", change.effects)
        };
        assert_eq!(*attempt, Attempt(1));
        assert!(settle(&mut node, Millis(2), change).iter().any(stopped));
        let left: Vec<_> = node.ledger().entries().collect();
        assert!(matches!(left.as_slice(), [Owned::Logs(_)]), "{left:?}");
    }
}

/// One that others waited for, ended and removed, and two that run.
fn three() -> TaskSpec {
    let mut spec = task(
        1,
        256,
        vec![container(10, "init"), container(11, "app"), container(12, "web")],
    );
    spec.containers[0].essential = false;
    for container in &mut spec.containers[1..] {
        container.depends_on.push(Dependency {
            container: "init".into(),
            condition: Condition::Success,
        });
    }
    spec
}

fn running(spec: &TaskSpec, containers: &[usize]) -> Event {
    let observed = |index: &usize| crate::event::Observed {
        task: spec.id.clone(),
        container: spec.containers[*index].id.clone(),
        attempt: Attempt(1),
        state: crate::event::ObservedState::Running { pid: 7 },
    };
    Event::Restarted(Restarted {
        containers: containers.iter().map(observed).collect(),
        addresses: [(spec.id.clone(), Ipv4Addr::new(10, 0, 0, 3).into())].into(),
        ..Restarted::default()
    })
}

#[test]
fn what_runs_without_a_record_goes_on_when_all_of_it_is_accounted_for() {
    let mut node = node();
    let spec = three();
    run(&mut node, Millis(0), running(&spec, &[1, 2]));
    let change = node.apply(Millis(1), snapshot(1, vec![spec.clone()]));
    let [Effect::PrepareHost(prepare)] = change.effects.as_slice() else {
        panic!("{:?}", change.effects)
    };
    assert_eq!(
        prepare.address,
        Some(Ipv4Addr::new(10, 0, 0, 3).into()),
        "made again, which changes nothing"
    );
    let running: Vec<_> = prepare.running.iter().map(|(id, _)| id).collect();
    assert_eq!(running, [&spec.containers[1].id, &spec.containers[2].id]);
    let reports = settle(&mut node, Millis(2), change);
    assert!(
        reports.iter().all(|r| r.task.facts.status == Status::Running),
        "{reports:?}"
    );
    assert_eq!(reports[0].task.times.started, None, "that is not known");
    assert_eq!(node.resources().used().cpu_units, 256);
    // Its end is as any other's, and nothing of it is left.
    run(&mut node, Millis(3), stop(2, spec.clone()));
    assert_eq!(node.task(&spec.id).unwrap().phase, Phase::Stopped);
    assert!(matches!(
        node.ledger().entries().collect::<Vec<_>>().as_slice(),
        [Owned::Logs(_)]
    ));
}

#[test]
fn an_end_before_the_first_snapshot_is_not_missed() {
    let mut node = node();
    let spec = three();
    run(&mut node, Millis(0), running(&spec, &[1, 2]));
    let ended = exit(&spec.id, &spec.containers[1].id, Attempt(1), 3);
    run(&mut node, Millis(1), Event::Exited(ended));
    let reports = run(&mut node, Millis(2), snapshot(1, vec![spec.clone()]));
    let facts = &reports.last().unwrap().task.facts;
    assert_eq!(facts.stop.as_ref().unwrap().0, StopCode::EssentialContainerExited);
    assert_eq!(facts.containers[1].exit_code, Some(3));
}

#[test]
fn what_is_not_certain_of_a_task_without_a_record_ends_it() {
    let lost = |node: &Node, spec: &TaskSpec| {
        let (_, reason) = node.task(&spec.id).unwrap().stop.clone().unwrap();
        assert!(reason.contains("lost its record"), "{reason}");
    };
    // One of those that must run does not.
    let (mut first, spec) = (node(), three());
    run(&mut first, Millis(0), running(&spec, &[1]));
    run(&mut first, Millis(1), snapshot(1, vec![spec.clone()]));
    lost(&first, &spec);
    // Nobody waited for the end of the one that is gone: perhaps it never ran.
    let (mut second, mut spec) = (node(), three());
    spec.containers[1].depends_on.clear();
    spec.containers[2].depends_on.clear();
    run(&mut second, Millis(0), running(&spec, &[1, 2]));
    run(&mut second, Millis(1), snapshot(1, vec![spec.clone()]));
    lost(&second, &spec);
    // Its address is no longer in the range.
    let (mut third, spec) = (node(), three());
    let Event::Restarted(mut seen) = running(&spec, &[1, 2]) else {
        unreachable!()
    };
    seen.addresses
        .insert(spec.id.clone(), Ipv4Addr::new(10, 9, 0, 3).into());
    run(&mut third, Millis(0), Event::Restarted(seen));
    run(&mut third, Millis(1), snapshot(1, vec![spec.clone()]));
    lost(&third, &spec);
}

#[test]
fn what_runs_without_a_record_and_is_not_wanted_is_a_leak() {
    let mut node = node();
    run(&mut node, Millis(0), seen(&task(1, 0, vec![container(10, "a")])));
    run(&mut node, Millis(1), snapshot(1, vec![]));
    assert_eq!(node.ledger().entries().count(), 0, "the audit removes it now");
}

#[test]
fn a_node_without_its_own_record_knows_its_tasks() {
    let mut node = node();
    let spec = task(1, 256, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    let tasks: Vec<_> = node.tasks().cloned().collect();
    let record = NodeRecord::recovered(node.config.task_range, &tasks, 3);
    assert!(record.last_sequence > node.record().last_sequence);
    let mut node = Node::load(node.config.clone(), record, tasks, node.ledger().clone());
    let change = node.apply(Millis(9), seen(&spec));
    assert_eq!(change.effects, [], "nothing is touched");
    let other = task(2, 256, vec![container(20, "a")]);
    run(&mut node, Millis(10), snapshot(2, vec![spec, other.clone()]));
    assert_eq!(
        node.task(&other.id).unwrap().address,
        Some(Ipv4Addr::new(10, 0, 0, 2).into()),
        "no address is given twice"
    );
}

/// The same store, set back to a backup: a later epoch.
fn restored(revision: u64, tasks: Vec<crate::desired::TaskSpec>, removals_confirmed: bool) -> Event {
    Event::Snapshot {
        position: Position {
            epoch: 2,
            ..position(revision)
        },
        tasks,
        refused: vec![],
        removals_confirmed,
    }
}

#[test]
fn a_restored_control_plane_stops_nothing_that_its_backup_does_not_know_until_an_operator_confirms() {
    let mut node = node();
    let specs: Vec<_> = (1..=4)
        .map(|n| task(n, 0, vec![container(n * 16, "a")]))
        .collect();
    run(&mut node, Millis(0), snapshot(7, specs.clone()));
    let running = |node: &Node| node.tasks().filter(|t| t.status() == Status::Running).count();
    // A single one of four: without the restore it would be stopped.
    let change = node.apply(Millis(1), restored(3, specs[..3].to_vec(), false));
    let ack = change.desired_ack.unwrap();
    assert!(ack.confirmable);
    assert!(
        ack.refused
            .unwrap()
            .contains("does not know 1 of 4 running tasks")
    );
    assert_eq!(running(&node), 4);
    let change = node.apply(Millis(2), restored(4, specs[..3].to_vec(), true));
    assert_eq!(change.desired_ack.unwrap().refused, None);
    assert_eq!(node.tasks().filter(|task| task.forgotten).count(), 1);
    assert_eq!(node.record().position.as_ref().unwrap().epoch, 2);
    // The word was for that snapshot: from now on the guards are as before.
    let change = node.apply(Millis(3), restored(5, vec![], false));
    assert!(change.desired_ack.unwrap().confirmable);
}

#[test]
fn a_restored_control_plane_is_told_of_every_task_again() {
    let mut node = node();
    let specs: Vec<_> = (1..=2)
        .map(|n| task(n, 0, vec![container(n * 16, "a")]))
        .collect();
    run(&mut node, Millis(0), snapshot(7, specs.clone()));
    let change = node.apply(Millis(1), restored(3, specs.clone(), false));
    assert_eq!(change.desired_ack.unwrap().refused, None);
    let told: Vec<_> = change
        .reports
        .iter()
        .map(|r| (r.task.id.clone(), r.task.facts.status))
        .collect();
    assert_eq!(
        told,
        specs
            .iter()
            .map(|s| (s.id.clone(), Status::Running))
            .collect::<Vec<_>>()
    );
    assert_eq!(
        node.apply(Millis(2), restored(4, specs, false)).reports,
        [],
        "once"
    );
}

#[test]
fn a_confirmation_opens_no_door_to_a_foreign_or_older_store() {
    let mut node = node();
    run(
        &mut node,
        Millis(0),
        snapshot(7, vec![task(1, 0, vec![container(16, "a")])]),
    );
    for position in [
        Position {
            store_id: "other".into(),
            ..position(9)
        },
        position(3),
    ] {
        let event = Event::Snapshot {
            position,
            tasks: vec![],
            refused: vec![],
            removals_confirmed: true,
        };
        let ack = node.apply(Millis(1), event).desired_ack.unwrap();
        assert!(ack.refused.is_some() && !ack.confirmable);
    }
}

#[test]
fn a_start_timeout_keeps_its_rest_when_the_clock_is_set_and_what_was_reported_stays() {
    let mut spec = task(1, 0, vec![container(10, "init"), container(11, "main")]);
    spec.containers[0].essential = false;
    spec.containers[0].start_timeout_ms = 20_000;
    spec.containers[1].depends_on.push(Dependency {
        container: "init".into(),
        condition: Condition::Success,
    });
    let mut node = node();
    let begin = Millis(10_000_000);
    run(&mut node, begin, snapshot(1, vec![spec.clone()]));
    assert_eq!(node.deadline(&spec.id).unwrap().at, begin.plus(20_000));
    let by_ms = -3_600_000;
    let change = node.apply(begin.plus(by_ms + 5_000), Event::ClockStepped { by_ms });
    assert!(change.reports.is_empty(), "{:?}", change.reports);
    let init = node.task(&spec.id).unwrap().container(&spec.containers[0].id);
    assert_eq!(init.started, Some(begin));
    assert_eq!(node.deadline(&spec.id).unwrap().at, begin.plus(by_ms + 20_000));
    // The next agent sets the timer for the same time.
    let restarted = Restarted {
        host_rebooted: false,
        containers: vec![crate::event::Observed {
            task: spec.id.clone(),
            container: spec.containers[0].id.clone(),
            attempt: Attempt(1),
            state: crate::event::ObservedState::Running { pid: 1 },
        }],
        ..Restarted::default()
    };
    let change = node.apply(begin.plus(by_ms + 6_000), Event::Restarted(restarted));
    let key = TimerKey::StartTimeout(spec.id.clone(), spec.containers[0].id.clone());
    assert!(
        change.timers.contains(&(key, begin.plus(by_ms + 20_000))),
        "{:?}",
        change.timers
    );
}

#[test]
fn a_record_without_an_identity_has_one_from_the_next_start_on() {
    let load = |node: &Node, id: &str| {
        let tasks: Vec<_> = node.tasks().cloned().collect();
        let record = node.record().clone();
        Node::load(node.config.clone(), record, tasks, node.ledger().clone()).speaks_for(id.parse().unwrap())
    };
    let restart = || {
        Event::Restarted(Restarted {
            host_rebooted: false,
            containers: Vec::new(),
            ..Restarted::default()
        })
    };
    let (first, second) = ("a".repeat(32), "b".repeat(32));
    let mut old = node();
    run(&mut old, Millis(0), snapshot(5, vec![]));
    old.record.identity = None;
    let mut upgraded = load(&old, &first);
    assert!(upgraded.apply(Millis(1), restart()).node, "it is stored");
    // `register --force`, at a control plane with another store.
    let mut anew = load(&upgraded, &second);
    assert!(anew.is_rejoined());
    anew.apply(Millis(2), restart());
    let other = Event::Snapshot {
        position: Position {
            store_id: "another".into(),
            epoch: 1,
            revision: 1,
        },
        tasks: Vec::new(),
        refused: Vec::new(),
        removals_confirmed: false,
    };
    let ack = anew.apply(Millis(3), other).desired_ack.unwrap();
    assert_eq!(ack.refused, None);
}

/// A task that shares namespaces and runs, whose containers are started again when they end.
fn sharing(node: &mut Node) -> TaskSpec {
    let restart = crate::desired::RestartPolicy {
        ignored_exit_codes: vec![],
        attempt_period_ms: 60_000,
    };
    let containers = [(16, "a"), (17, "b")].map(|(n, name)| ContainerSpec {
        restart: Some(restart.clone()),
        ..container(n, name)
    });
    let mut spec = task(1, 0, containers.into());
    spec.pid = crate::desired::PidMode::Task;
    run(node, Millis(0), snapshot(1, vec![spec.clone()]));
    assert_eq!(node.task(&spec.id).unwrap().status(), Status::Running);
    spec
}

fn ended_for_its_holder(node: &Node, spec: &TaskSpec) {
    let (code, reason) = node.task(&spec.id).unwrap().stop.clone().unwrap();
    assert_eq!(code, StopCode::EssentialContainerExited);
    assert_eq!(reason, crate::task::HOLDER_ENDED);
}

#[test]
fn a_task_whose_namespaces_are_gone_ends_and_says_why() {
    // The end of the holder is heard of before that of its containers, or after.
    let mut node = node();
    let spec = sharing(&mut node);
    let ended = || Event::HolderEnded {
        task: spec.id.clone(),
    };
    run(&mut node, Millis(1), ended());
    ended_for_its_holder(&node, &spec);
    run(&mut node, Millis(2), ended());

    let mut node = self::node();
    let spec = sharing(&mut node);
    let exit = Exit {
        task: spec.id.clone(),
        container: spec.containers[0].id.clone(),
        attempt: Attempt(1),
        pid: 0,
        code: 137,
        at: Millis(1),
        oom_killed: false,
        holder_ended: true,
    };
    let change = node.apply(Millis(1), Event::Exited(exit));
    assert!(
        !change.effects.iter().any(|e| matches!(e, Effect::Start(_))),
        "{change:?}"
    );
    ended_for_its_holder(&node, &spec);
}

#[test]
fn the_end_of_a_holder_is_nothing_to_a_task_that_shares_nothing() {
    let mut node = node();
    let spec = task(1, 0, vec![container(16, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    run(
        &mut node,
        Millis(1),
        Event::HolderEnded {
            task: spec.id.clone(),
        },
    );
    assert_eq!(node.task(&spec.id).unwrap().status(), Status::Running);
    run(
        &mut node,
        Millis(2),
        Event::HolderEnded {
            task: format!("{:032x}", 9).parse().unwrap(),
        },
    );
}

#[test]
fn what_is_shared_is_prepared_with_the_largest_memory_that_is_asked_for() {
    let mut spec = task(1, 0, vec![container(16, "a"), container(17, "b")]);
    assert_eq!(spec.shared(), None);
    spec.pid = crate::desired::PidMode::Task;
    assert_eq!(spec.shared().unwrap().shared_memory_bytes, None);
    spec.ipc = crate::desired::IpcMode::Task;
    assert_eq!(spec.shared().unwrap().shared_memory_bytes, Some(64 << 20));
    spec.containers[1].linux.shared_memory_bytes = 8 << 20;
    spec.runtime = "crun".into();
    let shared = spec.shared().unwrap();
    assert_eq!(
        (shared.shared_memory_bytes, shared.runtime.as_str()),
        (Some(8 << 20), "crun")
    );
    let mut node = node();
    let change = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let prepared = change.effects.iter().find_map(|effect| match effect {
        Effect::PrepareHost(prepare) => Some(prepare.shared.clone()),
        _ => None,
    });
    assert_eq!(prepared, Some(spec.shared()));
}
