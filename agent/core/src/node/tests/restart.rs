//! What becomes of containers with a restart policy when they end.

use super::*;
use crate::{
    desired::RestartPolicy,
    event::{Observed, ObservedState},
};

/// A task of one essential container that is started again unless it exits with 42.
fn policed(n: u64) -> TaskSpec {
    let mut spec = task(n, 256, vec![container(n * 16, "main")]);
    spec.containers[0].restart = Some(RestartPolicy {
        ignored_exit_codes: vec![42],
        attempt_period_ms: 60_000,
    });
    spec
}

fn ended(spec: &TaskSpec, attempt: u32, code: i32, at: i64) -> Event {
    let mut exit = exit(&spec.id, &spec.containers[0].id, Attempt(attempt), code);
    exit.at = Millis(at);
    Event::Exited(exit)
}

fn wakes(spec: &TaskSpec) -> Event {
    Event::Timer(TimerKey::Retry(Lane::Lifecycle(
        spec.id.clone(),
        spec.containers[0].id.clone(),
    )))
}

fn starts(change: &Change) -> Vec<Attempt> {
    let starts = change.effects.iter().filter_map(|effect| match effect {
        Effect::Start(start) => Some(start.attempt),
        _ => None,
    });
    starts.collect()
}

fn main_of<'a>(node: &'a Node, spec: &TaskSpec) -> &'a crate::container::Container {
    node.task(&spec.id).unwrap().container(&spec.containers[0].id)
}

/// Started at 0.
fn up(spec: &TaskSpec) -> Node {
    let mut node = node();
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    assert_eq!(node.task(&spec.id).unwrap().status(), Status::Running);
    node
}

#[test]
fn a_container_that_ends_is_removed_and_started_again_as_the_next_attempt() {
    let spec = policed(1);
    let mut node = up(&spec);
    let change = node.apply(Millis(100), ended(&spec, 1, 1, 100));
    assert!(starts(&change).is_empty());
    let reports = settle(&mut node, Millis(101), change);
    // The task runs on, and says what of it does not.
    assert!(reports.iter().all(|r| r.task.facts.status == Status::Running));
    let facts = &reports.last().unwrap().task.facts;
    assert_eq!(
        facts.waiting.as_deref(),
        Some("container main exited with 1 and waits for its restart")
    );
    let state = &facts.containers[0];
    assert_eq!(
        (state.status, state.exit_code, state.restart_count),
        (Status::Pending, Some(1), 0)
    );
    let deadline = node.deadline(&spec.id).unwrap();
    assert_eq!(
        (deadline.at, deadline.then),
        (Millis(1_100), "a container that ended is started again")
    );
    let change = node.apply(Millis(1_099), wakes(&spec));
    assert!(starts(&change).is_empty(), "not before its time");
    let timer = TimerKey::Retry(Lane::Lifecycle(spec.id.clone(), spec.containers[0].id.clone()));
    assert!(change.timers.contains(&(timer, Millis(1_100))));
    let change = node.apply(Millis(1_100), wakes(&spec));
    assert_eq!(starts(&change), [Attempt(2)]);
    let reports = settle(&mut node, Millis(1_100), change);
    let state = &reports.last().unwrap().task.facts.containers[0];
    assert_eq!(
        (state.status, state.exit_code, state.finished, state.restart_count),
        (Status::Running, None, None, 1)
    );
    let attempts: Vec<_> = node
        .ledger()
        .entries()
        .filter(|owned| matches!(owned, Owned::Attempt(..)))
        .collect();
    let second = Owned::Attempt(spec.id.clone(), spec.containers[0].id.clone(), Attempt(2));
    assert_eq!(attempts, [&second]);
    // In a row: longer.
    run(&mut node, Millis(1_200), ended(&spec, 2, 1, 1_200));
    assert_eq!(node.deadline(&spec.id).unwrap().at, Millis(3_200));
}

#[test]
fn one_that_ran_for_its_period_does_not_wait() {
    let spec = policed(1);
    let mut node = up(&spec);
    let change = node.apply(Millis(60_000), ended(&spec, 1, 137, 60_000));
    settle(&mut node, Millis(60_000), change);
    let main = main_of(&node, &spec);
    assert_eq!((main.attempt, main.life), (Attempt(2), Life::Running));
}

#[test]
fn an_ignored_code_ends_the_task_of_an_essential_container() {
    let spec = policed(1);
    let mut node = up(&spec);
    run(&mut node, Millis(100), ended(&spec, 1, 42, 100));
    let task = node.task(&spec.id).unwrap();
    assert_eq!(task.status(), Status::Stopped);
    assert_eq!(task.stop.as_ref().unwrap().0, StopCode::EssentialContainerExited);
}

#[test]
fn without_a_policy_nothing_is_started_again() {
    let mut spec = policed(1);
    spec.containers[0].restart = None;
    let mut node = up(&spec);
    run(&mut node, Millis(100), ended(&spec, 1, 1, 100));
    assert_eq!(node.task(&spec.id).unwrap().status(), Status::Stopped);
}

#[test]
fn a_stop_wins_over_the_restart() {
    for removed in [false, true] {
        let spec = policed(1);
        let mut node = up(&spec);
        let change = node.apply(Millis(100), ended(&spec, 1, 1, 100));
        let mut left = vec![];
        if removed {
            settle(&mut node, Millis(100), change);
        } else {
            left.extend(change.effects);
        }
        let mut change = node.apply(Millis(101), stop(2, spec.clone()));
        change.effects.extend(left);
        settle(&mut node, Millis(101), change);
        let task = node.task(&spec.id).unwrap();
        assert_eq!(task.status(), Status::Stopped, "removed: {removed}");
        assert_eq!(main_of(&node, &spec).exit, Some(1));
        assert_eq!(main_of(&node, &spec).attempt.0, if removed { 2 } else { 1 });
    }
}

#[test]
fn those_that_wait_for_its_end_wait_until_it_stays_ended() {
    let mut spec = policed(1);
    spec.containers[0].essential = false;
    spec.containers.push(container(17, "after"));
    spec.containers[1].depends_on.push(Dependency {
        container: "main".into(),
        condition: Condition::Complete,
    });
    let mut node = node();
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    run(&mut node, Millis(100), ended(&spec, 1, 1, 100));
    let after = |node: &Node| {
        node.task(&spec.id)
            .unwrap()
            .container(&spec.containers[1].id)
            .life
    };
    assert_eq!(after(&node), Life::Waiting);
    // startTimeout counts from the first start, also while it waits, and over a restart of the agent.
    let change = node.apply(Millis(200), Event::Restarted(Restarted::default()));
    let key = TimerKey::StartTimeout(spec.id.clone(), spec.containers[0].id.clone());
    assert!(change.timers.contains(&(key.clone(), Millis(60_000))));
    let change = node.apply(Millis(1_100), wakes(&spec));
    assert!(change.timers.contains(&(key, Millis(60_000))));
    settle(&mut node, Millis(1_100), change);
    run(&mut node, Millis(1_200), ended(&spec, 2, 42, 1_200));
    assert_eq!(after(&node), Life::Running);
}

#[test]
fn an_exit_and_a_wait_survive_the_agent() {
    let spec = policed(1);
    let mut node = up(&spec);
    let gone = Observed {
        task: spec.id.clone(),
        container: spec.containers[0].id.clone(),
        attempt: Attempt(1),
        state: ObservedState::Exited {
            code: 1,
            at: Millis(100),
            oom_killed: false,
        },
    };
    let restarted = Restarted {
        containers: vec![gone],
        ..Restarted::default()
    };
    run(&mut node, Millis(500), Event::Restarted(restarted));
    assert_eq!(node.task(&spec.id).unwrap().status(), Status::Running);
    // And again, while it waits: the timer is set anew.
    let change = node.apply(Millis(600), Event::Restarted(Restarted::default()));
    let timer = TimerKey::Retry(Lane::Lifecycle(spec.id.clone(), spec.containers[0].id.clone()));
    assert!(change.timers.contains(&(timer, Millis(1_100))));
    // A clock that is set moves what is waited for, and how long it ran is counted right afterwards.
    run(&mut node, Millis(10_600), Event::ClockStepped { by_ms: 10_000 });
    assert_eq!(node.deadline(&spec.id).unwrap().at, Millis(11_100));
    run(&mut node, Millis(11_100), wakes(&spec));
    run(&mut node, Millis(111_200), Event::ClockStepped { by_ms: 100_000 });
    run(&mut node, Millis(111_300), ended(&spec, 2, 1, 111_300));
    assert_eq!(
        node.deadline(&spec.id).unwrap().at,
        Millis(113_300),
        "it ran 200 ms"
    );
}

#[test]
fn a_restart_that_cannot_start_is_an_end() {
    let mut spec = policed(1);
    spec.containers[0].essential = false;
    spec.containers.push(container(17, "after"));
    spec.containers.push(container(18, "stays"));
    spec.containers[1].depends_on.push(Dependency {
        container: "main".into(),
        condition: Condition::Complete,
    });
    spec.containers[1].essential = false;
    let mut node = node();
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    run(&mut node, Millis(100), ended(&spec, 1, 1, 100));
    let change = node.apply(Millis(1_100), wakes(&spec));
    let lane = change.effects[0].lane();
    let failure = Failure {
        kind: "CannotStartContainerError".into(),
        message: "no".into(),
        retryable: false,
    };
    run(&mut node, Millis(1_101), done(lane, Completion::Failed(failure)));
    let main = main_of(&node, &spec);
    assert!(main.never_ran() && main.has_ended(), "{main:?}");
    assert_eq!(main.reason.as_deref(), Some("CannotStartContainerError: no"));
    let after = node.task(&spec.id).unwrap().container(&spec.containers[1].id);
    assert_eq!(after.exit, Some(143), "it can never run");
}

#[test]
fn one_that_cannot_run_again_has_not_completed() {
    let mut again = Container::new();
    again.attempted = true;
    again.started = Some(Millis(1));
    again.give_up(Some(143), Some("dependency db exited, HEALTHY was needed".into()));
    assert_eq!((again.exit, again.exit_code()), (Some(143), None));
    assert!(again.never_ran());
}
